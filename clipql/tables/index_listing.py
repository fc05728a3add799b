"""What is told of the indexes of tables: as rows, and in the statements that make tables."""

from __future__ import annotations

import pyarrow as pa

from clipql.engine.quoting import quote_name
from clipql.storage.catalog import IndexEntry, Table
from clipql.tables.index_entries import absent_of, recall_text
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry


def listing(indexes: Indexes) -> pa.Table:
    """All indexes, as `SELECT * FROM clipql.indexes` shows them."""
    rows = [(t, i) for t in indexes.registry.catalog.tables for i in t.indexes]
    text = pa.string()
    return pa.table(
        {
            "database": pa.array([t.database for t, _ in rows], text),
            "table": pa.array([t.name for t, _ in rows], text),
            "name": pa.array([i.name for _, i in rows], text),
            "column": pa.array([i.column for _, i in rows], text),
            "type": pa.array([i.kind for _, i in rows], text),
            "metric": pa.array([i.metric for _, i in rows], text),
            "definition": pa.array([i.definition for _, i in rows], text),
            "rows": pa.array([t.rows for t, _ in rows], pa.uint64()),
            "rows_covered": pa.array([i.rows for _, i in rows], pa.uint64()),
            "bytes": pa.array([i.bytes for _, i in rows], pa.uint64()),
            "build_seconds": pa.array([i.seconds for _, i in rows], pa.float64()),
            "recall": pa.array([recall_text(i) for _, i in rows], text),
            "state": pa.array([_told_state(indexes, t, i) for t, i in rows], text),
            "rows_without_vector": pa.array([absent_of(t, i) for t, i in rows], pa.uint64()),
            "rows_changed": pa.array([len(i.changed) for _, i in rows], pa.uint64()),
        }
    )


def _told_state(indexes: Indexes, table: Table, entry: IndexEntry) -> str:
    stage = indexes.background.stage((table.id, entry.name))
    return indexes.state(table, entry) + (f"; in the background: {stage}" if stage else "")


def statement(registry: Registry, table: Table) -> str:
    """CREATE TABLE as its user gave it, vector indexes and all."""
    shape = str(registry.engine.scalar(f"SHOW CREATE TABLE {registry.shape(table)}"))
    lines = shape.split("\n")
    lines[0] = f"CREATE TABLE {table.full_name}"
    end = lines.index(")")
    for entry in table.indexes:
        lines[end - 1] += ","
        lines.insert(end, f"    INDEX {quote_name(entry.name)} {quote_name(entry.column)} {entry.definition}")
        end += 1
    return "\n".join(lines)
