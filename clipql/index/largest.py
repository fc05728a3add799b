"""The largest scores of each row of a matrix, in one pass over it, on all cores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.index.cores import each_core
from clipql.storage.vectors.bits import kernel

Floats = NDArray[np.float32]


def largest_of_rows(scores: Floats, places: NDArray[np.int32], best: Floats) -> None:
    """The largest scores of each row and their places, largest first; of equal ones, the first.

    scores: float32 (rows, n); places: int32 (rows, k) and best: float32 (rows, k), overwritten. NaN is never among
    them: where there are fewer than k other scores, best ends with -infinity.
    """
    each_core(len(scores), lambda a, b: _largest(scores[a:b], places[a:b], best[a:b]))


@kernel
def _largest(scores: Floats, places: NDArray[np.int32], best: Floats) -> None:
    """The largest scores of each row and their places, largest first."""
    n = places.shape[1]
    for i in range(scores.shape[0]):
        for m in range(n):
            best[i, m] = -np.inf
            places[i, m] = 0
        for j in range(scores.shape[1]):
            s = scores[i, j]
            if s > best[i, n - 1]:
                m = n - 1
                while m > 0 and s > best[i, m - 1]:
                    best[i, m] = best[i, m - 1]
                    places[i, m] = places[i, m - 1]
                    m -= 1
                best[i, m] = s
                places[i, m] = j
