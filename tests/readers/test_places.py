"""Where snapshots lie: of databases nobody has open, of backups, on read-only file systems; and who removes them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from writing import ROOT, Writer

import clipql
from clipql.errors import DatabaseDamaged, DatabaseLocked, StorageError
from clipql.storage import catalog, snapshot
from clipql.storage.catalog import Pending

CREATE = "CREATE TABLE t (id UInt64, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
INSERT = "INSERT INTO t SELECT number, 'n' || toString(number), [number, 1] FROM numbers(300)"
NEAREST = "SELECT id FROM t ORDER BY L2Distance(v, [250.2, 1]) LIMIT 2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with clipql.connect(tmp_path / "t.db") as db:
        db.sql(CREATE)
        db.sql(INSERT)
        db.sql("DELETE FROM t WHERE id = 250")
    return tmp_path / "t.db"


def snapshots(folder: Path) -> list[Path]:
    return list(folder.glob("tmp/reader-*"))


def assert_read(path: Path) -> None:
    with clipql.connect(path, read_only=True) as db:
        assert db.sql(NEAREST).rows == [(251,), (249,)]
        assert db.sql("SELECT count(), sum(v[1]) FROM t").rows == [(299, 44_600.0)]
        assert sum(len(block.rows) for block in db.vectors("t", "v")) == 299


@contextlib.contextmanager
def no_hard_links() -> Iterator[None]:
    """A file system that makes none."""
    with mock.patch.object(os, "link", side_effect=OSError(1, "Operation not permitted")):
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_database_that_nobody_has_open_is_read_and_stays_as_it_is(folder: Path) -> None:
    before = contents(folder)
    assert_read(folder)
    assert contents(folder) == before
    assert snapshots(folder) == []


def test_a_backup_is_read_where_it_lies_and_stays_whole(folder: Path, tmp_path: Path) -> None:
    with clipql.connect(folder) as db:
        db.backup(tmp_path / "backup")
    assert_read(tmp_path / "backup" / "database")
    with no_hard_links():
        assert_read(tmp_path / "backup" / "database")
    clipql.restore(tmp_path / "backup", tmp_path / "restored")
    assert_read(tmp_path / "restored")


def test_a_database_is_read_where_no_hard_links_can_be_made_and_keeps_writers_out(folder: Path) -> None:
    before = contents(folder)
    with no_hard_links():
        assert_read(folder)
        with clipql.connect(folder, read_only=True) as db:
            assert db.sql(NEAREST).rows == [(251,), (249,)]
            with pytest.raises(DatabaseLocked):
                clipql.connect(folder)
            with pytest.raises(StorageError, match="cannot be checked"):
                db.check()
    assert contents(folder) == before
    clipql.connect(folder).close()


def test_without_hard_links_a_database_that_is_written_is_refused(folder: Path) -> None:
    with Writer(folder) as writer, no_hard_links():
        with pytest.raises(DatabaseLocked, match=rf"process {writer.pid} .*no hard links of its files can be made"):
            clipql.connect(folder, read_only=True)
        assert snapshots(folder) == []


def test_without_hard_links_a_change_that_was_cut_off_is_not_finished(folder: Path) -> None:
    found = catalog.load(folder)
    catalog.save(folder, found.with_pending(Pending("truncate", found.tables[0], found.tables[0])))
    with no_hard_links(), pytest.raises(StorageError, match="was not closed in order"):
        clipql.connect(folder, read_only=True)


def test_a_database_on_a_read_only_file_system_is_read(folder: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    bound = os.geteuid() == 0 and not any(
        subprocess.run(command, capture_output=True, check=False).returncode
        for command in (["mount", "--bind", folder, mount], ["mount", "-o", "remount,ro,bind", mount])
    )
    try:
        if bound:
            assert_read(mount)
        else:  # at least as if it were: the folder cannot be written
            with mock.patch.object(os, "access", return_value=False):
                assert_read(folder)
    finally:
        if bound:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)
    assert snapshots(folder) == []


def test_a_change_that_was_cut_off_is_finished_in_the_snapshot_alone(folder: Path) -> None:
    found = catalog.load(folder)
    table = found.tables[0]
    catalog.save(folder, found.with_pending(Pending("insert", table, table)))
    before = contents(folder)
    assert_read(folder)
    assert contents(folder) == before


def test_snapshots_of_dead_readers_go_with_the_next_open_and_those_of_living_ones_stay(folder: Path) -> None:
    code = (
        "import sys, clipql\ndb = clipql.connect(sys.argv[1], read_only=True)\n"
        "print(db.sql('SELECT 1').rows, flush=True)\nsys.stdin.readline()"
    )
    readers = []
    for _ in range(3):
        command = [sys.executable, "-c", code, str(folder)]
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"[(1,)]\n"
        readers.append(reader)
    readers[0].send_signal(signal.SIGKILL)
    readers[0].communicate()
    assert len(snapshots(folder)) == 3
    with clipql.connect(folder, read_only=True):
        assert len(snapshots(folder)) == 3  # its own among them
    readers[1].send_signal(signal.SIGKILL)
    readers[1].communicate()
    with clipql.connect(folder):
        assert len(snapshots(folder)) == 1
    readers[2].communicate()
    clipql.connect(folder).close()
    assert snapshots(folder) == []


def test_a_check_tells_what_snapshots_hold(folder: Path) -> None:
    with clipql.connect(folder, read_only=True):
        report = clipql.check(folder)
        assert report.held is not None
        assert report.held.snapshots == 1
        with clipql.connect(folder) as db:
            db.sql("OPTIMIZE TABLE t FINAL")
        later = clipql.check(folder)
        assert later.held is not None
        assert later.held.bytes > report.held.bytes
        assert f"1 snapshot of a reader holds {later.held.bytes / 1e6:,.1f} MB that nothing else needs" in str(later)
    after = clipql.check(folder)
    assert after.held is not None
    assert (after.held.snapshots, after.held.bytes) == (0, 0)
    assert "snapshot" not in str(after)


def test_a_damaged_segment_is_no_snapshot(folder: Path) -> None:
    [segment] = folder.glob("vectors/*/*/*.npy")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DatabaseDamaged, match=segment.name):
        clipql.connect(folder, read_only=True)
    assert snapshots(folder) == []


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "engine" / "metadata" / "stray.sql").symlink_to(tmp_path)
    with pytest.raises(DatabaseDamaged, match=r"stray\.sql is a symbolic link"):
        clipql.connect(folder, read_only=True)


def test_a_database_that_changes_all_the_time_is_given_up_with_what_to_do(folder: Path) -> None:
    def restless(source: Path) -> snapshot.State:
        os.utime(source / catalog.NAME, ns=(0, restless.calls))
        restless.calls += 1
        found = os.stat(source / catalog.NAME)
        return found.st_ino, found.st_mtime_ns, found.st_size

    restless.calls = 1
    with (
        mock.patch.object(snapshot, "state", restless),
        mock.patch.object(snapshot, "_LONGEST_SECONDS", 0.2),
        pytest.raises(StorageError, match="changes faster than a snapshot of it can be linked"),
    ):
        clipql.connect(folder, read_only=True)
    assert snapshots(folder) == []


def test_a_full_disk_while_a_snapshot_is_made_breaks_nothing(folder: Path) -> None:
    full = mock.patch.object(os, "link", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(clipql.errors.DiskFull):
        clipql.connect(folder, read_only=True)
    assert snapshots(folder) == []
    assert_read(folder)


def test_parts_are_linked_and_not_copied(folder: Path) -> None:
    with clipql.connect(folder) as db:
        db.sql("SYSTEM STOP MERGES")
        for i in range(20):
            db.sql("INSERT INTO t VALUES ({i:UInt64}, 'more', {v:Array(Float32)})", i=1000 + i, v=np.ones(2))
    with clipql.connect(folder, read_only=True) as db:
        [part] = list((db.registry.folder / "engine" / "data" / "default" / "t").glob("all_20_20_0/data.bin"))
        assert part.stat().st_nlink == 2
        assert [int(n) for b in db.vectors("t", "v", "name = 'more'") for n in b.rows] == list(range(300, 320))
