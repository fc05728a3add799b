"""Plans the SELECTs of a statement and has them carried out, inner ones first.

What must stay true: the edited statement gives the rows that the original gives; where ClickHouse refuses the edited
one, the original is run instead, and the answer is its.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipql.brief import Brief
from clipql.encode.service import Batch, Encoders
from clipql.errors import QueryCancelled, QueryError, VectorError
from clipql.index.base import Candidates
from clipql.sql import direct
from clipql.sql.calls import find_sources
from clipql.sql.constants import Constants
from clipql.sql.encode_calls import Encoded, Encoding
from clipql.sql.execution import Direct, Execution, Step, Work, no_answer, where_edits
from clipql.sql.identity import Origins
from clipql.sql.inline import inline
from clipql.sql.joins import edits, recognise_join
from clipql.sql.pairs import JoinPlan, PairSearch, plan_join
from clipql.sql.plan import Plan, plan
from clipql.sql.prepared import Asked, Repeats, prepare
from clipql.sql.recognise import VectorSelect, recognise
from clipql.sql.settings import SearchOptions
from clipql.sql.untouched import Untouched, untouched
from clipql.sql.views import finder
from clipql.sql.words import Words
from clipql.syntax.edits import Edit
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

BY_DEFAULT = SearchOptions()
Explained = Plan | JoinPlan | Untouched


@dataclass(frozen=True, repr=False)
class Rewritten(Brief):
    """A statement as ClickHouse shall run it, with the parameters and Arrow tables that it needs besides the user's.

    batches: vectors that its rows will ask for; they go when this does. answer: all of the result, where the row file
    gave it; sql is then what the user wrote.
    """

    sql: str
    params: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    steps: tuple[Step, ...]
    batches: tuple[Batch, ...] = ()
    answer: Direct | None = None


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

    def __init__(
        self, registry: Registry, indexes: Indexes, encoders: Encoders, repeats: Repeats | None = None
    ) -> None:
        """repeats: of another planner over the same registry, to be shared."""
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self.repeats = repeats or Repeats(registry, indexes, encoders)
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
        scored = self.words.replace(sql, params)
        asked = asked if scored == sql else None  # what words weigh changes with the rows
        encoded = self.encoding.replace(scored, params)
        work = Work(encoded.sql, dict(encoded.params))
        constants = Constants(self._engine, encoded.params)
        origins = Origins(self._registry.find, encoded.models)
        find = finder(self._registry, encoded.params)
        selects = _Selects(work)
        for at in reversed(range(selects.count)):
            self._engine.check_cancelled()
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
            join = recognise_join(scope, self._registry.find) if options.plan else None
            if join:
                self._join(plan_join(join, self._indexes, options), work)
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
        steps = tuple(reversed(work.steps))
        return Rewritten(work.sql, work.params, work.tables, steps, encoded.batches, work.answer)

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

    def _join(self, planned: JoinPlan, work: Work) -> None:
        """Search for the pairs of a nearest-neighbour join, and edit the statement to join just those."""
        if planned.kind == "as it is":
            work.steps.append(Step(planned, planned.kind, planned.why))
            return
        try:
            settings = read(planned.join.scope.text).settings_in(planned.join.scope)
            found = PairSearch(self._registry, planned, work.params, settings).find()
            name = work.name("pairs")
            changed = edits(planned.join, self._registry, name, work.params)
        except QueryCancelled:
            raise
        except QueryError:  # of a query of ours: what is wrong, if anything is, the statement itself will say
            work.steps.append(Step(planned, "as it is", "ClickHouse refused a part of it on its own"))
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
        encoded = self.encoding.replace(self.words.replace(sql, params), params, rows=False)
        constants, origins = Constants(self._engine, encoded.params), Origins(self._registry.find, encoded.models)
        plans: list[Explained] = []
        work, find = Work(encoded.sql, {}), finder(self._registry, encoded.params)
        selects = _Selects(work)
        for at in reversed(range(selects.count)):
            self._engine.check_cancelled()
            scope = selects[at]
            merged = inline(scope, find)
            if merged:
                work.edit(merged)
                scope = selects[at]
            join = recognise_join(scope, self._registry.find)
            select = None if join else recognise(scope, self._registry.find)
            if join:
                plans.insert(0, plan_join(join, self._indexes, options))
            elif select:
                plans.insert(0, self._planned(select, constants, options, origins, encoded))
            elif left := untouched(scope, self._registry.find):
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
