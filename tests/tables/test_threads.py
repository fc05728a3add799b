"""Threads that write and read one database at once: no row without its vector, nothing lost, nobody waits forever."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import make_part, stored
from patience import LAST_NET_SECONDS

import clipql
from tests.cases import some

CREATE = "CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
INSERT = "INSERT INTO t (id, v) SELECT number + {n:UInt64}, [number + {n:UInt64}, 1] FROM numbers(5)"


def run_all(*jobs: Callable[[], None], seconds: float = LAST_NET_SECONDS) -> None:
    """Run jobs side by side and raise the first error of any of them."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(t.is_alive() for t in threads), "somebody waits forever"
    if errors:
        raise errors[0]


def test_readers_never_see_a_row_without_its_vector(db: clipql.Database) -> None:
    db.sql(CREATE)
    db.sql(INSERT, n=0)
    done = threading.Event()
    seen: list[int] = []

    def write(first: int) -> None:
        for i in range(12):
            db.sql(INSERT, n=first + 5 * i)

    def read() -> None:
        while not done.is_set():
            rows = db.sql("SELECT id, v FROM t").rows
            assert all(v == [float(i), 1.0] for i, v in rows)
            seen.append(len(rows))

    def search() -> None:
        while not done.is_set():
            found = db.sql("SELECT id, v, L2Distance(v, [3, 1]) AS d FROM t ORDER BY d LIMIT 5").rows
            assert found[0][:2] == (3, [3.0, 1.0])
            assert len(found) == 5

    def finish() -> None:
        try:
            run_all(lambda: write(1000), lambda: write(2000))
        finally:
            done.set()

    run_all(finish, read, search)
    assert seen == sorted(seen)
    ids = [*range(5), *range(1000, 1060), *range(2000, 2060)]
    assert db.sql("SELECT id FROM t ORDER BY id").rows == [(i,) for i in ids]
    assert np.array_equal(stored(db, "t", "v", "id")[:, 0], ids)
    assert db.sql("SELECT count(), uniqExact(_row), max(_row) FROM t").rows == [(125, 125, 124)]


def test_an_ingest_and_readers_run_side_by_side(db: clipql.Database, tmp_path: Path) -> None:
    parts = [make_part(tmp_path / "laion", rows=500, dimension=8, number=n) for n in range(4)]
    db.ingest(tmp_path / "laion", parts="0")
    done = threading.Event()

    def ingest() -> None:
        try:
            db.ingest(tmp_path / "laion")
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            ((count, right),) = db.sql("SELECT count(), countIf(length(image_embedding) = 8) FROM laion").rows
            assert count == right

    run_all(ingest, read)
    expected = np.concatenate([p.image for p in parts if p.image is not None]).astype(np.float32)
    assert np.array_equal(stored(db, "laion"), expected)


MIXED = """
import sys, threading, faulthandler
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {root!r})
faulthandler.dump_traceback_later({seconds}, exit=True)
import clipql
with clipql.connect({folder!r}) as db:
    db.sql("{create}")
    def insert(first):
        for i in range(6):
            db.sql("{insert}", n=first + 5 * i)
            db.sql("INSERT INTO t (id, v) SELECT id + 100000, v FROM t WHERE id = {{n:UInt64}}", n=first)
    def delete():
        for i in range(6):
            db.sql(f"DELETE FROM t WHERE id = {{i}}")
            db.sql("{other}")
            db.sql("SELECT id FROM t ORDER BY L2Distance(v, [1, 1]) LIMIT 3")
    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(insert, 0), pool.submit(insert, 1000), pool.submit(delete)]:
            job.result()
    rows = db.sql("SELECT id, v FROM t").rows
    assert all(v == [float(i % 100000), 1.0] for i, v in rows)
    print(len(rows))
"""


@pytest.mark.parametrize(
    "other", some(["SELECT 1", "OPTIMIZE TABLE t FINAL", "ALTER TABLE t ADD COLUMN IF NOT EXISTS n UInt8 DEFAULT 3"], 2)
)
def test_inserts_deletes_and_ddl_of_several_threads_do_not_wait_for_each_other_forever(
    tmp_path: Path, other: str
) -> None:
    root = str(Path(clipql.__file__).parent.parent)
    code = MIXED.format(
        root=root, folder=str(tmp_path / "db"), create=CREATE, insert=INSERT, other=other, seconds=LAST_NET_SECONDS
    )
    ended: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LAST_NET_SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) >= 60
