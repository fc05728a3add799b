"""Carrying out a nearest-neighbour join: which pairs of rows, found by an index or in one exact pass.

What must stay true: memory does not grow with the pairs. Rows are taken in slices, and pairs beyond what is held go to
a file that is mapped.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import short
from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.index import kinds, of_few
from clipql.index.base import Candidates, Cost, Index, SearchesMany
from clipql.index.batch import nearest_each
from clipql.index.cores import each_core
from clipql.index.flat import Scan, Term
from clipql.sql.joins.nearest_joins import PAIRS, NearestJoin, Side, from_clause
from clipql.sql.recognition.settings import SearchOptions
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import devices, metrics
from clipql.storage.vectors.device import Device
from clipql.tables.indexes import Chosen, Indexes
from clipql.tables.registry import ROW, Registry

EACH_AT_ONCE = 4_096
# pairs of one slice, and of all that are held in memory, at 24 bytes each
PAIRS_AT_ONCE, PAIRS_HELD = 2_000_000, 8_000_000
# where conditions concern both rows of a pair, this many times as many are looked at until enough meet them
WIDER, WIDEST = 4, 4_096
# widening goes on while at least this share of the rows finds enough by it; the others look at all their pairs
WORTH = 0.1
# as many rows are read and compared one by one sooner than the column is scanned
FEW = 4_096
# a table of this many rows is sooner asked for all pairs that meet the conditions than searched
SMALL = 10_000


@dataclass(frozen=True, repr=False)
class JoinPlan:
    """How a nearest-neighbour join is to be carried out, and why."""

    join: NearestJoin
    chosen: Chosen
    knobs: Mapping[str, float] = field(default_factory=dict)
    kind: str = "nearest join"
    why: str = ""
    device: str = devices.CPU

    def __repr__(self) -> str:
        return f"JoinPlan({self.kind!r}, {self.searched}, why={short(self.why)})"

    @property
    def searched(self) -> str:
        """The columns that it joins by, in words."""
        sides = (self.join.each, self.join.near)
        return " and ".join(f"{side.named}: {side.column}" for side in sides)

    @property
    def products(self) -> float:
        """Products of numbers that all pairs take."""
        near = self.join.near.table.column(self.join.near.column)
        return float(self.join.each.table.rows) * self.join.near.table.rows * ((near and near.dimension) or 0)

    @property
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it searches."""
        sides = [side for side in (self.join.near, self.join.each) if side.given is None]
        found = (side.table.column(side.column) for side in sides)
        return tuple(c for c in found if c)


def plan_join(join: NearestJoin, indexes: Indexes, options: SearchOptions) -> JoinPlan:
    """Choose the index to search `near` with. Raises QueryError for knobs that cannot be."""
    near, each = join.near.table.column(join.near.column), join.each.table.column(join.each.column)
    if join.each.given is None and near and each and near.dimension != each.dimension:
        why = f"the two columns hold {each.dimension} and {near.dimension} numbers"
        return JoinPlan(join, Chosen(None, None, ""), kind="as it is", why=why)
    if not options.index:
        return JoinPlan(join, Chosen(None, None, "vector_index = 0"), why=join.why, device=options.device)
    chosen = indexes.choose(join.near.table, join.near.column, join.metric)
    knobs = kinds.knobs_for(chosen.entry, options.knobs) if chosen.index and chosen.entry else {}
    return JoinPlan(join, chosen, knobs, why=join.why, device=options.device)


class PairSearch:
    """The pairs of one join. settings: those of the statement, for the conditions."""

    def __init__(self, registry: Registry, plan: JoinPlan, params: Mapping[str, Any], settings: str) -> None:
        self._registry, self._plan, self._join, self._params = registry, plan, plan.join, params
        self._store = registry.store(plan.join.near.table, plan.join.near.column)
        each = plan.join.each
        self._queries = each.given or registry.store(each.table, each.column)
        self._tables = {each.given.name: each.given.rows} if each.given else {}
        self._codes = self._rescored = self._scanned = 0
        self._asking = 0
        self._held: of_few.FewRows | None = None
        self._settings = f"{settings}, " if settings else ""

    def find(self) -> tuple[pa.Table, Cost]:
        """Pairs as clipql_each, clipql_near, clipql_distance, and what it took."""
        began = time.perf_counter()
        join = self._join
        each = rows_of(self._registry, join.each, self._params, self._settings)
        if each is None:
            each = np.arange(join.each.table.rows)
        among = rows_of(self._registry, join.near, self._params, self._settings)
        mask = None
        if among is not None:
            mask = np.zeros(join.near.table.rows, np.bool_)
            mask[among] = True
        most = join.near.table.rows if among is None else len(among)
        self._asking = len(each)
        held = PairStore(self._registry.folder)
        step = max(1, min(EACH_AT_ONCE, PAIRS_AT_ONCE // join.k))
        for at in range(0, len(each), step):
            for pairs in self._slice(each[at : at + step], most, mask):
                held.add(pairs)
        cost = Cost(
            rows_scanned=self._scanned,
            codes_scanned=self._codes,
            rows_rescored=self._rescored,
            seconds={"search": time.perf_counter() - began},
        )
        return held.table(), cost

    def _slice(self, each: NDArray[np.int64], most: int, mask: NDArray[np.bool_] | None) -> Iterator[pa.Table]:
        """The pairs of some rows: of their nearest ones, wider and wider until enough meet the conditions on both."""
        k, left = min(self._join.k, most), each
        if not self._join.mixed:
            yield self._nearest(left, k, mask)
            return
        k = min(k * WIDER, most) if most > SMALL else 0
        while len(left) and 0 < k <= WIDEST:
            open_rows = []
            step = max(1, PAIRS_AT_ONCE // k)
            for at in range(0, len(left), step):
                rows = left[at : at + step]
                pairs, enough = self._meeting(self._nearest(rows, k, mask), all_there=k == most)
                yield pairs
                open_rows.append(rows[~np.isin(rows, enough)] if k < most else rows[:0])
            still = np.concatenate(open_rows)
            # most of these rows meet too few, as where groups must be equal: ClickHouse tells which they are sooner
            if k < most and (len(left) - len(still)) < WORTH * len(left):
                left = still
                break
            left, k = still, min(k * WIDER, most)
        if len(left) and most:
            yield from self._of_all(left, most, mask)

    def _nearest(self, each: NDArray[np.int64], k: int, mask: NDArray[np.bool_] | None) -> pa.Table:
        near, distances = [np.empty((0, k), np.int64)], [np.empty((0, k))]
        for at in range(0, len(each), EACH_AT_ONCE):
            rows, values = self._nearest_some(each[at : at + EACH_AT_ONCE], k, mask)
            near.append(rows)
            distances.append(values)
        rows, values = np.concatenate(near), np.concatenate(distances)
        there = rows >= 0
        return as_pairs(np.broadcast_to(each[:, None], there.shape)[there], rows[there], values[there])

    def _nearest_some(
        self, each: NDArray[np.int64], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k nearest rows to each of these and their distances, both (n, k): by the index, or all compared."""
        index = self._plan.chosen.index
        if index is None:
            return self._compared(each, k, mask)
        queries = self._queries.take(each)
        by_index = np.array([not index.doubt(q, self._plan.knobs) for q in queries], np.bool_)
        rows, values = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        if by_index.any():
            rows[by_index], values[by_index] = self._by_index(index, queries[by_index], k, mask)
        if not by_index.all():
            rows[~by_index], values[~by_index] = self._compared(each[~by_index], k, mask)
        return rows, values

    def _compared(
        self, each: NDArray[np.int64], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The same without the index."""
        self._scanned += len(each) * self._join.near.table.rows
        metric, device = self._join.metric, self._device()
        few = None if device is not None or not 0 < k <= of_few.MOST_K else self._few(mask)
        if few is None:
            return nearest_each(self._store, metric, self._queries.take(each), k, mask, device=device)
        rows, values, told = few.nearest(self._queries.stored(each), k)
        if not told.all():
            queries = self._queries.take(each[~told])
            rows[~told], values[~told] = nearest_each(self._store, metric, queries, k, mask)
        return rows, values

    def _few(self, mask: NDArray[np.bool_] | None) -> of_few.FewRows | None:
        """The rows that are searched, in memory, where they are few; the same for all slices of a join."""
        if self._held is None and (self._store.rows if mask is None else int(mask.sum())) <= of_few.MOST_ROWS:
            self._held = of_few.FewRows(self._store, self._join.metric, mask)
        return self._held

    def _device(self) -> Device | None:
        """What products are left to."""
        products = float(self._asking) * self._join.near.table.rows * self._store.dimension
        return devices.chosen(self._plan.device, products)

    def _by_index(
        self, index: Index, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        covered, sign = index.rows_covered, -1.0 if self._join.metric.larger_is_nearer else 1.0
        rows, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf)
        allowed = None if mask is None else mask[:covered]

        def search(first: int, last: int) -> None:
            together: list[Candidates | None] = [None] * (last - first)
            if isinstance(index, SearchesMany):
                together = index.search_each(queries[first:last], k, among=allowed, knobs=self._plan.knobs)
            for i in range(first, last):
                found = together[i - first] or index.search(queries[i], k, among=allowed, knobs=self._plan.knobs)
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
        newer, theirs = nearest_each(
            self._store, self._join.metric, queries, k, mask, first=covered, device=self._device()
        )
        rows, values = np.concatenate([rows, newer], axis=1), np.concatenate([values, theirs], axis=1)
        order = np.argsort(np.where(rows < 0, np.inf, sign * values), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)

    def _query(self, sql: str, table: pa.Table) -> pa.Table:
        sql += f" SETTINGS {self._settings}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
        tables = {PAIRS: table, **self._tables}
        return self._registry.engine.query(sql, params=self._params, tables=tables, user=True).arrow()

    def _conditions(self) -> str:
        return " AND ".join(f"({c})" for c in self._join.mixed)

    def _meeting(self, found: pa.Table, *, all_there: bool) -> tuple[pa.Table, NDArray[np.int64]]:
        """The pairs of rows for which enough meet the conditions on both, and those rows; with `all_there`, of all."""
        if all_there:
            return found, np.unique(found.column("clipql_each").to_numpy().astype(np.int64))
        sql = (
            f"SELECT {PAIRS}.clipql_each FROM {from_clause((self._join.each, self._join.near), self._registry, PAIRS)} "
        )
        met = self._query(f"{sql}WHERE {self._conditions()}", found).column(0).to_numpy()
        rows, counts = np.unique(met.astype(np.int64), return_counts=True)
        enough = rows[counts >= self._join.k]
        keep = np.isin(found.column("clipql_each").to_numpy(), enough.astype(np.uint64))
        return found.filter(pa.array(keep)), enough

    def _of_all(self, each: NDArray[np.int64], most: int, mask: NDArray[np.bool_] | None) -> Iterator[pa.Table]:
        """The k nearest of each row among all that meet the conditions with it, which ClickHouse tells in blocks."""
        total = self._join.near.table.rows
        step = max(1, min(EACH_AT_ONCE, PAIRS_AT_ONCE // most))
        for at in range(0, len(each), step):
            part = each[at : at + step]
            met = [self._met(part, first, first + PAIRS_AT_ONCE) for first in range(0, total, PAIRS_AT_ONCE)]
            owners, rows = (np.concatenate(columns) for columns in zip(*met, strict=True))
            order = np.lexsort((rows, owners))
            owners, rows = owners[order], rows[order]
            bounds = np.searchsorted(owners, part), np.searchsorted(owners, part, side="right")
            queries = self._queries.take(part)
            found = [self._of_rows(queries[i], rows[a:b]) for i, (a, b) in enumerate(zip(*bounds, strict=True))]
            yield as_pairs(
                np.repeat(part, [len(r) for r, _ in found]),
                np.concatenate([r for r, _ in found]),
                np.concatenate([d for _, d in found]),
            )

    def _met(self, each: NDArray[np.int64], first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of these rows with rows [first, last) of the other table that meet every condition."""
        join = self._join
        ours = f"{ROW} IN (SELECT clipql_each FROM Python({PAIRS}))"
        theirs = f"{ROW} >= {first} AND {ROW} < {last}" + (f" AND {join.near.filter}" if join.near.filter else "")
        sides = [
            f"(SELECT {'*' if side.given else f'*, {ROW}'} FROM {side.source(self._registry)} "
            f"AS {quote_name(side.qualifier)} WHERE {where}) AS {quote_name(side.qualifier)}"
            for side, where in ((join.each, ours), (join.near, theirs))
        ]
        rows = ", ".join(
            f"{quote_name(s.qualifier)}.{ROW} AS {n}" for s, n in ((join.each, "clipql_a"), (join.near, "clipql_b"))
        )
        met = self._query(
            f"SELECT {rows} FROM {' CROSS JOIN '.join(sides)} WHERE {self._conditions()}",
            pa.table({"clipql_each": arrow_numbers(each.astype(np.uint64))}),
        )
        owners, found = (met.column(i).to_numpy().astype(np.int64) for i in range(2))
        there = found < join.near.table.rows
        owners, found = owners[there], found[there]
        if self._store.there is not None:
            owners, found = owners[self._store.there[found]], found[self._store.there[found]]
        return owners, found

    def _of_rows(
        self, query: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k nearest of these rows to a query, and their distances."""
        metric, k = self._join.metric, self._join.k
        self._scanned += len(rows)
        if len(rows) > FEW:
            among = np.zeros(self._join.near.table.rows, np.bool_)
            among[rows] = True
            term = Term(self._store, metric, query.astype(np.float64), -1.0 if metric.larger_is_nearer else 1.0)
            rows = Scan([term], self._store.rows, among).nearest(k).rows.astype(np.int64)
        values = metrics.distances(metric, self._store.take(rows), query.astype(np.float64))
        keys = np.where(np.isnan(values), np.inf, -values if metric.larger_is_nearer else values)
        order = np.lexsort((rows, keys))[:k]
        return rows[order], values[order]


def rows_of(registry: Registry, side: Side, params: Mapping[str, Any], settings: str) -> NDArray[np.int64] | None:
    """The rows of a side with a vector that its conditions let through, ascending; None for all there are.

    settings: those of the statement, with a comma at the end.
    """
    if side.given is not None:
        return None
    if side.filter is None:
        present = registry.present(side.table, [side.column])
        return None if present is None else np.flatnonzero(present)
    table = registry.physical(side.table)
    sql = f"SELECT {ROW} FROM {table} AS {quote_name(side.qualifier)} WHERE {side.filter}"
    sql += f" SETTINGS {settings}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
    rows = registry.row_numbers(sql, params).astype(np.int64)
    there = registry.store(side.table, side.column).there
    rows = np.sort(rows[rows < side.table.rows])
    return rows if there is None else rows[there[rows]]


def as_pairs(each: NDArray[Any], near: NDArray[Any], distances: NDArray[Any]) -> pa.Table:
    """Pairs as a join reads them."""
    return pa.table(
        {
            "clipql_each": arrow_numbers(each.astype(np.uint64)),
            "clipql_near": arrow_numbers(near.astype(np.uint64)),
            "clipql_distance": arrow_numbers(distances),
        }
    )


def _nameless(folder: Path) -> IO[bytes]:
    """A file that goes when it is closed: in the folder, else, where a server may write nothing there, in TMPDIR."""
    try:
        return tempfile.NamedTemporaryFile(dir=folder, prefix="pairs.")
    except PermissionError:
        return tempfile.NamedTemporaryFile(prefix="pairs.")


class PairStore:
    """Pairs that come in pieces: held in memory while they are few, else in a file without a name that is mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held, self._rows = folder, list[pa.Table](), 0
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def add(self, pairs: pa.Table) -> None:
        self._held.append(pairs)
        self._rows += len(pairs)
        if self._rows > PAIRS_HELD:
            self._spill()

    def _spill(self) -> None:
        if self._writer is None:
            self._file = _nameless(self._folder)
            self._writer = pa.ipc.new_file(self._file, self._held[0].schema)
        for pairs in self._held:
            self._writer.write_table(pairs)
        self._held, self._rows = [], 0

    def table(self) -> pa.Table:
        """All pairs as one table."""
        if self._writer is None or self._file is None:
            none = as_pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
            return pa.concat_tables(self._held or [none])
        self._spill()
        self._writer.close()
        self._file.flush()
        mapped = pa.ipc.open_file(pa.memory_map(self._file.name)).read_all()
        self._file.close()  # the name goes, the mapping keeps the pairs
        return mapped
