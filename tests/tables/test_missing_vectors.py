"""Rows without a vector: of a column that came to a filled table, until it is filled; and other vectors for some rows.

The oracle is ClickHouse alone over the rows that have a vector (`vector_plan = 0`), and a table of the same arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipql
from clipql.curate.dedup import dedup
from clipql.curate.parts import export_parts
from clipql.errors import ClipqlError, IngestError, ModelMismatch, QueryError, VectorError

ROWS = 30
PLAIN = " SETTINGS vector_plan = 0, short_circuit_function_evaluation = 'force_enable'"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """`t` with w in every third row, `plain` with the same arrays in ClickHouse alone."""
    with clipql.connect(tmp_path_factory.mktemp("missing") / "db") as opened:
        opened.sql("CREATE TABLE t (id UInt32, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        opened.sql(f"INSERT INTO t SELECT number, toString(number), [number, 1, 2] FROM numbers({ROWS})")
        opened.sql("ALTER TABLE t ADD COLUMN w Array(Float32) AFTER id")
        opened.sql("ALTER TABLE t UPDATE w = [id, 0.1] WHERE id % 3 = 0")
        opened.sql("CREATE TABLE plain (id UInt32, w Array(Float32)) ENGINE = Memory")
        opened.sql("INSERT INTO plain SELECT id, w FROM t")
        yield opened


def rows(db: clipql.Database, sql: str, **params: object) -> list[tuple[object, ...]]:
    return [tuple(row) for row in db.sql(sql, **params).rows]


def test_such_a_column_is_empty_where_no_vector_came(db: clipql.Database) -> None:
    assert rows(db, "SELECT * FROM t WHERE id IN (3, 4) ORDER BY id") == [
        (3, [3.0, np.float32(0.1)], "3", [3.0, 1.0, 2.0]),
        (4, [], "4", [4.0, 1.0, 2.0]),
    ]
    for text in ("length(w), empty(w), notEmpty(w)", "arraySum(w), L1Norm(w), w[1]"):
        assert rows(db, f"SELECT id, {text} FROM t ORDER BY id") == rows(
            db, f"SELECT id, {text} FROM plain ORDER BY id"
        )


FOUND = {
    "nearest": "SELECT id, L2Distance(w, [4, 0]) d FROM {} WHERE notEmpty(w) ORDER BY d LIMIT 50",
    "nearest of some": "SELECT id FROM {} WHERE notEmpty(w) AND id > 6 ORDER BY cosineDistance(w, [4, 1]) LIMIT 3",
    "farthest": "SELECT id FROM {} WHERE notEmpty(w) ORDER BY L2Distance(w, [4, 0]) DESC LIMIT 50",
    "range": "SELECT id FROM {} WHERE notEmpty(w) AND L2Distance(w, [4, 0]) < 9.5 ORDER BY id",
    "outside": "SELECT id FROM {} WHERE notEmpty(w) AND L2Distance(w, [4, 0]) > 9.5 ORDER BY id",
    "sum": "SELECT round(sum(L2Distance(w, [4, 0])), 3) FROM {} WHERE notEmpty(w)",
    "products": "SELECT id FROM {} WHERE notEmpty(w) ORDER BY dotProduct(w, [-1, 0]) LIMIT 50",
}


@pytest.mark.parametrize("case", list(FOUND))
def test_a_search_finds_the_rows_that_clickhouse_finds_among_those_with_a_vector(
    db: clipql.Database, case: str
) -> None:
    expected = rows(db, FOUND[case].format("plain"))
    assert rows(db, FOUND[case].format("t")) == expected
    assert rows(db, FOUND[case].format("t") + PLAIN) == expected


def test_what_is_searched_leaves_rows_without_a_vector_out_without_being_told(
    db: clipql.Database, tmp_path: Path
) -> None:
    for case in ("nearest", "nearest of some", "farthest", "range", "products"):
        untold = FOUND[case].replace("notEmpty(w) AND ", "").replace("WHERE notEmpty(w) ", "")
        found = db.sql(untold.format("t"))
        assert [tuple(r) for r in found.rows] == rows(db, FOUND[case].format("plain"))
        assert "w: 20 of 30 rows have no vector" in found.stats.searches[0].why
    assert rows(db, "SELECT count() FROM t WHERE L2Distance(w, [4, 0]) < 1e9") == [(10,)]
    near = "SELECT a.id, b.id FROM t AS a JOIN t AS b ON L2Distance(a.w, b.w) < 3.5 WHERE a.id < b.id ORDER BY 1"
    assert rows(db, near) == [(i, i + 3) for i in range(0, 27, 3)]
    groups = "SELECT a.id, argMin(b.id, L2Distance(a.w, b.w)) FROM t AS a, t AS b WHERE a.id < b.id GROUP BY a.id"
    assert sorted(rows(db, groups)) == [(i, i + 3) for i in range(0, 27, 3)]
    any_of = "SELECT id FROM t WHERE nearAny(w, (SELECT w FROM t WHERE id = 9), 'L2Distance', 3.5) ORDER BY id"
    assert rows(db, any_of) == [(6,), (9,), (12,)]
    assert [row for block in db.vectors("t", "w") for row in block.rows.tolist()] == list(range(0, 30, 3))
    with pytest.raises(ClipqlError, match=r"20 of 30 rows of default\.t have no vector in w, .*--where"):
        export_parts(db, "t", tmp_path / "all")
    assert export_parts(db, "t", tmp_path / "some", where="notEmpty(w)").rows == 10
    assert np.load(tmp_path / "some" / "w" / "w_0.npy").shape == (10, 2)
    dedup(db, "t", column="w", metric="L2Distance", within=3.5, into="d")
    assert rows(db, "SELECT count(), max(id % 3) FROM d") == [(10, 0)]


def test_a_distance_that_clickhouse_refuses_is_refused(db: clipql.Database) -> None:
    for sql in ("SELECT avg(L2Distance(w, [4, 0])) FROM t", "SELECT id FROM t ORDER BY L2Distance(w, [1, 1]) LIMIT 1"):
        with pytest.raises(QueryError, match="must have equal sizes"):
            db.sql(sql + PLAIN)
    with pytest.raises(QueryError, match="must have equal sizes"):
        db.sql("SELECT avg(L2Distance(w, [4, 0])) FROM t")


def test_rows_come_without_the_column_or_with_an_empty_one(db: clipql.Database) -> None:
    db.sql("CREATE TABLE grown AS t")
    db.sql("INSERT INTO grown SELECT * FROM t")
    db.sql("INSERT INTO grown (id, v) VALUES (100, [1, 2, 3])")
    db.sql("INSERT INTO grown (w, id, v) VALUES ([], 101, [1, 2, 3]), ([5, 5], 102, [1, 2, 3])")
    assert rows(db, "SELECT id, w FROM grown WHERE id >= 100 ORDER BY id") == [(100, []), (101, []), (102, [5.0, 5.0])]
    for wrong, message in (
        ("INSERT INTO grown (id, w) VALUES (1, [1, 2])", "needs a vector in v for each row"),
        ("INSERT INTO grown (id, v) VALUES (1, [])", "v of default.grown holds 3 numbers; row 0 of the insert has 0"),
        ("INSERT INTO grown (id, v, w) VALUES (1, [1, 2, 3], [1])", "w of default.grown holds 2 numbers; row 0"),
        (
            "INSERT INTO grown (id, v) SELECT id, w FROM t ORDER BY id",
            "v of default.grown needs a vector for each row",
        ),
    ):
        with pytest.raises(VectorError, match=message):
            db.sql(wrong)
    db.sql("DELETE FROM grown WHERE id IN (3, 101)")
    kept = rows(db, "SELECT * FROM grown ORDER BY id")
    db.sql("OPTIMIZE TABLE grown FINAL")
    assert rows(db, "SELECT * FROM grown ORDER BY id") == kept
    db.sql("CREATE TABLE chosen ENGINE = MergeTree ORDER BY id AS SELECT id, w AS other FROM grown")
    assert rows(db, "SELECT * FROM chosen ORDER BY id") == rows(db, "SELECT id, w FROM grown ORDER BY id")


NEAR = "L2Distance(w, [10, 1]) < 5"  # which ClickHouse can say only of arrays of two numbers
UPDATES = {
    "a literal": "UPDATE w = [7, id] WHERE id IN (1, 6)",
    "another column": "UPDATE w = arraySlice(v, 1, 2) WHERE id > 20",
    "a parameter": "UPDATE w = {q:Array(Float32)} WHERE name = '2'",
    "a join": "UPDATE w = joinGet('more', 'e', id) WHERE id IN (4, 5, 6)",
    "a subquery": "UPDATE w = (SELECT any(e) FROM more WHERE id = 5) WHERE id = 0",
    "nothing": "UPDATE w = [] WHERE id < 10",
    "rows near a vector": f"UPDATE w = [1, 1] WHERE {NEAR}",
}


@pytest.mark.parametrize("case", list(UPDATES))
def test_an_update_gives_rows_other_vectors_as_clickhouse_gives_them_other_arrays(
    db: clipql.Database, case: str
) -> None:
    db.sql("CREATE TABLE IF NOT EXISTS more (id UInt32, e Array(Float32)) ENGINE = Join(ANY, LEFT, id)")
    db.sql("TRUNCATE TABLE more")
    db.sql("INSERT INTO more VALUES (4, [40, 4]), (5, [50, 5])")
    for name in ("u", "arrays"):
        db.sql(f"DROP TABLE IF EXISTS {name}")
    db.sql("CREATE TABLE u AS t")
    db.sql("INSERT INTO u SELECT * FROM t")
    db.sql("CREATE TABLE arrays (id UInt32, w Array(Float32), name String, v Array(Float32)) ENGINE = Memory")
    db.sql("INSERT INTO arrays SELECT * FROM t")
    db.sql(f"ALTER TABLE u {UPDATES[case]}", q=[1.5, 2.5])
    db.sql(f"ALTER TABLE arrays {UPDATES[case].replace(NEAR, 'id IN (6, 9, 12)')}", q=[1.5, 2.5])
    assert rows(db, "SELECT * FROM u ORDER BY id") == rows(db, "SELECT * FROM arrays ORDER BY id")
    near = "SELECT id FROM {} WHERE notEmpty(w) ORDER BY L2Distance(w, [8, 8]), id LIMIT 99"
    assert rows(db, near.format("u")) == rows(db, near.format("arrays"))


def test_an_update_that_is_no_vector_changes_nothing(db: clipql.Database) -> None:
    before = rows(db, "SELECT * FROM t ORDER BY id")
    for wrong in ("w = [1]", "v = []", "w = [1, nan]", "w = NULL", "w = [1, 2], name = 'x'", "w = 'x'", "w = [x, 1]"):
        with pytest.raises(ClipqlError):
            db.sql(f"ALTER TABLE t UPDATE {wrong} WHERE id < 5")
    assert rows(db, "SELECT * FROM t ORDER BY id") == before


def test_an_index_is_of_the_rows_with_a_vector_and_changed_ones_are_compared(db: clipql.Database) -> None:
    count = 4000
    db.sql("CREATE TABLE big (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql(f"INSERT INTO big SELECT number, [1] FROM numbers({count})")
    db.sql("ALTER TABLE big ADD COLUMN w Array(Float32), ADD INDEX near w TYPE ivf('cosineDistance')")
    db.sql("ALTER TABLE big UPDATE w = [sin(id), cos(id), sin(id * 7), cos(id * 3)] WHERE id % 2 = 0")
    db.sql("ALTER TABLE big MATERIALIZE INDEX near")
    db.sql("ALTER TABLE big UPDATE w = [1, id, 1, 1] WHERE id IN (1, 2)")
    db.sql("ALTER TABLE big UPDATE w = [] WHERE id BETWEEN 10 AND 20")
    listed = (
        "SELECT rows, rows_covered, state, rows_without_vector, rows_changed FROM clipql.indexes WHERE table = 'big'"
    )
    assert rows(db, listed) == [(count, count, "in use", 2005, 13)]
    search = "SELECT id FROM big ORDER BY cosineDistance(w, {q:Array(Float32)}) LIMIT 20"
    sure = search.replace("ORDER", "WHERE notEmpty(w) ORDER") + PLAIN
    for q in ([0.9, 1, 1, 1], [np.sin(10), np.cos(10), np.sin(70), np.cos(30)], [0.9, 2, 1, 1]):
        found = db.sql(search, q=q)
        assert found.stats.searches[0].plan.chosen.entry.name == "near"
        assert len({r[0] for r in found.rows} & {r[0] for r in rows(db, sure, q=q)}) >= 18
        assert not {r[0] for r in found.rows} & {*range(10, 21), *range(3, count, 2)}
    near = "SELECT id FROM big WHERE cosineDistance(w, [1, 1, 1, 1]) < 0.01 ORDER BY id"
    assert rows(db, near) == rows(db, near.replace("cos", "notEmpty(w) AND cos", 1) + PLAIN)
    told = " ".join(r[0] for r in rows(db, "EXPLAIN " + search, q=[1, 2, 3, 4]))
    assert "2,005 of 4,000 rows have no vector" in told
    assert "13 rows with other vectors are compared" in told
    report = db.check(deep=True)
    assert (report.damaged, "default.big, w: 2,005 of 4,000 rows have no vector" in report.notes) == (False, True)
    db.sql("DROP TABLE big")


def test_a_column_is_cleared_renamed_and_dropped(db: clipql.Database) -> None:
    db.sql("CREATE TABLE c AS t")
    db.sql("INSERT INTO c SELECT * FROM t WHERE id < 4")
    db.sql("ALTER TABLE c ADD COLUMN IF NOT EXISTS w Array(Float32), CLEAR COLUMN v")
    assert rows(db, "SELECT id, v FROM c ORDER BY id") == [(i, []) for i in range(4)]
    db.sql("ALTER TABLE c UPDATE v = [1] WHERE id = 2, RENAME COLUMN v TO `v 2`, DROP COLUMN w")
    assert rows(db, "SELECT * FROM c ORDER BY id") == [(i, str(i), [1.0] if i == 2 else []) for i in range(4)]
    assert rows(db, "SELECT id FROM c ORDER BY L2Distance(`v 2`, [1]) LIMIT 9") == [(2,)]


def test_a_column_of_two_vectors_is_nan_where_one_is_missing(db: clipql.Database) -> None:
    db.sql("CREATE TABLE two (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO two SELECT number, [3, 4] FROM numbers(3)")
    db.sql("ALTER TABLE two ADD COLUMN w Array(Float32), ADD COLUMN l2 Float32 MATERIALIZED L2Distance(v, w)")
    db.sql("ALTER TABLE two ADD COLUMN dot Float32 DEFAULT dotProduct(v, w)")
    everything = "SELECT l2, dot FROM two ORDER BY id"
    np.testing.assert_equal(rows(db, everything), [(np.nan, np.nan)] * 3)
    db.sql("ALTER TABLE two UPDATE w = [3, 5] WHERE id = 1")
    np.testing.assert_equal(rows(db, everything), [(np.nan, np.nan), (1.0, np.nan), (np.nan, np.nan)])
    db.sql("ALTER TABLE two CLEAR COLUMN dot")
    np.testing.assert_equal(rows(db, everything), [(np.nan, np.nan), (1.0, 29.0), (np.nan, np.nan)])
    db.sql("INSERT INTO two (id, v) VALUES (3, [1, 1])")
    db.sql("INSERT INTO two (id, v, w, dot) VALUES (4, [1, 1], [], 7), (5, [1, 1], [1, 2], 8)")
    db.sql("INSERT INTO two (id, v, w) SELECT 6, [1, 1], CAST([], 'Array(Float32)')")
    came = "SELECT id, l2, dot FROM two WHERE id > 2 ORDER BY id"
    np.testing.assert_equal(rows(db, came), [(3, np.nan, np.nan), (4, np.nan, 7), (5, 1, 8), (6, np.nan, np.nan)])
    before = rows(db, "SELECT *, l2 FROM two ORDER BY id")
    for wrong, message in (
        (
            "ADD COLUMN x Float32 MATERIALIZED dotProduct(w, [1, 2])",
            "x cannot be computed for the rows",
        ),
        ("ADD COLUMN y Float32 MATERIALIZED dotProduct(v, [1, 2]), CLEAR COLUMN v", "nothing was changed"),
    ):
        with pytest.raises(QueryError, match=message):
            db.sql("ALTER TABLE two " + wrong)
    np.testing.assert_equal(rows(db, "SELECT *, l2 FROM two ORDER BY id"), before)
    assert rows(db, "SELECT y FROM two WHERE id < 3") == [(11.0,)] * 3
    db.sql("CREATE TABLE bare (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
    db.sql("ALTER TABLE bare CLEAR COLUMN v")
    db.sql("INSERT INTO bare VALUES (1, []), (2, [1])")
    assert rows(db, "SELECT v FROM bare ORDER BY id") == [([],), ([1.0],)]


HEADS = (
    "L2Normalize(w)", "L2Normalize(w)[1]", "vectorLinear(w, [[1, 1]], [5])", "vectorLinear(w, [[1, 1]], [5])[1]",
    "vectorLinear(w, [[1, 1], [2, 0]], [5, 6])", "vectorLinear(w, [[1, 1], [2, 0]], [5, 6])[-1]", "vectorRelu(w)",
    "vectorLinear(w, [[1, 1]], [5])[3]", "vectorRelu(w)[2]", "length(vectorRelu(w))", "w[1]", "w[-1]",
    "vectorRelu(vectorLinear(L2Normalize(w), [[1, 1]], [5]))[1] > 3",
)  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_no_vector_is_no_vector(db: clipql.Database, head: str) -> None:
    sql = f"SELECT {head} AS x FROM t ORDER BY id"
    found, sure = (db.sql(s).rows for s in (sql, sql + PLAIN))
    for one, other in zip(found, sure, strict=True):
        np.testing.assert_allclose(np.asarray(one[0], float), np.asarray(other[0], float), rtol=1e-6)
    if "vector" in head and ">" not in head and "length" not in head:
        assert np.asarray(found[1][0], float).tolist() == [] or np.isnan(found[1][0])
    if ">" in head:
        assert rows(db, f"SELECT id FROM t WHERE {head} ORDER BY id") == [(i,) for i in range(0, 30, 3)]


def test_a_table_made_of_another_keeps_what_made_its_vectors(db: clipql.Database, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "e": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "a.parquet")
    db.ingest(tmp_path / "a.parquet", table="made", model="google/siglip")
    db.ingest(tmp_path / "a.parquet", table="made_by_b", model="b/b")
    db.sql("CREATE TABLE a1 ENGINE = MergeTree ORDER BY tuple() AS SELECT id, e AS f FROM made")
    db.sql("CREATE TABLE a2 AS made")
    db.sql("CREATE TABLE a3 (n UInt64, w Array(Float32)) ENGINE = MergeTree ORDER BY n")
    db.sql("INSERT INTO a3 SELECT m.id, m.e FROM made AS m JOIN t ON t.id = m.id ORDER BY m.id")
    known = {t.name: t.columns[0].model for t in db.registry.catalog.tables if t.name in ("a1", "a2", "a3")}
    assert known == dict.fromkeys(("a1", "a2", "a3"), "google/siglip")
    with pytest.raises(
        ModelMismatch, match=r"w of default\.a3 was filled by the model google/siglip, and e of default"
    ):
        db.sql("INSERT INTO a3 SELECT id, e FROM made_by_b")


def test_backup_restore_readers_and_a_new_opening_know_them(db: clipql.Database, tmp_path: Path) -> None:
    everything = "SELECT * FROM t ORDER BY id"
    expected, near = rows(db, everything), "SELECT id FROM t ORDER BY L2Distance(w, [9, 0]) LIMIT 4"
    first = rows(db, near)
    db.backup(tmp_path / "backup")
    db.close()
    with clipql.connect(db.path, read_only=True) as reader:
        assert (rows(reader, near), rows(reader, everything)) == (first, expected)
    with clipql.connect(db.path) as again:
        assert (rows(again, everything), rows(again, near)) == (expected, first)
    clipql.restore(tmp_path / "backup", tmp_path / "restored")
    with clipql.connect(tmp_path / "restored") as restored:
        assert (rows(restored, everything), rows(restored, near)) == (expected, first)
        with pytest.raises(IngestError, match="has a column v, in which each row has a vector"):
            restored.ingest(tmp_path / "none.parquet", table="t", add_column="v")
        assert not restored.check(deep=True).damaged
        table = restored.registry.find(None, "t")
        name = next(s.there for s in table.column("w").segments if s.there)
        bits = restored.registry.column_folder(table, "w") / name
    bits.write_bytes(bytes([255]) + bits.read_bytes()[1:])
    report = clipql.check(tmp_path / "restored")
    assert [f.what for f in report.findings] == ["segment"]
    assert name in str(report)
