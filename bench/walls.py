"""What a server does while somebody asks for too much: is `/ping` answered, and does the memory come back?

    python -m bench.walls --settle 60

Each case is a request, or a crowd, that a limit ends or that its client leaves. While it goes on, another client asks
for `/ping` on a new connection every few milliseconds. The table has the longest of these answers (the bar: 100 ms),
the seconds until nothing of the case runs any more, the most memory, and the memory `--settle` seconds later, both in
MB above what the idle server had (the bar: 300).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import lz4.frame
import numpy as np
import zstandard

import clipql

MB = 1 << 20
SECONDS = 5  # of a query
ENDLESS = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) % 7 = 9"


@dataclass
class Server:
    """A server that runs, and its port."""

    process: subprocess.Popen[str]
    port: int

    def open(self, data: bytes = b"") -> socket.socket:
        """A connection on which this was sent."""
        made = socket.create_connection(("127.0.0.1", self.port), 120)
        made.sendall(data)
        return made

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> str:
        """The status of a reply; why there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            reply = connection.getresponse()
            reply.read()
            return str(reply.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def taken(self) -> int:
        """The requests that run or wait."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return int(float(text.partition("\nclipql_requests_taken ")[2].split()[0]))

    def memory(self, what: str = "VmRSS:") -> int:
        """Bytes that the process holds; VmHWM: the most that it has held since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(what)[2].split()[0]) << 10

    def forget_peak(self) -> None:
        """Count the most memory from now on."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def start(folder: Path) -> Server:
    """A server over a small database, with the limits that it has by default, but for the time of a query."""
    with clipql.connect(folder / "walls.db") as db:
        db.sql("CREATE TABLE laion (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO laion SELECT number, arrayMap(k -> sin(number + k), range(32)) FROM numbers(1000)")
    command = [sys.executable, "-m", "clipql", "--db", str(folder / "walls.db"), "serve", "--port", "0", "--write"]
    environment = {**os.environ, "CLIPQL_MODEL": "clipql/emoji", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [*command, "--max-seconds", str(SECONDS)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().rstrip().rpartition(" at ")[2]
    return Server(process, urlsplit(url).port or 0)


class Pings:
    """Asks for /ping again and again while the block runs, in a process of its own: the seconds of each answer."""

    def __init__(self, server: Server) -> None:
        self._server, self.took = server, list[float]()

    def __enter__(self) -> Pings:
        command = [sys.executable, "-c", _PING, str(self._server.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        said, _ = self._process.communicate()
        self.took = [float(line) for line in said.split()]


_PING = """
import select, socket, sys, time
while not select.select([sys.stdin], [], [], 0.005)[0]:
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 300) as made:
        made.sendall(b"GET /ping HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        while made.recv(1000):
            pass
    print(time.perf_counter() - began)
"""


# the cases: each gives what it was answered


def crowd(server: Server, count: int, one: Callable[[], str]) -> str:
    """Several at once."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(one())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return " ".join(f"{found.count(status)}x{status}" for status in sorted(set(found)))


def bodies(encoding: str, pack: Callable[[bytes], bytes]) -> Callable[[Server], str]:
    """Eight bodies at once that unpack to 1 GB each."""
    packed = pack(bytes(1 << 30))
    return lambda server: crowd(server, 8, lambda: server.ask("POST", "/", packed, Content_Encoding=encoding))


def statement(sql: str, count: int = 1) -> Callable[[Server], str]:
    """A statement, several at once."""
    return lambda server: crowd(server, count, lambda: server.ask("POST", "/", sql.encode()))


def unfinished(server: Server) -> str:
    """Twelve bodies of 100 MB of which the last byte does not come; their clients go."""
    held = []
    for _ in range(12):
        made = server.open(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * MB))
        with contextlib.suppress(OSError):
            made.sendall(bytes(100 * MB - 1))
        held.append(made)
    for made in held:
        made.close()
    return "left"


def endless_header(server: Server) -> str:
    """A header line without an end."""
    made = server.open(b"GET / HTTP/1.1\r\nX: ")
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 600 * MB:
            sent += made.send(b"x" * MB)
    made.close()
    return f"ended after {sent / MB:.0f} MB"


def half_requests(server: Server) -> str:
    """3,500 requests of which half is sent."""
    held = []
    with contextlib.suppress(OSError):
        while len(held) < 3_500:
            held.append(server.open(b"GET / HTTP/1.1\r\nX: "))
    for made in held:
        made.close()
    return f"{len(held)} opened"


def left(sql: str, count: int) -> Callable[[Server], str]:
    """Statements whose clients leave after half a second, more than may run."""

    def run(server: Server) -> str:
        text = sql.encode()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(text)
        held = [server.open(head + text) for _ in range(count)]
        time.sleep(0.5)
        for made in held:
            made.close()
        return "left"

    return run


@dataclass
class Case:
    """One row of the table."""

    name: str
    run: Callable[[Server], str]
    said: str = ""
    seconds: float = 0
    pings: list[float] = field(default_factory=list)
    peak: float = 0
    settled: float = 0


def cases() -> list[Case]:
    """All of them."""
    calls = "SELECT sum(length(encode_text(toString(number)))) FROM numbers(30000000)"
    texts = "SELECT sum(position(repeat('ab', 500000), toString(number))) FROM numbers(3000000000)"
    return [
        Case("8 bodies of 1 GB by zstd", bodies("zstd", zstandard.ZstdCompressor(write_content_size=False).compress)),
        Case("8 bodies of 1 GB by gzip", bodies("deflate", lambda data: zlib.compress(data, 1))),
        Case("8 bodies of 1 GB by lz4", bodies("lz4", lambda data: lz4.frame.compress(data, store_size=False))),
        Case("8 statements of 1 MB", statement("SELECT " + "1," * 500_000 + "1", 8)),
        Case("8 statements of 240 KB", statement("SELECT " + "1," * 120_000 + "1", 8)),
        Case("8 statements of 24,000 words", statement("SELECT " + "1," * 24_000 + "1", 8)),
        Case("calls of the encoder, to its time", statement(calls)),
        Case("long texts, to its time", statement(texts, 2)),
        Case("100 queries, as many as may run and wait", statement(ENDLESS, 100)),
        Case("64 queries whose clients leave", left(ENDLESS, 64)),
        Case("calls of the encoder, left", left(calls, 4)),
        Case("a result of ten million rows", statement("SELECT number, repeat('x', 100) FROM numbers(9000000)", 2)),
        Case("12 unfinished bodies of 100 MB", unfinished),
        Case("a header line without an end", endless_header),
        Case("3,500 half requests", half_requests),
    ]


def measure(server: Server, case: Case, settle: float) -> None:
    """Run a case."""
    server.forget_peak()
    idle, began = server.memory(), time.perf_counter()
    with Pings(server) as pings:
        case.said = case.run(server)
        while server.taken():
            time.sleep(0.02)
        case.seconds = time.perf_counter() - began
    case.pings, case.peak = pings.took, (server.memory("VmHWM:") - idle) / MB
    end = time.perf_counter() + settle
    while time.perf_counter() < end:
        time.sleep(0.1)
    case.settled = (server.memory() - idle) / MB


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--settle", type=float, default=60, help="seconds until memory is looked at again")
    parser.add_argument("--only", default="", help="cases whose names have this")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            server.ask("POST", "/", b"SELECT length(encode_text('a cat'))")
            head = f"{'case':44} {'answer':>22} {'s':>6} {'ping ms, most':>14} {'99 %':>7} {'peak MB':>8} {'then':>6}"
            print(head)
            for case in (c for c in cases() if given.only in c.name):
                measure(server, case, given.settle)
                most, usual = (float(np.quantile(case.pings or [0], q)) * 1e3 for q in (1, 0.99))
                print(
                    f"{case.name:44} {case.said:>22} {case.seconds:6.1f} {most:14.0f} {usual:7.0f} "
                    f"{case.peak:8.0f} {case.settled:6.0f}",
                    flush=True,
                )
        finally:
            server.process.terminate()
            server.process.wait(60)


if __name__ == "__main__":
    main()
