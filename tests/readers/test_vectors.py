"""Vectors as arrays, in this process, in forks of it and in spawned ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import clipql
from clipql.errors import DatabaseLocked, QueryError, StorageError, UnknownTable, VectorError
from clipql.reader import ReadOnlyDatabase
from clipql.sql.search import vector_blocks
from clipql.tables.rowfile import RowFiles

CREATE = (
    "CREATE TABLE t (id UInt64, name String, half Array(Float32), whole Array(Float32)) ENGINE = MergeTree ORDER BY id"
)
INSERT = (
    "INSERT INTO t SELECT number AS id, 'n' || toString(number), [number, 1], [number + 0.1, 1] FROM numbers({}, {})"
)
ROWS = 900


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with clipql.connect(tmp_path / "t.db") as db:
        db.sql(CREATE)
        db.sql(INSERT.format(0, 600))
        db.sql(INSERT.format(600, 300))
    return tmp_path / "t.db"


def rows_of(db: clipql.Database, **options: Any) -> list[int]:
    """The row numbers, after a look at every vector."""
    found: list[int] = []
    for block in db.vectors("t", "half", **options):
        assert block.vectors.shape == (len(block.rows), 2)
        assert block.rows.dtype == np.int64
        assert block.vectors[:, 0].astype(np.int64).tolist() == block.rows.tolist()
        assert not block.vectors.flags.writeable
        found += block.rows.tolist()
    return found


def test_blocks_are_what_is_mapped_in_its_own_type(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        halves, wholes = list(db.vectors("t", "half")), list(db.vectors("t", "whole"))
        assert {b.vectors.dtype.name for b in halves} == {"float16"}
        assert {b.vectors.dtype.name for b in wholes} == {"float32"}
        stored = [array for _, array in db.registry.store(db.registry.catalog.tables[0], "half").blocks()]
        assert all(
            any(np.shares_memory(b.vectors, array) for array in stored) and not b.vectors.flags.owndata for b in halves
        )
        assert sum(len(b.rows) for b in halves) == sum(len(b.rows) for b in wholes) == ROWS
        assert not db._engine.started
    assert halves[0].vectors[1].tolist() == [1.0, 1.0]  # what is held stays mapped


def test_rows_that_were_deleted_or_do_not_meet_the_condition_are_left_out(folder: Path) -> None:
    with clipql.connect(folder) as db:
        db.sql("DELETE FROM t WHERE id BETWEEN 100 AND 199")
        assert rows_of(db) == [*range(100), *range(200, ROWS)]
        assert rows_of(db, where="id % 2 = 0 AND id < 300") == [*range(0, 100, 2), *range(200, 300, 2)]
    with clipql.connect(folder, read_only=True) as db:
        assert rows_of(db) == [*range(100), *range(200, ROWS)]
        assert rows_of(db, where="name LIKE 'n88%' OR id = 5") == [5, 88, *range(880, 890)]
        assert rows_of(db, where="0") == []
        with pytest.raises(QueryError, match="expected one condition"):
            rows_of(db, where="1) OR (1")


def test_a_long_segment_comes_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_blocks, "ROWS_AT_ONCE", 100)
    with clipql.connect(folder, read_only=True) as db:
        assert max(len(b.rows) for b in db.vectors("t", "half")) == 100
        assert rows_of(db) == list(range(ROWS))
        assert rows_of(db, where="id % 7 = 3") == list(range(3, ROWS, 7))


def test_what_is_not_there_is_named(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        with pytest.raises(UnknownTable, match="there is no table u with vector columns"):
            db.vectors("u")
        with pytest.raises(VectorError, match="has no vector column name; it has half, whole"):
            db.vectors("t", "name")


def test_blocks_are_of_the_moment_of_the_call(folder: Path) -> None:
    with clipql.connect(folder) as db:
        blocks = db.vectors("t", "half")
        db.sql("TRUNCATE TABLE t")
        assert sum(len(b.rows) for b in blocks) == ROWS
        assert list(db.vectors("t", "half")) == []


def run_parent(folder: Path, *what: str) -> Any:
    """What `forking.py` writes: a process of its own, in which ClickHouse never ran, and its workers."""
    command = [sys.executable, str(Path(__file__).with_name("forking.py")), str(folder), *what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_read_the_moment_of_the_reader_they_come_from(folder: Path, method: str) -> None:
    first, second, left = run_parent(folder, "share", method)
    assert sorted(first[0] + second[0]) == list(range(10, ROWS))
    assert [first[1], second[1]] == [None, ROWS]
    assert left == 0


def test_a_fork_that_outlives_its_parents_database_keeps_the_snapshot(folder: Path) -> None:
    assert run_parent(folder, "outlive") == [1, ROWS, 0]


def test_a_fork_of_a_process_that_has_started_clickhouse_reads_vectors_and_is_told_what_it_cannot(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        assert db.sql("SELECT count() FROM t").rows == [(ROWS,)]
        context: Any = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()

        def child() -> None:
            rows = rows_of(db)
            try:
                db.sql("SELECT count() FROM t")
            except DatabaseLocked as error:
                theirs.send((rows, str(error)))

        process = context.Process(target=child)
        process.start()
        rows, said = ours.recv()
        process.join()
        assert rows == list(range(ROWS))
        assert f"this process was forked from process {os.getpid()}" in said
        assert db.sql("SELECT count() FROM t").rows == [(ROWS,)]


def test_a_reader_that_was_closed_cannot_be_sent(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        sent = pickle.dumps(db)
        with pickle.loads(sent) as again:
            assert isinstance(again, ReadOnlyDatabase)
            assert again.commit == db.commit
    with pytest.raises(StorageError, match="is closed, so what it saw is gone: keep it open"):
        pickle.loads(sent)


class Batches:
    """A stand-in for torch.utils.data.IterableDataset, with a worker's number as its get_worker_info gives it."""

    def __init__(self, db: clipql.Database, worker: int, workers: int) -> None:
        self.db, self.worker, self.workers = db, worker, workers

    def __iter__(self) -> Iterator[Any]:
        for number, block in enumerate(self.db.vectors("t", "half")):
            if number % self.workers == self.worker:
                yield block.rows, block.vectors.astype(np.float32)


def test_a_training_loop_over_two_workers_sees_each_row_once(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        weights, seen = np.zeros(2, np.float32), []
        for worker in range(2):
            for rows, vectors in Batches(db, worker, 2):
                weights += vectors.sum(axis=0)
                seen += rows.tolist()
        assert sorted(seen) == list(range(ROWS))
        assert weights.tolist() == [sum(range(ROWS)), ROWS]


def table_of(db: clipql.Database, sql: str) -> dict[str, list[Any]]:
    """What ClickHouse itself says, by column."""
    return db.sql(sql + " SETTINGS vector_plan = 0").arrow().to_pydict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("row_file", [True, False])
def test_plain_columns_come_with_their_rows(folder: Path, row_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not row_file:
        monkeypatch.setattr(RowFiles, "reader", lambda self, table: None)
    where = "id % 7 != 2"
    with clipql.connect(folder, read_only=True) as db:
        blocks = list(db.vectors("t", "whole", where, columns=["name", "id"]))
        expected = table_of(db, f"SELECT _row, name, id FROM t WHERE {where} ORDER BY _row")
        with pytest.raises(VectorError, match="no plain column half; it has id, name"):
            db.vectors("t", "whole", columns=["half"])
    found = pa.Table.from_batches([b.arrow() for b in blocks]).to_pydict()
    assert {n: found[n] for n in ("_row", "name", "id")} == expected
    assert found["whole"] == [pytest.approx([i + 0.1, 1]) for i in expected["id"]]


def test_blocks_are_an_arrow_stream_without_a_copy(folder: Path) -> None:
    with clipql.connect(folder, read_only=True) as db:
        table = pa.table(db.vectors("t", "half", "id < 650", columns=["id"]))
        assert table.schema == pa.schema({"_row": pa.int64(), "id": pa.uint64(), "half": pa.list_(pa.float16(), 2)})
        assert [x[0] for x in table["half"].to_pylist()] == table["id"].to_pylist() == list(range(650))
        none = pa.table(db.vectors("t", "half", "id > 9999", columns=["id"]))
        assert (none.num_rows, none.schema.names) == (0, ["_row", "id", "half"])
        (first, *_) = db.vectors("t", "half")
        numbers = pa.record_batch(first)["half"].flatten().to_numpy()
        assert np.shares_memory(numbers, first.vectors)
        assert np.shares_memory(np.from_dlpack(first.vectors), first.vectors)
