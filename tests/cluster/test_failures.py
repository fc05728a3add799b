"""Shards on a real Ray of three nodes: what happens when processes and nodes die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipql
from clipql.cli.entry import main
from clipql.cluster import ray_actors, ray_connection
from clipql.cluster.database import ClusterDatabase
from clipql.cluster.encoder_pool import PooledEncoder
from clipql.errors import (
    ClusterError,
    QueryError,
    ReplicaUnavailable,
)
from tests.cluster.fixtures import QUERY, STATEMENTS, asking, count, process, state
from tests.cluster.machines import Machines
from tests.fake_encoder import FakeEncoder
from tests.parts import make_part
from tests.patience import LAST_NET_SECONDS, until


def test_a_killed_process_is_not_noticed_by_queries(db: ClusterDatabase) -> None:
    with asking(db) as (failed, answers):
        for shard, node in db.map.replicas()[::2]:
            os.kill(process(shard, node), signal.SIGKILL)
        states = db.heal()

    assert (failed, answers) == ([], {195})
    assert {s.state for s in states} == {"ready"}


def test_a_lost_shard_is_an_error_or_a_partial_answer(db: ClusterDatabase) -> None:
    for node in db.map.nodes[1]:
        ray_actors.RayReplicas(db.data).stop(1, node)

    with pytest.raises(ReplicaUnavailable, match=r"1 of 2 shards of default\.laion cannot be reached: shard 1"):
        count(db)
    rows, shards = count(db, shards_partial=1)
    db.heal()

    assert (rows < 195, shards) == (True, "1/2")
    assert count(db) == (195, "2/2")


def test_a_slow_replica_is_not_waited_for(db: ClusterDatabase) -> None:
    slow = [process(0, db.map.nodes[0][0])]
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers = {count(db) for _ in range(4)}
    finally:
        for pid in slow:
            os.kill(pid, signal.SIGCONT)

    assert answers == {(195, "2/2")}


def test_a_killed_coordinator_goes_on_where_it_was(db: ClusterDatabase, tmp_path: Path) -> None:
    for number in range(10, 14):
        make_part(tmp_path, rows=25, number=number)
    coordinator = ray_actors.actor(ray_actors.COORDINATOR)
    pid = ray_actors.result(coordinator.__ray_call__.remote(lambda self: os.getpid()))

    def kill() -> None:
        asked = coordinator.do
        until(lambda: ray_actors.result(asked.remote("progress", "default", "other"))[0] >= 1, "a part is taken in")
        os.kill(pid, signal.SIGKILL)

    killed = threading.Thread(target=kill)
    killed.start()
    report = db.ingest(tmp_path, table="other")
    killed.join()

    assert report.parts_taken + report.parts_skipped == 4
    assert db.sql("SELECT count(), uniqExact(id), max(id) FROM other").rows == [(100, 100, 99)]


def test_texts_and_pictures_are_encoded_by_a_pool_in_their_order(db: ClusterDatabase, tmp_path: Path) -> None:
    for i in range(7):
        Image.new("RGB", (8 + i, 8), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    paths, texts, alone = [tmp_path / f"{i}.png" for i in range(7)], [f"text {i}" for i in range(9)], FakeEncoder()
    with contextlib.closing(PooledEncoder(FakeEncoder, 2)) as pooled:
        words = pooled.encode_texts(texts)
        at_once = pooled.encode_pictures(paths)
        streamed = list(pooled.encode_stream(iter(paths), batch=2))

    assert (pooled.model, pooled.dimension) == (alone.model, alone.dimension)
    assert np.array_equal(words, alone.encode_texts(texts))
    assert np.array_equal(at_once.vectors, alone.encode_pictures(paths).vectors)
    assert at_once.sizes == alone.encode_pictures(paths).sizes
    assert [len(s.errors) for s in streamed] == [2, 2, 2, 1]
    assert [e is None for s in streamed for e in s.errors] == [True, True, True, False, True, True, True]


def test_nodes_go_come_back_and_join(db: ClusterDatabase, machines: Machines, tmp_path: Path) -> None:
    make_part(tmp_path, rows=40, number=20)
    away = machines.spare
    machines.lose(away)
    while_away = [count(db) for _ in range(3)]
    db.ingest(tmp_path, table="laion")
    machines.add(away)
    machines.add("west")
    states = db.heal()
    with asking(db) as (failed, answers):
        moved = db.rebalance()

    assert (failed, answers) == ([], {235})
    assert while_away == [(195, "2/2")] * 3
    assert {s.state for s in states} == {"ready"}
    assert [m[2] for m in moved] in ([], ["west"])
    for shard in (0, 1):  # each replica by itself has all the rows
        for node in db.map.nodes[shard]:
            info = ray_actors.RayReplicas(db.data).call(shard, node, "info")
            table = db.map.table("default", "laion")
            assert table is not None
            assert info.ledgers["default.laion"] == tuple(p.fingerprint for p in table.shards[shard])
    assert count(db) == (235, "2/2")


def test_an_address_without_ray_is_told() -> None:
    with pytest.raises(ClusterError, match=r"nothing listens at 127\.0\.0\.1:1 "):
        clipql.connect("ray://127.0.0.1:1")
    with pytest.raises(ClusterError, match="expected host:port"):
        clipql.connect("ray://somewhere")
    with pytest.raises(ClusterError, match="size is not known"):
        clipql.connect("ray://127.0.0.1:1?size=3")


def test_a_ray_without_a_token_is_not_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))

    with pytest.raises(ClusterError, match="there is no token for Ray"):
        ray_connection.connect("127.0.0.1:1")


def test_everything_comes_back_without_the_head_node(
    db: ClusterDatabase, machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = db.map, count(db)[0]
    db.close()
    machines.close()
    for copy in Path(machines.data).glob("*/shard-*/cluster.json"):
        copy.unlink()  # the map is made again from the parts
    with contextlib.closing(Machines(Path(machines.data), ("south", "east", "west"))) as left:
        with pytest.raises(ClusterError, match="4 replicas"):
            ClusterDatabase(left.address, data=str(tmp_path), shards=1, replicas=4)
        with ClusterDatabase(left.address, data=machines.data) as again:
            for table in before.tables:
                assert again.map.table(table.database, table.name) == table
            assert count(again) == (rows, "2/2")
            # left to itself, the coordinator brings back what died
            shard, node = next(c for c in again.map.replicas() if c[1] != "north")
            ray_actors.RayReplicas(again.data).stop(shard, node)
            until(lambda: state(again, shard, node) == "ready", "the replica is back")
        asked = f"ray://{left.address}?data={machines.data}"
        assert main(["--url", asked, "sql", "SELECT count() FROM laion", "--format", "TSV"]) == 0
        assert capsys.readouterr().out == f"{rows}\n"
        assert main(["cluster", left.address, "--data", machines.data, "status"]) == 0
        told = capsys.readouterr().out
        assert f"default.laion: {rows} rows in 2 shards (" in told
        assert all("node north is not there" in line for line in told.splitlines() if "on north" in line)
        with serving(left.address, machines.data) as url, clipql.connect(url) as remote:
            found = remote.sql("SELECT count() FROM laion")
            assert (found.rows, found.stats.shards) == ([(rows,)], "2/2")
            assert remote.sql(STATEMENTS[1], q=QUERY).rows[0][1] >= 0
            with pytest.raises(QueryError, match="a join of"):
                remote.sql("SELECT a.id FROM laion AS a JOIN laion AS b ON a.id = b.id")
        assert main(["cluster", left.address, "stop"]) == 0
        with pytest.raises(ClusterError, match="no node has shards in"):
            ClusterDatabase(left.address, data=str(tmp_path))


@contextlib.contextmanager
def serving(address: str, data: str) -> Iterator[str]:
    """The address of `clipql serve --ray`."""
    options = ["--ray", address, "--data", data, "--table", "laion", "--port", "0"]
    command = [sys.executable, "-m", "clipql", "serve", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().rstrip().rpartition(" at ")[2]
    finally:
        process.terminate()
        assert process.wait(LAST_NET_SECONDS) == 0
        process.stdout.close()
