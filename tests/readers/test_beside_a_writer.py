"""A reader beside a writer in another process: one moment, the same to the byte, whatever the writer does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from writing import Writer

import clipql
from clipql.engine.on_demand import EngineOnDemand
from clipql.errors import DatabaseLocked, NotADatabase, QueryError

CREATE = "CREATE TABLE t (id UInt64, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
INSERT = "INSERT INTO t SELECT number, 'n' || toString(number), [number, 1] FROM numbers({first}, {rows})"
INDEX = "ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')"
NEAREST = "SELECT id, name, L2Distance(v, {q:Array(Float32)}) AS d FROM t ORDER BY d, id LIMIT 7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def writer(folder: Path) -> Iterator[Writer]:
    with Writer(folder) as process:
        process.run(CREATE)
        process.run(INSERT.format(first=0, rows=6_000))
        yield process


def all_of(db: clipql.Database) -> list[bytes]:
    """Answers of many kinds, to the byte."""
    query = np.array([3_000.4, 1], np.float32)
    statements = ("SELECT * FROM t ORDER BY id", "SELECT count(), sum(id), sum(v[1]) FROM t", "SHOW CREATE TABLE t")
    found = [db.execute(s, format="RowBinary").output.data for s in statements]
    found += [repr(db.sql(NEAREST, q=query).rows).encode()]
    found += [repr(db.search("t", vector=query, column="v", where="id % 3 = 0").rows).encode()]
    many = db.search_many("t", vectors=[query, query + 90], column="v", k=3)
    found += [repr([r.rows for r in many]).encode()]
    return found + [block.vectors.tobytes() + block.rows.tobytes() for block in db.vectors("t", "v")]


def test_a_reader_sees_the_same_to_the_byte_until_it_refreshes(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True) as db:
        before = all_of(db)
        changes = (
            INSERT.format(first=6_000, rows=100), "DELETE FROM t WHERE id < 500", INDEX,
            "ALTER TABLE t MATERIALIZE INDEX near", "OPTIMIZE TABLE t FINAL", "ALTER TABLE t MATERIALIZE INDEX near",
            "ALTER TABLE t UPDATE name = 'other' WHERE id = 3000", "ALTER TABLE t ADD COLUMN more Int32 DEFAULT 7",
            "ALTER TABLE t ADD COLUMN w Array(Float32)", "ALTER TABLE t UPDATE w = [id, 5] WHERE id < 1000",
            "ALTER TABLE t UPDATE v = [7, 7] WHERE id = 3000",
        )  # fmt: skip
        for change in changes:
            writer.run(change)
            assert all_of(db) == before, change
        assert db.refresh() is True
        after = all_of(db)
        assert db.sql("SELECT count(), min(id), max(id), sum(more) FROM t").rows == [(5_600, 500, 6_099, 39_200)]
        assert db.sql("SELECT name, v, w FROM t WHERE id = 3000").rows == [("other", [7.0, 7.0], [])]
        assert db.sql("SELECT count() FROM t WHERE notEmpty(w)").rows == [(500,)]
        assert [i for (i,) in db.sql("SELECT id FROM t ORDER BY L2Distance(w, [999, 5]) LIMIT 2").rows] == [999, 998]
        assert db.refresh() is False
        for change in ("TRUNCATE TABLE t", "DROP TABLE t", CREATE, INSERT.format(first=7, rows=1)):
            writer.run(change)
            assert all_of(db) == after, change
        assert db.refresh() is True
        assert db.sql("SELECT * FROM t").rows == [(7, "n7", [7.0, 1.0])]


def test_a_row_file_that_a_reader_has_is_appended_to_and_not_copied(folder: Path, writer: Writer) -> None:
    writer.run(INDEX)
    writer.run("ALTER TABLE t MATERIALIZE INDEX near")
    [rows] = folder.glob("rows/*/rows.bin")
    own = rows.stat().st_ino
    with clipql.connect(folder, read_only=True) as db:
        before = all_of(db)
        writer.run(INSERT.format(first=6_000, rows=2_000))
        assert rows.stat().st_ino == own
        assert all_of(db) == before
        db.refresh()
        assert db.search("t", vector=[7_000, 1], column="v", distance="L2Distance", k=1).rows[0][:2] == (7_000, "n7000")


def test_a_reader_that_follows_sees_each_commit_at_its_next_statement(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True, follow=True) as db:
        count = "SELECT count() FROM t"
        assert db.sql(count).rows == [(6_000,)]
        writer.run(INSERT.format(first=6_000, rows=10))
        assert db.sql(count).rows == [(6_010,)]
        writer.run("DELETE FROM t WHERE id >= 5000")
        assert db.search("t", vector=[5_500, 1], column="v", distance="L2Distance", k=1).rows[0][0] == 4_999
        assert db.sql(count).rows == [(5_000,)]
        writer.run("CREATE TABLE plain (x Int32) ENGINE = MergeTree ORDER BY x")
        writer.run("INSERT INTO plain VALUES (1), (2)")
        assert db.sql("SELECT sum(x) FROM plain").rows == [(3,)]


def test_a_block_of_statements_sees_one_moment(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True, follow=True) as db:
        with db.snapshot():
            first = db.sql("SELECT max(id) FROM t").rows
            writer.run(INSERT.format(first=6_000, rows=10))
            assert db.sql("SELECT max(id) FROM t").rows == first == [(5_999,)]
            with pytest.raises(QueryError, match="leave the block first"):
                db.refresh()
        assert db.sql("SELECT max(id) FROM t").rows == [(6_009,)]


def test_what_was_set_stays_after_a_refresh(folder: Path, writer: Writer) -> None:
    writer.run("CREATE DATABASE other")
    with clipql.connect(folder, read_only=True, follow=True) as db:
        db.sql("SET param_x = '5'")
        db.sql("USE other")
        db.sql("SET max_block_size = 123")
        writer.run(INSERT.format(first=6_000, rows=1))
        assert db.sql("SELECT {x:Int32}, currentDatabase(), getSetting('max_block_size')").rows == [(5, "other", 123)]
        assert db.sql("SELECT count() FROM default.t").rows == [(6_001,)]


def test_a_second_writer_is_told_who_writes_and_that_it_may_read(folder: Path, writer: Writer) -> None:
    with pytest.raises(DatabaseLocked, match=rf"is open in process {writer.pid} .*read beside it with read_only=True"):
        clipql.connect(folder)
    with clipql.connect(folder, read_only=True) as db:
        assert db.sql("SELECT count() FROM t").rows == [(6_000,)]


def test_a_reader_makes_no_database(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotADatabase, match="a reader makes none"):
            clipql.connect(path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_readers_beside_each_other_see_their_own_moments(folder: Path, writer: Writer) -> None:
    code = (
        "import sys, clipql\nwith clipql.connect(sys.argv[1], read_only=True) as db:\n"
        " print(db.sql('SELECT count() FROM t').rows[0][0], flush=True)\n sys.stdin.readline()\n"
        " print(db.sql('SELECT count() FROM t').rows[0][0], flush=True)"
    )
    readers = []
    for more in range(3):
        command = [sys.executable, "-c", code, str(folder)]
        readers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        out = readers[-1].stdout
        assert out is not None
        assert out.readline() == f"{6_000 + more}\n"
        writer.run(INSERT.format(first=6_000 + more, rows=1))
    assert [r.communicate("\n")[0] for r in readers] == ["6000\n", "6001\n", "6002\n"]
    assert list(folder.glob("tmp/*")) == []


def test_a_backup_is_made_by_a_reader_while_the_writer_goes_on(folder: Path, writer: Writer, tmp_path: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        writer.run("DELETE FROM t WHERE id < 5990")
        db.backup(tmp_path / "backup")
        assert not db.check(deep=True).damaged
    with clipql.connect(tmp_path / "backup" / "database", read_only=True) as db:
        assert db.sql("SELECT count() FROM t").rows == [(6_000,)]
    assert clipql.restore(tmp_path / "backup", tmp_path / "restored").files > 0
    assert not (tmp_path / "backup" / "database" / "tmp").exists()


def test_clickhouse_goes_on_to_later_commits_without_being_opened_again(folder: Path, writer: Writer) -> None:
    opened = []
    start = EngineOnDemand._open_folder

    def counted(self: EngineOnDemand) -> None:
        opened.append(1)
        start(self)

    sums = "SELECT count(), sum(id), sum(v[1]), min(_row), max(_row) FROM t"
    with (
        mock.patch.object(EngineOnDemand, "_open_folder", counted),
        clipql.connect(folder, read_only=True, follow=True) as db,
    ):
        assert db.sql(sums).rows == [(6_000, 17_997_000, 17_997_000.0, 0, 5_999)]
        writer.run(INSERT.format(first=6_000, rows=10), "DELETE FROM t WHERE id < 10")
        assert db.sql(sums).rows == [(6_000, 18_057_000, 18_057_000.0, 10, 6_009)]
        writer.run("OPTIMIZE TABLE t FINAL")
        assert db.sql(sums).rows == [(6_000, 18_057_000, 18_057_000.0, 0, 5_999)]
        writer.run("CREATE VIEW w AS SELECT id FROM t WHERE id > 6000", "ALTER TABLE t ADD COLUMN z Int8 DEFAULT 3")
        assert db.sql("SELECT count() FROM w").rows == [(9,)]
        assert db.sql("SELECT sum(z) FROM t").rows == [(18_000,)]
        writer.run("RENAME TABLE t TO u", CREATE, INSERT.format(first=0, rows=4), "DROP VIEW w")
        assert db.sql(sums).rows == [(4, 6, 6.0, 0, 3)]
        assert db.sql("SHOW TABLES").rows == [("t",), ("u",)]
        writer.run("EXCHANGE TABLES t AND u")
        assert db.sql(sums.replace("FROM t", "FROM u")).rows == [(4, 6, 6.0, 0, 3)]
        assert db.sql(sums).rows == [(6_000, 18_057_000, 18_057_000.0, 0, 5_999)]
        assert db.sql("SELECT id FROM u ORDER BY L2Distance(v, (SELECT v FROM t LIMIT 1)) LIMIT 9").rows != []
        writer.run("EXCHANGE TABLES u AND t", "DROP TABLE u")
        assert db.sql("SHOW TABLES").rows == [("t",)]
        assert len(opened) == 1
        # what cannot be attached is opened
        writer.run("CREATE DATABASE other", "CREATE TABLE other.l (x Int8) ENGINE = Log")
        writer.run("INSERT INTO other.l VALUES (1)")
        assert db.sql("SELECT x FROM other.l").rows == [(1,)]
        writer.run("INSERT INTO other.l VALUES (2)")
        assert db.sql("SELECT sum(x) FROM other.l").rows == [(3,)]
        assert len(opened) == 3
    assert list(folder.glob("tmp/*")) == []


def test_what_cannot_be_attached_is_opened_anew(folder: Path, writer: Writer) -> None:
    count = "SELECT count(), sum(v[1]) FROM t WHERE id >= 5990"
    with clipql.connect(folder, read_only=True, follow=True) as db:
        assert db.sql(count).rows == [(10, 59_945.0)]
        for at, name in enumerate(("catch_up", "opening.settle")):
            writer.run(INSERT.format(first=6_000 + at, rows=1))
            with mock.patch(f"clipql.reader.{name}", side_effect=QueryError("it cannot be")):
                db.refresh()
            assert db.sql(count).rows == [(11 + at, 59_945.0 + 6_000 + at * 6_001)]
    assert list(folder.glob("tmp/*")) == []


def test_folders_that_tables_have_left_are_in_no_snapshot(folder: Path, writer: Writer) -> None:
    for _ in range(5):
        writer.run("CREATE TABLE gone (x Int32) ENGINE = MergeTree ORDER BY x", "DROP TABLE gone SYNC")
    bare = [each for each in (folder / "engine" / "store").iterdir() if not any(each.iterdir())]
    assert bare
    # on some file systems the links of a folder say nothing
    for known in (contextlib.nullcontext(), mock.patch("clipql.storage.snapshot._is_bare", return_value=False)):
        with known, clipql.connect(folder, read_only=True) as db:
            taken = db._taken.folder
            assert not [each for each in bare if (taken / each.relative_to(folder)).exists()]
            assert db.sql("SELECT count() FROM t").rows == [(6_000,)]
