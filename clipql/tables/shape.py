"""A table's two definitions: the *shape*, an empty table with just what the user wrote, and the physical table.

The physical table is made from ClickHouse's own rendering of the shape: vector columns become ALIAS columns that read
the store, a hidden `_row` is added, and rows are sorted by it, so that the rows a search has found are read by primary
key. What the user sorted by gets a minmax index instead.
"""

from __future__ import annotations

import re

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import UnsupportedStatement
from clipql.storage.catalog import Table, VectorColumn
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL, ROW
from clipql.tables.vector_expressions import by_row, reading, vector_read

# small granules in small compressed blocks: ten rows by number cost 5 ms at 300,000 rows, and 8 ms with the defaults
_SETTINGS = {
    "index_granularity": "1024",
    "min_compress_block_size": "16384",
    "max_compress_block_size": "16384",
    "fsync_after_insert": "1",
    "fsync_part_directory": "1",
}
ORDER_INDEX = "clipql_order"
# what a rendered shape has where it has an index or a projection
_COMPUTED = re.compile(r"\b(?:INDEX|PROJECTION)\b")
# a materialized view or a Buffer would write rows that have no number, and so no vector
_BYPASSED = "rows come into a table with vectors by INSERT INTO it, not through a view or another table"


def vector_columns(engine: Engine, id: str) -> tuple[VectorColumn, ...] | None:
    """The vector columns of a shape; None where the table is none that clipql keeps (another engine, or none of them).

    A vector column is an Array(Float32) without a default, a codec of its own or a part in the table's keys.
    """
    where = f"database = '{INTERNAL}'"
    name = quote_string(id)
    made = engine.arrow(f"SELECT engine, sampling_key, engine_full FROM system.tables WHERE {where} AND name = {name}")
    row = made.to_pylist()[0]
    if row["engine"] != "MergeTree" or row["sampling_key"]:
        return None
    found = engine.arrow(
        f"SELECT name FROM system.columns WHERE {where} AND table = {name} AND type = 'Array(Float32)' "
        "AND default_kind = '' AND NOT is_in_primary_key AND NOT is_in_sorting_key AND NOT is_in_partition_key "
        "ORDER BY position"
    )
    names = found.column(0).to_pylist()
    return tuple(VectorColumn(n, f"column-{i}") for i, n in enumerate(names)) or None


def _shown(engine: Engine, table: Table) -> str:
    """The shape of a table as ClickHouse renders it."""
    return str(engine.scalar(f"SHOW CREATE TABLE {INTERNAL}.{quote_name(table.id)}"))


def alias_of(table: Table, column: VectorColumn) -> str:
    """The definition of a vector column in the physical table."""
    return f"{quote_name(column.name)} Array(Float32) ALIAS {vector_read(table, column)}"


def physical_definition(engine: Engine, table: Table, name: str) -> str:
    """CREATE TABLE for the physical table, under a quoted name, from the rendering of the shape."""
    lines = _shown(engine, table).split("\n")
    begin, end = lines.index("("), lines.index(")")
    vectors = {c.name: c for c in table.columns}
    body: list[str] = [f"    {ROW} UInt64 MATERIALIZED throwIf(1, {quote_string(_BYPASSED)}) CODEC(Delta, LZ4),"]
    for line in lines[begin + 1 : end]:
        match = re.match(r"    (`(?:[^`\\]|\\.)*`) ", line)
        column = vectors.get(read(match[1]).tokens[0].name or "") if match else None
        if column:
            body.append(f"    {alias_of(table, column)}{',' if line.endswith(',') else ''}")
        else:
            body.append(by_row(engine, table, line) if match else line)
    clauses = {m[1]: line for line in lines[end + 1 :] if (m := re.match(r"(ENGINE|PARTITION BY|TTL|COMMENT) ?", line))}
    key = next((line.removeprefix("ORDER BY ") for line in lines[end + 1 :] if line.startswith("ORDER BY ")), "tuple()")
    if key not in ("tuple()", ROW):
        body.insert(
            1, f"    INDEX {ORDER_INDEX} {key if key.startswith('(') else f'({key})'} TYPE minmax GRANULARITY 8,"
        )
    settings = next((line.removeprefix("SETTINGS ") for line in lines[end + 1 :] if line.startswith("SETTINGS ")), "")
    kept = [s for s in re.split(r",\s*(?=\w+ = )", settings) if s and s.split(" = ")[0] not in _SETTINGS]
    settings = ", ".join([*kept, *(f"{k} = {v}" for k, v in _SETTINGS.items())])
    return "\n".join(
        [
            f"CREATE TABLE {name}",
            "(",
            *body,
            ")",
            clauses.get("ENGINE", "ENGINE = MergeTree"),
            *(clauses[c] for c in ("PARTITION BY",) if c in clauses),
            f"ORDER BY {ROW}",
            *(clauses[c] for c in ("TTL",) if c in clauses),
            f"SETTINGS {settings}",
            *(clauses[c] for c in ("COMMENT",) if c in clauses),
        ]
    )


def insertable(engine: Engine, table: Table) -> list[tuple[str, str]]:
    """Names and types of the columns that an INSERT without a column list fills, in the order of the definition."""
    found = engine.arrow(
        f"SELECT name, type FROM system.columns WHERE database = '{INTERNAL}' AND table = {quote_string(table.id)} "
        "AND default_kind IN ('', 'DEFAULT') ORDER BY position"
    )
    return [(r["name"], r["type"]) for r in found.to_pylist()]


def reads_vectors(engine: Engine, table: Table) -> bool:
    """Whether ClickHouse computes something from the rows of a table as they come: columns, indexes, projections."""
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)}"
    counts = (
        f"(SELECT count() FROM system.columns WHERE {where} AND default_kind = 'MATERIALIZED')",
        f"(SELECT count() FROM system.data_skipping_indices WHERE {where})",
        f"(SELECT count() FROM system.projections WHERE {where})",
    )
    return bool(engine.scalar(f"SELECT {' + '.join(counts)}")) or bool(reading(engine, table))


def check_computed(engine: Engine, table: Table) -> None:
    """Refuse what ClickHouse would compute from vectors by itself, in the background, where it cannot read them.

    Raises UnsupportedStatement for a skip index or a projection over a vector column.
    """
    if not _COMPUTED.search(_shown(engine, table)):
        return
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)}"
    found = engine.arrow(
        f"SELECT 'index ' || name, expr FROM system.data_skipping_indices WHERE {where} "
        f"UNION ALL SELECT 'projection ' || name, query FROM system.projections WHERE {where}"
    )
    for what, expression in zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True):
        for column in table.columns:
            if any(t.name == column.name for t in read(expression).tokens):
                raise UnsupportedStatement(
                    f"{what} is computed from the vector column {column.name}, which ClickHouse cannot read while it "
                    "merges or deletes rows: make it of a column that keeps what is computed, as in score Float32 "
                    "DEFAULT …"
                )


def check_unread(engine: Engine, before: Table, after: Table) -> None:
    """Refuse to make vectors of a column that ClickHouse computes others from. Raises UnsupportedStatement."""
    computed = sorted(set(reading(engine, after)) - set(reading(engine, before)))
    if computed:
        raise UnsupportedStatement(
            f"column {computed[0]} of {before.full_name} is computed from it: DROP COLUMN {computed[0]}, and add it "
            "again afterwards"
        )
