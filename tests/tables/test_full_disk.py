"""A full disk: DiskFull, the database as before, and all is well once there is room again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import make_part, state

import clipql
from clipql.errors import DiskFull, StorageError
from clipql.index import folder as index_folder
from clipql.index.folder import NewFolder
from clipql.storage import catalog, files
from clipql.tables import writer
from tests.cases import some

CREATE = "CREATE TABLE t (id UInt64, c String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, keep: int) -> Path:
    filler = disk / "filler"
    filler.write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - keep))
    return filler


TOO_MUCH = {
    "vectors": "INSERT INTO t SELECT number, '', [number / 7, 2, 3, 4] FROM numbers(900000)",
    "rows": "INSERT INTO t SELECT number, randomString(1000), [1, 2, 3, 4] FROM numbers(9000)",
    "staged rows": "INSERT INTO t SELECT number, randomString(100), [1, 2, 3, 4] FROM numbers(80000)",
    "a new table": "CREATE TABLE u ENGINE = MergeTree ORDER BY id AS "
    "SELECT number AS id, [toFloat32(number / 7), 2] AS v FROM numbers(2000000)",
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_does_not_fit_on_the_disk_changes_nothing(small: Path, what: str) -> None:
    with clipql.connect(small / "db") as db:
        db.sql(CREATE)
        db.sql("INSERT INTO t SELECT number, 'c', [number, 2, 3, 4] FROM numbers(10)")
        before = state(db)
        with pytest.raises(DiskFull, match=r"the disk is full.*nothing was changed.*free some room and try again"):
            db.sql(TOO_MUCH[what])
        assert state(db) == before
        db.sql("INSERT INTO t VALUES (10, 'c', [10, 2, 3, 4])")
    with clipql.connect(small / "db") as db:
        assert db.sql("SELECT * FROM t ORDER BY id").rows == [(i, "c", [float(i), 2.0, 3.0, 4.0]) for i in range(11)]


def test_an_insert_with_any_little_room_is_whole_or_not_there(small: Path) -> None:
    with clipql.connect(small / "db") as db:
        db.sql(CREATE)
        db.sql("INSERT INTO t VALUES (0, 'c', [0, 1])")
        expected = [(0, "c", [0.0, 1.0])]
        refused = 0
        for n, keep in enumerate((0, 4096, 8192, 12288, 16384, 20480, 28672, 40960, 65536, 131072), 1):
            before = state(db)
            filler = fill(small, keep)
            try:
                db.sql(f"INSERT INTO t VALUES ({n}, 'c', [{n}, 1])")
                expected.append((n, "c", [float(n), 1.0]))
            except DiskFull:
                refused += 1
                filler.unlink()
                assert state(db) == before
            filler.unlink(missing_ok=True)
            db.sql(f"INSERT INTO t VALUES ({n + 100}, 'c', [{n}, 2])")
            expected.append((n + 100, "c", [float(n), 2.0]))
            assert db.sql("SELECT * FROM t ORDER BY id").rows == sorted(expected)
        assert refused >= 3
    with clipql.connect(small / "db") as db:
        assert db.sql("SELECT * FROM t ORDER BY id").rows == sorted(expected)


def test_a_part_that_does_not_fit_is_not_there_and_is_taken_later(small: Path, tmp_path: Path) -> None:
    make_part(tmp_path / "laion", rows=3000, dimension=64, number=0)
    make_part(tmp_path / "laion", rows=100, dimension=64, number=1)
    with clipql.connect(small / "db") as db:
        before = state(db)
        filler = fill(small, 400_000)
        with pytest.raises(DiskFull):
            db.ingest(tmp_path / "laion")
        filler.unlink()
        assert state(db) == before
        assert db.ingest(tmp_path / "laion").parts_taken == 2
        assert db.sql("SELECT count(), uniqExact(id) FROM laion").rows == [(3100, 3100)]


@pytest.mark.parametrize(
    ("stage", "again"), [("encode", {"encode", "route"}), ("route", {"route"}), ("calibrate", {"route"})]
)
def test_a_build_that_met_a_full_disk_goes_on_once_there_is_room(small: Path, stage: str, again: set[str]) -> None:
    fillers: list[Path] = []
    told: list[Any] = []

    def fills(told: Mapping[str, Any]) -> None:
        if told.get("stage") == stage and not fillers:
            fillers.append(fill(small, 0))

    with clipql.connect(small / "db") as db:
        db.sql(CREATE)
        db.sql("INSERT INTO t SELECT number, '', arrayMap(i -> sin(number * i), range(1, 65)) FROM numbers(3000)")
        db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
        (index,) = (small / "db" / "index" / t.id for t in db.registry.catalog.tables)
        with pytest.raises(DiskFull, match=r"^the disk is full while .*kept as far as it came: ALTER TABLE default"):
            db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=fills)
        fillers[0].unlink()
        assert list((index / ".ix.building").glob("*.npy")) == []
        db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=told.append)
        assert {t["stage"] for t in told if "stage" in t} == again | {"calibrate"}
        assert db.sql("SELECT rows_covered, state FROM clipql.indexes").rows == [(3000, "in use")]
        assert len(list(index.iterdir())) == 1
    assert clipql.check(small / "db", deep=True).findings == ()


def test_a_build_that_met_another_error_leaves_nothing(db: clipql.Database) -> None:
    def fails(told: Mapping[str, Any]) -> None:
        if told.get("stage") == "calibrate":
            raise OSError(errno.EIO, "Input/output error")

    db.sql(CREATE)
    db.sql("INSERT INTO t SELECT number, '', [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    db.sql("ALTER TABLE t ADD INDEX ix v TYPE ivf('L2Distance')")
    with pytest.raises(StorageError, match=r"Input/output error$"):
        db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=fails)
    assert list((db.path / "index").glob("*/.*")) == []


def test_a_full_disk_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    def begin() -> None:
        with NewFolder(tmp_path / "ix", tmp_path / ".ix.building") as folder:
            folder.save("some", np.zeros(9))
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        begin()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_goes_before_the_files_that_it_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between them must not leave one that is gone on from without them."""
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (gone.append(path.name), unlink(path))[1])
    with NewFolder(tmp_path / "ix", tmp_path / ".ix.building") as folder:
        folder.save("some", np.arange(9))
        for name in ("placed-0.scratch", "pass.npz", "followed-0.scratch", "learned.npz"):
            (folder.path / name).write_bytes(b"x")
        folder.commit({"version": 1})
    assert [Path(name).suffix for name in gone] == [".npz", ".npz", ".scratch", ".scratch"]
    assert sorted(p.name for p in (tmp_path / "ix").iterdir()) == ["meta.json", "some.npy"]
    assert set(index_folder.read(tmp_path / "ix")["files"]) == {"some.npy"}


OPERATIONS = {
    "insert": "INSERT INTO t SELECT number + 10, 'c', [number, 2] FROM numbers(3)",
    "staged insert": "INSERT INTO t SELECT number + 10, 'c', [number, 2] FROM numbers(60)",
    "create": "CREATE TABLE u AS t",
    "truncate": "TRUNCATE TABLE t",
    "rename": "RENAME TABLE t TO w",
    "alter": "ALTER TABLE t ADD COLUMN n UInt8",
    "optimize": "OPTIMIZE TABLE t FINAL",
    "drop": "DROP TABLE t",
}


@pytest.mark.parametrize("operation", some(OPERATIONS, 2))
def test_a_disk_that_is_full_at_any_write_of_the_manifest_loses_nothing(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails the n-th write of the manifest and all after it, for every n; then there is room again."""
    monkeypatch.setattr(writer, "DIRECT_ROWS", 30)
    replace, room, n = files.replace, 0, 0

    def full(path: Path, content: bytes, **more: Any) -> None:
        nonlocal room
        if path.name == catalog.NAME:
            room -= 1
            if room < 0:
                with files.translated(path, "writing"):
                    raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, content, **more)

    def content(db: clipql.Database) -> list[Any]:
        names = [name for (name,) in db.sql("SHOW TABLES").rows]
        return [(name, db.sql(f"SELECT * FROM {name} ORDER BY id").rows) for name in names]

    finished = False
    while not finished:
        with clipql.connect(tmp_path / str(n)) as db:
            db.sql(CREATE)
            db.sql("INSERT INTO t SELECT number, 'c', [number, 1] FROM numbers(9)")
            db.sql("DELETE FROM t WHERE id % 2 = 1")
            before = content(db)
            monkeypatch.setattr(files, "replace", full)
            room = n
            try:
                db.sql(OPERATIONS[operation])
                finished = True
            except DiskFull:
                pass
            monkeypatch.setattr(files, "replace", replace)
            wanted = None
            if finished:
                wanted = content(db)
            db.sql("CREATE TABLE other AS t" if operation in ("insert", "alter") else "SELECT 1")
        with clipql.connect(tmp_path / str(n)) as db:
            db.sql("DROP TABLE IF EXISTS other")
            found = content(db)
            if finished:
                assert found == wanted
            elif found != before:
                with clipql_again(tmp_path, db) as done:
                    assert found == content_after(done, operation, content)
            else:
                db.sql(OPERATIONS[operation])
        n += 1
    assert n > 1


def clipql_again(folder: Path, open_now: clipql.Database) -> clipql.Database:
    """A fresh database, once the open one is closed."""
    open_now.close()
    target = folder / "reference"
    shutil.rmtree(target, ignore_errors=True)
    return clipql.connect(target)


def content_after(db: clipql.Database, operation: str, content: Any) -> Any:
    """What the operation makes of the same beginning, with room enough."""
    db.sql(CREATE)
    db.sql("INSERT INTO t SELECT number, 'c', [number, 1] FROM numbers(9)")
    db.sql("DELETE FROM t WHERE id % 2 = 1")
    db.sql(OPERATIONS[operation])
    return content(db)
