"""`clipql serve` under load: vector top-10 with url and caption over HTTP, against the same in one process; a crowd.

    python -m bench.serve_load [--rows 300000] [--seconds 30] [--clients 8] [--crowd 200]

The load is asyncio over plain sockets with requests made beforehand, in a process of its own, so that it takes little
of the two cores that it shares with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from bench import child
from bench.results import Comparison, Line

SQL = (
    "SELECT url, caption, cosineDistance(image_embedding, {query:Array(Float32)}) AS distance FROM laion "
    "ORDER BY distance LIMIT 10"
)
QUERIES = 200


@dataclass
class Load:
    """What a load met: replies by status, their seconds in order, and errors of the connection."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0

    @property
    def good(self) -> int:
        """Replies of 200."""
        return self.statuses[200]


def requests(folder: Path) -> list[bytes]:
    """The HTTP requests, one a query vector."""
    made = []
    for vector in np.load(folder / "parts/queries/text.npy")[:QUERIES]:
        text = "[" + ",".join(f"{x:.6g}" for x in vector.tolist()) + "]"
        target = f"/?default_format=TabSeparated&param_query={quote(text, safe=',.-')}"
        head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(SQL)}\r\n\r\n"
        made.append((head + SQL).encode())
    return made


async def client(port: int, made: list[bytes], at: int, until: float, load: Load) -> None:
    """One client: a request after the other on one connection, until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(made[at % len(made)])
        at += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            await reader.readexactly(int(length[1]) if length else 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            load.broken += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
            continue
        status = int(head[9:12])
        load.statuses[status] += 1
        if status == 200:
            load.seconds.append(time.perf_counter() - began)
        elif status == 429:  # a polite client waits; this one waits less than it is told to
            await asyncio.sleep(0.1)
    writer.close()


async def crowd(port: int, made: list[bytes], clients: int, seconds: float) -> Load:
    """That many clients for that long."""
    load = Load()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, made, i * 7, until, load) for i in range(clients)))
    return load


def in_process(folder: str, clients: int, seconds: float) -> float:
    """Queries a second of as many threads in one process, with nothing between them and the database."""
    import clipql

    vectors = np.load(Path(folder) / "parts/queries/text.npy")[:QUERIES]
    counts = [0] * clients
    with clipql.connect(Path(folder) / "load.db") as db:
        for vector in vectors[:20]:
            db.sql(SQL, query=vector)
        until = time.perf_counter() + seconds

        def work(me: int) -> None:
            at = me * 7
            while time.perf_counter() < until:
                db.execute(SQL, {"query": vectors[at % len(vectors)]}, format="TabSeparated")
                counts[me] += 1
                at += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - began)


def prepare(folder: str, rows: int) -> None:
    """The table, indexed."""
    import clipql
    from clipql import synthetic

    synthetic.write_parts(Path(folder) / "parts", rows=rows, queries=QUERIES)
    with clipql.connect(Path(folder) / "load.db") as db:
        db.ingest(Path(folder) / "parts", table="laion")
        db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf GRANULARITY 1")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX near")


@contextmanager
def serving(database: Path) -> Iterator[tuple[int, int]]:
    """The port and the process id of a server."""
    command = [sys.executable, "-m", "clipql", "--db", str(database), "serve", "--port", "0",
               "--log-level", "warning"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child.environment())
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield int(line.rstrip().rstrip("/").rpartition(":")[2]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
        process.stdout.close()


def memory(pid: int) -> float:
    """Megabytes that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+)", text)
    return int(found[1]) / 1024 if found else 0.0


def measure(folder: Path, clients: int, many: int, seconds: float) -> dict[str, float]:
    """Everything, on a table that is there."""
    alone = child.run(in_process, folder=str(folder), clients=clients, seconds=seconds)
    made = requests(folder)
    with serving(folder / "load.db") as (port, pid):
        asyncio.run(crowd(port, made, 1, 3))
        served = asyncio.run(crowd(port, made, clients, seconds))
        before = memory(pid)
        crowded = asyncio.run(crowd(port, made, many, seconds))
        after = memory(pid)
        time.sleep(2)
        again = asyncio.run(crowd(port, made, clients, max(seconds / 6, 1)))
    return {
        "in process": alone,
        "served": served.good / seconds,
        "failed": served.broken + sum(served.statuses.values()) - served.good,
        "median ms": 1000 * float(np.median(served.seconds)),
        "p99 ms": 1000 * float(np.quantile(served.seconds, 0.99)),
        "crowd served": crowded.good / seconds,
        "crowd told to wait": crowded.statuses[429] / seconds,
        "crowd failed": crowded.broken + sum(crowded.statuses.values()) - crowded.good - crowded.statuses[429],
        "crowd MB": after - before,
        "after served": again.good / max(seconds / 6, 1),
        "after failed": again.broken + sum(again.statuses.values()) - again.good,
    }


def compare(rows: int, seconds: float = 30, clients: int = 8, many: int = 200) -> Comparison:
    """The part of the benchmark."""
    folder = Path(tempfile.mkdtemp(prefix="clipql-load-"))
    try:
        child.run(prepare, folder=str(folder), rows=rows)
        found = measure(folder, clients, many, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    share = found["served"] / found["in process"]
    return Comparison(
        "serve",
        "The server under load",
        f"{rows:,} rows with an ivf index; top-10 with url and caption; {seconds:.0f} s each; server and load on "
        f"{os.cpu_count()} cores.",
        (
            Line(
                f"{clients} clients over HTTP",
                f"{found['served']:.0f}/s of {found['in process']:.0f}/s in process: {share:.0%}; median "
                f"{found['median ms']:.1f} ms, 99 % within {found['p99 ms']:.1f} ms; {found['failed']:.0f} failed",
                "at least 70 %, none failed",
                share >= 0.7 and not found["failed"],
            ),
            Line(
                f"{many} clients",
                f"{found['crowd served']:.0f}/s served, {found['crowd told to wait']:.0f}/s told to wait, "
                f"{found['crowd failed']:.0f} failed; {found['crowd MB']:+.0f} MB",
                "200s and 429s only, memory steady",
                not found["crowd failed"] and found["crowd MB"] < 200,
            ),
            Line(
                "two seconds later",
                f"{found['after served']:.0f}/s, {found['after failed']:.0f} failed",
                "back to normal",
                found["after served"] >= 0.8 * found["served"] and not found["after failed"],
            ),
        ),
    )


def main() -> None:
    """Run it and print the lines."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=300_000, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of each load (%(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--crowd", type=int, default=200, help="(%(default)s)")
    given = parser.parse_args()
    for line in compare(given.rows, given.seconds, given.clients, given.crowd).lines:
        print(line.work, line.measured, line.bar, {True: "met", False: "MISSED", None: ""}[line.met], sep=" | ")


if __name__ == "__main__":  # under its own name, by which child processes find it
    from bench import serve_load

    serve_load.main()
