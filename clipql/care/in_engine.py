"""Checks that need the database open: ClickHouse's own, the row numbers, and indexes against the exact scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipql.care.on_disk import Tally, rebuild_index, rebuild_rows
from clipql.engine.arrow import numpy_numbers
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError
from clipql.index import kinds
from clipql.index.flat import Scan, Term
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors import metrics
from clipql.storage.vectors.metrics import Metric
from clipql.tables.registry import ROW, Registry
from clipql.tables.rowfile import RowReader

if TYPE_CHECKING:
    from clipql.tables.open_database import OpenDatabase

SAMPLE, DEEP_SAMPLE = 20, 200  # queries by index
_COMPARED = 512  # rows that are looked at in both at once
FEWEST_FOUND = 0.5  # of the ten nearest, over all of the sample: what an index that is whole never falls below
_CHECKED = ("%MergeTree", "Log", "TinyLog", "StripeLog")


def check_engine(engine: Engine, tally: Tally) -> None:
    """ClickHouse's own check of every part of every table, and what it has put aside as broken."""
    kinds_of = " OR ".join(f"engine LIKE '{kind}'" for kind in _CHECKED)
    tables = engine.arrow(
        "SELECT database, name FROM system.tables WHERE database NOT IN ('system', 'information_schema', "
        f"'INFORMATION_SCHEMA') AND ({kinds_of}) AND NOT is_temporary ORDER BY ALL"
    ).to_pylist()
    for row in tables:
        name = f"{row['database']}.{row['name']}"
        tally.tick(f"CHECK TABLE {name}")
        try:
            parts = engine.arrow(
                f"CHECK TABLE {quote_name(row['database'])}.{quote_name(row['name'])} "
                "SETTINGS check_query_single_value_result = 0"
            ).to_pylist()
        except ClipqlError as error:
            tally.add("MergeTree", name, f"ClickHouse cannot check it: {error}")
            continue
        for part in parts:
            if not part["is_passed"]:
                tally.add("MergeTree", name, f"part {part['part_path']}: {part['message']}")
    aside = engine.arrow(
        "SELECT database, table, name, reason FROM system.detached_parts WHERE reason LIKE 'broken%' ORDER BY ALL"
    ).to_pylist()
    for row in aside:
        tally.add(
            "MergeTree",
            f"{row['database']}.{row['table']}",
            f"ClickHouse has put part {row['name']} aside as broken ({row['reason']})",
        )


def check_open(db: OpenDatabase, tally: Tally, *, deep: bool) -> None:
    """The rows and the indexes of every table with vectors."""
    registry = db.registry
    for table in registry.catalog.tables:
        try:
            _check_numbering(registry, table, tally)
            if table.row_file:
                _check_row_values(registry, table, tally, deep=deep)
        except ClipqlError as error:
            tally.add("MergeTree", table.full_name, str(error))
        for entry in table.indexes:
            if entry.folder:
                tally.tick(f"queries by {entry.name} of {table.full_name}")
                try:
                    _check_searches(db, table, entry, DEEP_SAMPLE if deep else SAMPLE)
                except (ClipqlError, ValueError, IndexError, KeyError, TypeError) as error:
                    tally.add("index", table.full_name, f"{entry.name}: {error}", rebuild_index(table, entry))


def _check_numbering(registry: Registry, table: Table, tally: Tally) -> None:
    """Row numbers ascend, none comes twice, and none is beyond the manifest's."""
    tally.tick(f"row numbers of {table.full_name}")
    last, count = -1, 0
    for batch in registry.engine.stream(f"SELECT {ROW} FROM {registry.physical(table)} ORDER BY {ROW}"):
        numbers = numpy_numbers(batch.column(0))
        if not len(numbers):
            continue
        steps = np.diff(numbers.astype(np.int64), prepend=last)
        if (steps <= 0).any():
            at = int(np.argmax(steps <= 0))
            tally.add("rows", table.full_name, f"row number {int(numbers[at]):,} is there twice")
            return
        last, count = int(numbers[-1]), count + len(numbers)
    if last >= table.rows:
        tally.add("rows", table.full_name, f"row number {last:,} is beyond the {table.rows:,} rows of the manifest")
    if count > table.rows:
        tally.add("rows", table.full_name, f"{count:,} rows are there, the manifest says {table.rows:,}")


def _check_row_values(registry: Registry, table: Table, tally: Tally, *, deep: bool) -> None:
    """The row file has what ClickHouse has: some batches of it, or all where deep."""
    entry = table.row_file
    assert entry is not None, "the caller has looked"
    starts = range(0, entry.rows, _COMPARED)
    if not deep:
        starts = starts[:: max(1, len(starts) // 4)]
    try:
        reader = RowReader(registry.folder / "rows" / entry.folder, entry)
        listed = ", ".join(map(quote_name, reader.schema.names))
        for start in starts:
            there = registry.engine.arrow(
                f"SELECT {listed} FROM {registry.physical(table)} WHERE {ROW} >= {start} "
                f"AND {ROW} < {min(start + _COMPARED, entry.rows)} ORDER BY {ROW}"
            )
            rows = there.column(0).to_pylist()
            if rows and repr(reader.table(rows).to_pylist()) != repr(there.to_pylist()):
                raise ClipqlError(f"{reader.folder} differs from ClickHouse's rows {rows[0]:,} to {rows[-1]:,}")
    except ClipqlError as error:
        tally.add("row file", table.full_name, str(error), rebuild_rows(table))


def _check_searches(db: OpenDatabase, table: Table, entry: IndexEntry, sample: int) -> None:
    """Queries by stored vectors. Raises ClipqlError for a wrong distance, or where too many rows are missed."""
    registry = db.registry
    store, metric = registry.store(table, entry.column), Metric(entry.metric)
    index = kinds.changing(kinds.open_index(entry, db.indexes.folder(entry), store), store, entry.changed)
    if index.rows_covered != entry.rows:
        raise ClipqlError(f"it covers {index.rows_covered:,} rows, the manifest says {entry.rows:,}")
    there = None if store.there is None else store.there[: entry.rows]
    rows = np.arange(entry.rows) if there is None else np.flatnonzero(there)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(sample, len(rows))).astype(np.int64))]
    found = expected = 0
    for query in store.take(rows):
        best = index.search(query, 10, among=there)
        distances = metrics.distances(metric, store.take(best.rows.astype(np.int64)), query)
        if not np.allclose(distances, best.distances, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ClipqlError("a distance that it gives is not that of the row's vector")
        if len(np.unique(best.rows)) != len(best.rows):
            raise ClipqlError("it gives a row twice")
        nearest = Scan(
            [Term(store, metric, query.astype(np.float64), -1.0 if metric.larger_is_nearer else 1.0)],
            entry.rows,
            there,
        )
        limit = np.sort(nearest.nearest(10).distances)[:10]
        keys = np.sort(-distances if metric.larger_is_nearer else distances)
        expected += len(limit)
        found += int((keys <= limit[-1] + 1e-4 * max(1.0, abs(limit[-1]))).sum()) if len(limit) else 0
    if found < FEWEST_FOUND * expected:
        raise ClipqlError(f"it finds {found} of the {expected} nearest rows of {len(rows)} sampled queries")
