"""Carrying out a range join: the pairs within the bound, and what ClickHouse decides of them.

What must stay true: memory does not grow with the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from clipql.index.base import Cost
from clipql.index.within import GivenVectors, PairsWithin
from clipql.index.within import Side as Rows
from clipql.sql.joins.given_vectors import fetched
from clipql.sql.joins.nearest_joins import PAIRS, Side, from_clause
from clipql.sql.joins.pairs import PairStore, as_pairs, rows_of
from clipql.sql.joins.range_joins import RangeJoinPlan
from clipql.sql.numbers.row_comparisons import spelled_out
from clipql.sql.recognition.constants import with_clause
from clipql.storage.vectors import devices
from clipql.syntax.edits import edited
from clipql.tables.registry import Registry
from clipql.tables.watchers import reported

# pairs that are held in a file, at 24 bytes each; a statement of more is ClickHouse's, which holds none
MOST_PAIRS = 500_000_000
# what a long search is told of by
STAGE = "pairs compared"
# pairs that ClickHouse decides in one query
DECIDED_AT_ONCE = 50_000


def with_vectors(
    plan: RangeJoinPlan,
    registry: Registry,
    params: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    name: str,
    settings: str,
) -> RangeJoinPlan | str:
    """The same join with the vectors that the statement brings along, if it does, in an Arrow table of this name; or
    why they are left to ClickHouse. Raises QueryError.
    """
    left, right = plan.join.sides
    each, near = (left, right) if left.given else (right, left)
    if each.given is None:
        return plan
    column = near.table.column(near.column)
    dimension = column.dimension if column else None
    settings = f"{settings}, " if settings else ""
    found = fetched(each.given, each.column, dimension, each.filter, registry, params, tables, name, settings)
    if isinstance(found, str) or found.rows is None:
        return str(found)
    side = replace(each, table=replace(each.table, rows=found.rows.num_rows), conditions=(), given=found)
    changed = replace(plan.join, left=side) if each is left else replace(plan.join, right=side)
    return replace(plan, join=changed)


class RangePairs:
    """The pairs of one range join. settings: those of the statement, for the conditions."""

    def __init__(self, registry: Registry, plan: RangeJoinPlan, params: Mapping[str, Any], settings: str) -> None:
        self._registry, self._plan, self._join, self._params = registry, plan, plan.join, params
        self._settings = f"{settings}, " if settings else ""

    def find(self) -> tuple[pa.Table, Cost] | str:
        """Pairs as clipql_each, clipql_near, clipql_distance, and what it took; or why they are not searched for."""
        left, right = (self._rows(side) for side in self._join.sides)
        products = float(len(left)) * len(right) * left.store.dimension
        device = devices.chosen(self._plan.device, products)
        search = PairsWithin(self._join.metric, left, right, self._plan.bound, device=device)
        if not search.possible:
            return "values too large for float32"
        if len(left) * len(right) > MOST_PAIRS and search.expected > MOST_PAIRS:
            return f"about {search.expected:.0e} pairs are within the bound, more than is held"
        held = PairStore(self._registry.folder)
        unsure: list[pa.Table] = []

        def check() -> None:
            self._registry.engine.check_cancelled()
            reported(STAGE, *search.progress)

        for found in search.find(check):
            pairs = as_pairs(found.left, found.right, found.distances)
            held.add(pairs.filter(pa.array(~found.unsure)))
            unsure.append(pairs.filter(pa.array(found.unsure)))
            if sum(map(len, unsure)) > DECIDED_AT_ONCE:
                held.add(self._decided(pa.concat_tables(unsure)))
                unsure.clear()
        if any(map(len, unsure)):
            held.add(self._decided(pa.concat_tables(unsure)))
        return held.table(), search.cost

    def _rows(self, side: Side) -> Rows:
        if side.given is not None and side.given.vectors is not None:
            return Rows(GivenVectors(side.given.vectors), len(side.given.vectors))
        store = self._registry.store(side.table, side.column)
        chosen = rows_of(self._registry, side, self._params, self._settings)
        return Rows(store, side.table.rows, chosen)

    def _decided(self, pairs: pa.Table) -> pa.Table:
        """Those of the pairs that ClickHouse takes."""
        scope = self._join.scope
        aliases = {n: scope.text_of(*span) for n, span in scope.aliases.items()}
        text = edited(
            scope.text,
            spelled_out(scope, *self._join.bound, self._join.calls),
            scope.tokens[self._join.bound[0]].start,
            scope.tokens[self._join.bound[1] - 1].end,
        )
        wanted = {s.qualifier: (s.column,) for s in self._join.sides}
        sql = (
            f"{with_clause(text, scope.withs, aliases)}SELECT {PAIRS}.clipql_each, {PAIRS}.clipql_near, "
            f"{PAIRS}.clipql_distance FROM {from_clause(self._join.sides, self._registry, PAIRS, wanted)} WHERE {text} "
            f"SETTINGS {self._settings}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
        )
        given = {s.given.name: s.given.rows for s in self._join.sides if s.given}
        tables = {PAIRS: pairs, **given}
        met = self._registry.engine.query(sql, params=self._params, tables=tables, user=True).arrow()
        return as_pairs(*(met.column(i).to_numpy() for i in range(3)))
