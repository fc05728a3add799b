"""The row file: a mapped copy of the stored columns that answers plain searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.errors import QueryError
from clipql.tables import rowgather

ROWS = 9_000
QUERY = "SELECT id, label, n, L2Distance(v, {q:Array(Float32)}) AS d FROM t ORDER BY d LIMIT 7"


def fill(db: clipql.Database, first: int = 0, rows: int = ROWS) -> None:
    db.sql(
        f"INSERT INTO t SELECT number + {first}, concat('row ', toString(number + {first})), "
        f"if(number % 5 = 0, NULL, number), [number + {first}, 1, 2, 3] FROM numbers({rows})"
    )


@pytest.fixture
def table(db: clipql.Database) -> clipql.Database:
    db.sql(
        "CREATE TABLE t (id UInt64, label LowCardinality(String), n Nullable(Int32), v Array(Float32)) "
        "ENGINE = MergeTree ORDER BY id"
    )
    fill(db)
    db.sql("OPTIMIZE TABLE t")
    return db


def ask(db: clipql.Database, at: float = 4_321.2, sql: str = QUERY) -> Any:
    return db.sql(sql, q=np.array([at, 1, 2, 3], np.float32))


def reads_rows(db: clipql.Database, sql: str = QUERY, **params: Any) -> int:
    """Rows that ClickHouse read for the answer: none where the row file gave it."""
    params = params or {"q": np.array([4_321.2, 1, 2, 3], np.float32)}
    return db.sql(sql, **params).stats.rows_read


def entry(db: clipql.Database) -> Any:
    return db.registry.catalog.tables[0].row_file


def passed(db: clipql.Database, sql: str = QUERY) -> Any:
    db.sql("SET vector_plan = 0")
    try:
        return ask(db, sql=sql)
    finally:
        db.sql("SET vector_plan = 1")


@pytest.mark.parametrize(
    "sql",
    [
        QUERY,
        QUERY.replace("LIMIT 7", "LIMIT 7 OFFSET 3"),
        QUERY.replace("FROM t", "FROM t WHERE id % 3 = 1 AND label LIKE '%1'"),
        "SELECT label AS text, dotProduct(v, [1., 2, 3, 4]) AS c FROM t ORDER BY dotProduct(v, [1., 2, 3, 4]) LIMIT 3",
        "SELECT label FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 2",
        "WITH {q:Array(Float32)} AS w SELECT id FROM t ORDER BY L2SquaredDistance(v, w) LIMIT 5",
    ],
)
def test_an_answer_has_the_rows_names_and_types_of_clickhouse(table: clipql.Database, sql: str) -> None:
    found, expected = ask(table, sql=sql), passed(table, sql)
    assert found.arrow().schema == expected.arrow().schema
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        for mine, its in zip(ours, theirs, strict=True):
            assert mine == (pytest.approx(its, rel=2e-6) if isinstance(its, float) else its)


@pytest.mark.parametrize("format", ["JSON", "JSONCompact", "TabSeparatedWithNamesAndTypes", "CSV", "Native"])
def test_every_format_is_what_clickhouse_writes(table: clipql.Database, format: str) -> None:
    sql = QUERY.replace("label, ", "")  # LowCardinality is left to ClickHouse
    query = {"q": np.array([77.25, 1, 2, 3], np.float32)}
    found = table.execute(sql, query, format=format)
    table.sql("SET vector_plan = 0")
    expected = table.execute(sql, query, format=format)
    assert _timeless(found.output.data) == _timeless(expected.output.data)
    assert len(found.steps) == 1


def _timeless(data: bytes) -> bytes:
    """JSON without the statistics at its end."""
    return data.partition(b'"statistics"')[0].partition(b'"rows_before_limit')[0]


def test_clickhouse_is_not_asked_for_the_rows(table: clipql.Database) -> None:
    assert reads_rows(table) == 0
    table.sql("SET max_result_rows = 3")  # such a setting changes what comes back
    with pytest.raises(QueryError, match="Limit for result"):
        ask(table)


def test_rows_that_came_later_are_found(table: clipql.Database) -> None:
    fill(table, first=ROWS, rows=50)
    assert ask(table, ROWS + 20.2).rows[0][1] == f"row {ROWS + 20}"
    table.sql("OPTIMIZE TABLE t")
    assert entry(table).rows == ROWS + 50
    assert ask(table, ROWS + 20.2).rows[0][1] == f"row {ROWS + 20}"


def test_deleted_rows_are_not_found_and_the_others_still_are(table: clipql.Database) -> None:
    table.sql("DELETE FROM t WHERE id BETWEEN 4321 AND 4330")
    assert [r[0] for r in ask(table).rows] == [4320, 4319, 4318, 4317, 4316, 4315, 4314]
    fill(table, first=ROWS, rows=1)
    table.sql("OPTIMIZE TABLE t")  # the new file is written without the deleted rows
    assert [r[0] for r in ask(table).rows] == [4320, 4319, 4318, 4317, 4316, 4315, 4314]
    assert ask(table, 4_331.1).rows[0][:2] == (4331, "row 4331")
    assert reads_rows(table) == 0


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE t UPDATE label = 'changed' WHERE id = 4321",
        "ALTER TABLE t MODIFY COLUMN label String DEFAULT 'none'",
        "ALTER TABLE t DROP COLUMN n",
        "OPTIMIZE TABLE t FINAL",
    ],
)
def test_after_a_change_of_the_rows_the_answer_is_the_new_one(table: clipql.Database, change: str) -> None:
    table.sql("DELETE FROM t WHERE id < 100")
    table.sql(change)
    assert ask(table, sql=QUERY.replace("n, ", "")).rows == passed(table, QUERY.replace("n, ", "")).rows


def test_several_changes_of_indexes_in_one_statement_keep_the_row_file(table: clipql.Database) -> None:
    before = entry(table)
    table.sql(
        "ALTER TABLE t ADD INDEX a v TYPE flat, ADD INDEX b v TYPE ivf('L2Distance', 16), ADD INDEX c id TYPE minmax"
    )
    assert entry(table) == before
    table.sql("ALTER TABLE t DROP INDEX a, DROP INDEX b")
    assert entry(table) == before
    assert reads_rows(table) == 0


def test_one_change_of_the_rows_among_those_of_indexes_drops_the_row_file(table: clipql.Database) -> None:
    table.sql("ALTER TABLE t ADD INDEX a v TYPE flat, MODIFY COLUMN label String, ADD INDEX b v TYPE flat")
    assert entry(table) is None
    assert ask(table).rows == passed(table).rows


@pytest.mark.parametrize(
    "items",
    [
        "label AS id, id AS w",
        "id AS label, label AS id",
        "n AS n, id AS x",
        "L2Distance(v, {q:Array(Float32)}) AS n, n AS m",
    ],
)
def test_an_alias_hides_a_column_as_in_clickhouse(table: clipql.Database, items: str) -> None:
    sql = f"SELECT {items} FROM t ORDER BY L2Distance(v, {{q:Array(Float32)}}) LIMIT 3"
    found, expected = ask(table, sql=sql), passed(table, sql)
    assert found.columns == expected.columns
    assert [r[1] for r in found.rows] == pytest.approx([r[1] for r in expected.rows])


def test_an_update_of_a_column_called_index_is_seen(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt64, `index` Int32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, number, [number, 1, 2, 3] FROM numbers(100)")
    db.sql("OPTIMIZE TABLE t")
    db.sql("ALTER TABLE t UPDATE index = -7 WHERE 1")
    assert db.sql("SELECT index FROM t ORDER BY L2Distance(v, [5, 1, 2, 3]) LIMIT 1").rows == [(-7,)]


def test_dot_products_with_integers_have_the_type_of_clickhouse(table: clipql.Database) -> None:
    sql = "SELECT id, dotProduct(v, [1, 2, 3, 4]) AS d FROM t ORDER BY d LIMIT 2"
    assert ask(table, sql=sql).arrow().schema == passed(table, sql).arrow().schema


def test_a_column_that_came_later_is_read_from_clickhouse(table: clipql.Database) -> None:
    table.sql("ALTER TABLE t ADD COLUMN score Float32 DEFAULT 0.5")
    table.sql("OPTIMIZE TABLE t")
    sql = "SELECT id, score FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 2"
    assert ask(table, sql=sql).rows == [(4321, 0.5), (4322, 0.5)]


def test_a_table_made_anew_under_the_name_has_its_own_rows(table: clipql.Database) -> None:
    table.sql("DROP TABLE t")
    table.sql(
        "CREATE TABLE t (id UInt64, label String, n Nullable(Int32), v Array(Float32)) ENGINE = MergeTree ORDER BY id"
    )
    table.sql("INSERT INTO t VALUES (1, 'new', NULL, [1, 1, 2, 3])")
    assert ask(table).rows[0][:3] == (1, "new", None)
    assert not list((table.path / "rows").iterdir())


@pytest.mark.parametrize("file", ["rows.bin", "batches.bin", "schema.arrow"])
def test_a_damaged_row_file_is_not_believed(tmp_path: Path, file: str) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, label String, n Nullable(Int32), v Array(Float32)) "
               "ENGINE = MergeTree ORDER BY id")  # fmt: skip
        fill(db)
        db.sql("OPTIMIZE TABLE t")
        expected = ask(db).rows
        folder = tmp_path / "db" / "rows" / entry(db).folder
    path = folder / file
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 512):
        data[at + min(77, len(data) - at - 1)] ^= 1
    path.write_bytes(data)
    with clipql.connect(tmp_path / "db") as db:
        assert ask(db).rows == expected
        assert reads_rows(db) > 0


def test_an_unfinished_row_file_is_swept(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    left = tmp_path / "db" / "rows" / "t-1-9"
    left.mkdir(parents=True)
    (left / "rows.bin").write_bytes(b"half")
    with clipql.connect(tmp_path / "db"):
        assert not left.exists()


def test_texts_that_one_array_cannot_count_come_in_pieces(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.sql("ALTER TABLE t ADD COLUMN text String DEFAULT concat('text ', toString(id))")
    table.sql("OPTIMIZE TABLE t")
    sql = QUERY.replace("n,", "n, text,").replace("LIMIT 7", "LIMIT 200")
    expected = passed(table, sql=sql).rows
    monkeypatch.setattr(rowgather, "MOST_TEXT", 100)
    assert ask(table, sql=sql).rows == expected
    assert reads_rows(table, sql) == 0
