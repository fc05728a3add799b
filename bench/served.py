"""What servers and readers are measured on: a database that is made once, queries for it, and loads of HTTP by wrk.

`wrk` (Debian's package of that name) takes little of the cores that it shares with the server; what it asks is made
beforehand.
"""

from __future__ import annotations

import bisect
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from bench import child, data
from bench.index import K, queries_of, recall, true_of

RECALL, CLIENTS = 0.95, 16
WARM_SECONDS, MOST_WARM_SECONDS = 0.5, 60
ASKED = [n / 200 for n in range(120, 200)]
QUERY = (
    "SELECT url, caption, cosineDistance(image_embedding, {q:Array(Float32)}) AS d FROM laion "
    f"ORDER BY d LIMIT {K} SETTINGS recall = "
)
_SCRIPT = """
local file = io.open(os.getenv("ASKED"), "rb")
local asked, at = {}, 0
for each in (file:read("*a")):gmatch("([^%z]+)%z") do asked[#asked + 1] = each end
request = function() at = at % #asked + 1; return asked[at] end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def database(rows: int) -> Path:
    """A database of so many rows with an ivf index, made if it is not there."""
    folder = data.FOLDER / f"served-{rows}"
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        child.run(fill, part=str(data.part(rows)), place=str(folder / "laion.db"))
        whole.touch()
    return folder / "laion.db"


def fill(part: str, place: str) -> None:
    """In a child: take a part in, and index it."""
    import clipql

    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX near")


def truth(rows: int) -> list[list[int]]:
    """The true neighbours of the caption queries."""
    found: list[list[int]] = child.run(true_of, part=str(data.part(rows)), kind="text")
    return found


def settled(rows: int, true: list[list[int]]) -> tuple[float, float]:
    """The least recall that can be asked for so that RECALL is got on the caption queries; and what is got."""
    asked, got = child.run(settle, part=str(data.part(rows)), place=str(database(rows)), true=true)
    return asked, got


def settle(part: str, place: str, true: list[list[int]]) -> tuple[float, float]:
    """In a child: `settled`."""
    import clipql
    from bench.statements import row_numbers

    with clipql.connect(place, read_only=True) as db:
        numbers, queries = row_numbers(db), queries_of(part, "text")

        def got(asked: float) -> float:
            found = [[numbers[r[0]] for r in db.sql(f"{QUERY}{asked}", q=q).rows] for q in queries]
            return recall(found, np.array(true))

        asked = ASKED[bisect.bisect_left(ASKED, RECALL, hi=len(ASKED) - 1, key=got)]
        return asked, got(asked)


# HTTP


@dataclass(frozen=True)
class Load:
    """What a load met. p50, p99: milliseconds. work: of the server's processors, milliseconds a request."""

    rate: float
    p50: float
    p99: float
    failed: int
    work: float = 0.0

    def __str__(self) -> str:
        failed = f"; {self.failed} failed" if self.failed else ""
        work = f"; {self.work:.2f} ms of processors each" if self.work else ""
        return f"{self.rate:,.0f}/s, p50 {self.p50:.2f} ms, p99 {self.p99:.1f} ms{work}{failed}"


def statements(queries: NDArray[np.float32], asked: float) -> list[bytes]:
    """Requests of ClickHouse's protocol, one a query vector."""
    return asking(queries, f"{QUERY}{asked}")


def asking(queries: NDArray[np.float32], sql: str) -> list[bytes]:
    """Requests of a statement with the vector in `q`."""
    return [post(f"/?default_format=Native&param_q={quote(_text(q), safe=',.-')}", sql.encode()) for q in queries]


def searches(queries: NDArray[np.float32], asked: float) -> list[bytes]:
    """The same to REST."""
    made = []
    for query in queries:
        terms = '[{"vector": ' + _text(query) + "}]"
        rest = f'"k": {K}, "recall": {asked}, "safe": false, "columns": ["url", "caption"]'
        made.append(post("/api/search", f'{{"table": "laion", {rest}, "terms": {terms}}}'.encode()))
    return made


def post(target: str, body: bytes, *, close: bool = False) -> bytes:
    """A request. close: whether the connection is for it alone."""
    lines = [f"POST {target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json"] * target.startswith("/api/") + ["Connection: close"] * close
    return "\r\n".join([*lines, "", ""]).encode() + body


def once(server: Server, asked: bytes) -> bytes:
    """The body of the reply to one request."""
    head, _, body = asked.partition(b"\r\n\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", head.split()[1].decode(), body)
    reply = connection.getresponse()
    found = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {found[:500]!r}")
    return found


def _text(vector: NDArray[np.float32]) -> str:
    return "[" + ",".join(f"{x:.6g}" for x in vector.tolist()) + "]"


@dataclass(frozen=True)
class Server:
    """A server that runs: its port and the process that was started."""

    port: int
    pid: int

    def work(self) -> float:
        """Seconds that its processes have had of the processors."""
        return sum(own_work(pid) for pid in [self.pid, *_children(self.pid)])


@contextmanager
def serving(place: Path, *more: str) -> Iterator[Server]:
    """`clipql serve` on a database."""
    command = [sys.executable, "-m", "clipql", "--db", str(place), "serve", "--port", "0", "--log-level", "warning"]
    # within its wall it may read what is installed, and none of the peers that PYTHONPATH may lead to
    with started([*command, *more], PYTHONPATH=str(child.ROOT)) as server:
        yield server


@contextmanager
def started(command: Sequence[str], **environment: str) -> Iterator[Server]:
    """A server whose first line ends with its port."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**child.environment(), **environment}, cwd=child.ROOT
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server has ended with status {process.wait(90)}: {' '.join(command)}")
        yield Server(int(line.rstrip().rstrip("/").rpartition(":")[2]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
        process.stdout.close()


def load(server: Server, asked: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Clients of wrk, one request after the other on each connection."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not there, which makes the load: install Debian's package wrk")
    with tempfile.TemporaryDirectory(prefix="clipql-wrk-") as folder:
        script, file = Path(folder) / "load.lua", Path(folder) / "asked"
        script.write_text(_SCRIPT)
        file.write_bytes(b"".join(each + b"\0" for each in asked))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script)]
        before = server.work()
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}"],
            env={**os.environ, "ASKED": str(file)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        work = server.work() - before
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    count = max(1, found["requests"])
    return Load(count / found["seconds"], found["p50"], found["p99"], found["failed"], 1000 * work / count)


def warm(server: Server, asked: Sequence[bytes], clients: int) -> None:
    """Ask until every process has what it needs at hand: the first requests of each wait for that for seconds, and wrk
    does not count one that is still waited for.
    """
    end = time.monotonic() + MOST_WARM_SECONDS
    with ThreadPoolExecutor(clients) as threads:
        while time.monotonic() < end:
            rounds = [list(threads.map(partial(_answered, server.port), asked[:clients])) for _ in range(3)]
            if max(max(each) for each in rounds) < WARM_SECONDS:
                return
    raise RuntimeError(f"after {MOST_WARM_SECONDS} s of load a request still takes more than {WARM_SECONDS} s")


def _answered(port: int, request: bytes) -> float:
    """The seconds until a connection of its own has the first bytes of a reply to one request."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=MOST_WARM_SECONDS) as connection:
        connection.sendall(request)
        reply = connection.recv(1 << 16)
    if not reply.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server says {reply[:300]!r}")
    return time.perf_counter() - began


def least(loads: Sequence[Load]) -> str:
    """Several loads in one: least to most of each."""
    return "; ".join(
        f"{name} {min(values):,.{digits}f} to {max(values):,.{digits}f}{unit}"
        for name, values, digits, unit in (
            ("", [x.rate for x in loads], 0, "/s"),
            ("p50", [x.p50 for x in loads], 2, " ms"),
            ("p99", [x.p99 for x in loads], 1, " ms"),
            ("processors", [x.work for x in loads], 2, " ms each"),
        )
        if max(values)
    ).strip() + (f"; {sum(x.failed for x in loads)} failed" if any(x.failed for x in loads) else "")


@contextmanager
def pinned(cores: int = 2) -> Iterator[None]:
    """Keep this process, and those that it starts, to so many cores meanwhile. A decorator as well."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:cores]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores() -> int:
    """How many this process is kept to."""
    return len(os.sched_getaffinity(0))


def memory(server: Server) -> list[float]:
    """The megabytes that each process of a server has, its share of what is mapped in common included (Pss)."""
    return [_pss(pid) for pid in [server.pid, *_children(server.pid)]]


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def own_work(pid: int) -> float:
    """Seconds that one process has had of the processors."""
    return sum(_stat(pid)[11:13]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[int]:
    """What /proc/PID/stat has behind the name, with 0 for the state, which is a letter."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return [0] * 50
    return [int(x) if x.lstrip("-").isdigit() else 0 for x in rest]


def _children(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for each in map(int, task.read_text().split()):
            found += [each, *_children(each)]
    return found
