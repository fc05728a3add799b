"""Searches with plain conditions ask ClickHouse nothing, and notice damaged columns."""

from __future__ import annotations

from pathlib import Path

import clipql


def test_the_search_for_a_plain_condition_reads_nothing_from_clickhouse(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE flat) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t SELECT number, [number, 1] FROM numbers(2000)")
    db.sql("OPTIMIZE TABLE t")
    sql = "SELECT id FROM t WHERE id >= {} ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 3"
    plain = db.sql(sql.format(500))
    assert plain.rows == [(500,), (501,), (502,)]
    assert plain.stats.rows_read == 0
    assert db.sql(sql.format(500) + " SETTINGS additional_table_filters = {'t': 'id > 700'}").rows[0] == (701,)
    assert db.sql("SELECT id FROM t WHERE id + 0 >= 500 ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 1").rows == [(500,)]


def test_a_damaged_column_is_noticed_and_clickhouse_asked(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE flat) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t SELECT number, [number, 1] FROM numbers(2000)")
        db.sql("OPTIMIZE TABLE t")
    (place,) = (tmp_path / "db" / "rows").glob("*/columns-0.bin")
    data = bytearray(place.read_bytes())
    data[3_000] ^= 255
    place.write_bytes(data)
    with clipql.connect(tmp_path / "db") as db:
        sql = "SELECT id FROM t WHERE id >= 500 ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 2"
        assert db.sql(sql).rows == [(500,), (501,)]
        assert not db._session._planner._indexes.rows.reader(db.registry.catalog.tables[0])


def test_a_row_file_without_columns_still_answers(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE flat) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t SELECT number, [number, 1] FROM numbers(2000)")
        db.sql("OPTIMIZE TABLE t")
    (listing,) = (tmp_path / "db" / "rows").glob("*/listing-*.json")
    listing.unlink()
    with clipql.connect(tmp_path / "db") as db:  # its hash tells that something is missing
        sql = "SELECT id FROM t WHERE id >= 500 ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 2"
        assert db.sql(sql).rows == [(500,), (501,)]
