"""A backup is of one moment, whole and verified; a restored database has what was there then."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from parts import make_part, state

import clipql
from clipql.care.backup import restore, verify
from clipql.cli.entry import main
from clipql.errors import DatabaseDamaged, NotADatabase, StorageError

MAKE = [
    "CREATE TABLE t (id UInt32, c String, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) \
ENGINE = MergeTree ORDER BY id",
    "INSERT INTO t SELECT number, toString(number), [number % 7, number % 11, number % 13, 1] FROM numbers(1500)",
    "ALTER TABLE t MATERIALIZE INDEX near",
    "DELETE FROM t WHERE id % 100 = 3",
    "CREATE DATABASE `other one`",
    "CREATE TABLE `other one`.u (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO `other one`.u VALUES (1, [1, 2])",
    "CREATE TABLE plain (id UInt32) ENGINE = MergeTree PARTITION BY id % 2 ORDER BY id",
    "INSERT INTO plain SELECT number FROM numbers(100)",
    "CREATE TABLE logged (id UInt32) ENGINE = Log",
    "INSERT INTO logged VALUES (1), (2)",
    "CREATE VIEW seen AS SELECT id FROM t WHERE id < 10",
]  # fmt: skip


@pytest.mark.parametrize("hard_links", [False, True])
def test_a_restored_backup_has_all_that_was_there(tmp_path: Path, hard_links: bool) -> None:
    with clipql.connect(tmp_path / "db") as db:
        for statement in MAKE:
            db.sql(statement)
        before = state(db)
        report = db.backup(tmp_path / "copy", hard_links=hard_links)
        assert report.files == len(verify(tmp_path / "copy"))
        assert report.bytes > 50_000
        assert state(db) == before
        assert not list(db.path.glob(".backup*"))
        db.sql("DROP TABLE t")
        db.sql("TRUNCATE TABLE plain")
    restore(tmp_path / "copy", tmp_path / "again")
    assert clipql.check(tmp_path / "again", deep=True).findings == ()
    with clipql.connect(tmp_path / "again") as db:
        assert state(db) == before
        assert [s.state for s in db.sql("SELECT state FROM clipql.indexes").arrow().to_pandas().itertuples()] == [
            "in use"
        ]
        db.sql("INSERT INTO t VALUES (9999, 'new', [1, 2, 3, 4])")
        db.sql("OPTIMIZE TABLE t FINAL")
        assert db.check(deep=True).findings == ()


def test_a_backup_is_of_one_moment_while_inserts_and_queries_run(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        stop, errors = threading.Event(), []

        def insert() -> None:
            try:
                number = 0
                while not stop.is_set() or number < 3:
                    db.sql(f"INSERT INTO t SELECT {number} * 10 + number, [{number}, number] FROM numbers(10)")
                    number += 1
            except clipql.ClipqlError as error:
                errors.append(error)

        def query() -> None:
            try:
                while not stop.is_set():
                    db.sql("SELECT id FROM t ORDER BY L2Distance(v, [1, 2]) LIMIT 3")
            except clipql.ClipqlError as error:
                errors.append(error)

        threads = [threading.Thread(target=insert), threading.Thread(target=query)]
        for thread in threads:
            thread.start()
        for number in range(3):
            db.backup(tmp_path / f"copy-{number}")
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        total = db.sql("SELECT count() FROM t").rows[0][0]
    seen = []
    for number in range(3):
        restore(tmp_path / f"copy-{number}", tmp_path / f"db-{number}")
        with clipql.connect(tmp_path / f"db-{number}") as db:
            rows = db.sql("SELECT id, v FROM t ORDER BY id").rows
        assert rows == [(i, [float(i // 10), float(i % 10)]) for i in range(len(rows))]
        assert len(rows) % 10 == 0
        seen.append(len(rows))
    assert seen == sorted(seen)
    assert seen[-1] <= total


def test_linked_parts_come_along_unless_they_are_to_stay(tmp_path: Path) -> None:
    part = make_part(tmp_path / "parts", rows=12, dimension=4)
    with clipql.connect(tmp_path / "db") as db:
        db.ingest(tmp_path / "parts", link=True)
        db.backup(tmp_path / "whole")
        db.backup(tmp_path / "thin", keep_links=True)
    assert not list((tmp_path / "thin").rglob("*link*.npy"))
    part.image_path.unlink()
    restore(tmp_path / "whole", tmp_path / "again")
    with clipql.connect(tmp_path / "again") as db:
        found = np.array([v for (v,) in db.sql("SELECT image_embedding FROM laion ORDER BY _row").rows], np.float32)
        assert np.array_equal(found, part.image.astype(np.float32))
    restore(tmp_path / "thin", tmp_path / "thin again")
    with pytest.raises(DatabaseDamaged, match="put the linked file back"):
        clipql.connect(tmp_path / "thin again")


def small(folder: Path) -> None:
    with clipql.connect(folder) as db:
        db.sql("CREATE TABLE t (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t VALUES (1, [1, 2])")
        db.backup(folder.parent / "copy")


def test_a_damaged_backup_is_not_restored_and_nothing_is_left(tmp_path: Path) -> None:
    small(tmp_path / "db")
    (segment,) = (tmp_path / "copy").rglob("*.npy")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DatabaseDamaged, match=r"the backup .* is damaged: vectors/t-1/column-0/.*\.npy has"):
        restore(tmp_path / "copy", tmp_path / "again")
    segment.unlink()
    with pytest.raises(DatabaseDamaged, match=r"is not whole: vectors/t-1/column-0/.*\.npy is missing"):
        restore(tmp_path / "copy", tmp_path / "again")
    listing = tmp_path / "copy" / "backup.json"
    listing.write_text(listing.read_text().replace("column-0", "column-1"))
    with pytest.raises(DatabaseDamaged, match=r"backup\.json does not match its own hash"):
        restore(tmp_path / "copy", tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "db"]


def test_a_damaged_segment_does_not_get_into_a_backup(tmp_path: Path) -> None:
    small(tmp_path / "db")
    with clipql.connect(tmp_path / "db") as db:
        (segment,) = (tmp_path / "db").glob("vectors/*/*/*.npy")
        data = bytearray(segment.read_bytes())
        data[-1] ^= 1
        segment.write_bytes(data)
        with pytest.raises(DatabaseDamaged, match="it was altered"):
            db.backup(tmp_path / "second")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "db"]


def test_nothing_is_overwritten_and_only_backups_are_restored(tmp_path: Path) -> None:
    small(tmp_path / "db")
    with clipql.connect(tmp_path / "db") as db, pytest.raises(StorageError, match="is there already"):
        db.backup(tmp_path / "copy")
    with pytest.raises(StorageError, match="is there already and is not overwritten: name a new folder"):
        restore(tmp_path / "copy", tmp_path / "db")
    with pytest.raises(NotADatabase, match=r"is no backup of clipql: it has no backup\.json"):
        restore(tmp_path / "db", tmp_path / "new")


def test_what_a_backup_that_was_cut_off_leaves_is_removed_at_the_next_open(tmp_path: Path) -> None:
    small(tmp_path / "db")
    for stray in (tmp_path / "db" / ".backup-77" / "vectors", tmp_path / "db" / "engine" / "shadow" / "clipql_77"):
        stray.mkdir(parents=True)
    clipql.connect(tmp_path / "db").close()
    assert not (tmp_path / "db" / ".backup-77").exists()
    assert not (tmp_path / "db" / "engine" / "shadow").exists()


def test_the_commands_back_up_and_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path / "db")
    assert main(["--db", str(tmp_path / "db"), "backup", str(tmp_path / "by command")]) == 0
    assert "verified, in" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "by command"), str(tmp_path / "again")]) == 0
    assert str(tmp_path / "again") in capsys.readouterr().out
    with clipql.connect(tmp_path / "again") as db:
        assert db.sql("SELECT * FROM t").rows == [(1, [1.0, 2.0])]
        assert main(["--db", str(tmp_path / "again"), "backup", str(tmp_path / "third")]) == 1
        assert "one process opens a database at a time" in capsys.readouterr().err
    assert main(["--db", str(tmp_path / "nothing"), "backup", str(tmp_path / "third")]) == 1
    assert not (tmp_path / "nothing").exists()
