"""A table on a real Ray of three nodes, what one database gives of it, and looking at its replicas."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.cluster import ray_actors
from clipql.cluster.database import ClusterDatabase
from tests.cluster.machines import Machines
from tests.parts import make_part

QUERY = np.linspace(-1, 1, 16, dtype=np.float32)
STATEMENTS = [
    "SELECT * FROM laion ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}), _row LIMIT 7",
    "SELECT id, L2Distance(text_embedding, {q:Array(Float32)}) AS d FROM laion WHERE id % 3 = 1 ORDER BY d LIMIT 9",
    "SELECT count(), sum(length(caption)), min(id), max(id), any(caption), uniqExact(url) FROM laion",
    "SELECT NSFW, count(), groupArray(id) FROM laion GROUP BY NSFW ORDER BY NSFW",
    "SELECT url FROM laion LIMIT 5 OFFSET 60",
    "SELECT toDateTime(id, 'UTC') AS at, toIPv4('1.2.3.4') AS ip, (1, 'a') AS t FROM laion ORDER BY at LIMIT 3",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for number in range(6):
        make_part(folder, rows=30 + number, number=number)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> list[list[tuple[Any, ...]]]:
    """What one database gives for the statements."""
    with clipql.connect(tmp_path_factory.mktemp("one") / "db") as one:
        one.ingest(parts, table="laion")
        return [one.sql(s, q=QUERY).rows for s in STATEMENTS]


@pytest.fixture(scope="module")
def db(expected: Any, machines: Machines, parts: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase(machines.address, data=machines.data, shards=2, replicas=2, heal_seconds=3600) as db:
        db.ingest(parts, table="laion")
        yield db


def process(shard: int, node: str) -> int:
    """The process that holds a replica."""
    return int(
        ray_actors.result(
            ray_actors.actor(ray_actors.actor_name(shard, node)).__ray_call__.remote(lambda self: os.getpid())
        )
    )


def count(db: ClusterDatabase, **settings: int) -> tuple[int, str | None]:
    """Rows of laion, and the shards that were asked."""
    asked = f" SETTINGS {', '.join(f'{n} = {v}' for n, v in settings.items())}" if settings else ""
    found = db.sql(f"SELECT count() FROM laion{asked}")
    return found.rows[0][0], found.stats.shards


def state(db: ClusterDatabase, shard: int, node: str) -> str:
    """How a replica is."""
    return next(s.state for s in db.status() if (s.shard, s.node) == (shard, node))


@contextlib.contextmanager
def asking(db: ClusterDatabase) -> Iterator[tuple[list[Exception], set[int]]]:
    """Queries by two threads meanwhile: what failed, and the counts that were told."""
    stop, failed, answers = threading.Event(), list[Exception](), set[int]()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.add(count(db)[0])
            except Exception as error:  # noqa: BLE001
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failed, answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
