"""One prepared statement for many query vectors: searched side by side on all cores, and fetched in one go.

What must stay true: each answer is that which the statement gives for its vector alone. What does not fit (a scan, rows
that came after the index, a filter that leaves few) is left to be asked one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.index.base import Candidates
from clipql.index.flat import Term, each_core
from clipql.sql import vector_search
from clipql.sql.direct import Item, answer
from clipql.sql.execution import Execution, Step
from clipql.sql.pages import steps
from clipql.sql.plan import Plan
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

# queries between two looks at whether somebody still waits for them
AT_ONCE = 1_024
Found = tuple[pa.Table, Step]


def stacked(values: Sequence[Any], *, narrow: bool) -> NDArray[np.float64] | None:
    """Query vectors as one array (n, d), as a parameter of Array(Float32) (`narrow`) or Array(Float64) gives them; None
    where they are not all as long as each other, or not all finite numbers.
    """
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(values, np.float32 if narrow else np.float64).astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.ndim == 2 and np.isfinite(found).all() else None


def search_each(
    registry: Registry,
    indexes: Indexes,
    plan: Plan,
    execution: Execution,
    wanted: tuple[Item, ...],
    vectors: NDArray[np.float64],
    offset: int,
) -> list[Found | None] | None:
    """The answer of a plan for each of the vectors (n, d); None for those that are to be asked alone, or for all.

    execution: of the plan, which says what rows may be in the answer. offset: rows left out before the first.
    """
    table, index = plan.select.table, plan.chosen.index
    if index is None or len(plan.terms) != 1 or len(plan.select.calls) != 1 or abs(plan.terms[0].weight) != 1:
        return None
    if index.rows_covered < table.rows or len(steps(plan.k)) > 1:
        return None
    among, filtered = execution.qualifying()
    qualifying = table.rows if among is None else int(np.count_nonzero(among))
    few = among is not None and filtered is not None and filtered <= vector_search.few(plan)
    if few or plan.page > qualifying // 2:
        return None
    found: list[Candidates | None] = [None] * len(vectors)
    (term,) = plan.terms
    store = registry.store(table, term.call.column)
    rounded = term.vector.narrow_for(term.call.metric)

    def some(first: int, last: int) -> None:
        for at in range(first, last):
            terms = [Term(store, term.call.metric, vectors[at], term.weight, rounded)]
            if not index.doubt(terms[0].narrow, plan.knobs):
                one = vector_search.by_index(plan, index, terms, among, plan.k)
                found[at] = one.first(plan.k) if len(one.rows) >= plan.k else None

    for begin in range(0, len(vectors), AT_ONCE):
        registry.engine.check_cancelled()
        end = min(len(vectors), begin + AT_ONCE)
        each_core(end - begin, lambda a, b, begin=begin: some(begin + a, begin + b))  # type: ignore[misc]
    return _answers(registry, indexes, plan, wanted, found, filtered, offset)


def _answers(
    registry: Registry,
    indexes: Indexes,
    plan: Plan,
    wanted: tuple[Item, ...],
    found: Sequence[Candidates | None],
    filtered: int | None,
    offset: int,
) -> list[Found | None] | None:
    """The rows of all that was found, fetched together, as a table for each."""
    there = [one for one in found if one is not None]
    if not there:
        return None
    size = plan.k - offset
    rows = np.concatenate([one.rows[offset:] for one in there])
    keys = np.concatenate([one.distances[offset:] for one in there])
    whole = dataclasses.replace(plan, k=len(rows))
    table = answer(registry, indexes, whole, wanted, Candidates(rows, keys), 0, most=len(rows))
    if table is None:
        return None
    answers: list[Found | None] = []
    at = 0
    for one in found:
        if one is None:
            answers.append(None)
            continue
        answers.append((table.slice(at, size), Step(plan, "top-k", plan.why, one.cost, filtered, len(one.rows))))
        at += size
    return answers


def same_but(name: str, given: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the sets of parameters differ in nothing but this one."""
    first = {k: v for k, v in given[0].items() if k != name}
    if any(not isinstance(v, (str, int, float, bool, type(None))) for v in first.values()):
        return False
    return all(one.keys() == given[0].keys() and all(one[k] == v for k, v in first.items()) for one in given)
