"""Recall of a freshly built index over a grid of knobs, on queries whose neighbours are known exactly.

A query comes from a row, its own: a stored row, or the picture of a caption. The recall of a setting is the lower of
two: of own rows that are among the true ten, and of the other neighbours. So what was asked for is got for either.
A synthetic query is a row and more noise than row; its own row counts for nothing there. Asking for it, too,
would take many times the lists that the ten nearest rows of such a query take, and of a text query.

A query has ten neighbours and one own row, so own rows are looked up for many more queries. That is cheap: an own row
can be found only if its list is looked into, and one ranking of the lists tells for which numbers of lists it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Candidates
from clipql.index.ivf.knobs import Point, Setting
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.truth import NEIGHBOURS, Neighbours, Truth, settled

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 16  # searches in one task of a pool
TOGETHER = 25  # searches in one call of an index
RESCORES, MOST_RESCORED = (40, 100, 200), 1800
ENOUGH = 0.998  # no wider setting is measured beyond it,
WORTH = 0.001  # nor after steps in a row that gained less than this: so many from a recall of GOOD on, and below it
GOOD, DULL, DULL_BELOW = 0.99, 2, 4
LOW = 0.6  # recall that few ask for: one setting for such is enough
WORSE = 0.98  # of the recall of most rows compared: fewer that reach less are not tried with more lists
FEWEST_OWN = 20  # own rows among the true ten for their recall to be told
MOST_RANKED = 8192  # lists in a ranking: an own row whose list comes later counts as found only where all are read
ROW_COST, KEPT_COST = 25.0, 14.0  # a rescored row, and one that may be, take as long as about this many codes


@dataclass(frozen=True)
class Owned:
    """Queries (n, d) and the rows (n,) that they came from."""

    queries: NDArray[np.float32]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Asked:
    """What is measured with: each query with its neighbours and the rank of its own row's list; and ranks of more."""

    queries: Sequence[tuple[NDArray[np.float32], Neighbours, int]]
    ranks: NDArray[np.int64]


def measure(
    index: IvfIndex,
    truth: Truth,
    which: NDArray[np.int64],
    more: Owned | None,
    threads: int,
    tick: Callable[[], None],
) -> list[Point]:
    """Points for these queries of the truth, from few lists up to where hardly a neighbour is missed. more: queries
    of the same kind, for how many lists their own rows need; None where own rows do not count.

    Where the number of rows that are compared is what limits recall, more are.
    """
    if not len(which) or index.spread_out():
        return []
    points: list[Point] = []
    best, rescores, dull = 0.0, list(RESCORES), 0
    with ThreadPoolExecutor(threads) as pool:
        asked = _asked(index, truth, which, more, pool)
        for nprobe in _grid(index.lists):
            row = [_point(index, asked, Setting(nprobe, rescores[-1]), pool)]
            if row[0][0].recall > LOW:
                row = [*(_point(index, asked, Setting(nprobe, r), pool) for r in rescores[:-1]), *row]
            while nprobe == index.lists or row[-1][1] - best < WORTH:  # more lists alone do not help
                fewer = row[-2][1] if len(row) > 1 else 0.0
                limits = row[-1][1] - fewer > WORTH and row[-1][0].recall < ENOUGH
                if not limits or rescores[-1] >= MOST_RESCORED:
                    break
                rescores.append(3 * rescores[-1])
                row.append(_point(index, asked, Setting(nprobe, rescores[-1]), pool))
            points += [point for point, _ in row]
            tick()
            if len(row) > 1:
                rescores = [
                    p.setting.rescore for p, _ in row if p is row[-1][0] or p.recall > WORSE * row[-1][0].recall
                ]
            dull = dull + 1 if row[-1][1] - best < WORTH else 0
            best, reached = max(best, row[-1][1]), max(p.recall for p in points)
            if reached >= ENOUGH or dull >= (DULL if reached >= GOOD else DULL_BELOW):
                break
    return points


def _asked(
    index: IvfIndex, truth: Truth, which: NDArray[np.int64], more: Owned | None, pool: ThreadPoolExecutor
) -> _Asked:
    distances, descending = index.distances, index.metric.larger_is_nearer
    near = [settled(truth, i, index.apart, distances, descending=descending) for i in which.tolist()]
    queries = truth.queries[which]
    if more is None:
        return _Asked([(q, n, 0) for q, n in zip(queries, near, strict=True)], np.empty(0, np.int64))
    ranks = _ranks(index, queries, truth.own[which], pool)
    wide = {"nprobe": max(1, index.lists // 4), "rescore": RESCORES[-1]}

    def among_ten(i: int) -> bool:
        tenth = index.search(more.queries[i], NEIGHBOURS, knobs=wide).distances[-1]
        own = distances(more.queries[i], more.rows[i : i + 1])[0]
        return bool(own >= tenth if descending else own <= tenth)

    kept = np.fromiter(_map(pool, among_ten, range(len(more.rows))), np.bool_, len(more.rows))
    others = _ranks(index, more.queries[kept], more.rows[kept], pool)
    own = np.array([n.own for n in near], np.bool_)
    asked = [(q, n, r) for q, n, r in zip(queries, near, ranks.tolist(), strict=True)]
    return _Asked(asked, np.concatenate([others, ranks[own]]))


def _ranks(
    index: IvfIndex, queries: NDArray[np.float32], rows: NDArray[np.int64], pool: ThreadPoolExecutor
) -> NDArray[np.int64]:
    """int64 (n,): how many lists are more promising for queries[i] than that which holds rows[i]; MOST_RANKED if so
    many or more.
    """
    lists = index.lists_of(rows)

    def rank(i: int) -> int:
        found = np.flatnonzero(index.ranked(queries[i], MOST_RANKED) == lists[i])
        return int(found[0]) if len(found) else MOST_RANKED

    return np.fromiter(_map(pool, rank, range(len(rows))), np.int64, len(rows))


def _map(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results in order. A task of the pool takes several items, as one search may cost less than a task does."""
    runs = [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]
    return itertools.chain.from_iterable(pool.map(lambda run: [work(item) for item in run], runs))


def _grid(lists: int) -> Sequence[int]:
    steps = [round(2 ** (e / 2)) for e in range(2, 25)]
    return [s for s in steps if s < lists] + [lists]


def _point(index: IvfIndex, asked: _Asked, setting: Setting, pool: ThreadPoolExecutor) -> tuple[Point, float]:
    """A setting's point, and the recall of all neighbours together, which grows in smaller steps."""
    knobs = {"nprobe": setting.nprobe, "rescore": setting.rescore}

    def some(queries: Sequence[tuple[NDArray[np.float32], Neighbours, int]]) -> list[tuple[int, int, int, float]]:
        together = index.search_each(np.stack([query for query, _, _ in queries]), NEIGHBOURS, knobs=knobs)
        return [one(query, found) for query, found in zip(queries, together, strict=True)]

    def one(
        query: tuple[NDArray[np.float32], Neighbours, int], found: Candidates | None
    ) -> tuple[int, int, int, float]:
        found = found or index.search(query[0], NEIGHBOURS, knobs=knobs)
        hits, own = query[1].found(found.rows[:NEIGHBOURS], found.distances[:NEIGHBOURS])
        looked = query[1].own and (own or query[2] < setting.nprobe)
        cost = found.cost.codes_scanned + ROW_COST * found.cost.rows_rescored + KEPT_COST * setting.rescore
        return hits, own and query[1].own, looked, cost

    runs = [asked.queries[i : i + TOGETHER] for i in range(0, len(asked.queries), TOGETHER)]
    found = itertools.chain.from_iterable(pool.map(some, runs))
    hits, own, looked, costs = (np.array(column) for column in zip(*found, strict=True))
    recall = float(hits.sum() / max(1, sum(len(n.others) for _, n, _ in asked.queries)))
    mean = recall
    if len(asked.ranks) >= FEWEST_OWN:
        reached = np.ones(1) if setting.nprobe >= index.lists else asked.ranks < setting.nprobe
        kept = float(reached.mean()) * float(own.sum() / max(1, looked.sum()) if looked.any() else 1.0)
        recall, mean = min(recall, kept), (recall + kept) / 2
    return Point(setting, round(recall, 4), round(float(costs.mean()), 1)), mean
