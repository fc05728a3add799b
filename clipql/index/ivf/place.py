"""The one pass of a build over all rows: find each row's list, encode it, and deal it to the stretch where it belongs.

A row's final position is known only when all lists are counted. So codes go to buckets, each of neighbouring lists
(`buckets`), and `lay_out` puts one bucket after the other in order, in memory. After each part of the rows everything
is synced and a checkpoint says how far the pass is; a build that was cut off goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.folder import NewFolder
from clipql.index.ivf.bounds import Bounds, longest
from clipql.index.ivf.buckets import Buckets
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.index.ivf.learn import CHUNK, chunks
from clipql.index.ivf.ranges import BOUNDS
from clipql.index.ivf.routing import Followed
from clipql.index.ivf.train import Assigner, Lists
from clipql.index.ivf.truth import Truth
from clipql.storage.vectors.bits import kernel

STRETCH = 2_000_000  # rows of a bucket, about: 150 MB at 512 dimensions
KEPT = "row list scale bias bound code"  # of a row in a bucket
PART = 16 * CHUNK  # rows between two checkpoints


@dataclass(frozen=True)
class Progressed:
    """How far the pass is. next: the first row still to come. sizes, followed: records in each bucket.

    counts: int64 (l,), rows of each list. energy: float64 (l,), sum of |z|² of each list's residuals; square: the same
    of |y|². score, rows: of `Truth`.
    """

    next: int
    sizes: NDArray[np.int64]
    followed: NDArray[np.int64]
    counts: NDArray[np.int64]
    energy: NDArray[np.float64]
    square: NDArray[np.float64]
    score: Floats
    rows: NDArray[np.int64]


def beginning(lists: int, buckets: int, followed: int, truth: Truth) -> Progressed:
    """Before the first row."""
    sizes, more, counts = (np.zeros(n, np.int64) for n in (buckets, followed, lists))
    return Progressed(0, sizes, more, counts, np.zeros(lists), np.zeros(lists), truth.score, truth.rows)


def record(coder: Coder) -> np.dtype[Any]:
    """What is known of a row in a bucket. list is -1 for a row that is in none; those are in the last bucket."""
    kinds = ["<u4", "<i4", "<f4", "<f4", ("<f2", (2,)), ("<u8", (coder.words,))]
    return np.dtype({"names": KEPT.split(), "formats": kinds})


def limits(lists: Lists, rows: int) -> NDArray[np.int64]:
    """int64 (b + 1,): bucket i holds lists [limits[i], limits[i + 1])."""
    count = max(1, min(lists.count, -(-rows // STRETCH)))
    return np.linspace(0, lists.count, count + 1).astype(np.int64)


def place(
    vectors: Vectors,
    space: Space,
    lists: Lists,
    coder: Coder,
    buckets: Buckets,
    followed: Followed | None,
    truth: Truth,
    so_far: Progressed,
    workers: Workers,
    reached: Callable[[int], None],
    keep: Callable[[Progressed], None],
) -> Progressed:
    """Deal all rows from `so_far` on. reached(row) is called with each chunk; keep(progressed) after each part."""
    assign, limit = Assigner(lists, workers), limits(lists, vectors.rows)
    counts, energy, square = so_far.counts.copy(), so_far.energy.copy(), so_far.square.copy()
    told, bounds = so_far, Bounds(coder)
    for first, block in chunks(vectors, vectors.rows, CHUNK, so_far.next):
        y, good = space.rows(block, workers)
        truth.add(first, y, good)
        owner = np.where(good, assign(y), -1)
        if followed is not None:
            followed.add(first, block, owner)
        records, length = records_of(first, y, owner, lists, coder, bounds, workers)
        _add_up(owner, length, records["bias"], counts, energy, square)
        buckets.add(np.where(good, np.searchsorted(limit, owner, side="right") - 1, len(buckets) - 1), records)
        end = first + len(y)
        reached(end)
        if end // PART > first // PART or end == vectors.rows:
            sizes = np.array(buckets.sync(), np.int64)
            more = np.array(followed.buckets.sync() if followed is not None else [], np.int64)
            told = Progressed(end, sizes, more, counts, energy, square, truth.score, truth.rows)
            keep(told)
    return told


def records_of(
    first: int, y: Floats, owner: NDArray[np.int64], lists: Lists, coder: Coder, bounds: Bounds, workers: Workers
) -> tuple[NDArray[Any], Floats]:
    """The records of rows that follow each other from `first` on, and |z|² of each. y: (n, d), which become residuals;
    owner: (n,), the list of each, -1 for none.
    """
    records = np.zeros(len(y), record(coder))
    records["row"], records["list"] = np.arange(first, first + len(y), dtype=np.uint32), owner
    records["bias"] = np.einsum("ij,ij->i", y, y) * np.float32(-0.5)
    workers.each(len(y), lambda a, b: _residuals(y[a:b], owner[a:b], lists.small, lists.scale))
    code, scale, length = coder.encode(y, workers)
    records["code"], records["scale"], records["bound"] = code, scale, bounds.of(y, code, scale, workers)
    return records, length


def lay_out(
    buckets: Buckets, folder: NewFolder, done: Progressed, coder: Coder, biased: bool
) -> tuple[NDArray[np.int64], float]:
    """Write codes, scale, bias, bounds and rows in list order; returns start, int64 (l + 1,), and the length of the
    longest code.
    """
    start = np.concatenate([[0], np.cumsum(done.counts)]).astype(np.int64)
    placed, rows = int(start[-1]), int(done.sizes.sum())
    out: dict[str, NDArray[Any]] = {
        "code": folder.create("codes", (placed, coder.words), np.uint64),
        "scale": folder.create("scale", (placed,), np.float32),
        "bias": folder.create("bias", (placed if biased else 0,), np.float32),
        "bound": folder.create(BOUNDS, (placed, 2), np.float16),
        "row": folder.create("rows", (rows,), np.uint32),
    }
    at, lost, most = 0, [], 0.0
    for number in range(len(buckets)):
        records = buckets.read(number)
        records = records[np.argsort(records["list"], kind="stable")]
        unplaced = int(np.searchsorted(records["list"], 0))
        lost.append(records["row"][:unplaced])
        records = records[unplaced:]
        for name, array in out.items():
            if len(array):
                array[at : at + len(records)] = records[name]
        code = np.ascontiguousarray(records["code"])
        most = max(most, float(longest(code, coder.word_block, coder.word_weight, len(coder.query))))
        at += len(records)
    out["row"][placed:] = np.concatenate(lost)
    return start, most


@kernel
def _residuals(y: Floats, owner: NDArray[np.int64], small: NDArray[np.int8], unit: Floats) -> None:
    for i in range(y.shape[0]):
        c = owner[i]
        if c >= 0:
            for j in range(y.shape[1]):
                y[i, j] -= np.float32(small[c, j]) * unit[c]


@kernel
def _add_up(
    owner: NDArray[np.int64],
    length: Floats,
    bias: Floats,
    counts: NDArray[np.int64],
    energy: NDArray[np.float64],
    square: NDArray[np.float64],
) -> None:
    for i in range(owner.size):
        c = owner[i]
        if c >= 0:
            counts[c] += 1
            energy[c] += length[i]
            square[c] -= 2 * bias[i]
