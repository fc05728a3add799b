"""Rows in an order that does not depend on how many are asked for, from searches that are not exact.

An index looks further for more rows, and may then find one that is nearer than some it gave before; pages would repeat
rows and skip others. So it is asked in steps, the same for every LIMIT, and what a step has found is settled: later
ones only add rows that are farther. What must stay true: LIMIT n gives the first rows of LIMIT m, and pages, by OFFSET,
neither overlap nor leave rows out between them. What an index missed for a small LIMIT is not there for a larger one
either: that is what its recall says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from clipql.index.base import Candidates

# A step looks into the square root of five, or so, times the lists of the one before. Round numbers, and one more,
# which tells whether there is another page, come before a step, as some of what it finds may come too late; more than
# 256 rows are rescored without an end in sight (`ivf.rescore`).
STEPS = (11, 56, 256, 1_280, 6_400, 32_000, 160_000, 800_000)
# of what a scan is asked for beyond what is wanted, for the same reason
SHARE = 8

# the n nearest rows and those that tie with the n-th, fewer only where there are no more; keys in Candidates.distances
Nearest = Callable[[int], Candidates]


def steps(k: int) -> Sequence[int]:
    """How many rows an index is asked for, one after the other, where k are wanted."""
    return STEPS[: 1 + bisect_left(STEPS, k, hi=len(STEPS) - 1)]


def settled(k: int, by_index: Nearest, by_scan: Nearest, most: float) -> Candidates:
    """At least the first k rows, with all that tie with the last; fewer only where there are no more.

    most: rows that the index is asked for at most; what comes after is scanned for.
    """
    asked = STEPS[0]
    found = by_index(asked)
    if len(found.rows) >= k:
        return found
    exhausted, later = len(found.rows) < asked, [step for step in STEPS[1:] if step <= most]
    while len(found.rows) < k and not exhausted:
        if later:
            asked = later.pop(0)
            more = by_index(asked)
        else:
            asked = k + max(asked, k // SHARE)
            more = by_scan(asked)
        exhausted = len(more.rows) < asked
        found = _appended(found, more)
    return found


def _appended(found: Candidates, more: Candidates) -> Candidates:
    """What is settled, and of more rows those that are farther than its last."""
    cost = found.cost.plus(more.cost)
    if not len(found.rows):
        return Candidates(more.rows, more.distances, cost)
    later = _place(more, float(found.distances[-1]))
    return Candidates(
        np.concatenate([found.rows, more.rows[later:]]),
        np.concatenate([found.distances, more.distances[later:]]),
        cost,
    )


def _place(found: Candidates, key: float) -> int:
    """Where keys begin that are larger: NaN is, and last."""
    return len(found.rows) if np.isnan(key) else int(np.searchsorted(found.distances, key, side="right"))
