"""Recall of a freshly built index over a grid of knobs, on queries whose neighbours are known exactly.

A query comes from a row, its own: a stored row, or the picture of a caption. That row is not counted, as a query that
nobody has stored has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.knobs import Point, Setting
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.truth import NEIGHBOURS, Neighbours, Truth, settled

RESCORES, MOST_RESCORED = (40, 100, 300), 2700
ENOUGH = 0.998  # no wider setting is measured beyond it,
WORTH = 0.001  # nor after steps in a row that gained less than this: so many from a recall of GOOD on, and below it
GOOD, DULL, DULL_BELOW = 0.99, 2, 4
ROW_COST = 25.0  # a rescored row takes as long as about this many codes


def measure(
    index: IvfIndex, truth: Truth, which: NDArray[np.int64], threads: int, tick: Callable[[], None]
) -> list[Point]:
    """Points for these queries of the truth, from few lists up to where hardly a neighbour is missed.

    Where the number of rows that are compared is what limits recall, more are.
    """
    if not len(which) or index.spread_out():
        return []
    distances, descending = index.distances, index.metric.larger_is_nearer
    near = [settled(truth, i, index.apart, distances, descending=descending) for i in which.tolist()]
    asked = [(truth.queries[i], n) for i, n in zip(which.tolist(), near, strict=True)]
    points: list[Point] = []
    best, rescores, dull = 0.0, list(RESCORES), 0
    with ThreadPoolExecutor(threads) as pool:
        for nprobe in _grid(index.lists):
            row = [_point(index, asked, Setting(nprobe, r), pool) for r in rescores]
            while nprobe == index.lists or row[-1][1] - best < WORTH:  # more lists alone do not help
                limits = row[-1][1] - row[-2][1] > WORTH and row[-1][0].recall < ENOUGH
                if not limits or rescores[-1] >= MOST_RESCORED:
                    break
                rescores.append(3 * rescores[-1])
                row.append(_point(index, asked, Setting(nprobe, rescores[-1]), pool))
            points += [point for point, _ in row]
            tick()
            dull = dull + 1 if row[-1][1] - best < WORTH else 0
            best, reached = max(best, row[-1][1]), max(p.recall for p in points)
            if reached >= ENOUGH or dull >= (DULL if reached >= GOOD else DULL_BELOW):
                break
    return points


def _grid(lists: int) -> Sequence[int]:
    steps = [round(2 ** (e / 2)) for e in range(2, 25)]
    return [s for s in steps if s < lists] + [lists]


def _point(
    index: IvfIndex, asked: Sequence[tuple[NDArray[np.float32], Neighbours]], setting: Setting, pool: ThreadPoolExecutor
) -> tuple[Point, float]:
    """A setting's point, and its recall unrounded."""
    knobs = {"nprobe": setting.nprobe, "rescore": setting.rescore}

    def one(query: tuple[NDArray[np.float32], Neighbours]) -> tuple[int, float]:
        found = index.search(query[0], NEIGHBOURS + 1, knobs=knobs)
        cost = found.cost.codes_scanned + ROW_COST * found.cost.rows_rescored
        return query[1].found(found.rows, found.distances), cost

    hits, costs = zip(*pool.map(one, asked), strict=True)
    recall = sum(hits) / max(1, sum(len(n.rows) for _, n in asked))
    return Point(setting, round(recall, 4), round(float(np.mean(costs)), 1)), recall
