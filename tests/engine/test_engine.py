"""chDB under clipql: what goes in comes out, errors say what they are, and no query leaves anything to the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import until

import clipql
from clipql.engine.embedded import Engine
from clipql.errors import DatabaseLocked, QueryCancelled, QueryError, UnknownColumn, UnknownTable

AWKWARD = [
    "",
    "'",
    '"',
    "\\",
    "\\'",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "a\0b",
    "\\n",
    "\\N",
    "NULL",
    "é 猫 😀",
    "{a:String}",
    "a,b]",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_string_parameter_arrives_as_it_is(db: clipql.Database, text: str) -> None:
    assert db.sql("SELECT {s:String}, hex({s:String})", s=text).rows == [(text, text.encode().hex().upper())]


def test_awkward_strings_arrive_in_nested_arrays_and_tuples(db: clipql.Database) -> None:
    assert db.sql("SELECT {s:Array(String)}", s=AWKWARD).rows == [(AWKWARD,)]
    assert db.sql("SELECT {s:Array(Array(String))}", s=[AWKWARD, []]).rows == [([AWKWARD, []],)]
    pair = ("it's", 3)
    assert db.sql(
        "SELECT tupleElement({p:Tuple(String, UInt8)}, 1), tupleElement({p:Tuple(String, UInt8)}, 2)", p=pair
    ).rows == [pair]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_list_of_strings_arrives(db: clipql.Database, texts: list[str]) -> None:
    assert db.sql("SELECT {s:Array(String)}", s=texts).rows == [(texts,)]


VALUES: list[tuple[str, Any, Any]] = [
    ("Nullable(String)", None, None),
    ("Array(Nullable(UInt8))", [1, None], [1, None]),
    ("Bool", True, True),
    ("UInt64", 2**64 - 1, 2**64 - 1),
    ("Int64", -(2**63), -(2**63)),
    ("Float64", 0.1, 0.1),
    ("Float64", float("inf"), float("inf")),
    ("Float64", 1e-300, 1e-300),
    ("Array(Float32)", np.array([0.5, -1], np.float16), [0.5, -1.0]),
    ("Array(Float32)", np.array([0.1], np.float32), [float(np.float32(0.1))]),
    ("Array(Float64)", np.array([0.1, 1e-300]), [0.1, 1e-300]),
    ("Array(Float32)", [np.float16(0.5), np.float64(2)], [0.5, 2.0]),
    ("Array(Float32)", [], []),
    ("Array(Array(Float32))", np.array([[1, 2], [3, 4]], np.float32), [[1.0, 2.0], [3.0, 4.0]]),
    ("Array(UInt64)", np.array([0, 2**64 - 1], np.uint64), [0, 2**64 - 1]),
    ("Array(Bool)", [True, False], [True, False]),
    ("UInt8", np.int64(7), 7),
]


@pytest.mark.parametrize(("kind", "value", "expected"), VALUES, ids=lambda v: str(v)[:24])
def test_a_parameter_of_any_kind_arrives(db: clipql.Database, kind: str, value: Any, expected: Any) -> None:
    assert db.sql(f"SELECT {{x:{kind}}}", x=value).rows == [(expected,)]


ERRORS = [
    ("SELECT 1 1", QueryError, 62, "SYNTAX_ERROR"),
    ("SELECT * FROM nothing", UnknownTable, 60, "UNKNOWN_TABLE"),
    ("SELECT * FROM nowhere.nothing", UnknownTable, 81, "UNKNOWN_DATABASE"),
    ("SELECT missing FROM numbers(1)", UnknownColumn, 47, "UNKNOWN_IDENTIFIER"),
    ("SELECT {x:UInt8}", QueryError, 456, "UNKNOWN_QUERY_PARAMETER"),
    ("SELECT throwIf(1, 'a (B) c')", QueryError, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
    ("SELECT sleep(3) SETTINGS max_execution_time = 0.2", QueryCancelled, 159, "TIMEOUT_EXCEEDED"),
]


@pytest.mark.parametrize(("sql", "kind", "code", "name"), ERRORS)
def test_an_error_carries_clickhouses_code_and_name(
    db: clipql.Database, sql: str, kind: type[QueryError], code: int, name: str
) -> None:
    with pytest.raises(QueryError) as caught:
        db.sql(sql)
    assert (type(caught.value), caught.value.code, caught.value.name) == (kind, code, name)
    assert str(caught.value).endswith(f"(ClickHouse {code} {name})")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("format", ["ArrowStream", "TabSeparated", "JSONEachRow", "Pretty"])
def test_a_failed_query_leaves_nothing_in_the_next_result(db: clipql.Database, format: str) -> None:
    engine = db.registry.engine
    for _ in range(5):
        with pytest.raises(QueryError, match="enough"):
            engine.query("SELECT number, throwIf(number = 400000, 'enough') FROM numbers(1000000)", format)
        assert engine.query("SELECT 1 AS a", "TabSeparated").data == b"1\n"
        assert engine.arrow("SELECT 1 AS a").to_pylist() == [{"a": 1}]


def test_a_query_that_runs_out_of_time_leaves_nothing_in_the_next_result(db: clipql.Database) -> None:
    with pytest.raises(QueryCancelled):
        db.sql("SELECT sleepEachRow(0.01) FROM numbers(999) SETTINGS max_execution_time = 0.1, max_block_size = 3")
    assert db.sql("SELECT 1").rows == [(1,)]


def test_a_stream_gives_every_row_in_blocks_beside_other_queries(db: clipql.Database) -> None:
    total = 0
    blocks = 0
    for block in db.registry.engine.stream("SELECT number FROM numbers(300000)"):
        assert db.sql("SELECT 1").rows == [(1,)]
        total += sum(block.column(0).to_pylist())
        blocks += 1
    assert total == 300_000 * 299_999 // 2
    assert blocks > 1


def test_a_stream_with_blocks_that_a_filter_empties_goes_on_to_the_end(db: clipql.Database) -> None:
    sql = "SELECT number FROM numbers(500000) WHERE number IN (0, 499999) SETTINGS max_block_size = 1000"
    found = [n for block in db.registry.engine.stream(sql) for n in block.column(0).to_pylist()]
    assert found == [0, 499_999]


def test_a_stream_that_is_left_early_leaves_nothing_in_the_next_result(db: clipql.Database) -> None:
    engine = db.registry.engine
    for _ in range(5):
        stream = engine.stream("SELECT number FROM numbers(10000000)")
        assert next(stream).num_rows > 0
        stream.close()
        assert engine.query("SELECT 1", "TabSeparated").data == b"1\n"


def test_a_stream_that_fails_half_way_raises_and_leaves_nothing(db: clipql.Database) -> None:
    engine = db.registry.engine
    with pytest.raises(QueryError, match="enough"):
        for _ in engine.stream("SELECT throwIf(number = 400000, 'enough') FROM numbers(1000000)"):
            pass
    assert engine.query("SELECT 1", "TabSeparated").data == b"1\n"


def test_an_insert_whose_rows_fail_half_way_is_not_there(db: clipql.Database) -> None:
    engine = db.registry.engine
    engine.run("CREATE TABLE plain (a UInt64) ENGINE = MergeTree ORDER BY a")
    schema = pa.schema([("a", pa.uint64())])

    def batches() -> Any:
        yield pa.record_batch([pa.array([1, 2], pa.uint64())], schema)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        engine.insert("INSERT INTO plain", schema, batches())
    assert engine.scalar("SELECT count() FROM plain") == 0
    engine.insert("INSERT INTO plain", schema, [pa.record_batch([pa.array([3], pa.uint64())], schema)])
    assert engine.arrow("SELECT a FROM plain").to_pylist() == [{"a": 3}]


def test_an_arrow_table_is_read_by_name(db: clipql.Database) -> None:
    tables = {"given": pa.table({"a": [1, 2], "b": ["x", "y"]})}
    out = db.registry.engine.query("SELECT sum(a), max(b) FROM Python(given)", "TabSeparated", tables=tables)
    assert out.data == b"3\ty\n"


def test_progress_is_told_and_ends_with_the_query(db: clipql.Database) -> None:
    seen: list[Any] = []
    long = "SELECT sum(sleepEachRow(0.005)) FROM numbers(120) SETTINGS max_block_size = 10"
    db.registry.engine.query(long, progress=seen.append)
    told = len(seen)
    db.sql(long)
    assert told > 0
    assert len(seen) == told


@contextlib.contextmanager
def ctrl_c_once_runs(db: clipql.Database, words: str) -> Iterator[None]:
    """Press Ctrl-C once a query with these words runs in the block."""
    running = "SELECT count() FROM system.processes WHERE position(query, {words:String}) > 0 AND query NOT LIKE '%{w%'"

    def press() -> None:
        until(lambda: db.sql(running, words=words).rows != [(0,)], f"{words} runs")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    yield
    thread.join()


def test_ctrl_c_stops_a_query_that_would_not_end_and_the_database_goes_on(db: clipql.Database) -> None:
    with ctrl_c_once_runs(db, "sipHash64"), pytest.raises(KeyboardInterrupt):
        db.sql("SELECT sum(sipHash64(number, number)) FROM numbers(100000000000000)")
    assert db.sql("SELECT 1").rows == [(1,)]
    assert db.sql("SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%'").rows == [(1,)], "only this one"


def test_ctrl_c_during_an_insert_leaves_the_table_as_it_was(db: clipql.Database) -> None:
    db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO t VALUES (1, [1, 2])")
    with ctrl_c_once_runs(db, "sleepEachRow"), pytest.raises(KeyboardInterrupt):
        db.sql(
            "INSERT INTO t SELECT number, [1, sleepEachRow(0.001)] FROM numbers(9999999) SETTINGS max_block_size = 500"
        )
    assert db.sql("SELECT * FROM t").rows == [(1, [1.0, 2.0])]
    assert len(list(db.path.glob("vectors/*/*/*"))) == 1
    db.sql("INSERT INTO t VALUES (2, [3, 4])")
    assert db.sql("SELECT * FROM t ORDER BY id").rows == [(1, [1.0, 2.0]), (2, [3.0, 4.0])]


def test_a_second_process_is_told_who_has_the_folder_open(db: clipql.Database) -> None:
    child = (
        f"import clipql\ntry:\n clipql.connect({str(db.path)!r})\nexcept clipql.errors.DatabaseLocked as e:\n print(e)"
    )
    root = Path(clipql.__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True, cwd=root).stdout
    assert out.startswith(f"{db.path} is open in process {os.getpid()} (")
    assert (
        "one process opens a database at a time to write: close it there, or read beside it with read_only=True" in out
    )


def test_another_folder_in_the_same_process_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "one"):
        with pytest.raises(DatabaseLocked, match=rf"this process has {tmp_path}/one/engine open"):
            clipql.connect(tmp_path / "two")
        with pytest.raises(DatabaseLocked):
            clipql.connect(tmp_path / "one")
    with clipql.connect(tmp_path / "two") as db:
        assert db.sql("SELECT 1").rows == [(1,)]


def test_set_reaches_every_connection(db: clipql.Database) -> None:
    engine = db.registry.engine
    streams = [engine.stream("SELECT number FROM numbers(1000000)") for _ in range(3)]
    for stream in streams:
        next(stream)
    db.sql("SET max_threads = 1")
    for stream in streams:
        stream.close()
    found: list[Any] = []
    started = threading.Barrier(4)

    def ask() -> None:
        started.wait()
        found.append(db.sql("SELECT getSetting('max_threads'), sleep(0.2)").rows[0][0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1, 1]


def test_a_set_that_fails_is_not_kept(db: clipql.Database) -> None:
    with pytest.raises(QueryError):
        db.sql("SET max_threads = 'many'")
    with pytest.raises(QueryError):
        db.sql("USE nowhere")
    assert db.sql("SELECT currentDatabase()").rows == [("default",)]


def test_many_threads_query_at_once(db: clipql.Database) -> None:
    found: dict[int, Any] = {}

    def ask(n: int) -> None:
        for _ in range(5):
            found[n] = db.sql("SELECT sum(number) + {n:UInt64} FROM numbers(1000)", n=n).rows

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [(499_500 + n,)] for n in range(8)}


def test_the_engine_can_be_opened_again_after_it_was_closed(tmp_path: Path) -> None:
    for _ in range(3):
        engine = Engine(tmp_path)
        assert engine.scalar("SELECT 1") == 1
        engine.close()


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    db = clipql.connect(tmp_path)
    db.close()
    db.close()
    with pytest.raises(QueryError, match=f"the database {tmp_path} is closed"):
        db.sql("SELECT 1")
