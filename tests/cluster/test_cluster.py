"""Shards on a real Ray of three nodes: what one database gives, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipql.cluster import ray_actors
from clipql.cluster.database import ClusterDatabase
from clipql.cluster.shard_map import decoded
from clipql.errors import (
    ClusterError,
    IngestError,
    QueryError,
    UnknownTable,
    UnsupportedStatement,
    VectorIndexError,
)
from tests.cluster.fixtures import QUERY, STATEMENTS, count
from tests.cluster.machines import Machines
from tests.parts import make_part
from tests.patience import LAST_NET_SECONDS


def test_parts_in_shards_give_what_one_database_gives(
    db: ClusterDatabase, expected: list[list[tuple[Any, ...]]]
) -> None:
    assert [db.sql(s, q=QUERY).rows for s in STATEMENTS] == expected


def test_each_replica_lies_on_a_node_of_its_own_with_the_map(db: ClusterDatabase, machines: Machines) -> None:
    assert [len(set(nodes)) for nodes in db.map.nodes] == [2, 2]
    held = [Path(ray_actors.folder_of(machines.data, s, n)) / "cluster.json" for s, n in db.map.replicas()]
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


def test_a_vector_column_is_added_to_shards_and_rows_that_lack_one_are_not_found(
    db: ClusterDatabase, tmp_path: Path
) -> None:
    made = [make_part(tmp_path / f"{n // 3}", rows=20 + n, number=n, text=n > 3) for n in range(6)]
    add = "ALTER TABLE grown ADD COLUMN IF NOT EXISTS text_embedding Array(Float32)"
    db.ingest(tmp_path / "0", table="grown")
    db.sql(add)
    db.sql(add)
    db.ingest(tmp_path / "1", table="grown")  # of its three parts one has no vectors of captions

    has = np.concatenate([np.full(20 + n, n > 3) for n in range(6)])
    vectors = np.concatenate([p.text for p in made if p.text is not None]).astype(np.float64)
    nearest = np.flatnonzero(has)[np.argsort(np.linalg.norm(vectors - QUERY, axis=1))]
    asked = "SELECT _row FROM grown ORDER BY L2Distance(text_embedding, {q:Array(Float32)}) LIMIT "
    assert [r[0] for r in db.sql(asked + "7", q=QUERY).rows] == nearest[:7].tolist()
    assert [r[0] for r in db.sql(asked + "999", q=QUERY).rows] == nearest.tolist()
    counted = db.sql("SELECT count(), countIf(empty(text_embedding)), sum(length(text_embedding)) FROM grown").rows
    assert counted == [(len(has), int((~has).sum()), 16 * len(vectors))]
    assert db.map.table("default", "grown").optional == ("text_embedding",)
    with pytest.raises(QueryError, match="has a column text_embedding already"):
        db.sql(add.replace(" IF NOT EXISTS", ""))
    db.sql("DROP TABLE grown")


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

    with pytest.raises(IngestError, match=r"has vectors of 8 numbers; image_embedding of default\.mixed holds 16"):
        db.ingest(tmp_path / "wide", table="mixed")
    with pytest.raises(IngestError, match=r"has a column extra that default\.mixed lacks"):
        db.ingest(tmp_path / "other", table="mixed")
    with pytest.raises(IngestError, match=r"has vectors of 8 numbers; image_embedding of default\.laion holds 16"):
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
        ray_actors.result(ray_actors.actor(ray_actors.actor_name(1, node)).__ray_call__.remote(change))
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
    told = subprocess.run(
        [sys.executable, "-c", again], capture_output=True, text=True, timeout=LAST_NET_SECONDS, check=False
    )

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

    with pytest.raises(ClusterError, match=rf"the shards run already: 2 with 2 replicas each, in {machines.data}"):
        ray_actors.coordinator(given["data"] or "", given["shards"], given["replicas"], anywhere=given["data"] is None)


def test_a_part_with_nan_is_refused_and_leaves_the_table_as_it_was(db: ClusterDatabase, tmp_path: Path) -> None:
    bad = make_part(tmp_path, rows=20, number=9, seed=5)
    vectors = np.load(bad.image_path)
    vectors[3, 2] = np.nan
    np.save(bad.image_path, vectors)

    with pytest.raises(IngestError, match="row 3"):
        db.ingest(tmp_path, table="laion")

    assert count(db) == (195, "2/2")
