"""Carrying out a nearest-neighbour join: which pairs of rows, found by an index or in one exact pass."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.index import kinds
from clipql.index.base import Cost, Index
from clipql.index.batch import nearest_each
from clipql.index.flat import each_core
from clipql.sql.joins import PAIRS, NearestJoin, Side, from_clause
from clipql.sql.settings import SearchOptions
from clipql.storage.catalog import VectorColumn
from clipql.tables.indexes import Chosen, Indexes
from clipql.tables.registry import ROW, Registry

MOST_PAIRS = 20_000_000
EACH_AT_ONCE = 4_096
# where conditions concern both rows of a pair, this many times as many are looked at until enough meet them
WIDER, WIDEST = 4, 4_096


@dataclass(frozen=True)
class JoinPlan:
    """How a nearest-neighbour join is to be carried out, and why."""

    join: NearestJoin
    chosen: Chosen
    knobs: Mapping[str, float] = field(default_factory=dict)
    kind: str = "nearest join"

    @property
    def why(self) -> str:
        """In a few words."""
        return "sorted by a distance of two columns, with LIMIT n BY"

    @property
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it searches."""
        found = (side.table.column(side.column) for side in (self.join.near, self.join.each))
        return tuple(c for c in found if c)


def plan_join(join: NearestJoin, indexes: Indexes, options: SearchOptions) -> JoinPlan:
    """Choose the index to search `near` with. Raises QueryError for knobs that cannot be."""
    if not options.index:
        return JoinPlan(join, Chosen(None, None, "vector_index = 0"))
    chosen = indexes.choose(join.near.table, join.near.column, join.metric)
    knobs = kinds.knobs_for(chosen.entry, options.knobs) if chosen.index and chosen.entry else {}
    return JoinPlan(join, chosen, knobs)


class PairSearch:
    """The pairs of one join. settings: those of the statement, for the conditions."""

    def __init__(self, registry: Registry, plan: JoinPlan, params: Mapping[str, Any], settings: str) -> None:
        self._registry, self._plan, self._join, self._params = registry, plan, plan.join, params
        self._store = registry.store(plan.join.near.table, plan.join.near.column)
        self._queries = registry.store(plan.join.each.table, plan.join.each.column)
        self._codes = self._rescored = 0
        self._settings = f"{settings}, " if settings else ""

    def find(self) -> tuple[pa.Table, Cost] | str:
        """Pairs as clipql_each, clipql_near, clipql_distance, and what it took; or why they are not searched for."""
        began = time.perf_counter()
        join = self._join
        if self._store.dimension != self._queries.dimension:
            return "the two columns hold vectors of different lengths"
        each = self._rows(join.each)
        if each is None:
            each = np.arange(join.each.table.rows)
        if len(each) * join.k > MOST_PAIRS:
            return f"more than {MOST_PAIRS:,} pairs"
        among = self._rows(join.near)
        mask = None
        if among is not None:
            mask = np.zeros(join.near.table.rows, np.bool_)
            mask[among] = True
        found = self._nearest(each, join.k, mask)
        if join.mixed:
            widened = self._meeting(each, found, mask)
            if widened is None:
                return "too few of the nearest rows meet the conditions on both"
            found = widened
        cost = Cost(
            rows_scanned=0 if self._plan.chosen.index else len(each) * join.near.table.rows,
            codes_scanned=self._codes,
            rows_rescored=self._rescored,
            seconds={"search": time.perf_counter() - began},
        )
        return found, cost

    def _rows(self, side: Side) -> NDArray[np.int64] | None:
        """The rows of a side that its conditions let through; None for all there are."""
        if side.filter is None:
            alive = self._registry.alive(side.table)
            return None if alive is None else np.flatnonzero(alive)
        table = self._registry.physical(side.table)
        sql = f"SELECT {ROW} FROM {table} AS {quote_name(side.qualifier)} WHERE {side.filter}"
        sql += f" SETTINGS {self._settings}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
        rows = self._registry.row_numbers(sql, self._params).astype(np.int64)
        return np.sort(rows[rows < side.table.rows])

    def _nearest(self, each: NDArray[np.int64], k: int, mask: NDArray[np.bool_] | None) -> pa.Table:
        near, distances = [np.empty((0, k), np.int64)], [np.empty((0, k))]
        for at in range(0, len(each), EACH_AT_ONCE):
            queries = self._queries.take(each[at : at + EACH_AT_ONCE])
            index = self._plan.chosen.index
            rows, values = (
                nearest_each(self._store, self._join.metric, queries, k, mask)
                if index is None
                else self._by_index(index, queries, k, mask)
            )
            near.append(rows)
            distances.append(values)
        rows, values = np.concatenate(near), np.concatenate(distances)
        there = rows >= 0
        return pa.table(
            {
                "clipql_each": arrow_numbers(np.repeat(each, k).reshape(-1, k)[there].astype(np.uint64)),
                "clipql_near": arrow_numbers(rows[there].astype(np.uint64)),
                "clipql_distance": arrow_numbers(values[there]),
            }
        )

    def _by_index(
        self, index: Index, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        covered, sign = index.rows_covered, -1.0 if self._join.metric.larger_is_nearer else 1.0
        rows, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf)
        allowed = None if mask is None else mask[:covered]

        def search(first: int, last: int) -> None:
            for i in range(first, last):
                found = index.search(queries[i], k, among=allowed, knobs=self._plan.knobs)
                self._codes += found.cost.codes_scanned
                self._rescored += found.cost.rows_rescored
                n = min(k, len(found.rows))
                rows[i, :n], values[i, :n] = found.rows[:n], found.distances[:n]

        each_core(len(queries), search)
        if index.metric is not self._join.metric:  # L2Distance and its square sort alike
            squared = self._join.metric.value == "L2SquaredDistance"
            values = values**2 if squared else np.sqrt(values)
        if covered >= self._join.near.table.rows:
            return rows, values
        newer, theirs = nearest_each(self._store, self._join.metric, queries, k, mask, first=covered)
        rows, values = np.concatenate([rows, newer], axis=1), np.concatenate([values, theirs], axis=1)
        order = np.argsort(np.where(rows < 0, np.inf, sign * values), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)

    def _meeting(self, each: NDArray[np.int64], found: pa.Table, mask: NDArray[np.bool_] | None) -> pa.Table | None:
        """Pairs of which enough meet the conditions on both rows; None where that needs too many."""
        join, engine, done = self._join, self._registry.engine, []
        left, k = each, join.k
        most = int(mask.sum()) if mask is not None else join.near.table.rows
        while len(left):
            sql = (
                f"SELECT {PAIRS}.clipql_each FROM {from_clause(join, self._registry, PAIRS)} "
                f"WHERE {' AND '.join(f'({c})' for c in join.mixed)} SETTINGS {self._settings}limit = 0, offset = 0"
            )
            met = engine.query(sql, params=self._params, tables={PAIRS: found}, user=True).arrow().column(0).to_numpy()
            rows, counts = np.unique(met.astype(np.int64), return_counts=True)
            enough = rows[counts >= join.k] if k < most else left
            pairs_of = found.column("clipql_each").to_numpy()
            done.append(found.filter(pa.array(np.isin(pairs_of, enough.astype(np.uint64)))))
            left = np.setdiff1d(left, enough)
            if not len(left):
                break
            k *= WIDER
            if k > WIDEST or len(left) * k > MOST_PAIRS:
                return None
            found = self._nearest(left, min(k, most), mask)
        return pa.concat_tables(done) if done else found
