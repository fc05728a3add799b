"""The arrays of rows of an index written anew, with other rows merged into its lists or in new lists.

What must stay true: the index that is read is not touched; its arrays are read once, in order; memory is bounded by the
rows that come in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.folder import NewFolder
from clipql.index.ivf.arrays import Arrays
from clipql.index.ivf.bounds import longest
from clipql.index.ivf.ranges import BOUNDS
from clipql.index.ivf.train import Integers

COPIED = 2_000_000  # codes that are copied at once
# what a row has in each array of an index, by its name in a record
OF_ROWS = {"code": "codes", "scale": "scale", "bias": "bias", "bound": BOUNDS, "row": "rows"}


def merge(
    new: NewFolder, source: Path, arrays: Arrays, records: NDArray[Any], number: Integers, lists: int
) -> tuple[Integers, float]:
    """Write the arrays of rows, in each list those that were there before those that come. records: sorted by list;
    rows that are in none come first. number: int64 (l,), what list each that there was is now, ascending, -1 for one
    that is gone, whose rows are among the records. lists: how many there are now.

    Returns start, int64 (lists + 1,), and the length of the longest code that came.
    """
    apart = int(np.searchsorted(records["list"], 0))
    placed, unplaced = records[apart:], records[:apart]
    kept = np.flatnonzero(number >= 0)
    stay = np.zeros(lists, np.int64)
    stay[number[kept]] = np.diff(arrays.start)[kept]
    added = np.bincount(placed["list"], minlength=lists).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(stay + added)]).astype(np.int64)
    new.save("start", start)
    count, old = int(start[-1]), int(arrays.start[-1])
    shift = start[number] - arrays.start[:-1]  # how far the rows of a list that stays are moved
    # the n-th row that comes to a list lies behind all that stay there
    at = start[placed["list"]] + stay[placed["list"]] + _rank(added)
    before = {name: np.load(source / f"{file}.npy", mmap_mode="r") for name, file in OF_ROWS.items()}
    for name, array in before.items():
        biased = name != "bias" or len(array) > 0
        rows = count + (len(array) - old + apart if name == "row" else 0)
        out = new.create(OF_ROWS[name], (rows if biased else 0, *array.shape[1:]), array.dtype)
        if not len(out):
            continue
        for a, b in stretches(arrays.start):
            size = np.diff(arrays.start[a : b + 1])
            stays = np.repeat(number[a:b] >= 0, size)
            first, last = int(arrays.start[a]), int(arrays.start[b])
            to = np.arange(first, last) + np.repeat(shift[a:b], size)
            out[to[stays]] = array[first:last][stays]
        out[at] = placed[name]
        if name == "row":
            out[count:] = np.concatenate([array[old:], unplaced["row"]])
    code = np.ascontiguousarray(placed["code"])
    most = float(longest(code, arrays.word_block, arrays.word_weight, len(arrays.turn))) if len(code) else 0.0
    return start, most


def _rank(sizes: Integers) -> Integers:
    """0, 1, … within each of runs of these sizes."""
    ends = np.cumsum(sizes)
    return np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)


def stretches(start: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of lists [a, b) with not too many rows, but one list at least."""
    found, a, lists = [], 0, len(start) - 1
    while a < lists:
        b = max(a + 1, int(np.searchsorted(start, start[a] + COPIED, side="right")) - 1)
        found.append((a, min(b, lists)))
        a = found[-1][1]
    return found
