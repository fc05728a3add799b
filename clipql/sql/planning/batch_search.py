"""One prepared statement for many query vectors: searched side by side on all cores, and fetched in one go.

An index is searched for each; without one, all rows are compared with all vectors by products of matrices, on a device
where one is asked for. What must
stay true: each answer is that which the statement gives for its vector alone. What does not fit (rows that came after
the index, a filter that leaves few) is left to be asked one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.index.base import Candidates, Cost, Index, SearchesMany
from clipql.index.batch import at_once, candidates_each
from clipql.index.cores import each_core
from clipql.index.flat import Term, as_float32, exact
from clipql.sql.planning.execution import Execution
from clipql.sql.planning.work import Step
from clipql.sql.recognition.plan import Plan
from clipql.sql.search import vector_search
from clipql.sql.search.direct import Item, answer
from clipql.sql.search.pages import steps
from clipql.storage.vectors import devices
from clipql.storage.vectors.device import Device
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

# queries between two looks at whether somebody still waits for them
AT_ONCE = 1_024
# vectors that are sooner compared by products of matrices than one by one; the most rows that each may ask for
WORTH, MOST_BY_PRODUCTS = 4, 1_000
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
    if len(plan.terms) != 1 or len(plan.select.calls) != 1 or abs(plan.terms[0].weight) != 1:
        return None
    if index is not None and (index.rows_covered < table.rows or len(steps(plan.k)) > 1):
        return None
    among, filtered = execution.qualifying()
    qualifying = table.rows if among is None else int(np.count_nonzero(among))
    (term,) = plan.terms
    store = registry.store(table, term.call.column)
    few = among is not None and filtered is not None and filtered <= vector_search.few(plan, store)
    if few or plan.page > qualifying // 2:
        return None
    rounded = term.vector.narrow_for(term.call.metric)
    terms = [Term(store, term.call.metric, vector, term.weight, rounded) for vector in vectors]
    if index is None:
        found = _by_products(registry, plan, terms, among)
    else:
        found = _by_index(registry, plan, index, terms, among)
    return None if found is None else _answers(registry, indexes, plan, wanted, found, filtered, offset)


def _by_index(
    registry: Registry, plan: Plan, index: Index, terms: Sequence[Term], among: NDArray[np.bool_] | None
) -> list[Candidates | None]:
    """The rows of each by the index; None where it is in doubt."""
    found: list[Candidates | None] = [None] * len(terms)

    def some(first: int, last: int) -> None:
        if isinstance(index, SearchesMany):
            found[first:last] = _many_by_index(plan, index, terms[first:last], among)
            return
        for at in range(first, last):
            if not index.doubt(terms[at].narrow, plan.knobs):
                one = vector_search.by_index(plan, index, [terms[at]], among, plan.k)
                found[at] = one.first(plan.k) if len(one.rows) >= plan.k else None

    for begin in range(0, len(terms), AT_ONCE):
        registry.engine.check_cancelled()
        end = min(len(terms), begin + AT_ONCE)
        each_core(end - begin, lambda a, b, begin=begin: some(begin + a, begin + b))  # type: ignore[misc]
    return found


def _many_by_index(
    plan: Plan, index: SearchesMany, terms: Sequence[Term], among: NDArray[np.bool_] | None
) -> list[Candidates | None]:
    """What `vector_search.by_index` gives for each, where the index has it at once. Index and plan are of one step."""
    queries, one = np.stack([term.query for term in terms]), terms[0]
    with np.errstate(over="ignore"):
        narrow = queries.astype(np.float32)
    by_index = index.search_each(narrow, steps(plan.k)[0], among=among, knobs=plan.knobs)
    there = [i for i, each in enumerate(by_index) if each is not None and len(each.rows) >= plan.k]
    found: list[Candidates | None] = [None] * len(terms)
    if not there:
        return found
    near = [each for i in there if (each := by_index[i]) is not None]
    rows = np.concatenate([each.rows for each in near])
    sizes = np.array([len(each.rows) for each in near])
    first = np.concatenate([[0], np.cumsum(sizes)])
    with np.errstate(over="ignore", invalid="ignore"):
        values = one.store.distances_each(one.metric, rows.astype(np.int64), first, queries[there])
        keys = 0.0 + one.weight * (as_float32(values) if one.rounded else values)
    order = np.lexsort((rows, keys, np.repeat(np.arange(len(near)), sizes)))
    rows, keys = rows[order], keys[order]
    for i, each, at in zip(there, near, first[:-1].tolist(), strict=True):
        found[i] = Candidates(rows[at : at + plan.k], keys[at : at + plan.k], each.cost)
    return found


def _by_products(
    registry: Registry, plan: Plan, terms: Sequence[Term], among: NDArray[np.bool_] | None
) -> list[Candidates | None] | None:
    """The rows of each by one pass over all; None where that does not do for any."""
    metric, queries = terms[0].metric, np.stack([term.narrow for term in terms])
    nearest_first = terms[0].weight == (-1.0 if metric.larger_is_nearer else 1.0)
    alike = all(np.array_equal(q, term.query) for q, term in zip(queries, terms, strict=True))
    if len(terms) < WORTH or plan.k > MOST_BY_PRODUCTS or not nearest_first or not alike:
        return None
    device = devices.chosen(plan.device, float(plan.select.table.rows) * queries.size)
    found: list[Candidates | None] = []
    for begin in range(0, len(terms), at_once(device)):
        registry.engine.check_cancelled()
        some = slice(begin, begin + at_once(device))
        products = _products(registry, queries[some], terms[0], plan, among, device)
        for term, rows in zip(terms[some], products, strict=True):
            if rows is None or len(rows) < plan.k:
                found.append(None)
                continue
            keys = exact([term], rows)
            order = np.lexsort((rows, keys))[: plan.k]
            cost = Cost(rows_scanned=plan.select.table.rows, rows_rescored=len(rows))
            found.append(Candidates(rows[order].astype(np.uint64), keys[order], cost))
    return found


def _products(
    registry: Registry,
    queries: NDArray[np.float32],
    term: Term,
    plan: Plan,
    among: NDArray[np.bool_] | None,
    device: Device | None,
) -> list[NDArray[np.int64] | None]:
    def stopped() -> bool:
        registry.engine.check_cancelled()
        return False

    return candidates_each(term.store, term.metric, queries, plan.k, among, stopped=stopped, device=device)


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
