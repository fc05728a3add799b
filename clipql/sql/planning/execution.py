"""One planned SELECT carried out: the search, then the edits that have ClickHouse read just the rows that were found.

The text of the user's statement is edited in place and never generated anew, so whatever else it says keeps its
meaning. What must stay true: the edited statement gives the rows that the original gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine.quoting import quote_name
from clipql.errors import DatabaseDamaged, QueryCancelled, QueryError
from clipql.index.base import Candidates, Cost
from clipql.index.flat import Scan, Term, exact
from clipql.sql.numbers.row_arrays import INLINE, by_row, in_set, known_rows, one_array
from clipql.sql.numbers.rowwise import LAZY
from clipql.sql.planning.work import NO_COST, Direct, Step, Work
from clipql.sql.recognition.calls import Call
from clipql.sql.recognition.constants import with_clause
from clipql.sql.recognition.plan import ALIAS_COST, FEW_OF_RANGE, LARGEST_RANGE, MOST_DISTANCES, Plan
from clipql.sql.search import vector_search as search
from clipql.sql.search.conditions import plain_mask
from clipql.sql.search.filters import FilterMemory
from clipql.sql.search.harmless import settings_allow
from clipql.syntax.edits import Edit, edited
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.registry import FUNCTION, ROW, Registry
from clipql.tables.rowfile import RowFiles

# with a larger share of the rows, a distance is looked up by a row's number and not searched for
SPARSE = 20
# clauses of SELECTs whose rows are not the table's, and words of an ORDER BY or LIMIT that no key may be added to
_NO_ROWS = frozenset({"GROUP", "HAVING", "WINDOW", "QUALIFY", "LIMIT 2", "FETCH"})
_OWN_ORDER = frozenset({"FILL", "INTERPOLATE", "ALL", "TIES", "BY"})


def _with(why: str, doubt: str) -> str:
    """Why a plan was made, and why an exact scan took the place of its index."""
    return f"{why}; an exact scan, as {doubt}" if doubt else why


def no_answer(found: Candidates) -> Direct | None:
    return None


class Execution:
    """One SELECT: plan, search, edits."""

    def __init__(self, registry: Registry, rows: RowFiles, memory: FilterMemory, plan: Plan, work: Work) -> None:
        self._registry, self._engine, self._work, self._rows = registry, registry.engine, work, rows
        self._memory = memory
        self._plan, self._select = plan, plan.select
        self._filtered: int | None = None
        self._answer: Callable[[Candidates], Direct | None] = no_answer

    def run(self, answer: Callable[[Candidates], Direct | None]) -> None:
        """Carry the plan out. answer: gives the whole result for the rows found, if it can."""
        self._answer = answer
        try:
            self._carry_out()
        except QueryCancelled:
            raise
        except QueryError:  # of a query of ours: what is wrong, if anything is, the statement itself will say
            self._step("as it is", "ClickHouse refused a part of it on its own")

    def _carry_out(self) -> None:
        kind = self._plan.kind
        if kind == "top-k":
            self._top()
        elif kind == "range":
            self._range()
        elif kind == "distances":
            self._distances(self._plan.why)
        else:
            self._left_as_it_is(self._plan.why)

    def _step(self, kind: str, why: str, cost: Cost = NO_COST, found: int = 0) -> None:
        absent = [c for c in self._plan.columns if c.absent]
        absences = "; ".join(f"{c.name}: {c.absence}" for c in absent) if absent else ""
        why = f"{why}; {absences}" if absences else why
        self._work.steps.append(Step(self._plan, kind, why, cost, self._filtered, found))

    def _terms(self) -> list[Term]:
        table, plan = self._select.table, self._plan
        stores = [self._registry.store(table, t.call.column) for t in plan.terms]
        codes = self._registry.codes if plan.codes and len(plan.terms) == 1 else None
        return [
            Term(
                store,
                t.call.metric,
                t.vector.values,
                t.weight,
                t.vector.narrow_for(t.call.metric),
                codes.of(table, t.call.column, store) if codes else None,
                t.vector.single,
            )
            for t, store in zip(plan.terms, stores, strict=True)
        ]

    def qualifying(self) -> tuple[NDArray[np.bool_] | None, int | None]:
        """The rows that may be in the answer, None for all, and the number of those that a filter lets through.

        Raises QueryError where ClickHouse refuses the filter.
        """
        among = self._among()
        return among, self._filtered

    def _among(self) -> NDArray[np.bool_] | None:
        """The rows that may be in the answer: those that the filter lets through, or those that are there, as far as
        they have a vector.
        """
        among = None if self._plan.filter is None else self._matching()
        among = self._registry.present(self._select.table, self._searched, among)
        if self._filtered is not None:
            assert among is not None, "a filter gives a mask"
            self._filtered = min(self._filtered, int(np.count_nonzero(among)) if self._absent else self._filtered)
        return among

    @property
    def _searched(self) -> set[str]:
        return {t.call.column for t in self._plan.terms}

    @property
    def _absent(self) -> bool:
        """Whether rows of the table have no vector in a column whose distances are asked for."""
        table = self._select.table
        return any(self._registry.store(table, c.column).there is not None for c in self._select.calls)

    def _matching(self) -> NDArray[np.bool_]:
        """The rows that the filter lets through, bool (table.rows,), and their number in `_filtered`."""
        mask, self._filtered = self._matching_mask()
        return mask

    def _matching_mask(self) -> tuple[NDArray[np.bool_], int]:
        select = self._select
        text = self._plan.filter or "1"
        prefix = with_clause(text, select.scope.withs, select.aliases)
        acting = self._engine.acting
        context = (*acting.user.statements, *acting.settings.items(), read(select.scope.text).settings_in(select.scope))
        alone = not prefix and not select.joined
        key = self._memory.key(select.table, text, self._work.params, context) if alone else None
        known = self._memory.get(key)
        if known is None:
            known = (self._evaluated(text) if alone else None) or self._look(prefix, text)
            self._memory.put(key, *known)
        return known

    def _evaluated(self, text: str) -> tuple[NDArray[np.bool_], int] | None:
        """The same without ClickHouse, where the condition is plain and its columns lie beside the row file."""
        table, acting = self._select.table, self._engine.acting
        own = read(self._select.scope.text).settings_in(self._select.scope)
        reader = self._rows.reader(table)
        if reader is None or not settings_allow((*acting.user.statements, own), acting.settings):
            return None
        rows = min(reader.rows, table.rows)
        try:
            mask = plain_mask(text, reader.columns.column, rows, self._work.params)
        except DatabaseDamaged as error:
            self._rows.distrust(table, error)
            return None
        if mask is None:
            return None
        if rows < table.rows:  # newer than the row file
            newer, _ = self._look("", f"{self._select.qualifier_sql}{ROW} >= {rows} AND ({text})")
            newer[:rows] = mask
            mask = newer
        alive = self._registry.alive(table)
        if alive is not None:
            mask &= alive
        return mask, int(np.count_nonzero(mask))

    def _look(self, prefix: str, text: str) -> tuple[NDArray[np.bool_], int]:
        select = self._select
        sql = f"{prefix}SELECT {select.qualifier_sql}{ROW} FROM {select.scope.body('FROM')} WHERE {text}"
        # what a user SETs to cut a result short must not cut this one
        own = read(select.scope.text).settings_in(select.scope)
        if FUNCTION in text and LAZY not in own:
            own += f"{', ' if own else ''}{LAZY}"
        sql += f" SETTINGS {own + ', ' if own else ''}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
        rows = self._registry.row_numbers(sql, self._work.params, self._work.tables)
        mask = np.zeros(select.table.rows, np.bool_)
        mask[rows[rows < select.table.rows]] = True
        return mask, len(rows)

    def _top(self) -> None:
        doubt = search.doubt(self._plan)
        found = search.nearest(self._plan, self._terms(), self._among(), self._filtered, doubt)
        if self._plan.select.ordered_alone and len(self._plan.terms) == 1:
            found = found.first(self._plan.k)  # what ties is sorted by row, and so are these
        self._work.answer = self._answer(found)
        if self._work.answer is None:
            self._restrict(found, self._ties_by_row())
        self._step("top-k", _with(self._plan.why, doubt), found.cost, len(found.rows))

    def _range(self) -> None:
        rows = self._select.table.rows
        joined, table = self._select.joined, self._select.table
        among = self._among() if not joined else self._registry.present(table, self._searched) if self._absent else None
        most = max(LARGEST_RANGE, rows // FEW_OF_RANGE) if rows <= MOST_DISTANCES and not self._absent else rows
        doubt = search.doubt(self._plan)
        found = search.within(self._plan, self._terms(), among, most, doubt)
        if isinstance(found, int):
            self._distances(f"{found:,} rows are in range")
            return
        self._restrict(found, self._pages())
        self._step("range", _with(self._plan.why, doubt), found.cost, len(found.rows))

    # edits

    def _ties_by_row(self) -> list[Edit]:
        """The edit that has what ORDER BY leaves undecided in row order, so that pages fit together."""
        end = self._select.scope.clauses["ORDER"].end
        return [(end, end, f", {self._select.qualifier_sql}{ROW}")]

    def _pages(self) -> list[Edit]:
        """The same for a SELECT that is not searched for its first rows, where it has pages of single rows."""
        scope = self._select.scope
        if not scope.clauses.keys() >= {"ORDER", "LIMIT"} or self._select.joined or scope.clauses.keys() & _NO_ROWS:
            return []
        select = scope.within("SELECT")
        words = {t.upper for t in (*scope.within("ORDER"), *scope.within("LIMIT"))}
        if select[0].upper == "DISTINCT" or any(t.upper in ("OVER", "ARRAYJOIN") for t in select) or words & _OWN_ORDER:
            return []
        return self._ties_by_row()

    def _left_as_it_is(self, why: str) -> None:
        self._work.edit(self._pages())
        self._step("as it is", why)

    def _restrict(self, found: Candidates, edits: list[Edit]) -> None:
        """Let WHERE name the rows that were found, and put their distances where the statement computes them."""
        select, scope = self._select, self._select.scope
        row = f"{select.qualifier_sql}{ROW}"
        numbers = self._array(found.rows)
        condition = f"{row} IN {self._set(found.rows, numbers)}" if len(found.rows) else "0"
        texts = {i: self._looked_up(call, found, numbers) for i, call in enumerate(select.calls)}
        edits = edits + [
            (c.start, c.end, texts[i])
            for i, c in enumerate(select.calls)
            if self._may_replace(c) and c.clause not in ("WHERE", "PREWHERE")
        ]
        kept = [self._edited(c.start, c.end, texts) for c in self._plan.kept]
        if select.joined and self._plan.filter:
            kept.append(self._plan.filter)
        where = " AND ".join([condition, *(f"({k})" for k in kept)])
        edits += where_edits(scope, where)
        self._work.edit(edits)

    def _edited(self, start: int, end: int, texts: Mapping[int, str]) -> str:
        edits = [(c.start, c.end, texts[i]) for i, c in enumerate(self._select.calls)]
        return edited(self._select.scope.text, edits, start, end)

    def _array(self, values: NDArray[Any]) -> str:
        """An array of numbers as SQL: written out when short, read from a table of ours when long."""
        if len(values) <= INLINE:
            return "[" + ",".join(map(repr, values.tolist())) + "]"
        return f"assumeNotNull((SELECT d FROM Python({self._work.keep('array', one_array(values))})))"

    def _set(self, values: NDArray[Any], array: str) -> str:
        """The same for IN, which takes no array from a table."""
        return array if len(values) <= INLINE else in_set(values, partial(self._work.keep, "set"))

    def _looked_up(self, call: Call, found: Candidates, numbers: str) -> str:
        """The distance of a call as an expression over the row number."""
        at = self._select.calls.index(call)
        vector = self._plan.vectors[at]
        if not len(found.rows):
            return "toFloat32(0)" if vector.narrow_for(call.metric) else "toFloat64(0)"
        table = self._select.table
        values = exact([Term(self._registry.store(table, call.column), call.metric, vector.values)], found.rows)
        row = f"{self._select.qualifier_sql}{ROW}"
        if len(values) > max(INLINE, table.rows // SPARSE):
            every = np.full(table.rows, np.nan)
            every[found.rows] = values
            text = f"assumeNotNull({self._array(every)}[{row} + 1])"
        else:
            text = f"assumeNotNull(transform({row}, {numbers}, {self._array(values)}, nan))"
        return f"toFloat32({text})" if vector.narrow_for(call.metric) else text

    def _may_replace(self, call: Call) -> bool:
        """Whether a call can be replaced without changing the name of a column of the result."""
        if call.clause != "SELECT":
            return True
        for first, last in self._select.scope.items("SELECT"):
            if first <= call.first < last:
                return call.last < last and self._select.scope.tokens[last - 1].name in self._select.aliases
        return False

    def _distances(self, why: str) -> None:
        select = self._select
        if self._absent and not self._all_present():
            self._left_as_it_is(f"rows have no vector; {why}")
            return
        if self._too_wide():
            self._left_as_it_is(f"values too large for float32; {why}")
            return
        if self._plan.filter is not None and not select.joined:
            self._matching()
            if (self._filtered or 0) * ALIAS_COST < select.table.rows:
                self._left_as_it_is(f"the filter leaves {self._filtered:,} rows; {why}")
                return
        began = time.perf_counter()
        names = {} if all(self._may_replace(c) for c in select.calls) else self._item_names()
        texts: dict[int, str] = {}
        for call in select.calls:
            if call.same not in texts:
                texts[call.same] = self._all_distances(call)
        edits = [(c.start, c.end, texts[c.same]) for c in select.calls if self._may_replace(c) or names]
        edits += [(end, end, f" AS {quote_name(name)}") for end, name in names.items()]
        edits += self._pages() + known_rows(select.scope, select.qualifier_sql, select.table.rows)
        self._work.edit(edits)
        scanned = select.table.rows * len(texts)
        self._step("distances", why, Cost(rows_scanned=scanned, seconds={"scan": time.perf_counter() - began}))

    def _all_present(self) -> bool:
        """Whether the condition leaves only rows that have the vectors whose distances are asked for."""
        if self._plan.filter is None or self._select.joined:
            return False
        mask, _ = self._matching_mask()
        found = self._registry.present(self._select.table, {c.column for c in self._select.calls}, mask)
        return np.array_equal(mask, mask if found is None else found)

    def _too_wide(self) -> bool:
        """Whether distances may leave float32, in which they are handed over."""
        store, table = self._registry.store, self._select.table
        calls = zip(self._select.calls, self._plan.vectors, strict=True)
        return any(Term(store(table, c.column), c.metric, v.values).wide for c, v in calls)

    def _all_distances(self, call: Call) -> str:
        """The distances of all rows as one constant array, indexed by the row number."""
        select = self._select
        vector = self._plan.vectors[select.calls.index(call)]
        store = self._registry.store(select.table, call.column)
        values = Scan([Term(store, call.metric, vector.values)], select.table.rows).all()
        text = by_row(self._work.keep("distances", one_array(values)), select.qualifier_sql)
        return text if vector.narrow_for(call.metric) else f"toFloat64({text})"

    def _item_names(self) -> dict[int, str]:
        """Where the items of SELECT that have no name of their own end, and the names ClickHouse gives them.

        Empty where they cannot be told: for a nested SELECT, whose names may be referred to, and beside a `*`.
        """
        scope = self._select.scope
        items = scope.items("SELECT")
        end = scope.clauses.get("FORMAT") or scope.clauses.get("SETTINGS") or scope.clauses.get("INTO")
        if scope.nested or any(t.text == "*" or t.upper == "COLUMNS" for t in scope.within("SELECT")):
            return {}
        text = scope.text[scope.whole.start : scope.tokens[end.first - 1].start if end else scope.whole.end]
        if end and scope.tokens[end.first - 1].upper == "OUTFILE":
            return {}
        described = self._engine.arrow(f"DESCRIBE TABLE ({text})", params=self._work.params, user=True)
        found = described.column(0).to_pylist() if described.num_rows == len(items) else []
        return {
            scope.tokens[last - 1].end: name
            for (first, last), name in zip(items, found, strict=False)
            if scope.tokens[last - 1].name not in self._select.aliases
            and any(first <= c.first < last for c in self._select.calls)
        }


def where_edits(scope: Scope, where: str) -> list[Edit]:
    """The edits that make `where` the one condition of a SELECT."""
    edits: list[Edit] = []
    placed = False
    for clause in ("WHERE", "PREWHERE"):
        span = scope.clauses.get(clause)
        if span:
            start = scope.tokens[span.first - 1].start
            edits.append((start, span.end, "" if placed else f"WHERE {where}"))
            placed = True
    if not placed:
        end = scope.clauses["FROM"].end
        edits.append((end, end, f" WHERE {where}"))
    return edits
