"""The row file as rows come in: it has what ClickHouse has, or stays behind."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cases import some
from parts import make_part

import clipql
from clipql.errors import DiskFull, VectorError
from clipql.tables import rowgrowth, writer
from clipql.tables.rowwriter import RowWriter

ROWS = 1_200


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LEAST_ROWS", 1_000)
    monkeypatch.setattr(rowgrowth, "MOST_READ", 2_000)


def covered(db: clipql.Database, name: str = "t") -> int:
    """The rows that the row file has, after all of them were compared with ClickHouse's."""
    (table,) = (t for t in db.registry.catalog.tables if t.name == name)
    if table.row_file is None:
        assert not list((db.path / "rows").glob("*"))
        return 0
    reader = db.indexes.rows.reader(table)
    assert reader is not None
    reader.verify()
    listed = ", ".join(f"`{c}`" for c in reader.types)
    there = db.registry.engine.arrow(f"SELECT {listed} FROM `{name}` WHERE _row < {reader.rows} ORDER BY _row")
    numbers = there.column(0).to_pylist()
    found = reader.table(numbers)
    assert found.schema.equals(there.schema)
    for ours, theirs in zip(found.columns, there.columns, strict=True):
        assert repr(_bytes(ours).to_pylist()) == repr(_bytes(theirs).to_pylist())
    for column in reader.types:
        _compare_column(reader.columns.column(column), there.column(column), numbers)
    return reader.rows


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as bytes, as they need not be UTF-8."""
    return column.cast(pa.binary()) if pa.types.is_string(column.type) else column


def _compare_column(stored: Any, there: pa.ChunkedArray, numbers: list[int]) -> None:
    if stored is None:
        return
    nulls = np.zeros(len(stored.values), np.uint8) if stored.nulls is None else stored.nulls
    values = [stored.values[n].item() for n in numbers]
    if stored.words is not None:
        values = [stored.words[v] for v in values]
    given = [None if nulls[n] else v for n, v in zip(numbers, values, strict=True)]
    assert repr(given) == repr([int(v) if isinstance(v, bool) else v for v in _bytes(there).to_pylist()])


TYPES = {
    "String": "toString(number)",
    "LowCardinality(String)": "toString(number % 7)",
    "Nullable(String)": "if(number % 3 = 0, NULL, unhex(hex(number)))",
    "LowCardinality(Nullable(String))": "if(number % 3 = 0, NULL, 'a')",
    "FixedString(4)": "leftPad(toString(number), 4, '0')",
    "Int8": "number % 256 - 128",
    "UInt16": "number + 0",
    "Nullable(Int64)": "if(number % 5 = 0, NULL, number * -1000000007)",
    "UInt64": "18446744073709551615 - number",
    "Int128": "number - 700",
    "Float32": "number / 3",
    "Nullable(Float64)": "multiIf(number % 5 = 0, NULL, number % 5 = 1, nan, number / 7)",
    "Bool": "number % 2 = 0",
    "Nullable(Bool)": "if(number % 2 = 0, NULL, 1)",
    "Date": "toDate(number)",
    "Date32": "toDate32('1950-01-01') + number",
    "DateTime": "toDateTime(number * 100000)",
    "DateTime64(3, 'Europe/Berlin')": "toDateTime64(number * 100000, 3, 'Europe/Berlin')",
    "Decimal(18, 4)": "number / 7",
    "Nullable(Decimal(38, 3))": "if(number % 2, NULL, number)",
    "UUID": "toUUID(concat('00000000-0000-0000-0000-', leftPad(toString(number), 12, '0')))",
    "IPv4": "toIPv4(number)",
    "IPv6": "toIPv6(toIPv4(number))",
    "Enum8('a' = 0, 'b' = 1)": "number % 2",
    "Array(String)": "[toString(number), '']",
    "Array(Nullable(Int32))": "[number, NULL]",
    "Tuple(a Int32, b String)": "(number, 'x')",
    "Map(String, UInt8)": "map('k', number % 100)",
}


@pytest.mark.parametrize("kind", some(TYPES, 2))
def test_values_of_every_type_are_those_of_clickhouse(db: clipql.Database, kind: str) -> None:
    db.sql(f"CREATE TABLE t (id UInt64, c {kind}, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO t SELECT number, {TYPES[kind]}, [number, 1] FROM numbers({ROWS})")
    db.sql(f"INSERT INTO t SELECT number, {TYPES[kind]}, [number, 1] FROM numbers({ROWS}, {ROWS})")
    grown = covered(db)
    assert grown == (0 if kind.startswith("Enum") else 2 * ROWS)
    db.sql("OPTIMIZE TABLE t")
    assert covered(db) == 2 * ROWS


@pytest.mark.parametrize("insert", ["SELECT", "INFILE", "VALUES"])
def test_every_way_of_inserting_grows_it(db: clipql.Database, tmp_path: Path, insert: str) -> None:
    db.sql("CREATE TABLE t (id UInt64, s String, n Nullable(Int32), v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    rows = [(i, f"row {i}", None if i % 3 else i, [i, 1]) for i in range(ROWS)]
    values = ", ".join(str(row).replace("None", "NULL") for row in rows)
    if insert == "SELECT":
        columns = "number, concat('row ', toString(number)), if(number % 3, NULL, number), [number, 1]"
        db.sql(f"INSERT INTO t SELECT {columns} FROM numbers({ROWS})")
    elif insert == "VALUES":
        db.sql(f"INSERT INTO t VALUES {values}")
    else:
        (tmp_path / "rows.sql").write_text(values)
        db.sql(f"INSERT INTO t FROM INFILE '{tmp_path}/rows.sql' FORMAT Values")
    assert covered(db) == ROWS
    found = db.sql("SELECT id, s, n FROM t ORDER BY L2Distance(v, [7.2, 1]) LIMIT 3")
    assert found.rows == [(7, "row 7", None), (8, "row 8", None), (6, "row 6", 6)]
    assert found.stats.rows_read == 0


PARQUET = {
    "int8 in Int64": ("Int64", pa.array([i % 100 for i in range(ROWS)], pa.int8()), True),
    "uint32 in Int64": ("Int64", pa.array(range(ROWS), pa.uint32()), True),
    "int32 in Float64": ("Float64", pa.array(range(ROWS), pa.int32()), False),
    "float32 in Float64": ("Float64", pa.array([i / 3 for i in range(ROWS)], pa.float32()), True),
    "float64 in Float32": ("Float32", pa.array([i / 3 for i in range(ROWS)], pa.float64()), False),
    "NULL in Int32": ("Int32", pa.array([None if i % 3 else i for i in range(ROWS)], pa.int32()), True),
    "NULL in String": ("String", pa.array([None if i % 3 else str(i) for i in range(ROWS)]), True),
    "NULL in LowCardinality": ("LowCardinality(String)", pa.array([None if i % 3 else "a" for i in range(ROWS)]), True),
    "NULL in Bool": ("Bool", pa.array([None if i % 3 else True for i in range(ROWS)]), True),
    "NULL in a default": ("Int32 DEFAULT 7", pa.array([None if i % 3 else i for i in range(ROWS)], pa.int32()), False),
    "a dictionary": ("Nullable(String)", pa.array([str(i % 9) for i in range(ROWS)]).dictionary_encode(), True),
    "large strings": ("String", pa.array([str(i) for i in range(ROWS)], pa.large_string()), True),
    "bytes": ("String", pa.array([bytes([i % 256, 255]) for i in range(ROWS)]), True),
    "many words": ("String", pa.array([str(i % 260) if i > 900 else "a" for i in range(ROWS)]), True),
    "dates": ("Date32", pa.array([dt.date(1950, 1, 1) + dt.timedelta(i) for i in range(ROWS)]), True),
    "times": (
        "DateTime64(6, 'UTC')",
        pa.array([dt.datetime(2020, 1, 1, tzinfo=dt.UTC) + dt.timedelta(i) for i in range(ROWS)]),
        True,
    ),
    "decimals": ("Decimal(10, 2)", pa.array([Decimal(i) / 4 for i in range(ROWS)], pa.decimal128(10, 2)), True),
    "lists": ("Array(Nullable(String))", pa.array([["a", None, str(i)] for i in range(ROWS)]), True),
}


@pytest.mark.parametrize("name", some(PARQUET, 2))
def test_metadata_of_every_type_is_as_clickhouse_stores_it(db: clipql.Database, tmp_path: Path, name: str) -> None:
    kind, column, grows = PARQUET[name]
    db.sql(f"CREATE TABLE laion (id UInt64, c {kind}, image_embedding Array(Float32), text_embedding Array(Float32)) "
           "ENGINE = MergeTree ORDER BY id")  # fmt: skip
    for number in (0, 1):
        make_part(tmp_path / "laion", rows=ROWS, number=number, metadata_columns=pa.table({"c": column}))
    db.ingest(tmp_path / "laion")
    assert covered(db, "laion") == (2 * ROWS if grows else 0)


def test_columns_that_are_not_inserted_have_their_defaults(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt64, s String, n Nullable(Int8), x Float64, v Array(Float32)) ENGINE = MergeTree "
           "ORDER BY id")  # fmt: skip
    db.sql(f"INSERT INTO t (id, v) SELECT number, [number, 1] FROM numbers({ROWS})")
    assert covered(db) == ROWS


@pytest.mark.parametrize(
    "column",
    ["m UInt64 MATERIALIZED id * 2", "d DateTime DEFAULT now()", "e UInt8 TTL d + INTERVAL 1 DAY, d DateTime"],
)
def test_values_that_clickhouse_computes_are_not_guessed(db: clipql.Database, column: str) -> None:
    db.sql(f"CREATE TABLE t (id UInt64, {column}, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO t (id, v) SELECT number, [number, 1] FROM numbers({ROWS})")
    assert covered(db) == 0
    db.sql("OPTIMIZE TABLE t")
    assert covered(db) == (0 if "TTL" in column else ROWS)


def insert(db: clipql.Database, first: int, rows: int) -> None:
    db.sql(f"INSERT INTO t SELECT number, concat('row ', toString(number)), [number, 1] FROM numbers({first}, {rows})")


@pytest.fixture
def table(db: clipql.Database) -> clipql.Database:
    db.sql("CREATE TABLE t (id UInt64, s String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    insert(db, 0, ROWS)
    assert covered(db) == ROWS
    return db


def rows_file(db: clipql.Database) -> Path:
    (found,) = (db.path / "rows").glob("*/rows.bin")
    return found


def test_rows_are_appended_and_the_rest_stays_what_it_is(table: clipql.Database) -> None:
    place = rows_file(table)
    before, inode = place.read_bytes(), place.stat().st_ino
    insert(table, ROWS, ROWS)
    assert covered(table) == 2 * ROWS
    assert (rows_file(table), place.stat().st_ino) == (place, inode)
    assert place.read_bytes()[: len(before)] == before
    assert [p.name for p in place.parent.glob("listing-*")] == [f"listing-{2 * ROWS}.json"]


def test_small_inserts_are_caught_up_with(table: clipql.Database) -> None:
    for at in range(9):
        insert(table, ROWS + 100 * at, 100)
        assert covered(table) == ROWS
    insert(table, ROWS + 900, 100)
    assert covered(table) == ROWS + 1000
    table.sql(f"DELETE FROM t WHERE id % 3 = 0 OR id BETWEEN 300 AND 900 OR id > {ROWS + 900}")
    insert(table, ROWS + 1000, 10)
    table.sql(f"DELETE FROM t WHERE id = {ROWS + 1000}")
    insert(table, ROWS + 1010, ROWS)
    assert covered(table) == 2 * ROWS + 1010
    found = table.sql("SELECT id, s FROM t ORDER BY L2Distance(v, [2200.2, 1]) LIMIT 2")
    assert (found.rows, found.stats.rows_read) == ([(2201, "row 2201"), (2202, "row 2202")], 0)


def test_many_rows_without_a_row_file_are_left_to_optimize(table: clipql.Database) -> None:
    table.sql("ALTER TABLE t UPDATE s = 'x' WHERE id = 1")  # drops the row file
    insert(table, ROWS, ROWS)
    assert covered(table) == 2 * ROWS
    table.sql("ALTER TABLE t UPDATE s = 'y' WHERE id = 1")
    insert(table, 2 * ROWS, ROWS)
    assert covered(table) == 0
    table.sql("OPTIMIZE TABLE t")
    assert covered(table) == 3 * ROWS


def test_optimize_appends_what_is_missing(table: clipql.Database) -> None:
    place, inode = rows_file(table), rows_file(table).stat().st_ino
    insert(table, ROWS, 10)
    table.sql("OPTIMIZE TABLE t")
    assert covered(table) == ROWS + 10
    assert (rows_file(table), place.stat().st_ino) == (place, inode)


def test_a_column_is_left_out_from_the_words_that_are_too_many_on(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt64, s String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO t SELECT number, toString(number % 9), [number, 1] FROM numbers({ROWS})")
    reader = db.indexes.rows.reader(db.registry.catalog.tables[0])
    assert reader is not None
    assert len(reader.columns.column("s").words or ()) == 9  # type: ignore[union-attr]
    db.sql(f"INSERT INTO t SELECT number, toString(number), [number, 1] FROM numbers({ROWS}, {ROWS})")
    assert covered(db) == 2 * ROWS
    assert db.indexes.rows.reader(db.registry.catalog.tables[0]).columns.column("s") is None  # type: ignore[union-attr]
    insert(db, 2 * ROWS, ROWS)
    assert covered(db) == 3 * ROWS
    where = "SELECT id FROM t WHERE s = '7' ORDER BY L2Distance(v, [9.2, 1]) LIMIT 2"
    assert db.sql(where).rows == db.sql(where + " SETTINGS vector_plan = 0").rows


def test_a_failed_insert_leaves_the_row_file_as_it_was(table: clipql.Database) -> None:
    with pytest.raises(VectorError):
        table.sql(f"INSERT INTO t SELECT number, 'x', if(number = {ROWS - 1}, [1], [1, 2]) FROM numbers({ROWS})")
    assert covered(table) == ROWS
    insert(table, ROWS, ROWS)
    assert covered(table) == 2 * ROWS


@pytest.mark.parametrize("method", ["add", "finish", "__init__"])
def test_where_it_cannot_be_written_the_rows_come_in_all_the_same(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(RowWriter, method, fail)
        insert(table, ROWS, ROWS)
    assert table.sql("SELECT count() FROM t").rows == [(2 * ROWS,)]
    assert covered(table) == ROWS
    insert(table, 2 * ROWS, ROWS)
    assert covered(table) == 3 * ROWS


def test_a_copy_by_hard_links_stays_what_it_is(table: clipql.Database, tmp_path: Path) -> None:
    for place in rows_file(table).parent.iterdir():
        os.link(place, tmp_path / place.name)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    insert(table, ROWS, ROWS)
    assert covered(table) == 2 * ROWS
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_it_grows_on_after_the_database_was_closed(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, s String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        insert(db, 0, ROWS)
        place = rows_file(db)
    with open(place, "ab") as file:  # of an insert that was cut off
        file.write(b"half a batch")
    (place.parent / "listing-9999.json").write_text("{")
    with clipql.connect(tmp_path / "db") as db:
        assert covered(db) == ROWS
        assert [p.name for p in place.parent.glob("listing-*")] == [f"listing-{ROWS}.json"]
        insert(db, ROWS, ROWS)
        assert covered(db) == 2 * ROWS
        assert db.check(deep=True).findings == ()


@pytest.mark.parametrize("file", ["rows.bin", "batches.bin", "columns-0.bin", "schema.arrow"])
def test_a_damaged_row_file_is_not_grown_into_a_whole_one(tmp_path: Path, file: str) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, s String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        insert(db, 0, ROWS)
        place = rows_file(db).with_name(file)
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 255
    place.write_bytes(data)
    with clipql.connect(tmp_path / "db") as db:
        insert(db, ROWS, ROWS)
        sql = "SELECT id, s FROM t WHERE id < 700 ORDER BY L2Distance(v, [{}, 1]) LIMIT 3"
        for at in (1.2, ROWS / 2 + 0.2, ROWS * 2):
            assert db.sql(sql.format(at)).rows == db.sql(sql.format(at) + " SETTINGS vector_plan = 0").rows
        db.sql("OPTIMIZE TABLE t")
        assert covered(db) == 2 * ROWS
