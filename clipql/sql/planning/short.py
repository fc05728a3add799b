"""Which statements are short work: a search of an index and a few rows of the row file, about a millisecond.

The event loop of a server does such work itself where nobody has to be waited for: to hand it to a thread and back
takes longer. What must stay true: how long it takes is bounded by the plan, whatever its values are.
"""

from __future__ import annotations

from clipql.sql.planning.prepared import Prepared

# rows of the answer; rows that no index covers, which are gone through; the recall that is asked for
MOST_ROWS, MOST_UNCOVERED, MOST_RECALL = 100, 4_000, 0.99


def is_short(prepared: Prepared) -> bool:
    """Whether a statement that is asked again is short work. Words that are encoded are not, nor is a condition."""
    plan = prepared.plan
    chosen = plan.chosen
    if plan.kind != "top-k" or plan.filter is not None or plan.kept or prepared.encoded or len(plan.terms) != 1:
        return False
    if chosen.index is None or chosen.entry is None or plan.select.joined:
        return False
    # a limit that is a parameter may be any number the next time
    limit, offset = plan.select.limit or "", plan.select.offset or "0"
    if not (limit.isdigit() and offset.isdigit()) or int(limit) + int(offset) > MOST_ROWS:
        return False
    if set(plan.knobs) - {"recall"} or plan.knobs.get("recall", 0) > MOST_RECALL:
        return False
    return plan.select.table.rows - chosen.entry.rows <= MOST_UNCOVERED
