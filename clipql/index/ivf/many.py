"""The search loop for many queries in one call: nothing between two of them holds the interpreter's lock.

What must stay true: each finds what `kernels.search` finds for it alone, in the order of `index.base.nearest`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import TIED
from clipql.index.ivf.geometry import Floats, Number
from clipql.index.ivf.kernels import search
from clipql.index.ivf.rescore import DOT, SPARE, hides_ties
from clipql.storage.vectors.bits import kernel

Integers = NDArray[np.int64]
MOST_TIED = 32  # rows within rounding of the k-th that there is room for


class Asked(NamedTuple):
    """Queries, each with how it is searched for; n of them of d numbers.

    query: float32 (n, d) as given, v (n, d) as the space turned them. nprobe, rescore, ranked: int64 (n,), slack:
    float32 (n,), as `kernels.search` takes them.
    """

    query: Floats
    v: Floats
    nprobe: Integers
    rescore: Integers
    ranked: Integers
    slack: Floats


class Found(NamedTuple):
    """What each found. rows: int64 (n, most), distances: float64 (n, most), nearest first, of which `size` (n,) count.

    size: with those that tie with the k-th; -1 for those that are to be searched for alone: there was no room, they
    found fewer than k, or rows that were not compared may tie with the k-th. counts: int64 (n, 7).
    """

    rows: Integers
    distances: NDArray[np.float64]
    size: Integers
    counts: Integers


def room(n: int, k: int) -> Found:
    """Where n searches for k rows write."""
    most = k + SPARE + MOST_TIED
    return Found(
        np.empty((n, most), np.int64),
        np.empty((n, most)),
        np.full(n, -1, np.int64),
        np.zeros((n, 7), np.int64),
    )


@kernel
def search_each(
    told: Integers,
    metric: int,
    asked: Asked,
    unit: Number,
    among: NDArray[np.bool_],
    k: int,
    reach: Number,
    cold: int,
    sparse: bool,
    root: bool,
    alike: float,
    context: np.uint64,
    into: Found,
) -> None:
    """`kernels.search` for each of the queries. root: distances are roots of what it gives. alike: see `hides_ties`."""
    not_routed = np.empty(0, np.int64)
    for z in range(asked.nprobe.size):
        rows, distances, counts, edge = search(
            told, metric, asked.query[z], asked.v[z], unit, among, k, asked.nprobe[z], asked.rescore[z], reach,
            asked.slack[z], asked.ranked[z], cold, not_routed, sparse, context,
        )  # fmt: skip
        into.counts[z] = counts
        if rows.size > into.rows.shape[1] or rows.size < k:
            continue
        if counts[2] == asked.rescore[z] and hides_ties(distances, k, metric == DOT, edge, 2 * TIED, alike):
            continue
        for i in range(rows.size):
            distance = np.sqrt(distances[i]) if root else distances[i]
            _insert(into.rows[z], into.distances[z], i, rows[i], distance, metric == DOT)
        into.size[z] = _with_ties(into.distances[z], rows.size, k)


@kernel
def _insert(rows: Integers, distances: NDArray[np.float64], n: int, row: int, distance: float, largest: bool) -> None:
    """Put a row in its place among n: nearest first, NaN last, equal ones by row."""
    key = -distance if largest else distance
    while n > 0:
        other = -distances[n - 1] if largest else distances[n - 1]
        if other < key or (np.isnan(key) and not np.isnan(other)):
            break
        if (other == key or (np.isnan(key) and np.isnan(other))) and rows[n - 1] < row:
            break
        rows[n], distances[n] = rows[n - 1], distances[n - 1]
        n -= 1
    rows[n], distances[n] = row, distance


@kernel
def _with_ties(distances: NDArray[np.float64], n: int, k: int) -> int:
    """How many of n distances in order come no later than those that tie with the k-th: see `within_float32`."""
    if n <= k:
        return n
    kth, size = distances[k - 1], k
    if np.isnan(kth):
        return n
    while size < n and abs(distances[size] - kth) <= TIED * abs(kth):
        size += 1
    return size
