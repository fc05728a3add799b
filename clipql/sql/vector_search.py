"""Searching as a plan says: by its index and an exact scan of the rows that came after it, or by an exact scan of all.

What must stay true: an index never hides a row, so rows it does not cover are scanned; what it finds carries exact
distances, so the two merge; k rows come back whenever k qualify.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Candidates, Cost, Index
from clipql.index.flat import Scan, Term, exact
from clipql.sql.plan import Plan

# A filter that leaves few rows is answered by comparing just those. Measured at 1M x 512: 0.3 us a row, while an index
# with a mask takes 0.25 ms and more lists, by the square root of the share that the mask leaves out. They meet at
# 4,000 rows of a million, and later with the cube root of the rows. Without an index a scan skips what is masked.
FEW, FEW_OF_A_MILLION = 20_000, 4_000
# an index answers a range by its nearest rows, so many at first, then four times as many, and so on
FIRST_OF_RANGE = 256


def few(plan: Plan) -> int:
    """How many rows a filter may leave for just those to be compared."""
    if plan.chosen.index is None:
        return FEW
    return round(FEW_OF_A_MILLION * math.cbrt(plan.select.table.rows / 1e6))


def nearest(plan: Plan, terms: Sequence[Term], among: NDArray[np.bool_] | None, filtered: int | None) -> Candidates:
    """The rows with the smallest keys, at least k where k qualify."""
    rows, index = plan.select.table.rows, plan.chosen.index
    if among is not None and filtered is not None and filtered <= few(plan):
        return Scan(terms, rows).nearest_of(np.flatnonzero(among), plan.k)
    if index is None:
        return Scan(terms, rows, among).nearest(plan.k)
    return _merged(plan, index, terms, among, plan.k)


def _merged(plan: Plan, index: Index, terms: Sequence[Term], among: NDArray[np.bool_] | None, k: int) -> Candidates:
    rows, covered = plan.select.table.rows, index.rows_covered
    allowed = None if among is None else among[:covered]
    found = index.search(terms[0].narrow, k, among=allowed, knobs=plan.knobs)
    keys = exact(terms, found.rows)
    order = np.lexsort((found.rows, keys))
    best = Candidates(found.rows[order], keys[order], found.cost)
    if covered >= rows:
        return best
    tail = Scan(terms, rows, among, first=covered).nearest(k)
    return _first(_joined(best, tail), k)


def _joined(a: Candidates, b: Candidates) -> Candidates:
    rows, keys = np.concatenate([a.rows, b.rows]), np.concatenate([a.distances, b.distances])
    order = np.lexsort((rows, keys))
    cost = Cost(
        rows_scanned=a.cost.rows_scanned + b.cost.rows_scanned,
        codes_scanned=a.cost.codes_scanned,
        lists_probed=a.cost.lists_probed,
        lists_routed=a.cost.lists_routed,
        rows_rescored=a.cost.rows_rescored + b.cost.rows_rescored,
        seconds={**a.cost.seconds, **{f"tail {stage}": s for stage, s in b.cost.seconds.items()}},
    )
    return Candidates(rows[order], keys[order], cost)


def _first(found: Candidates, k: int) -> Candidates:
    """The first k, and those that tie with the k-th."""
    if len(found.rows) <= k or np.isnan(found.distances[k - 1]):
        return found
    n = int(np.searchsorted(found.distances, found.distances[k - 1], side="right"))
    return Candidates(found.rows[:n], found.distances[:n], found.cost)


def within(plan: Plan, terms: Sequence[Term], among: NDArray[np.bool_] | None, most: int) -> Candidates | int:
    """All rows with a key of at most the plan's radius, or only their number where there are more than `most`."""
    rows, index = plan.select.table.rows, plan.chosen.index
    k = FIRST_OF_RANGE
    while index is not None and k <= most:
        found = _merged(plan, index, terms, among, k)
        inside = int(np.searchsorted(found.distances, plan.radius, side="right"))
        if inside < min(k, len(found.rows)) or len(found.rows) < k:
            return Candidates(found.rows[:inside], found.distances[:inside], found.cost)
        k *= 4
    return Scan(terms, rows, among).within(plan.radius, most)
