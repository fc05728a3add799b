"""Learning the lists from rows of the column: one pass that deals rows to parents, then each parent on its own.

32 rows a list, evenly drawn and at most 8 million, are dealt. What must stay true: memory holds one bucket of them,
whatever the table; the same rows and seed give the same lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine import memory
from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.ivf.buckets import Buckets
from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.index.ivf.train import (
    COARSE_ROUNDS,
    FINE_ROUNDS,
    Integers,
    Lists,
    kmeans,
    nearest,
    parents_for,
    to_small,
)
from clipql.storage.vectors.bits import ask_disk

FEWEST_ROWS = 1000
LARGEST_SAMPLE = 8_000_000
SAMPLE_PER_LIST = 32  # rows that a list's place is learnt from
SAMPLE_PER_PARENT = 256
MOST_SPREAD = 400_000
RUN = 16  # rows next to each other that are read together, where rows all over a column are wanted
CHUNK = 65_536
BUCKET_BYTES = 400 << 20
Progress = Callable[[str, int, int], None]


def chunks(
    vectors: Vectors, rows: int, size: int = CHUNK, first: int = 0
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Stored rows [first, rows) in order, at most `size` at a time; the next are read from the disk meanwhile."""
    gathered = getattr(vectors, "gathered", None)  # of a column some of whose rows have no vector
    if gathered is not None:
        yield from gathered(first, rows, size)
        return
    found = [
        (start + a, block[a : min(a + size, rows - start)])
        for start, block in vectors.blocks(first, rows)
        for a in range(0, min(len(block), rows - start), size)
    ]
    ahead = memory.on_disk(sum(block.nbytes for _, block in vectors.blocks(0, rows)))
    for number, (start, block) in enumerate(found):
        if ahead and number + 1 < len(found):
            after = found[number + 1][1]
            ask_disk(np.uint64(after.ctypes.data), np.zeros(1, np.int64), 0, after.nbytes)
        yield start, block


def spread(rows: int, wanted: int, seed: Sequence[int]) -> Integers:
    """About so many row numbers from all over [0, rows), ascending, in short runs that are read together."""
    if wanted >= rows:
        return np.arange(rows)
    if rows < 2 * RUN or wanted < RUN:
        return np.linspace(0, rows - 1, max(0, wanted)).astype(np.int64)
    runs = -(-wanted // RUN)
    starts = np.linspace(0, rows - RUN, runs).astype(np.int64)
    room = max(1, (rows - RUN) // runs - RUN)
    starts = np.minimum(starts + np.random.default_rng(seed).integers(0, room, runs), rows - RUN)
    return np.unique(starts[:, None] + np.arange(RUN))[:wanted]


def sample_for(lists: int) -> int:
    """From how many rows so many lists are learnt."""
    return min(LARGEST_SAMPLE, max(SAMPLE_PER_LIST * lists, 20_000))


def learn(
    vectors: Vectors, space: Space, count: int, folder: Path, seed: int, workers: Workers, progress: Progress
) -> Lists:
    """Learn about `count` lists. folder is for scratch files.

    Raises VectorIndexError where too few rows have a direction.
    """
    rows = vectors.rows
    some = spread(rows, min(MOST_SPREAD, max(SAMPLE_PER_PARENT * parents_for(count), 20_000)), (seed, 1))
    y, good = space.rows(vectors.take(some), workers)
    if good.sum() < FEWEST_ROWS // 2:
        raise VectorIndexError(
            f"only {int(good.sum())} of {len(some)} sampled rows have a direction and a length of the same order of "
            "magnitude; too few to learn from: they are scanned"
        )
    y, rng = y[good], np.random.default_rng((seed, 2))
    parents = kmeans(y, min(parents_for(count), len(y) // 32), COARSE_ROUNDS, rng, workers)
    del y
    share = min(1.0, sample_for(count) / rows)
    with _deal(vectors, space, parents, share, folder, seed, workers, progress) as dealt:
        return _learn_each(dealt, parents, space, count, seed, workers, progress)


@dataclass(frozen=True)
class _Dealt:
    """Sampled rows in buckets of neighbouring parents. size: int64 (p,), rows of each; limit: (b + 1,), parents."""

    buckets: Buckets
    size: Integers
    limit: Integers

    def __enter__(self) -> _Dealt:
        return self

    def __exit__(self, *_: object) -> None:
        self.buckets.__exit__()

    def parent_rows(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Each parent with its records."""
        for number in range(len(self.buckets)):
            records = self.buckets.read(number)
            yield from by_group(records, records["parent"], int(self.limit[number]), int(self.limit[number + 1]))
            self.buckets.remove(number)


def by_group(
    records: NDArray[Any], group: NDArray[np.integer], first: int, last: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each number in [first, last) with the records of that group."""
    order = np.argsort(group, kind="stable")
    edge = np.searchsorted(group[order], np.arange(first, last + 1))
    for at, number in enumerate(range(first, last)):
        yield number, records[order[edge[at] : edge[at + 1]]]


def row_kind(vectors: Vectors) -> Any:
    """The dtype that holds every stored row as it is."""
    return np.float32 if any(b.dtype != np.float16 for _, b in vectors.blocks(0, vectors.rows)) else np.float16


def drawn(n: int, share: float, seed: Sequence[int]) -> Integers:
    """So large a share of n rows, at least one, ascending."""
    if share >= 1:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, max(1, round(n * share)), replace=False))


def _deal(
    vectors: Vectors,
    space: Space,
    parents: Floats,
    share: float,
    folder: Path,
    seed: int,
    workers: Workers,
    progress: Progress,
) -> _Dealt:
    rows, p = vectors.rows, len(parents)
    kind = np.dtype([("parent", "<i4"), ("x", row_kind(vectors), (vectors.dimension,))])
    count = max(1, min(p, -(-int(rows * share) * kind.itemsize // BUCKET_BYTES)))
    limit, size = np.linspace(0, p, count + 1).astype(np.int64), np.zeros(p, np.int64)
    buckets = Buckets(folder, "sample", count, kind)
    for first, block in chunks(vectors, rows):
        chosen = drawn(len(block), share, (seed, 3, first))
        y, good = space.rows(block[chosen], workers)
        parent = nearest(y, parents, workers)[good]
        records = np.empty(len(parent), kind)
        records["parent"], records["x"] = parent, block[chosen[good]]
        buckets.add(np.searchsorted(limit, parent, side="right") - 1, records)
        size += np.bincount(parent, minlength=p)
        progress("sample", first + len(block), rows)
    return _Dealt(buckets, size, limit)


def _learn_each(
    dealt: _Dealt, parents: Floats, space: Space, count: int, seed: int, workers: Workers, progress: Progress
) -> Lists:
    share = np.maximum(1, np.rint(dealt.size * (count / max(1, int(dealt.size.sum())))).astype(np.int64))
    edges = np.zeros(len(parents) + 1, np.int64)
    small, scale = [], []
    for parent, records in dealt.parent_rows():
        centroids = parents[parent : parent + 1]
        if len(records):
            y, _ = space.rows(records["x"], workers)
            rng = np.random.default_rng((seed, 4, parent))
            centroids = kmeans(y, int(share[parent]), FINE_ROUNDS, rng, workers)
        mine, unit = to_small(centroids)
        edges[parent + 1] = edges[parent] + len(mine)
        small.append(mine)
        scale.append(unit)
        progress("train", parent + 1, len(parents))
    return Lists(parents, edges, np.concatenate(small), np.concatenate(scale))
