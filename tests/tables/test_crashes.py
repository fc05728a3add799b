"""Wherever the process dies, the next open finds what was acknowledged: all of it, once, each row with its vector."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import some
from crashes import copy_folder, steps
from parts import make_part, stored, vector_files
from patience import LAST_NET_SECONDS

import clipql
from clipql.storage.vectors import joining
from clipql.tables import writer

TABLE = (
    "CREATE TABLE t (id UInt64, caption String, image_embedding Array(Float32), text_embedding Array(Float32)) "
    "ENGINE = MergeTree ORDER BY id"
)
ROWS = "SELECT number, toString(number), [number, 1, 2, 3], [number, -1, 0.5] FROM numbers({0}, {1})"


@dataclass(frozen=True)
class Operation:
    """Something that changes a database, and what comes before it."""

    name: str
    prepare: Callable[[clipql.Database, Path], object]
    run: Callable[[clipql.Database, Path], object]

    def __str__(self) -> str:
        return self.name


def sql(*texts: str) -> Callable[[clipql.Database, Path], object]:
    return lambda db, parts: [db.sql(text) for text in texts]


def three_rows(db: clipql.Database, parts: Path) -> None:
    db.sql(TABLE)
    db.sql("INSERT INTO t " + ROWS.format(0, 3))


def some_deleted(db: clipql.Database, parts: Path) -> None:
    three_rows(db, parts)
    db.sql("INSERT INTO t " + ROWS.format(3, 20))
    db.sql("DELETE FROM t WHERE id % 3 = 1")


def many_inserts(db: clipql.Database, parts: Path) -> None:
    db.sql(TABLE)
    for i in range(4):
        db.sql("INSERT INTO t " + ROWS.format(i, 1))


def ingest(db: clipql.Database, parts: Path) -> object:
    return db.ingest(parts, table="laion")


def ingest_files(db: clipql.Database, parts: Path) -> object:
    return db.ingest(parts / "rows", table="rows")


def ingest_one(db: clipql.Database, parts: Path) -> object:
    return db.ingest(parts, table="laion", parts="0")


def added_column(db: clipql.Database, parts: Path) -> None:
    three_rows(db, parts)
    db.sql("ALTER TABLE t ADD COLUMN more Array(Float32)")


def fill_a_column(db: clipql.Database, parts: Path) -> object:
    return db.ingest(parts / "rows", table="t", add_column="more", vector_column="v")


def two_tables(db: clipql.Database, parts: Path) -> None:
    three_rows(db, parts)
    db.sql("CREATE TABLE u AS t")
    db.sql("INSERT INTO u SELECT * FROM t WHERE id < 1")


OPERATIONS = [
    Operation("insert", three_rows, sql("INSERT INTO t " + ROWS.format(3, 4))),
    Operation("insert values", three_rows, sql("INSERT INTO t VALUES (9, 'nine', [9, 1, 2, 3], [9, -1, 0.5])")),
    Operation("staged insert", three_rows, sql("INSERT INTO t " + ROWS.format(3, 40))),
    Operation("insert that merges segments", many_inserts, sql("INSERT INTO t " + ROWS.format(4, 1))),
    Operation("ingest into a new table", sql(), ingest_one),
    Operation("ingest into a table", ingest_one, ingest),
    Operation("ingest of files with vectors", sql(), ingest_files),
    Operation("fill a new vector column", three_rows, fill_a_column),
    Operation("fill an added column", added_column, fill_a_column),
    Operation("create", sql(), sql(TABLE)),
    Operation("create as select", three_rows, sql("CREATE TABLE u ENGINE = MergeTree ORDER BY id AS SELECT * FROM t")),
    Operation("drop", three_rows, sql("DROP TABLE t")),
    Operation("truncate", three_rows, sql("TRUNCATE TABLE t")),
    Operation("rename", three_rows, sql("RENAME TABLE t TO u")),
    Operation("exchange", two_tables, sql("EXCHANGE TABLES t AND u")),
    Operation("add a column", three_rows, sql("ALTER TABLE t ADD COLUMN n UInt8 DEFAULT arraySum(text_embedding)")),
    Operation("add a vector column", sql(TABLE), sql("ALTER TABLE t ADD COLUMN v Array(Float32)")),
    Operation("add a vector column to rows", three_rows, sql("ALTER TABLE t ADD COLUMN w Array(Float32) AFTER id")),
    Operation("give some rows vectors", added_column, sql("ALTER TABLE t UPDATE more = [id, 0.1] WHERE id != 1")),
    Operation("drop a column", three_rows, sql("ALTER TABLE t DROP COLUMN caption")),
    Operation("rename a column", three_rows, sql("ALTER TABLE t RENAME COLUMN caption TO title")),
    Operation("modify a column", three_rows, sql("ALTER TABLE t MODIFY COLUMN caption Nullable(String)")),
    Operation("drop a vector column", three_rows, sql("ALTER TABLE t DROP COLUMN text_embedding")),
    Operation("rename a vector column", three_rows, sql("ALTER TABLE t RENAME COLUMN text_embedding TO words")),
    Operation("delete", three_rows, sql("DELETE FROM t WHERE id = 1")),
    Operation("optimize final", some_deleted, sql("OPTIMIZE TABLE t FINAL")),
]


def content(db: clipql.Database) -> dict[str, Any]:
    """Every table that a user sees: its definition and its rows, vectors among them."""
    found = {}
    for (name,) in db.sql("SHOW TABLES").rows:
        order = f"SELECT * FROM {name} ORDER BY ALL"
        found[name] = (db.sql(f"SHOW CREATE TABLE {name}").rows, db.sql(order).rows)
    return found


def check_nothing_is_left_over(db: clipql.Database) -> None:
    """Segment files and hidden tables are those of the catalog's tables, and no others."""
    tables = db.registry.catalog.tables
    files = [f"{t.id}/{c.folder}/{n}" for t in tables for c in t.columns for s in c.segments for n in s.files]
    assert vector_files(db.path) == sorted(files)
    hidden = db.sql("SELECT name FROM system.tables WHERE database = 'clipql_internal' ORDER BY name").rows
    assert hidden == sorted((t.id,) for t in tables)
    assert db.registry.catalog.pending is None
    assert not list(db.path.glob("*.tmp"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for number in range(2):
        make_part(folder, rows=6, number=number, dimension=4)
    (folder / "rows").mkdir()
    rows = pa.table({"caption": ["a", "b", "c"], "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]})
    pq.write_table(rows, folder / "rows" / "a.parquet", row_group_size=2)
    return folder


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_crash_at_any_step_leaves_all_or_nothing(
    operation: Operation, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DIRECT_ROWS", 30 if operation.name == "staged insert" else 50_000)
    monkeypatch.setattr(joining, "SMALL_SEGMENTS", 5)
    copies: list[tuple[str, Path]] = []
    one_at_a_time = threading.Lock()

    def copy(step: str) -> None:
        with one_at_a_time:
            target = tmp_path / f"crash-{len(copies)}"
            copy_folder(tmp_path / "live", target)
            copies.append((step, target))

    with clipql.connect(tmp_path / "live") as db:
        operation.prepare(db, parts)
        before = content(db)
        with steps(copy):
            operation.run(db, parts)
        after = content(db)
        check_nothing_is_left_over(db)
    assert len(copies) > 1 or operation.name == "delete"

    came_after, again = 0, some([folder for _, folder in copies], 12)
    for step, folder in some(copies, 6):
        with clipql.connect(folder) as db:
            found = content(db)
            made = {"ingest into a new table": "laion", "ingest of files with vectors": "rows"}.get(operation.name)
            empty_table = {made: (after[made][0], [])} if made else None
            if operation.name == "create as select":
                empty_table = {**before, "u": (after["u"][0], [])}
            assert found in (before, after, empty_table), step
            assert found == after or not came_after, f"{step}: the operation was there already, and is gone again"
            came_after += found == after
            check_nothing_is_left_over(db)
            if found != after and folder in again:
                if found != before:
                    db.sql("DROP TABLE u" if "u" in found else "SELECT 1")
                operation.run(db, parts)
                assert content(db) == after, step
                check_nothing_is_left_over(db)


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}, {root!r}]
import clipql
from crashes import steps
from test_crashes import OPERATIONS
operation = next(o for o in OPERATIONS if o.name == {name!r})
count = 0
def kill(step):
    global count
    count += 1
    if count == {n}:
        print(step, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
with clipql.connect({folder!r}) as db, steps(kill):
    operation.run(db, Path({parts!r}))
"""


@pytest.mark.parametrize(
    ("name", "n"), [("insert", 3), ("ingest into a table", 5), ("optimize final", 8), ("rename", 2)]
)
def test_a_process_that_is_killed_leaves_all_or_nothing(name: str, n: int, tmp_path: Path, parts: Path) -> None:
    operation = next(o for o in OPERATIONS if o.name == name)
    folder, here = tmp_path / "killed", Path(__file__).parent
    with clipql.connect(folder) as db:
        operation.prepare(db, parts)
        before = content(db)
    child = CHILD.format(
        tests=str(here.parent), here=str(here), root=str(here.parent.parent), name=name, n=n,
        folder=str(folder), parts=str(parts),
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, timeout=LAST_NET_SECONDS, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with clipql.connect(folder) as db:
        found = content(db)
        check_nothing_is_left_over(db)
        if found == before:
            operation.run(db, parts)
        table = next(iter(content(db)))
        if name.startswith("in"):
            assert len(stored(db, table)) == len(db.sql(f"SELECT * FROM {table}"))
        after = content(db)
    with clipql.connect(tmp_path / "whole") as db:
        operation.prepare(db, parts)
        operation.run(db, parts)
        assert content(db) == after


BEGUN = f"""
import os, sys
import clipql
db = clipql.connect(sys.argv[1])
db.sql({TABLE!r})
db.sql("INSERT INTO t " + {ROWS.format(0, 6)!r})
engine, (table,) = db.registry.engine, db.registry.catalog.tables
engine.run("SYSTEM STOP MERGES")
engine.run(f"DELETE FROM {{db.registry.physical(table)}} WHERE id % 3 = 1 SETTINGS lightweight_deletes_sync = 0")
os._exit(0)
"""


def test_a_delete_that_was_begun_has_ended_before_the_first_query(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BEGUN, str(tmp_path / "db")], check=True)

    with clipql.connect(tmp_path / "db") as db:
        search = "SELECT id FROM t ORDER BY L2Distance(image_embedding, [1, 1, 2, 3]) LIMIT 6"
        found = [db.sql(search).rows, db.sql("SELECT id FROM t ORDER BY id").rows]
        unfinished = db.registry.engine.scalar("SELECT count() FROM system.mutations WHERE NOT is_done")

    assert [sorted(rows) for rows in found] == [[(0,), (2,), (3,), (5,)]] * 2
    assert unfinished == 0
