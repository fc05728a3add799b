"""Indexes over shards on a real Ray: learnt once from all, built once a shard, and their lists ranked once a query."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipql.cluster import ray_actors, scatter
from clipql.cluster.database import ClusterDatabase
from tests.cluster.fixtures import QUERY
from tests.parts import make_part


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every replica is waited for, however long it takes: searches are counted, and a hedged one would be too."""
    monkeypatch.setattr(scatter, "FIRST_SECONDS", scatter.SECONDS)
    monkeypatch.setattr(scatter, "HEDGE_SECONDS", scatter.SECONDS)


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
    """The models that the replicas of a table's index `near` were built with."""
    infos = [ray_actors.RayReplicas(db.data).call(s, n, "info") for s, n in db.map.replicas()]
    return [info.models[f"default.{table}"]["near"] for info in infos]


def watched(db: ClusterDatabase) -> None:
    """Have every replica keep how many lists its searches probe, and how many of them were ranked elsewhere."""

    def watch(self: Any) -> None:
        from clipql.index.ivf import IvfIndex

        search = getattr(IvfIndex, "plain_search", IvfIndex.search)

        def kept(index: Any, *arguments: Any, **named: Any) -> Any:
            found = search(index, *arguments, **named)
            IvfIndex.seen.append((found.cost.lists_routed, found.cost.lists_probed))  # type: ignore[attr-defined]
            return found

        IvfIndex.plain_search, IvfIndex.search, IvfIndex.seen = search, kept, []  # type: ignore[attr-defined,method-assign]

    for shard, node in db.map.replicas():
        ray_actors.result(ray_actors.actor(ray_actors.actor_name(shard, node)).__ray_call__.remote(watch))


def seen(db: ClusterDatabase) -> list[tuple[int, int]]:
    """What they kept since."""

    def told(self: Any) -> list[tuple[int, int]]:
        from clipql.index.ivf import IvfIndex

        found, IvfIndex.seen = IvfIndex.seen, []  # type: ignore[attr-defined]
        return list(found)

    found: list[tuple[int, int]] = []
    for shard, node in db.map.replicas():
        found += ray_actors.result(ray_actors.actor(ray_actors.actor_name(shard, node)).__ray_call__.remote(told))
    return found


def test_an_index_is_built_on_one_replica_of_each_shard_and_copied(db: ClusterDatabase, indexed: str) -> None:
    replicas = ray_actors.RayReplicas(db.data)
    for shard, nodes in enumerate(db.map.nodes):
        one, other = (replicas.call(shard, n, "index_files", "default", "indexed", "near") for n in nodes)
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
        ray_actors.RayReplicas(db.data).call(s, n, "index_files", "default", indexed, "near")
        for s, n in db.map.replicas()
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
        (
            "SELECT id FROM indexed ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 5 "
            "SETTINGS vector_index = 0"
        ),
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
    db._ranking.routes = lambda query: tuple(replace(r, model="another") for r in real(query))  # type: ignore[method-assign]
    watched(db)
    try:
        assert db.sql(top, q=QUERY).rows == found
    finally:
        db._ranking.routes = real  # type: ignore[method-assign]
    assert [of_these for of_these, _ in seen(db)] == [0, 0]


def test_an_index_that_is_asked_for_again_is_learnt_anew(db: ClusterDatabase, indexed: str, tmp_path: Path) -> None:
    before = set(models(db, indexed))
    make_part(tmp_path, rows=1200, number=40)

    db.ingest(tmp_path, table=indexed)  # too few rows for an index to be built again
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
