"""INSERT … FORMAT Native into tables with vectors, against what ClickHouse itself wrote as Native."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.errors import ClipqlError
from clipql.sql.inserts import native_vectors


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("native") / "db") as made:
        yield made


def native(db: clipql.Database, select: str) -> bytes:
    """Rows in Native, as ClickHouse writes them."""
    return db.registry.engine.query(select, "Native").data


def load(db: clipql.Database, columns: str, data: list[bytes], listed: str = "") -> int | None:
    """Rows into a new table `t`."""
    db.sql("DROP TABLE IF EXISTS t")
    db.sql(f"CREATE TABLE t ({columns}) ENGINE = MergeTree ORDER BY id")
    return db.session().load(f"INSERT INTO t {listed} FORMAT Native", "Native", data).rows


VECTOR = "arrayMap(i -> toFloat32(sin(number * 7 + i)), range({}))"
COLUMNS = "id UInt64, v Array(Float32), s String DEFAULT 'none', w Array(Float32), c LowCardinality(Nullable(String))"
TOLD = "id, v, s, w, c::Nullable(String) AS c"
ROWS = (
    f"SELECT {VECTOR.format(3)} AS w, number AS id, toLowCardinality(if(number % 3 = 0, NULL, toString(number % 5)))::"
    f"LowCardinality(Nullable(String)) AS c, repeat('x', number % 300) AS s, {VECTOR.format(5)} AS v "
    "FROM numbers(700) SETTINGS max_block_size = 90"
)


def test_vectors_stay_with_their_rows_whichever_way_they_come(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = native(db, ROWS), native(db, ROWS.replace("numbers(700)", "numbers(700, 50)"))
    names = ("v", "w")
    assert native_vectors.taken_apart([whole, half], names) is not None
    expected = db.registry.engine.arrow(
        f"SELECT {TOLD} FROM ({ROWS.replace('numbers(700)', 'numbers(750)')}) ORDER BY id"
    )
    for apart in (True, False):
        if not apart:
            monkeypatch.setattr("clipql.sql.inserts.insert.taken_apart", lambda *given: None)
        assert load(db, COLUMNS, [whole, half]) == 750
        assert db.sql(f"SELECT {TOLD} FROM t ORDER BY id").arrow().to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("flat", [0, 1])
def test_nested_columns_are_taken_as_their_table_has_them(db: clipql.Database, flat: int) -> None:
    nested = "[(1, 'x'), (2, 'y')]::Nested(a UInt8, b String) AS n"
    given = nested if not flat else "[1, 2]::Array(UInt8) AS `n.a`, ['x', 'y'] AS `n.b`"
    for vector, value in ((", v Array(Float32)", ", [0.5]::Array(Float32) AS v"), ("", "")):
        db.sql(f"SET flatten_nested = {flat}")
        data = [native(db, f"SELECT 1::UInt64 AS id, {given}{value}")]
        columns = f"id UInt64, n Nested(a UInt8, b String), c UInt8 DEFAULT 7{vector}"
        listed = f"(id, {'`n.a`, `n.b`' if flat else 'n'}{', v' if vector else ''})"
        assert load(db, columns, data, listed) == 1
        shown = "arrayZip(n.a, n.b)" if flat else "n"
        assert db.sql(f"SELECT toString({shown}), c FROM t").rows == [("[(1,'x'),(2,'y')]", 7)], vector
    db.sql("SET flatten_nested = DEFAULT")


def test_input_gives_its_rows_to_a_select(db: clipql.Database) -> None:
    db.sql("CREATE TABLE taken (id UInt64, s String DEFAULT 'd', v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("CREATE TABLE held (a UInt8, b String, CONSTRAINT few CHECK a < 100) ENGINE = MergeTree ORDER BY a")
    given = {
        "held SELECT a + 1, upper(b) FROM input('a UInt8, b String') WHERE a < 9 FORMAT TSV\n1\tb\n2\tc\n9\td\n": 2,
        "held SELECT * FROM (SELECT i.a, b FROM input('a UInt8, b String') AS i) FORMAT Values (5, 'x'), (6, 'y')": 2,
        'held SELECT * FROM input() FORMAT JSONEachRow {"a": 7, "b": "input(\'"}': 1,
        "held SELECT number, 'n' FROM numbers(3)": 3,
        "taken (id, v) SELECT i, v FROM input('i UInt8, v Array(Float32)') FORMAT CSV 1,\"[1,2]\"": 1,
        'taken SELECT * FROM input() FORMAT CSV 2,z,"[3,4]"\n3,z,"[5,6]"': 2,
        "taken SELECT i, 'q', {v:Array(Float32)} FROM input('i UInt8') FORMAT CSV 4": 1,
    }
    for statement, rows in given.items():
        assert db.execute(f"INSERT INTO {statement}", {"v": [7, 8]}).rows == rows, statement
    before = db.sql("SELECT * FROM taken ORDER BY id").rows, db.sql("SELECT * FROM held ORDER BY a, b").rows
    assert [row[2][0] for row in before[0]] == [1, 3, 5, 7]
    assert [row[0] for row in before[1]] == [0, 1, 2, 2, 3, 5, 6, 7]
    refused = {
        "held SELECT a + 99, '' FROM input('a UInt8') FORMAT CSV 1": "few",
        "held SELECT * FROM input('a UInt8, b String') FORMAT CSV 1,a\nb,c": "Cannot parse",
        "held SELECT * FROM input('a UInt8, b String')": "name the format",
        "held SELECT a, b FROM input('a UInt8) ENGINE = File(CSV) --') FORMAT CSV 1,b": "Syntax error",
        "held SELECT x.a, y.b FROM input('a UInt8') AS x, input('b String') AS y FORMAT CSV 1": "once",
        "taken SELECT * FROM input() FORMAT CSV 5,z,[1]\n": "holds 2 numbers",
    }
    for statement, why in refused.items():
        with pytest.raises(ClipqlError, match=why):
            db.sql(f"INSERT INTO {statement}")
    assert before == (db.sql("SELECT * FROM taken ORDER BY id").rows, db.sql("SELECT * FROM held ORDER BY a, b").rows)


def test_rows_that_come_back_in_another_order_keep_their_vectors() -> None:
    blocks = [np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(8, 12, dtype=np.float32).reshape(2, 2)]
    given = native_vectors.Matrices(blocks, [0, 4, 6])
    whole = np.concatenate(blocks)
    for rows in ([0, 1, 2, 3, 4, 5], [3, 4], [5], [5, 0, 4, 1], [], [2, 2]):
        found = list(given.take(np.array(rows, np.uint64)))
        assert np.array_equal(np.concatenate([*found, np.empty((0, 2), np.float32)]), whole[rows])


@pytest.mark.parametrize(
    ("select", "apart"),
    [
        ("SELECT number AS id, [1., number]::Array(Float32) AS v FROM numbers(3)", True),
        ("SELECT number AS id, [1., number]::Array(Float64) AS v FROM numbers(3)", False),
        ("SELECT number AS id, [1., number]::Array(Nullable(Float32)) AS v FROM numbers(3)", False),
        ("SELECT number AS id, arrayResize([1.]::Array(Float32), number) AS v FROM numbers(3)", False),
        ("SELECT number AS id, []::Array(Float32) AS v FROM numbers(3)", False),
        ("SELECT number AS id FROM numbers(3)", False),
        ("SELECT number AS id, [nan, number]::Array(Float32) AS v FROM numbers(3)", True),
        ("SELECT [number, 2]::Array(Float32) AS v, 'x' AS id FROM numbers(3)", True),
        ("SELECT number AS id, [1, 2]::Array(Float32) AS v, sumState(number) AS z FROM numbers(3) GROUP BY id", False),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_answered_as_before(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch, select: str, apart: bool
) -> None:
    data = native(db, select)

    def outcome() -> object:
        try:
            return load(db, "id UInt64, v Array(Float32)", [data]), db.sql("SELECT * FROM t ORDER BY id").rows
        except ClipqlError as error:
            return str(error)

    assert (native_vectors.taken_apart([data], ("v",)) is not None) is apart
    found = outcome()
    monkeypatch.setattr("clipql.sql.inserts.insert.taken_apart", lambda *given: None)
    assert found == outcome()


def test_data_that_end_too_early_or_are_none_are_refused_and_leave_nothing(db: clipql.Database) -> None:
    whole = native(db, "SELECT number AS id, [1, number]::Array(Float32) AS v FROM numbers(40)")
    for data in (whole[:-5], whole[:30], whole + b"\x02\x05\x01", b"\xff" * 40, whole[:9] + b"\xff" * 30):
        with pytest.raises(ClipqlError):
            load(db, "id UInt64, v Array(Float32)", [data])
        assert db.sql("SELECT count() FROM t").rows == [(0,)]


def test_what_is_computed_from_vectors_and_what_rows_are_held_to_hold_all_the_same(db: clipql.Database) -> None:
    rows = native(db, "SELECT number AS id, [3, number]::Array(Float32) AS v FROM numbers(5)")
    computed = (
        "id UInt64, v Array(Float32), n Float32 MATERIALIZED L2Norm(v), d UInt64 DEFAULT id + 1, a UInt64 ALIAS d"
    )
    assert load(db, computed, [rows]) == 5
    assert db.sql("SELECT n, d, a FROM t WHERE id = 4").rows == [(5.0, 5, 5)]
    assert load(db, "id UInt64, v Array(Float32), l Float32 ALIAS L2Norm(v)", [rows]) == 5
    assert db.sql("SELECT max(l) FROM t").rows == [(5.0,)]
    only = native(db, "SELECT [3, number]::Array(Float32) AS v FROM numbers(5)")
    assert load(db, "id UInt64 DEFAULT 7, v Array(Float32), w Array(Float32) DEFAULT []", [only], "(v)") == 5
    assert db.sql("SELECT sum(id), sum(v[2]), sum(length(w)) FROM t").rows == [(35, 10.0, 0)]


@pytest.mark.parametrize("vector", ["v Array(Float32), ", ""])
@pytest.mark.parametrize(
    "refusing",
    ["CONSTRAINT few CHECK id < 4", "m UInt8 MATERIALIZED throwIf(id = 4)", "d UInt8 DEFAULT throwIf(id = 4)"],
)
def test_rows_that_a_table_refuses_are_told_of_in_every_way_to_bring_them(
    db: clipql.Database, vector: str, refusing: str
) -> None:
    given = "[3, number]::Array(Float32) AS v, " if vector else ""
    for select in ("numbers(5)", "numbers(4)"):
        for format in ("Native", "CSV"):
            data = db.registry.engine.query(f"SELECT {given}number AS id FROM {select}", format).data
            db.sql("DROP TABLE IF EXISTS held")
            columns = f"{vector}id UInt64, {refusing.format('throwIf(id = 4)')}"
            db.sql(f"CREATE TABLE held ({columns}) ENGINE = MergeTree ORDER BY id")
            insert = f"INSERT INTO held ({'v, ' if vector else ''}id) FORMAT {format}"
            if select == "numbers(4)":
                assert db.session().load(insert, format, [data]).rows == 4
            else:
                with pytest.raises(ClipqlError, match=r"Constraint|throwIf"):
                    db.session().load(insert, format, [data])
            assert db.sql("SELECT count() FROM held").rows == [(4 if select == "numbers(4)" else 0,)]
