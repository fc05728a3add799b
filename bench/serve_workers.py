"""A server of 1, 2, 4 and 8 workers on two cores, and a model of what more cores would give.

    python -m bench.serve_workers [--rows 1000000] [--seconds 10] [--rounds 3]

prints the table of docs/server.md as well; `python -m bench.run --only workers --rows 1000000` puts it into
docs/benchmarks.md.

The model takes from the measurements what a request costs, and adds what grows with the workers or is done by one for
all: the board that all share (each request looks at every process's row), the supervisor's handing over of connections,
the snapshots that each worker takes after a commit, and the memory that searches read.
"""

from __future__ import annotations

import argparse
import re
import textwrap
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import child, data, served
from bench.index import queries_of
from bench.results import Comparison, Line, Plot, median
from bench.served import CLIENTS, Load, Server

WORKERS = (1, 2, 4, 8)
CORES = (2, 8, 16, 64)
CODE_BYTES, ROW_BYTES = 68, 1024  # that a search reads of a code of 512 bits, and of a row of 512 numbers of float16
HOW = """\
`clipql serve --workers N` on {cores} cores, which wrk has its share of; ten nearest of {rows:,} × 512 with url and
caption, caption vectors, recall {got:.3f} ({asked} asked), {rounds} rounds in turns, least to most, each begun when no
process has to load something first. Processors: of all of the server's processes, a request. One worker is one process
that does all; N are N beside a writer."""
MODEL = """\
What the processes share: no lock; a board of numbers in memory, of which each writes its own row and reads all
({board_2:.1f} µs a request with 2 workers, {board_64:.0f} with 64); mapped files, whose pages are the kernel's and only
read; one supervisor, which hands each connection over ({hand:.0f} µs of its processor each, so {hands:,.0f} new
connections a second at most; a connection that is kept costs it nothing); the writer, for what writes and what has a
session; after each commit a snapshot by each worker ({refresh:.0f} ms of its processor, beside what it answers, a third
of its time at most). A search reads {bytes:.2f} MB. Model, for clients on other machines: cores / (processors a request
with 2 workers + what the board takes more)."""


@dataclass(frozen=True)
class Shared:
    """What processes share, as measured. board: seconds a request by workers. hand: of the supervisor's processor a
    connection. refresh: seconds of a worker's processor a commit. bytes: that a search reads."""

    board: Mapping[int, float]
    hand: float
    refresh: float
    bytes: float

    def rate(self, cores: int, work: float) -> float:
        """Requests a second on so many cores with a worker each. work: seconds of processors with two."""
        return cores / (work + self.board[cores] - self.board[2])


@served.pinned()
def compare(rows: int, seconds: float = 10, rounds: int = 3) -> Comparison:
    """The part of the benchmark."""
    true = served.truth(rows)
    asked, got = served.settled(rows, true)
    place = served.database(rows)
    loads, single, sizes = measured(rows, place, asked, seconds, rounds)
    shared = Shared(
        {n: board(n + 1) for n in (*CORES, *WORKERS)},
        handing(place, seconds / 2),
        refreshing(place),
        read(place, rows, asked),
    )
    lines = [
        Line(
            f"{face}, {CLIENTS} clients, {of(workers)}",
            served.least(loads[face, workers]),
            "at least 3,000/s, p99 at most 20 ms" if workers == 2 else "",
            _is_good(loads[face, workers]) if workers == 2 else None,
        )
        for face, workers in loads
    ]
    for (face, workers), found in single.items():
        p50 = median([x.p50 for x in found])
        lines.append(Line(f"{face}, one client, {of(workers)}", served.least(found), "p50 at most 1.2 ms", p50 <= 1.2))
    lines.append(Line("memory of each process, with its share of what is mapped in common (Pss)", sizes))
    work = min(x.work for x in loads[FACES[0], 2]) / 1000
    for count in CORES[1:]:
        rate = shared.rate(count, work)
        lines.append(
            Line(f"modelled for {count} cores", f"{rate:,.0f}/s, {rate * shared.bytes / 1e9:.0f} GB/s of memory read")
        )
    told = MODEL.format(
        board_2=1e6 * shared.board[2], board_64=1e6 * shared.board[64], hand=1e6 * shared.hand, hands=1 / shared.hand,
        refresh=1000 * shared.refresh, bytes=shared.bytes / 1e6,
    )  # fmt: skip
    how = HOW.format(cores=served.cores(), rows=rows, got=got, asked=asked, rounds=rounds)
    bars = {of(workers): median([x.rate for x in loads[FACES[0], workers]]) for workers in WORKERS}
    return Comparison(
        "workers",
        "A server of many processes",
        " ".join(f"{how} {told}".split()),
        tuple(lines),
        Plot("workers", f"{FACES[0]}, {CLIENTS} clients on two cores", "requests/s", bars, tuple(bars)),
    )


def _is_good(found: Sequence[Load]) -> bool:
    return median([x.rate for x in found]) >= 3000 and median([x.p99 for x in found]) <= 20


FACES = ("ClickHouse's protocol", "REST")
Loads = dict[tuple[str, int], list[Load]]


def of(workers: int) -> str:
    """How many, in words."""
    return f"{workers} workers" if workers > 1 else "one process"


def measured(rows: int, place: Path, asked: float, seconds: float, rounds: int) -> tuple[Loads, Loads, str]:
    """Loads of many clients and of one, by protocol and workers; the memory of the processes."""
    queries = queries_of(str(data.part(rows)), "text")
    made = dict(zip(FACES, (served.statements(queries, asked), served.searches(queries, asked)), strict=True))
    loads: Loads = defaultdict(list)
    single: Loads = defaultdict(list)
    sizes = dict[int, str]()
    for _ in range(rounds):
        for workers in WORKERS:
            with served.serving(place, "--workers", str(workers)) as server:
                for face in FACES:
                    served.warm(server, made[face], CLIENTS)
                    loads[face, workers].append(served.load(server, made[face], CLIENTS, seconds))
                    if workers <= 2:
                        single[face, workers].append(served.load(server, made[face], 1, seconds / 2))
                shown = [f"{size:,.0f}" for size in served.memory(server)]
                sizes[workers] = f"{of(workers)}: {', '.join(shown)} MB"
    return dict(sorted(loads.items())), single, "; ".join(sizes.values())


# what is shared


def board(members: int) -> float:
    """Seconds of what a request does on the board of so many processes."""
    from clipql.serve.workers.board import RUNNING, Board

    shared, times = Board(members), []
    for _ in range(5):
        began = time.perf_counter()
        for at in range(200):
            shared.who_runs(f"query {at}", but=1)
            shared.add(1, RUNNING, 1)
            shared.sum(RUNNING)
            shared.add(1, RUNNING, -1)
        times.append((time.perf_counter() - began) / 200)
    return min(times)


def handing(place: Path, seconds: float) -> float:
    """Seconds of the supervisor's processor for one connection."""
    asked = [served.post("/ping", b"", close=True)]
    with served.serving(place, "--workers", "2") as server:
        served.load(server, asked, CLIENTS, 1)
        before = served.own_work(server.pid)
        found = served.load(server, asked, CLIENTS, seconds)
        return (served.own_work(server.pid) - before) / (found.rate * seconds)


def refreshing(place: Path, commits: int = 20) -> float:
    """Seconds of a reader's processor to take the next snapshot, by which it has what an INSERT of another brought."""
    with child.Worker(inserting, place=str(place)) as writer, child.Worker(following, place=str(place)) as reader:
        found = []
        for number in range(commits):
            writer.ask(number=number)
            found.append(float(reader.ask()))
        writer.ask(number=-1)
    return median(found[2:])


def inserting(place: str) -> Iterator[Any]:
    """In a child: a writer of rows into a table of its own."""
    import clipql

    with clipql.connect(place) as db:
        db.sql("DROP TABLE IF EXISTS brought")
        db.sql("CREATE TABLE brought (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")

        def ask(number: int) -> None:
            db.sql(f"INSERT INTO brought VALUES ({number}, [{number}, 1])" if number >= 0 else "DROP TABLE brought")

        yield ask


def following(place: str) -> Iterator[Any]:
    """In a child: a reader with ClickHouse open, as a worker is."""
    import clipql

    with clipql.connect(place, read_only=True) as db:
        db.sql("SELECT count() FROM system.tables")

        def ask() -> float:
            began = time.process_time()
            db.refresh()
            return time.process_time() - began

        yield ask


def read(place: Path, rows: int, asked: float) -> float:
    """Bytes of memory that one search reads, by what the server counts."""
    made = served.statements(queries_of(str(data.part(rows)), "text"), asked)
    with served.serving(place) as server:
        before = _counted(server)
        served.load(server, made, 1, 2)
        after = _counted(server)
    codes, rescored, searches = (
        after.get(n, 0) - before.get(n, 0) for n in ("codes_scanned", "rows_rescored", "searches")
    )
    return (codes * CODE_BYTES + rescored * ROW_BYTES) / max(1, searches)


def _counted(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as reply:
        text = reply.read().decode()
    found = {name: float(n) for name, n in re.findall(r'clipql_search_work_total\{what="(\w+)"\} (\S+)', text)}
    found["searches"] = sum(float(n) for n in re.findall(r"^clipql_vector_searches_total\S* (\S+)", text, re.M))
    return found


def main() -> None:
    """Run it and print it, as docs/server.md has it."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_workers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each load (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args()
    found = compare(given.rows, given.seconds, given.rounds)
    print("| load | measured |", "|---|---|", sep="\n")
    for line in found.lines:
        print(f"| {line.work} | {line.measured} |")
    print("", *textwrap.wrap(found.how, 120), sep="\n")


if __name__ == "__main__":  # under its own name, by which child processes find it
    from bench import serve_workers

    serve_workers.main()
