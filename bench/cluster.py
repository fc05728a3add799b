"""Shards on a real multi-node Ray on this machine: overhead, a killed node under load, random kills, simulated growth.

`make bench ARGS="--only cluster"` puts the lines into docs/benchmarks.md.

    python -m bench.cluster [--rows 200000] [--seconds 20] [--kills 20] [--only overhead,kill,kills,growth]

All nodes share this machine's cores, so the times of shards are those of a crowded machine; what is told of is what
the cluster adds to them. Growth is simulated: each shard sleeps for the time that its share of a scan would take.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, index
from bench.cluster_growth import CLIENTS, MODELLED, SCAN_SECONDS, Model, draw
from bench.results import Comparison, Line, at_most, median

# before Ray is imported
os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(32).hex())
os.environ.update(RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1", "include_dashboard": False}
NOTICE = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
TOP = "SELECT id, cosineDistance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 10"
DIMENSION, QUERIES, PARTS = 512, 100, 8
HOW = """\
Nodes of one Ray on 2 cores, which all of them share; the bars are on what the cluster adds to its slowest shard. "All
of it" is what four shards at work on two cores take. The growth is simulated: each shard sleeps for its share of a
scan, and the model adds what asking takes where shards answer at once ([plot](img/bench-cluster.png))."""


class Machines:
    """Nodes of a Ray on this machine."""

    def __init__(self, folder: Path, count: int) -> None:
        from ray.cluster_utils import Cluster

        self.data = str(folder / "nodes")
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "node_name": "node-0", "_system_config": NOTICE}
        )
        self._nodes = {f"node-{i}": self._cluster.add_node(**NODE, node_name=f"node-{i}") for i in range(1, count)}

    @property
    def address(self) -> str:
        """Where Ray listens."""
        return str(self._cluster.address)

    def lose(self) -> str:
        """Kill a node that is neither the head nor ours, and all on it."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        name = next(n["NodeName"] for n in ray.nodes() if n["NodeName"] in self._nodes and n["NodeID"] != own)
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)
        return str(name)

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def cluster(nodes: int, shards: int, replicas: int) -> Iterator[tuple[Any, Machines, Path]]:
    """A connection to shards on so many nodes, and a folder for parts."""
    from clipql.cluster.database import ClusterDatabase

    folder = Path(tempfile.mkdtemp(prefix="clipql-bench-"))
    machines = Machines(folder, nodes)
    try:
        with ClusterDatabase(machines.address, data=machines.data, shards=shards, replicas=replicas) as db:
            yield db, machines, folder
    finally:
        machines.close()
        shutil.rmtree(folder, ignore_errors=True)


def make_parts(folder: Path, rows: int, parts: int) -> None:
    """Write parts of random unit vectors with metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    for number in range(parts):
        found = rng.standard_normal((rows, DIMENSION), np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        np.save(folder / f"img_emb_{number}.npy", found.astype(np.float16))
        urls = [f"https://example.org/{number}/{i}.jpg" for i in range(rows)]
        pq.write_table(pa.table({"url": urls}), folder / f"metadata_{number}.parquet")


def filled(db: Any, folder: Path, rows: int, parts: int = PARTS) -> None:
    """Fill the table laion."""
    source = folder / "parts"
    source.mkdir()
    make_parts(source, rows=rows // parts, parts=parts)
    db.ingest(source, table="laion")


def queries(count: int = QUERIES) -> list[np.ndarray[Any, Any]]:
    """Query vectors."""
    return list(np.random.default_rng(1).standard_normal((count, DIMENSION), np.float32))


def on_each(db: Any, change: Callable[[Any], None]) -> None:
    """Change each replica within its process."""
    from clipql.cluster import ray_actors

    for shard, node in db.map.replicas():
        ray_actors.result(ray_actors.actor(ray_actors.actor_name(shard, node)).__ray_call__.remote(change))


def timed(actor: Any) -> None:
    """In a replica: keep the seconds that queries take there."""
    replica = actor._opened()
    query, replica.times = replica.query, []

    def run(asked: Any) -> Any:
        began = time.perf_counter()
        try:
            return query(asked)
        finally:
            replica.times.append(time.perf_counter() - began)

    replica.query = run


def taken(actor: Any) -> list[float]:
    """In a replica: the seconds kept since last time."""
    replica = actor._opened()
    found, replica.times = list(replica.times), []
    return found


def slowest(db: Any) -> float:
    """The seconds that the slowest shard took for the last query."""
    from clipql.cluster import ray_actors

    found = [ray_actors.actor(ray_actors.actor_name(s, n)).__ray_call__.remote(taken) for s, n in db.map.replicas()]
    return max(seconds for each in found for seconds in ray_actors.result(each))


def beyond(db: Any, asked: list[np.ndarray[Any, Any]]) -> tuple[list[float], list[float]]:
    """The seconds that each query took beyond its slowest shard, and altogether."""
    more, whole = [], []
    for vector in asked:
        began = time.perf_counter()
        db.sql(TOP, q=vector)
        whole.append(time.perf_counter() - began)
        more.append(whole[-1] - slowest(db))
    return more, whole


def overhead(rows: int) -> list[Line]:
    """What four shards add to the slowest of them."""
    with cluster(4, 4, 1) as (db, _, folder):
        data.make(str(folder / "parts"), rows, PARTS)
        db.ingest(folder / "parts", table="laion")
        asked = list(index.queries_of("", "text")[:QUERIES])
        db.sql(TOP, q=asked[0])
        on_each(db, timed)
        single, batch = beyond(db, asked)[0], []
        for _ in range(5):
            began = time.perf_counter()
            db.sql_many(TOP, [{"q": v} for v in asked])
            batch.append((time.perf_counter() - began - slowest(db)) / len(asked))
        began = time.perf_counter()
        db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX near")
        build = time.perf_counter() - began
        db.sql(TOP, q=asked[0])
        by_index, whole = beyond(db, asked)
    return [
        at_most("a top-10 over 4 shards", "beyond the slowest shard: ", 1000 * median(single), 10, "ms"),
        at_most(
            "a top-10 by an ivf index over 4 shards", "beyond the slowest shard: ", 1000 * median(by_index), 10, "ms"
        ),
        Line(
            "the same, all of it",
            f"{1000 * median(whole):.1f} ms ({rows:,} rows; the index was built in {build:.0f} s)",
        ),
        at_most("a batch of 100 over 4 shards", "beyond the slowest shard, a query: ", 1000 * median(batch), 1, "ms"),
    ]


def kill(rows: int, seconds: float) -> list[Line]:
    """One of four nodes is killed under load; R = 2."""
    with cluster(4, 4, 2) as (db, machines, folder):
        filled(db, folder, rows)
        asked = queries(8)
        expected = [db.sql(TOP, q=v).rows for v in asked]
        stop, right, wrong, failed = threading.Event(), [0], [0], list[str]()

        def ask(first: int) -> None:
            at = first
            while not stop.is_set():
                try:
                    same = db.sql(TOP, q=asked[at % len(asked)]).rows == expected[at % len(asked)]
                    (right if same else wrong)[0] += 1
                except Exception as error:  # noqa: BLE001
                    failed.append(str(error))
                at += 1

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 4)
        lost = machines.lose()
        time.sleep(3 * seconds / 4)
        stop.set()
        for thread in threads:
            thread.join()
    for text in failed[:3]:
        print(text)
    measured = f"{right[0]:,} right, {wrong[0]} wrong, {len(failed)} failed, with {lost} gone"
    return [Line("kill one of four nodes under load, R = 2", measured, "0 failed, 0 wrong", not (wrong[0] or failed))]


def kills(rows: int, count: int) -> list[Line]:
    """Random kills of replicas, the coordinator and the client, while parts go in and their index is built."""
    from clipql.cluster import ray_actors
    from clipql.errors import ClusterError

    luck = random.Random(0)
    with cluster(3, 3, 2) as (db, machines, folder):
        db.sql(
            "CREATE TABLE laion (id UInt64, url String, image_embedding Array(Float32), "
            "INDEX near image_embedding TYPE ivf('cosineDistance')) ENGINE = MergeTree ORDER BY id"
        )
        source = folder / "parts"
        source.mkdir()
        make_parts(source, rows=rows // 24, parts=24)
        url = f"ray://{machines.address}?data={machines.data}"
        command = [sys.executable, "-m", "clipql", "--url", url, "ingest", str(source), "--table", "laion"]
        names = [ray_actors.COORDINATOR, *(ray_actors.actor_name(s, n) for s, n in db.map.replicas())]
        killed, client = 0, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while client.poll() != 0:
            if client.returncode is not None:  # it was killed, or told of a replica that was
                client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(luck.uniform(0.05, 0.8))
            if killed >= count:
                continue
            victim = luck.choice(["client", *names])
            with contextlib.suppress(ClusterError, ProcessLookupError):
                if victim == "client":
                    client.kill()
                else:
                    process = ray_actors.actor(victim).__ray_call__.remote(lambda self: os.getpid())
                    os.kill(ray_actors.result(process, 20), signal.SIGKILL)
                killed += 1
        db.refresh()
        db.heal()
        total = rows // 24 * 24
        found = db.sql("SELECT count(), uniqExact(url), uniqExact(id), max(id) FROM laion").rows[0]
    measured = f"{killed} kills: {total - found[1]} rows missing, {found[0] - found[1]} doubled, of {total:,}"
    met = found == (total, total, total, total - 1)
    return [
        Line(
            "random kills of replicas, coordinator and client in ingest and build",
            measured,
            "0 missing, 0 doubled",
            met,
        )
    ]


def slow(seconds: float) -> Callable[[Any], None]:
    """In a replica: have each query take so long, without the processor; all give what the first gives."""

    def change(actor: Any) -> None:
        replica = actor._opened()
        query, given = replica.query, list[Any]()

        def run(asked: Any) -> Any:
            if not given:
                given.append(query(asked))
            time.sleep(seconds)
            return given[0]

        replica.query = run

    return change


def asked_one_by_one(db: Any, count: int) -> float:
    """The median seconds of so many queries, after one that is not counted."""
    times = []
    for vector in queries(count + 1):
        began = time.perf_counter()
        db.sql(TOP, q=vector)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def growth(rows: int) -> list[Line]:
    """Latency and throughput with 1, 2, 4 and 8 shards of a scan that is simulated, and a model for more."""
    latency: dict[int, float] = {}
    beside: dict[int, float] = {}
    throughput: dict[int, float] = {}
    for shards in (1, 2, 4, 8):
        with cluster(2, shards, 1) as (db, _, folder):
            filled(db, folder, rows)
            db.sql(TOP, q=queries(1)[0])
            on_each(db, slow(0))
            beside[shards] = asked_one_by_one(db, 60)
            on_each(db, slow(SCAN_SECONDS / shards))
            latency[shards] = asked_one_by_one(db, 10)
            began, threads = time.perf_counter(), []
            for vector in queries(CLIENTS):
                threads.append(threading.Thread(target=db.sql, args=(TOP,), kwargs={"q": vector}))
                threads[-1].start()
            for thread in threads:
                thread.join()
            throughput[shards] = len(threads) / (time.perf_counter() - began)
    # latency = scan / shards + a + b * shards, of which a and b are those of shards that answer at once
    b, a = np.polyfit(list(beside), list(beside.values()), 1)
    model = Model(a, b)
    draw(latency, throughput, model)
    lines = [
        Line(f"simulated scan of {SCAN_SECONDS} s over {n} shard{'s' if n > 1 else ''}",
             f"{1000 * latency[n]:.0f} ms, {throughput[n]:.0f} queries/s by {CLIENTS} clients") for n in latency
    ]  # fmt: skip
    rule = f"scan / shards + {1000 * a:.1f} ms + {1000 * b:.2f} ms a shard"
    modelled = [
        Line(
            f"modelled for {n} shards",
            f"{1000 * model.latency(n):.0f} ms, {model.throughput(n):.0f} queries/s ({rule})",
        )
        for n in MODELLED
    ]
    return [*lines, *modelled]


WORKS = ("overhead", "kill", "kills", "growth")


def compare(rows: int, seconds: float = 20, count: int = 20, works: tuple[str, ...] = WORKS) -> Comparison:
    """All of it."""
    runs: dict[str, Callable[[], list[Line]]] = {
        "overhead": lambda: overhead(rows),
        "kill": lambda: kill(rows // 4, seconds),
        "kills": lambda: kills(rows // 4, count),
        "growth": lambda: growth(4000),
    }
    lines = tuple(line for name in works for line in runs[name]())
    how = HOW
    return Comparison("cluster", "Shards on Ray", how, lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default=",".join(WORKS))
    arguments = parser.parse_args()
    works = tuple(arguments.only.split(","))
    for line in compare(arguments.rows, arguments.seconds, arguments.kills, works).lines:
        print(line.work, line.measured, line.bar, {True: "met", False: "MISSED", None: ""}[line.met], sep=" | ")


if __name__ == "__main__":
    main()
