"""ClickHouse's native protocol beside HTTP: a large SELECT, a small one, and an INSERT of vectors.

    python -m bench.run --only native

Both are spoken over plain sockets with requests made beforehand, so that no client's own work is measured.
"""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import child
from bench.results import Comparison, at_least, at_most, median
from clipql.engine.row_writer import varint

ROWS, COLUMNS, DIMENSION = 1_000_000, 10, 512
INSERTED, BLOCK = 200_000, 10_000
ROUNDS, SMALL = 5, 500
WIDE = (
    "CREATE TABLE wide (a UInt64, b UInt32, c Float64, d Float32, e DateTime, f Date, g String, h String, "
    "i LowCardinality(String), j Nullable(Int32)) ENGINE = MergeTree ORDER BY a"
)
FILL = (
    "INSERT INTO wide SELECT number, number % 1000, number / 3, number / 7, number, number % 20000, "
    "toString(number * 7919), concat('caption of picture ', toString(number)), toString(number % 50), "
    f"if(number % 5 = 0, NULL, number) FROM numbers({ROWS})"
)
TABLE = "CREATE TABLE vectors (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
# the oldest revision that the server speaks to needs the fewest bytes
REVISION = 54429
HOW = f"""\
`clipql serve --write --tcp-port` in a process of its own, over loopback, uncompressed. `SELECT *` of {ROWS:,} rows of
{COLUMNS} columns without vectors, drained without being decoded, native beside HTTP's `FORMAT Native`, {ROUNDS} rounds
in turns. The small query is `SELECT 1`, {SMALL} by each on a connection that is kept, in turns. The INSERT is
{INSERTED:,} rows of an id and `Array(Float32)` of {DIMENSION} in blocks of {BLOCK:,}, to the end that the server tells,
which follows when the rows are on disk."""


def compare(rows: int) -> Comparison:
    """The three, medians."""
    folder = Path(tempfile.mkdtemp(prefix="clipql-native-"))
    try:
        with serving(folder / "bench.db") as (port, native):
            return _compared(port, native)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compared(port: int, native: int) -> Comparison:
    web = http.client.HTTPConnection("127.0.0.1", port)
    with Native(native) as line:
        for sql in (WIDE, FILL, TABLE):
            line.ask(sql)
        select = {"native": lambda: line.ask("SELECT * FROM wide"), "http": lambda: asked(web, "SELECT * FROM wide")}
        small = {"native": lambda: line.ask("SELECT 1"), "http": lambda: asked(web, "SELECT 1")}
        whole = in_turns(select, ROUNDS)
        each = in_turns(small, SMALL)
        blocks = list(vector_blocks())
        inserts = [line.insert("INSERT INTO vectors FORMAT Native", blocks) for _ in range(ROUNDS)]
    there = int(asked(web, "SELECT count() FROM vectors FORMAT TSV"))
    if there != INSERTED * ROUNDS:
        raise RuntimeError(f"{there:,} rows are there of {INSERTED * ROUNDS:,} that were inserted")
    rate = INSERTED / median(inserts)
    shares = {name: ROWS / median(seconds) / 1e6 for name, seconds in whole.items()}
    times = {name: median(seconds) * 1e3 for name, seconds in each.items()}
    lines = (
        at_least(
            f"SELECT of {ROWS:,} rows, native beside HTTP",
            f"{shares['native']:.2f} and {shares['http']:.2f} million rows/s",
            shares["native"] / shares["http"],
            0.8,
        ),
        at_most(
            "a small query, native", f"HTTP {times['http']:.2f} ms; ", times["native"], round(times["http"], 2), "ms"
        ),
        at_least(
            f"native INSERT of Array(Float32) {DIMENSION}, of 100,000 rows/s", f"{rate:,.0f} rows/s", rate / 1e5, 1
        ),
    )
    raw = {f"select {n}": s for n, s in whole.items()} | {f"small {n}": s for n, s in each.items()}
    return Comparison("native", "The native protocol", HOW, lines, raw={**raw, "insert": inserts})


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call by its name, one round after the other."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - began)
    return found


def asked(web: http.client.HTTPConnection, sql: str) -> bytes:
    """The reply of HTTP, drained; kept where it is short."""
    web.request("POST", "/?default_format=Native", sql.encode())
    reply = web.getresponse()
    first = reply.read(1 << 16)
    while reply.read(1 << 20):
        pass
    if reply.status != 200:
        raise RuntimeError(first.decode())
    return first


def vector_blocks() -> Iterator[bytes]:
    """Data packets of an id and a vector."""
    rng = np.random.default_rng(1)
    floats = rng.standard_normal((BLOCK, DIMENSION), dtype=np.float32)
    offsets = np.arange(1, BLOCK + 1, dtype=np.uint64) * DIMENSION
    for at in range(0, INSERTED, BLOCK):
        ids = np.arange(at, at + BLOCK, dtype=np.uint64)
        yield _data(
            varint(2) + varint(BLOCK) + text("id") + text("UInt64") + ids.tobytes()
            + text("v") + text("Array(Float32)") + offsets.tobytes() + (floats + np.float32(at)).tobytes()
        )  # fmt: skip


def text(value: str) -> bytes:
    """A string of the protocol."""
    data = value.encode()
    return varint(len(data)) + data


def _data(block: bytes) -> bytes:
    return varint(2) + text("") + b"\x01\x00\x02\xff\xff\xff\xff\x00" + block


class Native:
    """A connection that asks and drains what it is told; the Pong of a Ping behind each question is the end."""

    def __init__(self, port: int) -> None:
        self._line = socket.create_connection(("127.0.0.1", port))
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = text("default") + text("default") + text("")
        self._line.sendall(varint(0) + text("bench") + varint(1) + varint(0) + varint(REVISION) + names)
        self._line.sendall(varint(4))
        self._drain(b"\x04")

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *error: object) -> None:
        self._line.close()

    def _query(self, sql: str) -> bytes:
        # no id, no word of the client, no settings; all of the answer, plain; no external tables
        return varint(1) + text("") + b"\x00" + text("") + varint(2) + varint(0) + text(sql) + _data(b"\x00\x00")

    def _drain(self, end: bytes) -> None:
        last = b""
        while not last.endswith(end):
            data = self._line.recv(1 << 20)
            if not data:
                raise RuntimeError(f"the server has gone: {last!r}")
            last = (last + data)[-300:]
            if data[:1] == b"\x02" and b"DB::Exception" in data[:60]:
                raise RuntimeError(data[:500].decode("utf-8", "replace"))

    def ask(self, sql: str) -> None:
        """A query, to its end."""
        self._line.sendall(self._query(sql) + varint(4))
        self._drain(b"\x05\x04")

    def insert(self, sql: str, blocks: list[bytes]) -> float:
        """An INSERT with its data; the seconds to its end."""
        began = time.perf_counter()
        self._line.sendall(self._query(sql))
        for block in blocks:
            self._line.sendall(block)
        self._line.sendall(_data(b"\x00\x00") + varint(4))
        self._drain(b"\x05\x04")
        return time.perf_counter() - began


@contextmanager
def serving(database: Path) -> Iterator[tuple[int, int]]:
    """The ports of a server that writes: HTTP's and the native protocol's."""
    command = [sys.executable, "-m", "clipql", "--db", str(database), "serve", "--port", "0", "--tcp-port", "0",
               "--write", "--log-level", "warning"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child.environment())
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        web, _, native = line.rstrip().rstrip("/").partition(", and by the native protocol at ")
        yield int(web.rstrip("/").rpartition(":")[2]), int(native.rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
        process.stdout.close()
