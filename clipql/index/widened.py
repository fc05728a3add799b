"""Stored vectors in float32, with the squares of their lengths, in one pass over them on all cores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from clipql.index.cores import each_core
from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.kernels import half_to_float

Floats = NDArray[np.float32]


def widened(vectors: NDArray[Any], out: Floats, squares: Floats) -> None:
    """Vectors as float32, into out, and the squares of their lengths.

    vectors: float16 or float32 (n, d), C order; out: float32 (n, d) and squares: float32 (n,), overwritten.
    """
    if vectors.dtype == np.float16:
        bits = vectors.view(np.uint16)
        each_core(len(bits), lambda a, b: _halves(bits[a:b], out[a:b], squares[a:b]))
    else:
        each_core(len(vectors), lambda a, b: _floats(vectors[a:b], out[a:b], squares[a:b]))


@kernel
def _halves(vectors: NDArray[np.uint16], out: Floats, squares: Floats) -> None:
    for i in range(vectors.shape[0]):
        s = float32(0)
        for j in range(vectors.shape[1]):
            v = half_to_float(vectors[i, j])
            out[i, j] = v
            s += v * v
        squares[i] = s


@kernel
def _floats(vectors: Floats, out: Floats, squares: Floats) -> None:
    for i in range(vectors.shape[0]):
        s = float32(0)
        for j in range(vectors.shape[1]):
            v = vectors[i, j]
            out[i, j] = v
            s += v * v
        squares[i] = s
