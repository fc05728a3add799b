"""The arrays of an index, as its loops take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf import lookup
from clipql.index.ivf.codes import Words
from clipql.index.ivf.geometry import Floats
from clipql.storage.vectors.bits import as_bfloat16

Integers = NDArray[np.int64]


class Arrays(NamedTuple):
    """The mapped arrays of an index, as the kernels take them. n rows placed, l lists, w words, p parents.

    start: int64 (l + 1,), list i holds positions [start[i], start[i + 1]). rows: uint32, row at each position (any
    rows after the last position are in no list). codes: uint64 (n, w), scale: float32 (n,), bias: float32 (n,) or
    empty. list_*: the same of centroids; list_small (l, d) int8 and list_unit: float32 (l,) are the centroids;
    list_spread: float32 (l,), root mean square length of coded residuals. shape: float32 (b,), share of that length
    in one number of each block. mean: float32 (d,). turn: float32 (64 b, d), the query's side of the coder.

    `prepared` gives those that the kernels take, where turn, list_turn and parents are bfloat16, and list_codes may
    be tiled.
    """

    start: Integers
    rows: NDArray[np.uint32]
    codes: Words
    scale: Floats
    bias: Floats
    list_codes: Words
    list_scale: Floats
    list_bias: Floats
    list_small: NDArray[np.int8]
    list_unit: Floats
    list_spread: Floats
    parents: Floats
    edges: Integers
    turn: Floats
    word_block: NDArray[np.int32]
    word_weight: Floats
    list_turn: Floats
    list_word_block: NDArray[np.int32]
    list_word_weight: Floats
    shape: Floats
    mean: Floats


def prepared(arrays: Arrays) -> Arrays:
    """The arrays as the loops of a search read them.

    What each query is multiplied by takes half the bytes, as bfloat16: that is more than the processor's cache has room
    for beside the codes. It is rounded by a two-hundredth of what a query is rounded by next. Codes of lists are tiled
    where the processor has look-ups for them.
    """
    changed: dict[str, Any] = {name: as_bfloat16(getattr(arrays, name)) for name in ("turn", "list_turn", "parents")}
    if lookup.at_hand() and arrays.list_codes.shape[1] == lookup.WORDS:
        changed["list_codes"] = lookup.tiled(arrays.list_codes)
    for array in changed.values():
        array.setflags(write=False)  # as what is mapped, or the kernels are compiled once more
    return arrays._replace(**changed)
