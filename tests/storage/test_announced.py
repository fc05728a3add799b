"""The number of acknowledged changes: another one after each of them, and the same while one is under way."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from unittest import mock

import pytest

import clipql
from clipql.errors import NotADatabase
from clipql.storage import announced, catalog
from clipql.storage.announced import Announcements
from clipql.storage.catalog import Catalog, Pending, Table, VectorColumn

TABLE = Table("default", "t", "t1", (VectorColumn("v", "v", 2),))
UNDER_WAY = Pending("truncate", TABLE, TABLE)


def number(folder: Path) -> int:
    found = announced.look(folder)[1]
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalog.save(tmp_path, Catalog())
    return tmp_path


def test_a_change_counts_when_it_is_done_and_not_when_it_begins(folder: Path) -> None:
    writer = Announcements(folder)
    assert announced.look(folder)[1] is None
    writer.save(Catalog((TABLE,)))
    before, state = number(folder), announced.state(folder)
    writer.save(Catalog((TABLE,), UNDER_WAY))
    assert number(folder) == before
    assert announced.state(folder) != state
    writer.save(Catalog((TABLE,)))
    assert number(folder) == before + 1
    assert catalog.load(folder) == Catalog((TABLE,))


def test_what_the_manifest_does_not_say_counts_each_time_from_all_threads(folder: Path) -> None:
    writer = Announcements(folder)
    writer.save(Catalog())
    seen = {number(folder)}
    for _ in range(50):
        writer.add()
        seen.add(number(folder))
    assert len(seen) == 51
    before = number(folder)
    threads = [threading.Thread(target=lambda: [writer.add() for _ in range(20)]) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert number(folder) == before + 80
    writer.save(Catalog())
    assert number(folder) == before + 81


def test_another_process_counts_on(folder: Path) -> None:
    first = Announcements(folder)
    first.save(Catalog())
    first.add()
    before = number(folder)
    second = Announcements(folder)
    second.add()
    second.save(Catalog())
    assert number(folder) == before + 2


def test_a_manifest_of_an_older_version_says_no_number_and_none_comes_twice(folder: Path) -> None:
    writer = Announcements(folder)
    writer.save(Catalog())
    before = number(folder)
    catalog.save(folder, Catalog())
    assert announced.look(folder)[1] is None
    writer.save(Catalog())
    assert number(folder) > before


def test_what_an_older_version_reads_of_a_manifest_is_there(folder: Path) -> None:
    Announcements(folder).save(Catalog((TABLE,)))
    document = json.loads((folder / catalog.NAME).read_bytes())
    assert {"clipql", "format", "hash", "catalog"} <= document.keys()
    assert list(document)[:3] == ["clipql", "announced", "time"]


@pytest.mark.parametrize("step", [1_000_000_000, 2_000_000_000])
def test_times_that_a_file_system_rounds_still_tell(folder: Path, step: int) -> None:
    def rounded(path: object, ns: tuple[int, int]) -> None:
        real(path, ns=(ns[0] // step * step,) * 2)  # type: ignore[call-overload]

    real, writer = os.utime, Announcements(folder)
    with mock.patch("os.utime", rounded):
        writer.save(Catalog())
        seen = [number(folder)]
        for _ in range(5):
            writer.add()
            seen.append(number(folder))
        writer.save(Catalog())
        seen.append(number(folder))
    assert len(set(seen)) == len(seen)


def test_a_folder_without_a_manifest_is_no_database(tmp_path: Path) -> None:
    for ask in (announced.state, announced.look):
        with pytest.raises(NotADatabase, match="there is no database in"):
            ask(tmp_path)


def test_every_statement_that_changes_something_counts_and_no_other(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "t.db") as db:
        changes = (
            "CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
            "INSERT INTO t SELECT number, [number, 1] FROM numbers(100)",
            "CREATE TABLE plain (x Int32) ENGINE = MergeTree ORDER BY x",
            "INSERT INTO plain VALUES (1)",
            "DELETE FROM plain WHERE x = 1",
            "ALTER TABLE t UPDATE v = [7, 7] WHERE id = 3",
            "ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')",
            "ALTER TABLE t MATERIALIZE INDEX near",
            "CREATE VIEW w AS SELECT id FROM t",
            "OPTIMIZE TABLE t FINAL",
            "DELETE FROM t WHERE id < 10",
            "DROP TABLE plain",
        )
        for change in changes:
            before = number(tmp_path / "t.db")
            db.sql(change)
            assert number(tmp_path / "t.db") > before, change
        before = number(tmp_path / "t.db")
        for reading in (
            "SELECT count() FROM t",
            "SELECT id FROM t ORDER BY L2Distance(v, [1, 1]) LIMIT 2",
            "SHOW TABLES",
        ):
            db.sql(reading)
            assert number(tmp_path / "t.db") == before, reading
