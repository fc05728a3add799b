"""At the edges of what a database meets: forks, clocks, links, sizes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from patience import LAST_NET_SECONDS

import clipql
from clipql.errors import DatabaseDamaged, DatabaseLocked, StorageError
from clipql.index.flat import Scan, Term
from clipql.storage import catalog
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import segments
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

CREATE = "CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
FORKS = """
import os, sys, clipql
db = clipql.connect(sys.argv[1])
db.sql("INSERT INTO t VALUES (1, [1, 2])")
child = os.fork()
if not child:
    said = []
    for what in (lambda: db.sql("SELECT 1"), lambda: db.sql("INSERT INTO t VALUES (7, [7, 7])"), lambda: db.check(),
                 lambda: clipql.connect(sys.argv[1] + "-other")):
        try:
            what()
        except clipql.ClipqlError as error:
            said.append(type(error).__name__)
    db.close()
    print(said, flush=True)
    sys.exit(5)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), flush=True)
db.sql("INSERT INTO t VALUES (2, [3, 4])")
db.close()
with clipql.connect(sys.argv[1]) as db:
    print(db.sql("SELECT * FROM t ORDER BY id").rows, flush=True)
"""


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    root = str(Path(clipql.__file__).parents[1])
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True,
        timeout=LAST_NET_SECONDS, check=False, **options,
    )  # fmt: skip


def test_a_fork_is_told_whose_the_database_is_and_leaves_it_alone(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)
    done = python(FORKS, tmp_path / "db")
    assert done.stdout.splitlines() == [
        "['DatabaseLocked', 'DatabaseLocked', 'DatabaseLocked', 'DatabaseLocked']",
        "5",
        "[(1, [1.0, 2.0]), (2, [3.0, 4.0])]",
    ], done.stderr
    assert not (tmp_path / "db-other" / "manifest.json").exists()
    assert clipql.check(tmp_path / "db", deep=True).findings == ()


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)
    code = (
        "import os, sys, time, clipql\ndb = clipql.connect(sys.argv[1])\nchild = os.fork()\n"
        "if not child:\n    os.close(1); os.close(2); time.sleep(3600)\nprint(child, flush=True)\ndb.close()"
    )
    done = python(code, tmp_path / "db")
    child = int(done.stdout)
    try:
        clipql.connect(tmp_path / "db").close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_second_process_is_refused_by_name_and_the_first_goes_on(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)
        code = (
            "import sys, clipql\ntry:\n    clipql.connect(sys.argv[1])\n"
            "except clipql.ClipqlError as e:\n    print(type(e).__name__, e)"
        )
        said = python(code, tmp_path / "db").stdout
        assert said.startswith("DatabaseLocked")
        assert f"is open in process {os.getpid()}" in said
        db.sql("INSERT INTO t VALUES (1, [1, 2])")
        assert db.sql("SELECT count() FROM t").rows == [(1,)]


def test_threads_write_and_read_one_database(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)

        def work(number: int) -> None:
            try:
                for i in range(4):
                    id = number * 100 + i
                    db.sql(f"INSERT INTO t VALUES ({id}, [{id}, 1])")
                    found = db.sql(f"SELECT id FROM t ORDER BY L2Distance(v, [{id}, 1]) LIMIT 1").rows
                    assert found == [(id,)]
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        rows = db.sql("SELECT id, v FROM t ORDER BY id").rows
    assert rows == [(n * 100 + i, [n * 100.0 + i, 1.0]) for n in range(4) for i in range(4)]


def test_clocks_that_jump_and_files_of_the_future_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)
        db.sql("INSERT INTO t VALUES (1, [1, 2])")
    for when, path in zip(
        (0, 4e9, 1), sorted(tmp_path.rglob("*.npy")) + sorted(tmp_path.rglob("manifest.json")), strict=False
    ):
        os.utime(path, (when, when))
    now = iter(range(10**9, 0, -1000))
    for name in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: float(next(now)))
    with clipql.connect(tmp_path / "db") as db:
        db.sql("INSERT INTO t VALUES (2, [3, 4])")
        db.sql("DELETE FROM t WHERE id = 1")
        db.sql("OPTIMIZE TABLE t FINAL")
        assert db.sql("SELECT * FROM t").rows == [(2, [3.0, 4.0])]
        assert db.sql("SELECT id FROM t ORDER BY L2Distance(v, [1, 1]) LIMIT 1").rows == [(2,)]
    assert clipql.check(tmp_path / "db", deep=True).findings == ()


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with clipql.connect(folder) as db:
        db.sql(CREATE)
    mount = tmp_path / "read only"
    mount.mkdir()
    bound = os.geteuid() == 0 and not any(
        subprocess.run(command, capture_output=True, check=False).returncode
        for command in (["mount", "--bind", folder, mount], ["mount", "-o", "remount,ro,bind", mount])
    )
    try:
        if not bound:
            (folder / "lock").chmod(0o400)
            mount = folder
        if bound or os.geteuid():
            with pytest.raises(StorageError, match=r"open it with read_only=True .* or copy it to a folder of yours"):
                clipql.connect(mount)
            with pytest.raises(StorageError, match="open it with read_only=True"):
                clipql.check(mount)
    finally:
        if bound:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)
    (folder / "lock").chmod(0o600)
    clipql.connect(folder).close()


def test_a_database_may_lie_behind_a_link_but_no_part_of_it(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql(CREATE)
        db.sql("INSERT INTO t VALUES (1, [1, 2])")
    (tmp_path / "link").symlink_to(tmp_path / "db")
    (tmp_path / "db" / "vectors").rename(tmp_path / "big disk")
    (tmp_path / "db" / "vectors").symlink_to(tmp_path / "big disk")
    with pytest.raises(DatabaseDamaged, match=r"vectors is a symbolic link to .*big disk.*mount"):
        clipql.connect(tmp_path / "link")
    (tmp_path / "db" / "vectors").unlink()
    (tmp_path / "big disk").rename(tmp_path / "db" / "vectors")
    with clipql.connect(tmp_path / "link") as db:
        with pytest.raises(DatabaseLocked):
            clipql.check(tmp_path / "db")
        db.sql("INSERT INTO t VALUES (2, [3, 4])")
        db.backup(tmp_path / "copy")
    with clipql.connect(tmp_path / "db") as db:
        assert db.sql("SELECT * FROM t ORDER BY id").rows == [(1, [1.0, 2.0]), (2, [3.0, 4.0])]
    clipql.restore(tmp_path / "copy", tmp_path / "again")
    assert clipql.check(tmp_path / "again", deep=True).rows == 2


def test_a_hundred_tables(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        for i in range(100):
            db.sql(f"CREATE TABLE t{i} (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
            if i % 10 == 0:
                db.sql(f"INSERT INTO t{i} VALUES ({i}, [{i}, 1])")
    report = clipql.check(tmp_path / "db")
    assert (report.tables, report.rows, report.findings) == (100, 10, ())
    with clipql.connect(tmp_path / "db") as db:
        assert db.sql("SELECT id, v FROM t90 ORDER BY L2Distance(v, [1, 1]) LIMIT 1").rows == [(90, [90.0, 1.0])]
        assert db.sql("SELECT id FROM t91 ORDER BY L2Distance(v, [1, 1]) LIMIT 1").rows == []


@pytest.mark.parametrize(("kind", "dimension"), [("ivf", 64), ("hnsw", 4096)])
def test_no_row_one_row_and_vectors_of_4096_numbers(db: clipql.Database, kind: str, dimension: int) -> None:
    db.sql(f"CREATE TABLE t (id UInt64, v Array(Float32), INDEX near v TYPE {kind}('cosineDistance')) "
           "ENGINE = MergeTree ORDER BY id")  # fmt: skip
    search = "SELECT id FROM t ORDER BY cosineDistance(v, {q:Array(Float32)}) LIMIT 3"
    query = np.random.default_rng(1).standard_normal(dimension).astype(np.float32)
    for statement in ("ALTER TABLE t MATERIALIZE INDEX near", "OPTIMIZE TABLE t FINAL", "DELETE FROM t WHERE id = 1"):
        db.sql(statement)
    assert db.sql(search, q=query).rows == []
    assert db.check(deep=True).findings == ()
    db.sql("INSERT INTO t VALUES (1, {q:Array(Float32)})", q=query)
    db.sql("ALTER TABLE t MATERIALIZE INDEX near")
    db.sql("OPTIMIZE TABLE t")
    assert db.sql(search, q=query).rows == [(1,)]
    drawn = f"arrayMap(i -> toFloat32(sipHash64(number, i) % 1000) / 500 - 1, range({dimension}))"
    db.sql(f"INSERT INTO t SELECT number + 2, {drawn} FROM numbers(1100)")
    db.sql("ALTER TABLE t MATERIALIZE INDEX near")
    asked = db.sql("SELECT id, v FROM t WHERE id % 50 = 2 AND id > 2").rows
    # hnsw joins its rows in an order that differs from build to build, and may leave one where no way leads
    itself = [db.sql(search, q=vector).rows[0] == (row,) for row, vector in asked]
    assert len(asked) == 21
    assert sum(itself) >= 18
    assert db.check().findings == ()
    db.sql("DELETE FROM t WHERE id != 702")
    assert db.sql(search, q=query).rows == [(702,)]


def test_row_numbers_beyond_what_32_bits_hold(tmp_path: Path) -> None:
    """Segments whose rows begin past 2^32, without the rows before them: a store of the last of five billion rows."""
    first = 5_000_000_000
    path = tmp_path / "late.npy"
    vectors = np.random.default_rng(3).standard_normal((40, 8)).astype(np.float32)
    np.save(path, vectors)
    late = segments.segment_of(segments.read_header(path), first, "late")
    assert (late.first, late.end) == (first, first + 40)
    store = ColumnStore.__new__(ColumnStore)
    store._mapped = {late: segments.map_segment(tmp_path, late)}
    store._arrays, store._firsts = list(store._mapped.values()), [late.first]
    store._rows, store._dimension, store.largest, store._on_disk = late.end, 8, late.largest, False
    store.there = None
    assert np.array_equal(store.take(np.array([first + 7, first + 3])), vectors[[7, 3]])
    assert store.vector_bytes(first + 39) == vectors[39].tobytes()
    assert [at for at, _ in store.blocks(first + 30)] == [first + 30]
    found = Scan([Term(store, Metric.L2, vectors[11].astype(np.float64))], late.end, first=first).nearest(3)
    assert found.rows.dtype == np.uint64
    assert int(found.rows[0]) == first + 11


def test_a_manifest_of_billions_of_rows_is_read_back(tmp_path: Path) -> None:
    rows = 2**33 + 5
    column = VectorColumn("v", "column-0", 8)
    table = catalog.Table("default", "t", "t-1", (column,), rows)
    catalog.save(tmp_path, catalog.Catalog((table,)))
    assert catalog.load(tmp_path).tables[0] == dataclasses.replace(table, rows=rows)
