"""Shards on a real Ray of three nodes: what one database gives, and what happens when processes and nodes die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipql
from clipql.cli import main
from clipql.cluster import joining, rays
from clipql.cluster.database import ClusterDatabase
from clipql.cluster.encoding import PooledEncoder
from clipql.cluster.shards import decoded
from clipql.errors import (
    ClusterError,
    HolderGone,
    IngestError,
    QueryError,
    UnknownTable,
    UnsupportedStatement,
    VectorIndexError,
)
from tests.cluster.machines import Machines
from tests.parts import make_part
from tests.standin import StandIn

QUERY = np.linspace(-1, 1, 16, dtype=np.float32)
STATEMENTS = [
    "SELECT * FROM laion ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}), _row LIMIT 7",
    "SELECT id, L2Distance(text_embedding, {q:Array(Float32)}) AS d FROM laion WHERE id % 3 = 1 ORDER BY d LIMIT 9",
    "SELECT count(), sum(length(caption)), min(id), max(id), any(caption), uniqExact(url) FROM laion",
    "SELECT NSFW, count(), groupArray(id) FROM laion GROUP BY NSFW ORDER BY NSFW",
    "SELECT url FROM laion LIMIT 5 OFFSET 60",
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
    """The process that holds a copy."""
    return int(rays.asked(rays.actor(rays.actor_name(shard, node)).__ray_call__.remote(lambda self: os.getpid())))


def count(db: ClusterDatabase, **settings: int) -> tuple[int, str | None]:
    """Rows of laion, and the shards that were asked."""
    asked = f" SETTINGS {', '.join(f'{n} = {v}' for n, v in settings.items())}" if settings else ""
    found = db.sql(f"SELECT count() FROM laion{asked}")
    return found.rows[0][0], found.stats.shards


def state(db: ClusterDatabase, shard: int, node: str) -> str:
    """How a copy is."""
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


def test_parts_in_shards_give_what_one_database_gives(
    db: ClusterDatabase, expected: list[list[tuple[Any, ...]]]
) -> None:
    assert [db.sql(s, q=QUERY).rows for s in STATEMENTS] == expected


def test_each_copy_lies_on_a_node_of_its_own_with_the_map(db: ClusterDatabase, machines: Machines) -> None:
    assert [len(set(nodes)) for nodes in db.map.nodes] == [2, 2]
    held = [Path(rays.folder_of(machines.data, s, n)) / "cluster.json" for s, n in db.map.holders()]
    assert {decoded(p.read_bytes(), str(p)) for p in held} == {db.map}


def test_parts_that_are_there_are_skipped(db: ClusterDatabase, parts: Path) -> None:
    report = db.ingest(parts, table="laion", foretold=lambda _: None)

    assert (report.parts_taken, report.parts_skipped, count(db)[0]) == (0, 6, 195)


def test_search_and_a_second_connection_see_the_same(db: ClusterDatabase) -> None:
    found = db.search("laion", vector=QUERY, k=3, columns=["id"]).rows

    assert found == db.sql(f"{db.search_sql('laion', k=3, columns=['id'])}", query=QUERY).rows
    assert [len(r) for r in found] == [2, 2, 2]


def test_a_batch_goes_as_one(db: ClusterDatabase) -> None:
    statement = "SELECT id, L2Distance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT {k:UInt8}"
    asked = [{"q": np.roll(QUERY, i), "k": i + 1} for i in range(5)]

    found = db.sql_many(statement, asked)

    assert [r.rows for r in found] == [db.sql(statement, **one).rows for one in asked]


def test_explain_describe_and_show_create_tell_of_the_table(db: ClusterDatabase) -> None:
    told = [r[0] for r in db.sql("EXPLAIN SELECT NSFW, count() FROM laion GROUP BY NSFW").rows]
    described = dict(r[:2] for r in db.sql("DESCRIBE TABLE laion").rows)

    assert told[0] == "aggregates of default.laion: each shard gives the states of its groups"
    assert described["image_embedding"] == "Array(Float32)"
    assert db.sql("SHOW CREATE TABLE laion").rows[0][0].startswith("CREATE TABLE default.laion")


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO laion SELECT * FROM laion", "DELETE FROM laion WHERE id = 3", "ALTER TABLE laion DROP COLUMN url",
     "OPTIMIZE TABLE laion FINAL", "TRUNCATE TABLE laion", "CREATE TABLE plain (id UInt64) ENGINE = Memory"],
)  # fmt: skip
def test_what_shards_do_not_do_is_refused_by_name(db: ClusterDatabase, statement: str) -> None:
    with pytest.raises(UnsupportedStatement, match="shard"):
        db.sql(statement)


def test_a_table_is_made_with_its_index_filled_and_dropped(db: ClusterDatabase, parts: Path) -> None:
    columns = "id UInt64, url String, caption String, NSFW String, similarity Float64"
    db.sql(
        f"CREATE TABLE made ({columns}, image_embedding Array(Float32), text_embedding Array(Float32), "
        "INDEX near image_embedding TYPE ivf('cosineDistance')) ENGINE = MergeTree ORDER BY id"
    )
    db.ingest(parts, table="made", parts="0-1")

    assert db.sql("SELECT count() FROM made").rows == [(61,)]
    db.sql("DROP TABLE made")
    with pytest.raises(UnknownTable):
        db.sql("SELECT count() FROM made")


@pytest.fixture(scope="module")
def indexed(db: ClusterDatabase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of two shards of 2,200 rows with an ivf index that is built."""
    folder = tmp_path_factory.mktemp("indexed parts")
    for number in (30, 31):
        make_part(folder, rows=2200, number=number)
    db.ingest(folder, table="indexed")
    db.sql("ALTER TABLE indexed ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
    db.sql("ALTER TABLE indexed MATERIALIZE INDEX near")
    return "indexed"


def models(db: ClusterDatabase, table: str) -> list[str]:
    """The models that the copies of a table's index `near` were built with."""
    return [rays.RayCopies(db.data).call(s, n, "model_of", "default", table, "near") for s, n in db.map.holders()]


def watched(db: ClusterDatabase) -> None:
    """Have every copy keep how many lists its searches probe, and how many of them were ranked elsewhere."""

    def watch(self: Any) -> None:
        from clipql.index.ivf import IvfIndex

        search = getattr(IvfIndex, "plain_search", IvfIndex.search)

        def kept(index: Any, *arguments: Any, **named: Any) -> Any:
            found = search(index, *arguments, **named)
            IvfIndex.seen.append((found.cost.lists_routed, found.cost.lists_probed))  # type: ignore[attr-defined]
            return found

        IvfIndex.plain_search, IvfIndex.search, IvfIndex.seen = search, kept, []  # type: ignore[attr-defined,method-assign]

    for shard, node in db.map.holders():
        rays.asked(rays.actor(rays.actor_name(shard, node)).__ray_call__.remote(watch))


def seen(db: ClusterDatabase) -> list[tuple[int, int]]:
    """What they kept since."""

    def told(self: Any) -> list[tuple[int, int]]:
        from clipql.index.ivf import IvfIndex

        found, IvfIndex.seen = IvfIndex.seen, []  # type: ignore[attr-defined]
        return list(found)

    found: list[tuple[int, int]] = []
    for shard, node in db.map.holders():
        found += rays.asked(rays.actor(rays.actor_name(shard, node)).__ray_call__.remote(told))
    return found


def test_an_index_is_built_on_one_copy_of_each_shard_and_copied(db: ClusterDatabase, indexed: str) -> None:
    copies = rays.RayCopies(db.data)
    for shard, nodes in enumerate(db.map.nodes):
        one, other = (copies.call(shard, n, "index_files", "default", "indexed", "near") for n in nodes)
        assert one == other  # meta.json among them, which holds the seconds that its build took
        assert "meta.json" in {f.name for f in one}
    assert db.sql("SELECT count(), sum(rows_covered) FROM clipql.indexes WHERE table = 'indexed'").rows == [(4, 8800)]
    top = "SELECT id FROM indexed ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 10 SETTINGS "
    assert db.sql(f"{top} recall = 1", q=QUERY).rows == db.sql(f"{top} vector_index = 0", q=QUERY).rows


def test_all_shards_have_one_set_of_lists_learnt_from_all(db: ClusterDatabase, indexed: str) -> None:
    found = set(models(db, indexed))
    table = db.map.table("default", indexed)

    assert table is not None
    assert [(m.index, m.column, m.identity, m.rows) for m in table.models] == [
        ("near", "image_embedding", *found, 4400)
    ]
    shards = [
        rays.RayCopies(db.data).call(s, n, "index_files", "default", indexed, "near") for s, n in db.map.holders()
    ]
    assert len({next(f.hash for f in files if f.name == "list_small.npy") for files in shards}) == 1
    left = [p for p in Path(db.data).glob("*/shard-*/training/**/*") if p.is_file()]
    assert left == []


def test_lists_are_ranked_once_for_all_shards(db: ClusterDatabase, indexed: str) -> None:
    top = "FROM indexed ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 10"
    explained = "\n".join(r[0] for r in db.sql(f"EXPLAIN SELECT id {top}", q=QUERY).rows)
    watched(db)

    found = db.sql(f"SELECT id {top}", q=QUERY).rows
    routed = seen(db)
    batch = db.sql_many(f"SELECT id {top}", [{"q": QUERY}, {"q": QUERY[::-1].copy()}, {"q": QUERY * 2}])
    together = seen(db)
    alone = db.sql(f"SELECT id {top} SETTINGS vector_index = 0", q=QUERY).rows
    narrow = db.sql(f"SELECT id {top} SETTINGS nprobe = 2, rescore = 20", q=QUERY)

    assert "lists of near (ivf, 66) are ranked here, once for all shards" in explained
    assert len(routed) == 2
    assert len(together) == 6
    assert all(0 < of_these == all_of_them for of_these, all_of_them in [*routed, *together])
    assert len({*found} & {*alone}) >= 9
    assert batch[0].rows == batch[2].rows == found
    assert (len(narrow.rows), seen(db)) == (10, [(2, 2), (2, 2)])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM indexed ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 5 "
        "SETTINGS vector_index = 0",
        "SELECT id FROM indexed ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 5",
        "SELECT id FROM indexed ORDER BY cosineDistance(text_embedding, {q:Array(Float32)}) LIMIT 5",
        "SELECT NSFW, min(cosineDistance(image_embedding, {q:Array(Float32)})) FROM indexed GROUP BY NSFW",
    ],
)
def test_no_lists_are_ranked_where_none_are_looked_into(db: ClusterDatabase, indexed: str, statement: str) -> None:
    watched(db)

    explained = "\n".join(r[0] for r in db.sql(f"EXPLAIN {statement}", q=QUERY).rows)
    db.sql(statement, q=QUERY)

    assert "ranked here" not in explained
    assert seen(db) == []


def test_a_shard_that_has_another_model_ranks_its_own_lists(db: ClusterDatabase, indexed: str) -> None:
    top = "SELECT id FROM indexed ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 10"
    found = db.sql(top, q=QUERY).rows
    real = db._ranking.routes
    db._ranking.routes = lambda piece: tuple(replace(r, model="another") for r in real(piece))  # type: ignore[method-assign]
    watched(db)
    try:
        assert db.sql(top, q=QUERY).rows == found
    finally:
        db._ranking.routes = real  # type: ignore[method-assign]
    assert [of_these for of_these, _ in seen(db)] == [0, 0]


def test_an_index_that_is_asked_for_again_is_learnt_anew(db: ClusterDatabase, indexed: str, tmp_path: Path) -> None:
    before = set(models(db, indexed))
    make_part(tmp_path, rows=1200, number=40)

    db.ingest(tmp_path, table=indexed)  # too few rows for an index to be built anew
    db.sql("ALTER TABLE indexed MATERIALIZE INDEX near")
    after = set(models(db, indexed))

    assert len(before) == len(after) == 1
    assert before != after
    found = db.sql("SELECT min(rows_covered), max(rows_covered), count() FROM clipql.indexes WHERE table = 'indexed'")
    assert found.rows == [(2200, 3400, 4)]
    db.sql("ALTER TABLE indexed DROP INDEX near")
    table = db.map.table("default", indexed)
    assert table is not None
    assert table.models == ()


def test_parts_that_do_not_go_together_are_refused_before_the_first_is_taken(
    db: ClusterDatabase, tmp_path: Path
) -> None:
    make_part(tmp_path / "wide", rows=20, number=0)
    narrow = make_part(tmp_path / "wide", rows=20, number=1, seed=3)
    for path in (narrow.image_path, narrow.text_path):
        np.save(path, np.load(path)[:, :8])
    make_part(tmp_path / "other", rows=20, number=2)
    odd = make_part(tmp_path / "other", rows=20, number=3, seed=4)
    pq.write_table(pq.read_table(odd.metadata_path).append_column("extra", pa.array(range(20))), odd.metadata_path)

    with pytest.raises(IngestError, match="has vectors of 8 numbers; image_embedding of default.mixed holds 16"):
        db.ingest(tmp_path / "wide", table="mixed")
    with pytest.raises(IngestError, match="has a column extra that default.mixed lacks"):
        db.ingest(tmp_path / "other", table="mixed")
    with pytest.raises(IngestError, match="has vectors of 8 numbers; image_embedding of default.laion holds 16"):
        db.ingest(narrow.image_path, table="laion")

    assert db.map.table("default", "mixed") is None
    assert count(db) == (195, "2/2")


def test_parts_without_rows_are_none(db: ClusterDatabase, tmp_path: Path) -> None:
    make_part(tmp_path, rows=0, number=0)

    report = db.ingest(tmp_path, table="nothing")

    assert (report.rows, report.parts_taken) == (0, 0)
    assert db.map.table("default", "nothing") is None


def test_a_table_whose_shards_differ_is_told_of_and_dropped_and_hinders_no_other(
    db: ClusterDatabase, machines: Machines, tmp_path: Path
) -> None:
    for number in (0, 1):
        make_part(tmp_path, rows=20, number=number)
    db.ingest(tmp_path, table="odd")

    def change(self: Any) -> None:
        self._opened()._db.sql("ALTER TABLE odd ADD COLUMN more UInt8")

    for node in db.map.nodes[1]:
        rays.asked(rays.actor(rays.actor_name(1, node)).__ray_call__.remote(change))
    again = f"""
import clipql
with clipql.connect("ray://{machines.address}?data={machines.data}") as db:
    print(db.sql("SELECT count() FROM laion").rows, [s.state for s in db.status()])
    for statement in ("SELECT count() FROM odd", "DESCRIBE odd", "ALTER TABLE odd DROP INDEX x"):
        try:
            db.sql(statement)
        except clipql.ClipqlError as error:
            print(error)
    db.sql("DROP TABLE odd")
    print([t.name for t in db.map.tables if t.name == "odd"])
"""
    told = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, timeout=120, check=False)

    lines = told.stdout.splitlines()
    assert told.returncode == 0, told.stderr
    assert lines[0].startswith("[(195,)] ['ready'")
    assert [line[:36] for line in lines[1:4]] == ["default.odd has other columns on sha"] * 3
    assert lines[4:] == ["[]"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE laion ADD INDEX one image_embedding TYPE hnsw('L2Distance')", "has an index one already"),
        ("ALTER TABLE laion DROP INDEX nosuch", "has no index nosuch; it has one"),
        ("ALTER TABLE laion ADD INDEX plain width TYPE minmax", "only vector indexes are added to it"),
        ("ALTER TABLE laion MATERIALIZE INDEX nosuch", "has no vector index nosuch; it has one"),
    ],
)
def test_an_index_is_named_as_it_is(db: ClusterDatabase, statement: str, message: str) -> None:
    db.sql("ALTER TABLE laion ADD INDEX IF NOT EXISTS one image_embedding TYPE ivf('L2Distance')")
    db.sql("ALTER TABLE laion ADD INDEX IF NOT EXISTS one image_embedding TYPE ivf('L2Distance')")

    with pytest.raises((VectorIndexError, UnsupportedStatement), match=message):
        db.sql(statement)

    assert db.sql("SHOW CREATE TABLE laion").rows[0][0].count("INDEX") == 1
    db.sql("ALTER TABLE laion DROP INDEX one")
    db.sql("ALTER TABLE laion DROP INDEX IF EXISTS one")


@pytest.mark.parametrize("asked", [{"shards": 5}, {"replicas": 3}, {"data": "/nowhere"}])
def test_what_runs_is_not_taken_for_what_is_asked_for(
    db: ClusterDatabase, machines: Machines, asked: dict[str, Any]
) -> None:
    given = {"data": None, "shards": None, "replicas": 0, **asked}

    with pytest.raises(ClusterError, match=rf"the shards run already: 2 with 2 copies each, in {machines.data}"):
        rays.foreman(given["data"] or "", given["shards"], given["replicas"], anywhere=given["data"] is None)


def test_a_part_with_nan_is_refused_and_leaves_the_table_as_it_was(db: ClusterDatabase, tmp_path: Path) -> None:
    bad = make_part(tmp_path, rows=20, number=9, seed=5)
    vectors = np.load(bad.image_path)
    vectors[3, 2] = np.nan
    np.save(bad.image_path, vectors)

    with pytest.raises(IngestError, match="row 3"):
        db.ingest(tmp_path, table="laion")

    assert count(db) == (195, "2/2")


def test_a_killed_process_is_not_noticed_by_queries(db: ClusterDatabase) -> None:
    with asking(db) as (failed, answers):
        for shard, node in db.map.holders()[::2]:
            os.kill(process(shard, node), signal.SIGKILL)
        states = db.heal()

    assert (failed, answers) == ([], {195})
    assert {s.state for s in states} == {"ready"}


def test_a_lost_shard_is_an_error_or_a_partial_answer(db: ClusterDatabase) -> None:
    for node in db.map.nodes[1]:
        rays.RayCopies(db.data).stop(1, node)

    with pytest.raises(HolderGone, match=r"1 of 2 shards of default\.laion cannot be reached: shard 1"):
        count(db)
    rows, shards = count(db, shards_partial=1)
    db.heal()

    assert (rows < 195, shards) == (True, "1/2")
    assert count(db) == (195, "2/2")


def test_a_slow_copy_is_not_waited_for(db: ClusterDatabase) -> None:
    slow = [process(0, db.map.nodes[0][0])]
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers = {count(db) for _ in range(4)}
    finally:
        for pid in slow:
            os.kill(pid, signal.SIGCONT)

    assert answers == {(195, "2/2")}


def test_a_killed_foreman_goes_on_where_it_was(db: ClusterDatabase, tmp_path: Path) -> None:
    for number in range(10, 14):
        make_part(tmp_path, rows=25, number=number)
    chief = rays.actor(rays.FOREMAN)
    pid = rays.asked(chief.__ray_call__.remote(lambda self: os.getpid()))
    killed = threading.Timer(0.05, lambda: os.kill(pid, signal.SIGKILL))
    killed.start()
    report = db.ingest(tmp_path, table="other")
    killed.join()

    assert report.parts_taken + report.parts_skipped == 4
    assert db.sql("SELECT count(), uniqExact(id), max(id) FROM other").rows == [(100, 100, 99)]


def test_texts_and_pictures_are_encoded_by_a_pool_in_their_order(db: ClusterDatabase, tmp_path: Path) -> None:
    for i in range(7):
        Image.new("RGB", (8 + i, 8), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    paths, texts, alone = [tmp_path / f"{i}.png" for i in range(7)], [f"text {i}" for i in range(9)], StandIn()
    with contextlib.closing(PooledEncoder(StandIn, 2)) as pooled:
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
    for shard in (0, 1):  # each copy by itself has all the rows
        for node in db.map.nodes[shard]:
            hello = rays.RayCopies(db.data).call(shard, node, "hello")
            table = db.map.table("default", "laion")
            assert table is not None
            assert hello.ledgers["default.laion"] == tuple(p.fingerprint for p in table.shards[shard])
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
        joining.join("127.0.0.1:1")


def test_everything_comes_back_without_the_head_node(
    db: ClusterDatabase, machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = db.map, count(db)[0]
    db.close()
    machines.close()
    for copy in Path(machines.data).glob("*/shard-*/cluster.json"):
        copy.unlink()  # the map is made anew from the parts
    with contextlib.closing(Machines(Path(machines.data), ("south", "east", "west"))) as left:
        with pytest.raises(ClusterError, match="4 replicas"):
            ClusterDatabase(left.address, data=str(tmp_path), shards=1, replicas=4)
        with ClusterDatabase(left.address, data=machines.data) as again:
            for table in before.tables:
                assert again.map.table(table.database, table.name) == table
            assert count(again) == (rows, "2/2")
            # left to itself, the foreman brings back what died
            shard, node = next(c for c in again.map.holders() if c[1] != "north")
            rays.RayCopies(again.data).stop(shard, node)
            until = time.monotonic() + 60
            while state(again, shard, node) != "ready" and time.monotonic() < until:
                time.sleep(0.2)
            assert state(again, shard, node) == "ready"
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
        assert process.wait(60) == 0
        process.stdout.close()
