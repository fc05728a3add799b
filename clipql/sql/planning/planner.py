"""Plans the SELECTs of a statement and has them carried out, inner ones first.

What must stay true: the edited statement gives the rows that the original gives; where ClickHouse refuses the edited
one, the original is run instead, and the answer is its.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from clipql.brief import Brief
from clipql.encode.service import Batch, Encoders
from clipql.engine.quoting import quote_name
from clipql.errors import QueryCancelled, QueryError, VectorError
from clipql.index.base import Candidates
from clipql.sql.joins import components, range_joins
from clipql.sql.joins.components import Components
from clipql.sql.joins.given_vectors import fetched
from clipql.sql.joins.near_any import written_out
from clipql.sql.joins.nearest_groups import recognise_nearest_groups
from clipql.sql.joins.nearest_joins import NearestJoin, edits, recognise_join
from clipql.sql.joins.pairs import JoinPlan, PairSearch, plan_join
from clipql.sql.joins.range_joins import RangeJoinPlan, plan_range_join, recognise_range_join
from clipql.sql.joins.range_pairs import RangePairs, with_vectors
from clipql.sql.numbers import rowwise
from clipql.sql.numbers.heads import with_heads
from clipql.sql.numbers.row_arrays import RowArrays, known_rows, leave_most
from clipql.sql.numbers.rowwise import RowDistances
from clipql.sql.planning.execution import Execution, no_answer, where_edits
from clipql.sql.planning.prepared import Asked, Repeats, prepare
from clipql.sql.planning.untouched import Untouched, untouched
from clipql.sql.planning.work import Direct, Step, Work
from clipql.sql.recognition.calls import find_sources
from clipql.sql.recognition.constants import Constants
from clipql.sql.recognition.encode_calls import Encoded, Encoding
from clipql.sql.recognition.identity import Origins
from clipql.sql.recognition.inline import inline
from clipql.sql.recognition.plan import Plan, plan
from clipql.sql.recognition.recognise import VectorSelect, recognise
from clipql.sql.recognition.settings import SearchOptions
from clipql.sql.recognition.views import finder
from clipql.sql.recognition.words import Words
from clipql.sql.search import direct
from clipql.sql.search.harmless import cuts_short
from clipql.storage.vectors.heads import Head
from clipql.syntax.edits import Edit
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

BY_DEFAULT = SearchOptions()
Explained = Components | Plan | JoinPlan | RangeJoinPlan | RowDistances | Untouched


@dataclass(frozen=True, repr=False)
class Rewritten(Brief):
    """A statement as ClickHouse shall run it, with the parameters and Arrow tables that it needs besides the user's.

    batches, heads: what its rows will ask for; they go when this does. answer: all of the result, where the row file
    gave it; sql is then what the user wrote.
    """

    sql: str
    params: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    steps: tuple[Step, ...]
    batches: tuple[Batch, ...] = ()
    answer: Direct | None = None
    heads: tuple[Head, ...] = ()


class _Selects:
    """The SELECTs of a statement that is being edited, as its text has them now.

    An edit may take away SELECTs, but only such as were looked at before, which come later in the text.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self.count = len(read(work.sql).selects)

    def __getitem__(self, at: int) -> Scope:
        return read(self._work.sql).selects[at]


class Planner:
    """Rewrites statements over the tables of a registry."""

    def __init__(self, registry: Registry, indexes: Indexes, encoders: Encoders) -> None:
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self.repeats = Repeats(registry, indexes, encoders)
        self._memory = self.repeats.memory
        self.words = Words(registry)
        self.encoding = Encoding(registry.engine, encoders, registry.find, lambda: registry.catalog.tables)

    def rewrite(
        self,
        sql: str,
        params: Mapping[str, Any],
        options: SearchOptions = BY_DEFAULT,
        *,
        format: str | None = None,
        asked: Asked | None = None,
    ) -> Rewritten:
        """The statement with each vector search in it carried out; with `options.plan` False, none is planned.

        Inner SELECTs come first, so that an outer one sees the text that will be run. format: of the result, where it
        may be answered from the row file. asked: the statement as it may come again, to be kept.
        """
        if options.plan and self.cuts_short(sql):
            options = replace(options, plan=False)
        scored = self.words.replace(sql, params)
        asked = asked if scored == sql else None  # what words weigh changes with the rows
        headed = with_heads(scored, self._registry, params, plan=options.plan, device=options.device)
        asked = asked if headed.sql == sql else None
        encoded = self.encoding.replace(written_out(headed.sql, self._registry), headed.params)
        work = Work(encoded.sql, dict(encoded.params))
        work.steps += [Step(found, found.kind, found.why) for found in headed.plans]
        constants = Constants(self._engine, encoded.params)
        origins = Origins(self._registry.find, encoded.models)
        find = finder(self._registry, encoded.params)
        selects = _Selects(work)
        for at in reversed(range(selects.count)):
            self._engine.check_cancelled()
            scope = selects[at]
            if self._components(scope, work):
                scope = selects[at]
            merged = inline(scope, find) if options.plan else []
            if merged:
                work.edit(merged)
                scope = selects[at]
            origins.check_pairs(scope)
            moved = self._prewhere(scope)
            if moved:
                work.edit(moved)
                scope = selects[at]
            if options.plan and self._by_row(scope, constants, work):
                scope = selects[at]
            join = self._nearest_join(scope, work) if options.plan else None
            if join:
                self._join(plan_join(join, self._indexes, options), work)
                continue
            pairs = self._range_join(scope, constants, work, options) if options.plan else None
            if pairs:
                self._within(pairs, work)
                continue
            select = recognise(scope, self._registry.find) if options.plan else None
            if select:
                planned = self._planned(select, constants, options, origins, encoded)
                items, text = direct.items(planned, work.sql), work.sql
                answer = partial(self._answer, planned, items, constants, format)
                Execution(self._registry, self._indexes.rows, self._memory, planned, work).run(
                    answer if format else no_answer
                )
                if asked and format and items and work.answer and len(work.steps) == 1:
                    kept = prepare(asked, planned, items, encoded, work.answer, self._registry, sql=text, format=format)
                    if kept:
                        self.repeats.keep(asked, kept)
        if any(isinstance(step.plan, RowDistances) for step in work.steps):
            work.edit(rowwise.lazily(work.sql))
        steps = tuple(reversed(work.steps))
        return Rewritten(work.sql, work.params, work.tables, steps, encoded.batches, work.answer, headed.heads)

    def cuts_short(self, sql: str) -> bool:
        """Whether limits that hold may end a part of a statement without an error, so that nothing is planned."""
        acting = self._engine.acting
        return cuts_short(sql, acting.user.statements, acting.settings)

    def _planned(
        self, select: VectorSelect, constants: Constants, options: SearchOptions, origins: Origins, encoded: Encoded
    ) -> Plan:
        try:
            return plan(select, constants, self._indexes, options, origins)
        except VectorError as error:  # in terms of what the user wrote
            message = str(error)
            for name, call in encoded.calls.items():
                message = message.replace(f"{{{name}:Array(Float32)}}", call)
            raise VectorError(message) from error

    def _components(self, scope: Scope, work: Work) -> bool:
        """Have FROM read the components of pairs, which are united now; whether there were any."""
        found = components.recognise_components(scope)
        edits: list[Edit] = []
        for entry, asked in found:
            name = work.name("components")
            work.tables[name] = components.united(self._engine, asked.pairs, work.params, work.tables)
            work.steps.append(Step(asked, asked.kind, asked.why, found=work.tables[name].num_rows))
            edits.append(components.edit(scope, entry, name))
        work.edit(edits)
        return bool(found)

    def _by_row(self, scope: Scope, constants: Constants, work: Work) -> bool:
        """Have the distances of two columns of a row computed in blocks; whether the statement was edited for that."""
        found = rowwise.row_distances(scope, self._registry.find)
        if found is None:
            return False
        table = found.table
        all_rows = self._of_all(found, work.params)
        arrays = RowArrays(self._registry, table, constants, partial(work.keep, "numbers")) if all_rows else None
        changed = rowwise.edits(found, scope, self._registry, work.params, arrays)
        if changed and arrays and arrays.used:
            changed += known_rows(scope, f"{quote_name(found.calls[0].source.qualifier)}.", table.rows)
        if changed:
            work.edit(changed)
            work.steps.append(Step(found, found.kind, found.why))
        return bool(changed)

    def _of_all(self, found: RowDistances, params: Mapping[str, Any]) -> bool:
        """Whether numbers of rows are computed for all rows at once."""
        return found.leaving is not None and leave_most(found.leaving, found.table, self._indexes.rows, params)

    def _join(self, planned: JoinPlan, work: Work) -> None:
        """Search for the pairs of a nearest-neighbour join, and edit the statement to join just those."""
        if planned.kind == "as it is":
            work.steps.append(Step(planned, planned.kind, planned.why))
            return
        try:
            settings = read(planned.join.scope.text).settings_in(planned.join.scope)
            ready = self._with_vectors(planned, work, settings)
            if isinstance(ready, str):
                work.steps.append(Step(planned, "as it is", ready))
                return
            found = PairSearch(self._registry, ready, work.params, settings).find()
            name = work.name("pairs")
            changed = edits(ready.join, self._registry, name, work.params, work.tables)
        except QueryCancelled:
            raise
        except QueryError:  # of a query of ours: what is wrong, if anything is, the statement itself will say
            work.steps.append(Step(planned, "as it is", "ClickHouse refused a part of it on its own"))
            return
        pairs, cost = found
        work.tables[name] = pairs
        work.edit(changed)
        work.steps.append(Step(planned, planned.kind, planned.why, cost, found=pairs.num_rows))

    def _nearest_join(self, scope: Scope, work: Work) -> NearestJoin | None:
        found = recognise_join(scope, self._registry, work.params, work.tables)
        return found or recognise_nearest_groups(scope, self._registry.find)

    def _with_vectors(self, planned: JoinPlan, work: Work, settings: str) -> JoinPlan | str:
        """The same join with the query vectors that the statement brings along, if it does; or why it cannot be."""
        join, each = planned.join, planned.join.each
        if each.given is None:
            return planned
        near = join.near.table.column(join.near.column)
        name, settings = work.name("given"), f"{settings}, " if settings else ""
        found = fetched(
            each.given, each.column, near.dimension if near else None, each.filter,
            self._registry, work.params, work.tables, name, settings,
        )  # fmt: skip
        if isinstance(found, str) or found.rows is None:
            return str(found)
        work.tables[name] = found.rows
        side = replace(each, table=replace(each.table, rows=found.rows.num_rows), conditions=(), given=found)
        return replace(planned, join=replace(join, each=side))

    def _range_join(
        self, scope: Scope, constants: Constants, work: Work, options: SearchOptions
    ) -> RangeJoinPlan | None:
        join = recognise_range_join(scope, self._registry, work.params, work.tables)
        planned = plan_range_join(join, constants) if join else None
        return replace(planned, device=options.device) if planned else None

    def _within(self, planned: RangeJoinPlan, work: Work) -> None:
        """Search for the pairs of a range join, and edit the statement to join just those."""
        settings = read(planned.join.scope.text).settings_in(planned.join.scope)
        try:
            given = work.name("given")
            ready = with_vectors(planned, self._registry, work.params, work.tables, given, settings)
            if isinstance(ready, str):
                work.steps.append(Step(planned, "as it is", ready))
                return
            work.tables.update({s.given.name: s.given.rows for s in ready.join.sides if s.given})
            name = work.name("pairs")
            changed = range_joins.edits(ready.join, self._registry, name, work.params, work.tables)
            found = RangePairs(self._registry, ready, work.params, settings).find()
        except QueryCancelled:
            raise
        except QueryError:  # of a query of ours: what is wrong, if anything is, the statement itself will say
            work.steps.append(Step(planned, "as it is", "ClickHouse refused a part of it on its own"))
            return
        if isinstance(found, str):
            work.steps.append(Step(planned, "as it is", found))
            return
        pairs, cost = found
        work.tables[name] = pairs
        work.edit(changed)
        work.steps.append(Step(planned, planned.kind, planned.why, cost, found=pairs.num_rows))

    def _answer(
        self,
        planned: Plan,
        wanted: tuple[direct.Item, ...] | None,
        constants: Constants,
        format: str | None,
        found: Candidates,
    ) -> Direct | None:
        """The result from the row file, if it can be had from there in this format."""
        if wanted is None:
            return None
        types = None if format == "ArrowStream" else direct.types_of(self._indexes, planned, wanted)
        if types is None and format != "ArrowStream":
            return None
        offset = planned.select.offset
        skipped = int(constants.number(offset) or 0) if offset else 0
        table = direct.answer(self._registry, self._indexes, planned, wanted, found, skipped)
        return None if table is None else Direct(table, types)

    def plans(self, sql: str, params: Mapping[str, Any], options: SearchOptions = BY_DEFAULT) -> list[Explained]:
        """The plan of each SELECT that reads vectors, outer ones first, with nothing searched."""
        headed = with_heads(self.words.replace(sql, params), self._registry, params, device=options.device)
        encoded = self.encoding.replace(written_out(headed.sql, self._registry), headed.params, rows=False)
        constants, origins = Constants(self._engine, encoded.params), Origins(self._registry.find, encoded.models)
        plans: list[Explained] = [*headed.plans]
        work, find = Work(encoded.sql, dict(encoded.params)), finder(self._registry, encoded.params)
        selects = _Selects(work)
        for at in reversed(range(selects.count)):
            self._engine.check_cancelled()
            scope = selects[at]
            plans[:0] = [found for _, found in components.recognise_components(scope)]
            merged = inline(scope, find)
            if merged:
                work.edit(merged)
                scope = selects[at]
            by_row = rowwise.row_distances(scope, self._registry.find)
            join = self._nearest_join(scope, work)
            pairs = None if join else self._range_join(scope, constants, work, options)
            select = None if join or pairs else recognise(scope, self._registry.find)
            if join:
                plans.insert(0, plan_join(join, self._indexes, options))
            elif pairs:
                plans.insert(0, pairs)
            elif select:
                plans.insert(0, self._planned(select, constants, options, origins, encoded))
            if by_row:
                plans.insert(0, replace(by_row, leaving=() if self._of_all(by_row, encoded.params) else None))
            elif not (join or pairs or select) and (left := untouched(scope, self._registry.find)):
                plans.insert(0, left)
        return plans

    def _prewhere(self, scope: Scope) -> list[Edit]:
        """The edits that make WHERE of a PREWHERE on a vector column, which ClickHouse cannot read so early."""
        found, _ = find_sources(scope, self._registry.find)
        vectors = {c.name for source in found for c in source.table.columns}
        if not any(t.name in vectors for t in scope.within("PREWHERE")):
            return []
        where = scope.body("WHERE")
        return where_edits(scope, f"({scope.body('PREWHERE')})" + (f" AND ({where})" if where else ""))
