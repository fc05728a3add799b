"""A request takes its memory with it: nothing of it refers to itself, and waits for the collection of garbage."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

from conftest import fill

import clipql
from clipql.errors import QueryError
from clipql.serve.errors import let_go

CODE = Path(__file__).parent / "garbage.py"


def test_requests_of_no_kind_leave_garbage(tmp_path: Path) -> None:
    fill(tmp_path)
    command = [sys.executable, str(CODE), str(tmp_path / "test.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {name: sum(types.values()) for name, types in json.loads(done.stdout.splitlines()[-1]).items()}
    assert {name: count for name, count in found.items() if count >= 20} == {}, done.stdout


def test_a_session_takes_its_memory_with_it(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "t.db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        one, other = db.session(), db.session()
        one.params["x"] = 1
        one.settings["recall"] = "0.9"
        assert (other.params, other.settings, db.session().params) == ({}, {}, {})
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                db.session().execute("SELECT * FROM t")
            assert gc.collect() < 10
        finally:
            gc.enable()


def test_an_error_that_was_told_of_has_no_frames() -> None:
    def failing() -> None:
        try:
            try:
                raise KeyError("x")
            except KeyError as error:
                raise ValueError("y") from error
        except ValueError as error:
            raise QueryError("z") from error

    try:
        failing()
    except QueryError as error:
        let_go(error)
        seen: BaseException | None = error
        while seen is not None:
            assert seen.__traceback__ is None
            seen = seen.__cause__
