"""One prepared statement for many query vectors: searched side by side on all cores, and fetched in one go.

An index is searched for each; without one, all rows are compared with all vectors by products of matrices, on a device
where one is asked for. What must stay true: each answer is that which the statement gives for its vector alone. What
does not fit (rows that came after the index, a filter that leaves few) is left to be asked one by one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.index.base import Candidates, Cost, Index
from clipql.index.batch import at_once, candidates_each
from clipql.index.cores import in_pieces
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

AT_ONCE = 128  # queries that one core searches for, and whose rows it fetches, at a time
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
    on_all_cores: bool,
) -> list[Found | None] | None:
    """The answer of a plan for each of the vectors (n, d); None for those that are to be asked alone, or for all.

    execution: of the plan, which says what rows may be in the answer. offset: rows left out before the first.
    on_all_cores: whether an index is searched on all of them, or in this thread.
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
    whole = Term(store, term.call.metric, vectors[0], term.weight, term.vector.narrow_for(term.call.metric))
    answers = partial(_answers, registry, indexes, plan, wanted, filtered=filtered, offset=offset)
    if index is None:
        found = _by_products(registry, plan, [dataclasses.replace(whole, query=v) for v in vectors], among)
        return None if found is None else answers(found)

    def some(first: int, last: int) -> list[Found | None]:
        return answers(_by_index(plan, index, whole, vectors[first:last], among))

    if not on_all_cores:
        return some(0, len(vectors))
    pieces = in_pieces(len(vectors), AT_ONCE, some, meanwhile=registry.engine.check_cancelled)
    return list(itertools.chain.from_iterable(pieces))


def _by_index(
    plan: Plan, index: Index, term: Term, vectors: NDArray[np.float64], among: NDArray[np.bool_] | None
) -> list[Candidates | None]:
    """The rows of each by the index; None where it is in doubt. Index and plan are of one step."""
    search = getattr(index, "search_each", None)  # whether it is `SearchesMany`, in less time
    if search is not None:
        return _many_by_index(plan, search, term, vectors, among)
    found: list[Candidates | None] = []
    for each in (dataclasses.replace(term, query=vector) for vector in vectors):
        one = None
        if not index.doubt(each.narrow, plan.knobs):
            one = vector_search.by_index(plan, index, [each], among, plan.k)
        found.append(one.first(plan.k) if one is not None and len(one.rows) >= plan.k else None)
    return found


def _many_by_index(
    plan: Plan,
    search: Callable[..., list[Candidates | None]],
    one: Term,
    queries: NDArray[np.float64],
    among: NDArray[np.bool_] | None,
) -> list[Candidates | None]:
    """What `vector_search.by_index` gives for each, where the index has it at once. search: its `search_each`."""
    with np.errstate(over="ignore"):
        narrow = queries.astype(np.float32)
    by_index = search(narrow, steps(plan.k)[0], among=among, knobs=plan.knobs)
    there = [i for i, each in enumerate(by_index) if each is not None and len(each.rows) >= plan.k]
    found: list[Candidates | None] = [None] * len(queries)
    if not there:
        return found
    near = [each for i in there if (each := by_index[i]) is not None]
    sizes = [len(each.rows) for each in near]
    first = np.zeros(len(near) + 1, np.int64)
    np.cumsum(sizes, out=first[1:])
    rows = np.concatenate([each.rows for each in near])
    asked = queries if len(there) == len(queries) else queries[there]
    with np.errstate(over="ignore", invalid="ignore"):
        values = one.store.distances_each(one.metric, rows.astype(np.int64), first, asked)
        keys = 0.0 + one.weight * (as_float32(values) if one.rounded else values)
    order = np.lexsort((rows, keys, np.repeat(np.arange(len(near)), sizes)))
    rows, keys = rows[order], keys[order]
    for i, each, at in zip(there, near, first.tolist(), strict=False):
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
    *,
    filtered: int | None,
    offset: int,
) -> list[Found | None]:
    """The rows of all that was found, fetched together, as a table for each; None where the row file has not all."""
    there = [one for one in found if one is not None]
    answers: list[Found | None] = [None] * len(found)
    if not there:
        return answers
    rows = np.concatenate([one.rows[offset:] for one in there])
    keys = np.concatenate([one.distances[offset:] for one in there])
    table = answer(registry, indexes, plan, wanted, Candidates(rows, keys), 0, most=len(rows), of_page=len(rows))
    if table is None:
        return answers
    at, size = 0, plan.k - offset
    for i, one in enumerate(found):
        if one is not None:
            step = Step(plan, "top-k", plan.why, one.cost, filtered, len(one.rows))
            answers[i] = table.slice(at, size), step
            at += size
    return answers
