"""Recall of a freshly built index over a grid of knobs, on queries whose neighbours are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.knobs import Point, Setting
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.truth import NEIGHBOURS, Truth

RESCORES = (40, 100, 300)
ENOUGH = 0.998  # no wider setting is measured beyond it,
WORTH = 0.001  # nor after two steps in a row that gained less than this
ROW_COST = 25.0  # a rescored row takes as long as about this many codes


def measure(
    index: IvfIndex, truth: Truth, which: NDArray[np.int64], threads: int, tick: Callable[[], None]
) -> list[Point]:
    """Points for these queries of the truth, from few lists up to where hardly a neighbour is missed."""
    points: list[Point] = []
    if not len(which):
        return points
    best, dull = 0.0, 0
    with ThreadPoolExecutor(threads) as pool:
        for nprobe in _grid(index.lists):
            row = [_point(index, truth, which, Setting(nprobe, rescore), pool) for rescore in RESCORES]
            points += row
            tick()
            gain, best = max(p.recall for p in row) - best, max(p.recall for p in row)
            dull = dull + 1 if gain < WORTH else 0
            if best >= ENOUGH or dull == 2:
                break
    return points


def _grid(lists: int) -> Sequence[int]:
    steps = [round(2 ** (e / 2)) for e in range(2, 25)]
    return [s for s in steps if s < lists] + [lists]


def _point(
    index: IvfIndex, truth: Truth, which: NDArray[np.int64], setting: Setting, pool: ThreadPoolExecutor
) -> Point:
    knobs = {"nprobe": setting.nprobe, "rescore": setting.rescore}

    def one(i: int) -> tuple[int, float]:
        found = index.search(truth.queries[i], NEIGHBOURS + 1, knobs=knobs)
        rows = [r for r in found.rows.tolist() if r != truth.own[i]][:NEIGHBOURS]
        cost = found.cost
        return len(set(rows) & set(truth.rows[i].tolist())), cost.codes_scanned + ROW_COST * cost.rows_rescored

    results = list(pool.map(one, which.tolist()))
    hits, costs = zip(*results, strict=True)
    recall = sum(hits) / (NEIGHBOURS * len(results))
    return Point(setting, round(recall, 4), round(float(np.mean(costs)), 1))
