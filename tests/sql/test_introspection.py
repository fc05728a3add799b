"""ClickHouse's tables about tables show tables with vectors as their users made them: as ClickHouse shows the same
table where it is plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clipql

COLUMNS = "id UInt32 COMMENT 'a number', c String DEFAULT 'x', n Nullable(Int8)"
VECTOR = "v Array(Float32) COMMENT 'of a picture'"
REST = "ENGINE = MergeTree PARTITION BY id % 2 ORDER BY (c, id)"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """A table with vectors, and the same as ClickHouse alone has it: its last column a key of no use makes it plain."""
    folder: Path = tmp_path_factory.mktemp("introspection")
    with clipql.connect(folder / "db") as db:
        db.sql("CREATE DATABASE alone")
        for name in ("one", "two"):
            db.sql(f"CREATE TABLE {name} ({COLUMNS}, {VECTOR}, INDEX m c TYPE minmax, INDEX i v TYPE flat) {REST}")
        db.registry.engine.run(f"CREATE TABLE alone.one ({COLUMNS}, {VECTOR}, INDEX m c TYPE minmax) {REST}")
        db.sql("INSERT INTO one VALUES (1, 'a', 1, [1, 2]), (2, 'b', NULL, [3, 4])")
        yield db


def rows(db: clipql.Database, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in db.sql(sql).arrow().to_pylist()]


STATEMENTS = """
SELECT * EXCEPT (database, data_compressed_bytes, data_uncompressed_bytes, marks_bytes) FROM system.columns
    WHERE table = 'one' AND database = '{}' ORDER BY position;
SELECT name, type, default_kind, default_expression, is_in_primary_key FROM system.columns AS c
    WHERE c.table = 'one' AND c.database = '{}' ORDER BY c.position;
SELECT system.columns.name FROM system.columns WHERE system.columns.table = 'one' AND database = '{}' ORDER BY 1;
SELECT engine, partition_key, sorting_key, primary_key, sampling_key, engine_full FROM system.tables
    WHERE name = 'one' AND database = '{}';
SELECT t.name, count() FROM system.tables AS t INNER JOIN system.columns AS c
    ON t.name = c.table AND t.database = c.database WHERE t.name = 'one' AND t.database = '{}' GROUP BY t.name;
WITH x AS (SELECT * FROM system.columns) SELECT name FROM x WHERE database = '{}' AND table = 'one' ORDER BY 1;
SELECT name, type, expr, granularity FROM system.data_skipping_indices
    WHERE database = '{}' AND table = 'one' AND name != 'i';
SELECT column_name, data_type, column_default, column_comment, ordinal_position FROM information_schema.columns
    WHERE table_schema = '{}' AND table_name = 'one' ORDER BY ordinal_position;
SHOW COLUMNS FROM {}.one;
SHOW FULL COLUMNS FROM one FROM {} LIKE 'c'
"""


@pytest.mark.parametrize("sql", [sql.strip() for sql in STATEMENTS.split(";")])
def test_it_is_shown_as_clickhouse_alone_shows_it(db: clipql.Database, sql: str) -> None:
    found, expected = rows(db, sql.format("default")), rows(db, sql.format("alone"))
    assert found == expected
    assert found


def test_counts_are_of_the_rows_and_vector_indexes_are_listed(db: clipql.Database) -> None:
    assert rows(db, "SELECT total_rows FROM system.tables WHERE name = 'one' AND database = 'default'") == [(2,)]
    listed = rows(
        db, "SELECT table, name, type, expr FROM system.data_skipping_indices WHERE database = 'default' ORDER BY ALL"
    )
    assert listed == [(t, n, k, e) for t in ("one", "two") for n, k, e in (("i", "flat", "v"), ("m", "minmax", "c"))]
    assert ("one", "i", "FLAT", "v") in [(r[0], r[2], r[10], r[14]) for r in rows(db, "SHOW INDEX FROM one")]


def test_nothing_of_the_inside_is_shown(db: clipql.Database) -> None:
    for table in ("system.tables", "system.columns", "system.data_skipping_indices", "information_schema.columns"):
        text = db.sql(f"SELECT * FROM {table} WHERE 1").arrow().to_pylist()
        mine = [row for row in text if "default" in (row.get("database"), row.get("table_schema"))]
        assert mine
        assert not any(
            inside in str(mine) for inside in ("'_row'", "`_row`", "_clipql_vector", "clipql_order", "clipql_internal")
        )


def test_the_types_of_all_columns_stay(db: clipql.Database) -> None:
    for table in ("tables", "columns", "data_skipping_indices"):
        plain = db.registry.engine.arrow(
            f"DESCRIBE TABLE (SELECT * FROM system.{table}) SETTINGS asterisk_include_alias_columns = 0"
        )
        shown = db.sql(f"DESCRIBE (SELECT * FROM system.{table})").arrow()
        both = db.sql(f"SELECT toTypeName(tuple(*)) AS t FROM system.{table} LIMIT 1").arrow()["t"][0].as_py()
        assert shown["name"].to_pylist() == plain["name"].to_pylist()
        assert both == f"Tuple({', '.join(plain['type'].to_pylist())})" or "Enum" in both
