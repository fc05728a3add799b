"""Searching as a plan says: by its index and an exact scan of the rows that came after it, or by an exact scan of all.

What must stay true: an index never hides a row, so rows it does not cover are scanned; what it finds carries exact
distances, so the two merge; k rows come back whenever k qualify; the rows for a small LIMIT are the first of those for
a larger one (see `pages`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Candidates, Cost, Index
from clipql.index.bounded import search as bounded
from clipql.index.cores import threads
from clipql.index.flat import Scan, Term, exact
from clipql.sql.recognition.plan import Plan, exact_range
from clipql.sql.search.pages import settled, steps
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

# A filter that leaves few rows is answered by comparing just those. Measured at 1M x 512: 0.3 us a row, while an index
# with a mask takes 0.25 ms and more lists, by the square root of the share that the mask leaves out. They meet at
# 4,000 rows of a million, and later with the cube root of the rows. Without an index a scan skips what is masked.
FEW, FEW_OF_A_MILLION = 20_000, 4_000
# the same for vectors that lie on the disk, where a row is a read and an index reads a few hundred codes
FEW_ON_DISK = 400
# a row that a scan has to pick out takes as long as so many in a row
SPARSE_SCAN = 4
# an index answers a range by its nearest rows, so many at first, then four times as many, and so on
FIRST_OF_RANGE = 256


def few(plan: Plan, store: ColumnStore | None) -> int:
    """How many rows a filter may leave for just those to be compared. store: the column's, where it is at hand."""
    if plan.chosen.index is None:
        return FEW
    if store is not None and store.on_disk:
        return FEW_ON_DISK
    return round(FEW_OF_A_MILLION * math.cbrt(plan.select.table.rows / 1e6))


def nearest(
    plan: Plan, terms: Sequence[Term], among: NDArray[np.bool_] | None, filtered: int | None, doubtful: str
) -> Candidates:
    """The rows with the smallest keys, at least k where k qualify, and all that tie with the k-th; ties by row.

    doubtful: the plan's `doubt`.
    """
    rows, index = plan.select.table.rows, None if doubtful else plan.chosen.index
    if among is not None and not among.any():  # no vector may be there to tell how many numbers it has
        return Candidates(np.empty(0, np.uint64), np.empty(0))
    if among is not None and filtered is not None and filtered <= few(plan, terms[0].store):
        return Scan(terms, rows).nearest_of(np.flatnonzero(among), plan.k)
    if index is None:
        return bounded.nearest(terms, rows, among, plan.k)
    qualifying = rows if among is None else int(np.count_nonzero(among))
    if plan.page > qualifying // 2:  # all must come where all are asked for, also those that an index misses
        return bounded.nearest(terms, rows, among, plan.k)
    found = by_index(plan, index, terms, among, most_by_index(plan, index, qualifying))
    if len(found.rows) < plan.k == plan.page:
        return bounded.nearest(terms, rows, among, plan.k)
    return found


def doubt(plan: Plan) -> str:
    """Why an exact scan answers instead of the index that was chosen, if it does: see `Index.doubt`."""
    index = plan.chosen.index
    if index is None or len(plan.terms) != 1 or (plan.kind == "range" and exact_range(plan.knobs)):
        return ""
    vector = plan.terms[0].vector
    if vector.single is not None:
        return index.doubt(vector.single, plan.knobs)
    with np.errstate(over="ignore"):
        return index.doubt(vector.values.astype(np.float32), plan.knobs)


def most_by_index(plan: Plan, index: Index, qualifying: int) -> int:
    """How many rows an index is asked for at most: what comes after them is scanned for, so that all steps together
    take no longer than half a scan.
    """
    asked = steps(plan.k)
    if len(asked) == 1:
        return asked[0]
    budget = min(plan.select.table.rows, SPARSE_SCAN * qualifying) / threads() / 2
    query, most = plan.terms[0].vector.values.astype(np.float32), asked[0]
    for step, effort in zip(asked, index.efforts(query, asked, qualifying, plan.knobs), strict=True):
        budget -= effort
        if budget < 0:
            break
        most = step
    return most


def by_index(plan: Plan, index: Index, terms: Sequence[Term], among: NDArray[np.bool_] | None, most: int) -> Candidates:
    """The rows that an index covers as they are settled, merged with an exact scan of newer ones."""
    rows, covered = plan.select.table.rows, index.rows_covered
    allowed = None if among is None else among[:covered]

    def of_index(k: int) -> Candidates:
        found = index.search(terms[0].narrow, k, among=allowed, knobs=plan.knobs, ties=True)
        keys = exact(terms, found.rows)
        order = np.lexsort((found.rows, keys))
        return Candidates(found.rows[order], keys[order], found.cost)

    def by_scan(k: int) -> Candidates:
        return bounded.nearest(terms, covered, allowed, k)

    found = settled(plan.k, of_index, by_scan, most)
    if covered < rows:
        found = _joined(found, Scan(terms, rows, among, first=covered).nearest(plan.k))
    return _first(found, plan.k)


def _joined(a: Candidates, b: Candidates) -> Candidates:
    rows, keys = np.concatenate([a.rows, b.rows]), np.concatenate([a.distances, b.distances])
    order = np.lexsort((rows, keys))
    return Candidates(rows[order], keys[order], a.cost.plus(b.cost, "tail "))


def _first(found: Candidates, k: int) -> Candidates:
    """The first k, and those that tie with the k-th."""
    if len(found.rows) <= k or np.isnan(found.distances[k - 1]):
        return found
    return found.first(int(np.searchsorted(found.distances, found.distances[k - 1], side="right")))


def within(
    plan: Plan, terms: Sequence[Term], among: NDArray[np.bool_] | None, most: int, doubtful: str
) -> Candidates | int:
    """All rows with a key of at most the plan's radius, or only their number where there are more than `most`.

    doubtful: the plan's `doubt`.
    """
    index = plan.chosen.index
    if among is not None and not among.any():
        return Candidates(np.empty(0, np.uint64), np.empty(0))
    if index is not None and exact_range(plan.knobs) and not bounded.usable(terms, plan.select.table.rows, among):
        found = _ruled(plan, index, terms[0], among, most)
        if found is not None:
            return found
    elif index is not None and not doubtful and not exact_range(plan.knobs):
        approximate = _nearest_within(plan, index, terms, among, most)
        if approximate is not None:
            return approximate
    return bounded.within(terms, plan.select.table.rows, among, plan.radius, most)


def _ruled(plan: Plan, index: Index, term: Term, among: NDArray[np.bool_] | None, most: int) -> Candidates | int | None:
    """The same by comparing the rows that an index cannot rule out, and newer ones; None where that costs more."""
    began, rows, covered = time.perf_counter(), plan.select.table.rows, index.rows_covered
    qualifying = rows if among is None else int(np.count_nonzero(among))
    if term.wide or SPARSE_SCAN * qualifying < rows:
        return None
    tail = Scan([term], rows, among, first=covered)
    limit = tail.slack(plan.radius) / term.weight
    if index.metric is not term.metric:  # L2Distance and its square
        limit = math.copysign(math.sqrt(abs(limit)) if index.metric is Metric.L2 else limit * limit, limit)
    possible = index.within(term.narrow, limit, None if among is None else among[:covered])
    if possible is None:
        return None
    ruled = time.perf_counter()
    keys = exact([term], possible)
    inside = np.flatnonzero(keys <= tail.slack(plan.radius))
    inside = inside[np.lexsort((possible[inside], keys[inside]))]
    cost = Cost(
        codes_scanned=covered,
        rows_rescored=len(possible),
        seconds={"scan": ruled - began, "rescore": time.perf_counter() - ruled},
    )
    found = Candidates(possible[inside].astype(np.uint64), keys[inside], cost)
    newer = tail.within(plan.radius, most) if covered < rows else Candidates(found.rows[:0], found.distances[:0])
    if isinstance(newer, int):
        return len(inside) + newer
    return _joined(found, newer) if len(found.rows) + len(newer.rows) <= most else len(found.rows) + len(newer.rows)


def _nearest_within(
    plan: Plan, index: Index, terms: Sequence[Term], among: NDArray[np.bool_] | None, most: int
) -> Candidates | None:
    """The same by the nearest rows of an index, with its recall; None where there are more than `most`."""
    k = FIRST_OF_RANGE
    while k <= most:
        found = by_index(dataclasses.replace(plan, k=k), index, terms, among, most)
        inside = int(np.searchsorted(found.distances, plan.radius, side="right"))
        if inside < min(k, len(found.rows)) or len(found.rows) < k:
            return found.first(inside)
        k *= 4
    return None
