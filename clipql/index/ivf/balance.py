"""Lists that grow with their table: a parent whose rows have become more or fewer has its lists learnt anew.

Splitting lists that outgrow, merging those that shrink and dealing the rows around them again (LIRE, as in SPFresh,
SOSP 2023) is done a parent at a time: its rows are clustered into as many lists as a build would give them, by the
k-means that a build has for it, so what comes out is what a build would have learnt there. Its rows then go to the best
lists there are, of its own or of other parents; where queries find them is learnt again for its lists alone. A parent
of many more lists than others is split in several. Other parents keep their lists, rows and codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.index.ivf.learn import SAMPLE_PER_LIST, drawn
from clipql.index.ivf.train import COARSE_ROUNDS, FINE_ROUNDS, Integers, Lists, kmeans, nearest, parents_for, to_small

UNLIKE = 0.1  # share by which the rows of a parent differ from those before its lists are learnt anew
AHEAD = 1.05  # of the lists that its rows call for, as more will come
PER_NEW_ROW = 16  # rows that are dealt again in one growth, at most, for each that is new
SPLIT = 1.5  # times the lists of a usual parent, from which on a parent becomes several
LARGEST_SAMPLE = 20_000  # rows of one parent that its lists are learnt from, or SAMPLE_PER_LIST for each list


def rows_of_parents(edges: Integers, counts: Integers) -> Integers:
    """int64 (p,): rows in the lists of each parent, by the rows of each list."""
    before = np.concatenate([[0], np.cumsum(counts)])
    return np.asarray(before[edges[1:]] - before[edges[:-1]], np.int64)


def unlike(rows: Integers, learnt: Integers, per_list: float, new: int, most: int) -> Integers:
    """The parents whose lists are to be learnt anew, ascending: those with the most other rows than they were learnt
    from first, so many as hold PER_NEW_ROW times the `new` rows, and not more than `most`.
    """
    off = np.abs(rows - learnt)
    due = np.flatnonzero(off >= np.maximum(UNLIKE * learnt, 0.5 * per_list))
    due = due[np.argsort(-off[due] / np.maximum(learnt[due], 1), kind="stable")]
    held = np.cumsum(rows[due])
    return np.sort(due[held <= max(min(PER_NEW_ROW * new, most), held[0] if len(held) else 0)])


@dataclass(frozen=True)
class Relearnt:
    """lists: all of them now. number: int64 (l,), what number each that there was has now, -1 for one that is gone.

    parents: the numbers of those parents whose lists are new.
    """

    lists: Lists
    number: Integers
    parents: Sequence[int]


def relearn(
    vectors: Vectors,
    space: Space,
    lists: Lists,
    rows_of: dict[int, Integers],
    per_list: float,
    seed: Sequence[int],
    workers: Workers,
) -> Relearnt:
    """Learn the lists of some parents anew. rows_of: the rows of each such parent's lists, ascending."""
    total = lists.count
    usual = per_list * total / parents_for(total)  # rows of a parent in a build
    parents: list[Floats] = []
    small: list[NDArray[np.int8]] = []
    unit: list[Floats] = []
    sizes: list[int] = []
    number, fresh = np.full(total, -1, np.int64), []
    for parent in range(len(lists.parents)):
        a, b = int(lists.edges[parent]), int(lists.edges[parent + 1])
        if parent not in rows_of:
            number[a:b] = sum(sizes) + np.arange(b - a)
            parents.append(lists.parents[parent : parent + 1])
            small.append(lists.small[a:b])
            unit.append(lists.scale[a:b])
            sizes.append(b - a)
            continue
        for centroid, (mine, scale) in _learnt(
            vectors, space, lists.parents[parent], rows_of[parent], per_list, usual, (*seed, parent), workers
        ):
            fresh.append(len(parents))
            parents.append(centroid[None])
            small.append(mine)
            unit.append(scale)
            sizes.append(len(mine))
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Relearnt(Lists(np.concatenate(parents), edges, np.concatenate(small), np.concatenate(unit)), number, fresh)


def _learnt(
    vectors: Vectors,
    space: Space,
    centroid: Floats,
    rows: Integers,
    per_list: float,
    usual: float,
    seed: Sequence[int],
    workers: Workers,
) -> list[tuple[Floats, tuple[NDArray[np.int8], Floats]]]:
    """The parents that one becomes, with the lists of each."""
    count = max(1, round(AHEAD * len(rows) / per_list))
    share = min(1.0, max(SAMPLE_PER_LIST * count, LARGEST_SAMPLE) / max(1, len(rows)))
    y, _ = space.rows(vectors.take(rows[drawn(len(rows), share, seed)]), workers)
    rng = np.random.default_rng(seed)
    parts = round(len(rows) / usual) if len(rows) > SPLIT * usual else 1
    if not len(y):
        return [(centroid, to_small(centroid[None]))]
    if parts == 1:
        return [(centroid, to_small(kmeans(y, count, FINE_ROUNDS, rng, workers)))]
    centroids = kmeans(y, parts, COARSE_ROUNDS, rng, workers)
    owner, found = nearest(y, centroids, workers), []
    for part, each in enumerate(centroids):
        mine = y[owner == part]
        if len(mine):
            wanted = max(1, round(count * len(mine) / len(y)))
            found.append((each, to_small(kmeans(mine, wanted, FINE_ROUNDS, rng, workers))))
    return found
