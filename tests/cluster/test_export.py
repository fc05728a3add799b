"""Tables go to a ClickHouse server whole, go on where they stopped, and are checked; their DDL is ClickHouse's."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.cli.entry import main
from clipql.cluster import export as exporting
from clipql.cluster.ddl import create_cluster, create_local, described
from clipql.cluster.export import Server, export, target_of
from clipql.errors import QueryError, ServerError, UnknownTable
from tests.parts import make_part
from tests.patience import LAST_NET_SECONDS

COLUMNS = (
    "id UInt64, w Nullable(Int32), lang LowCardinality(Nullable(String)), tags Array(String), "
    "twice Int64 ALIAS id * 2, image_embedding Array(Float32)"
)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server that may write."""
    command = [sys.executable, "-m", "clipql", "--db", str(folder), "serve", "--port", "0", "--write"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().rstrip().rpartition(" at ")[2]
        yield url.replace("http://", "clickhouse://").rstrip("/")
    finally:
        process.terminate()
        process.wait(LAST_NET_SECONDS)
        process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server") / "db") as url:
        yield url


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    folder = tmp_path_factory.mktemp("source")
    make_part(folder / "parts", rows=300)
    with clipql.connect(folder / "db") as db:
        db.ingest(folder / "parts", table="laion")
        db.sql(f"CREATE TABLE odd ({COLUMNS}) ENGINE = MergeTree ORDER BY (id, tags)")
        values = ", ".join(
            f"({i}, {'NULL' if i % 5 == 0 else i}, {'NULL' if i % 3 == 0 else repr(str(i))}, ['x'], [{i}, 0.5])"
            for i in range(100)
        )
        db.sql(f"INSERT INTO odd VALUES {values}")
        yield db


def there(url: str, sql: str) -> list[list[str]]:
    """Rows of a statement on the server, as texts."""
    connection = Server(target_of(f"{url}/default.x"))
    try:
        return [line.split("\t") for line in connection.run(sql).splitlines()]
    finally:
        connection.close()


def test_a_table_arrives_with_its_vectors(db: clipql.Database, server: str) -> None:
    told: list[tuple[int, int]] = []

    report = export(db, "laion", f"{server}/copied.laion", block_rows=128, progress=lambda *n: told.append(n))

    assert (report.rows, report.sent, told) == (300, 300, [(128, 300), (256, 300), (300, 300)])
    query = "SELECT id, caption, image_embedding, text_embedding FROM {} ORDER BY id FORMAT TSV"
    expected = db.execute(query.format("laion")).output.data.decode().splitlines()
    connection = Server(target_of(f"{server}/x"))
    assert connection.run(query.format("copied.laion")).splitlines() == expected
    connection.close()


def test_what_is_there_is_not_sent_again(db: clipql.Database, server: str) -> None:
    export(db, "laion", f"{server}/default.twice", block_rows=100)

    assert export(db, "laion", f"{server}/default.twice", block_rows=100).sent == 0


def test_an_export_cut_short_goes_on(db: clipql.Database, server: str) -> None:
    class Cut(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 200:
            raise Cut

    with pytest.raises(Cut):
        export(db, "laion", f"{server}/default.cut", block_rows=100, progress=stop)

    report = export(db, "laion", f"{server}/default.cut", block_rows=100)

    assert (report.rows, report.sent) == (300, 100)


def test_nullable_low_cardinality_and_alias_columns_arrive(db: clipql.Database, server: str) -> None:
    report = export(db, "odd", f"{server}/default.odd", block_rows=30)

    assert report.rows == 100
    sql = "SELECT id, w, lang, tags, twice, image_embedding FROM odd WHERE id IN (14, 15) ORDER BY id FORMAT TSV"
    assert there(server, sql) == [line.split("\t") for line in db.execute(sql).output.data.decode().splitlines()]


def test_a_table_of_something_else_is_not_added_to(db: clipql.Database, server: str) -> None:
    export(db, "odd", f"{server}/default.other", block_rows=50)
    there(server, "DELETE FROM other WHERE id = 3")

    with pytest.raises(ServerError, match="has 99 rows, which is no number of whole blocks"):
        export(db, "odd", f"{server}/default.other", block_rows=50)


def test_a_value_that_differs_is_found_by_its_hash(db: clipql.Database, server: str) -> None:
    export(db, "odd", f"{server}/default.changed", block_rows=50)
    there(server, "DELETE FROM changed WHERE id = 99")
    there(server, "INSERT INTO changed (id, w, lang, tags, image_embedding) VALUES (99, 99, NULL, ['x'], [99, 0.25])")

    with pytest.raises(ServerError, match="what is there already is not the table's: 100 rows with hash"):
        export(db, "odd", f"{server}/default.changed", block_rows=50)


def test_an_address_without_a_server_or_of_another_kind_is_told(db: clipql.Database) -> None:
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:1/ does not answer"):
        export(db, "laion", "clickhouse://127.0.0.1:1/laion")
    with pytest.raises(ServerError, match=r"expected clickhouse://user:password@host:port/database\.table"):
        export(db, "laion", "http://127.0.0.1/laion")
    with pytest.raises(QueryError):
        export(db, "nothing", "clickhouse://127.0.0.1:1/laion")


def test_addresses_are_read_whole() -> None:
    found = target_of("clickhouses://me:p%40ss@db.example/big.laion")

    assert (found.url, found.user, found.password, found.name) == (
        "https://db.example:8443/", "me", "p@ss", "`big`.`laion`",
    )  # fmt: skip


def test_the_ddl_runs_in_clickhouse_and_its_index_is_used(db: clipql.Database) -> None:
    statement = create_local(described(db, "laion"), "`default`.`plain`")
    engine = db.registry.engine

    engine.run(statement)
    engine.run(
        "INSERT INTO plain SELECT id, url, caption, NSFW, similarity, image_embedding, text_embedding FROM laion"
    )
    vector = np.asarray(db.sql("SELECT image_embedding FROM laion WHERE id = 7").rows[0][0], np.float32)
    order = "ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 1"
    explained = engine.arrow(f"EXPLAIN indexes = 1 SELECT id FROM plain {order}", params={"q": vector})

    assert engine.scalar(f"SELECT id FROM plain {order}", params={"q": vector}) == 7
    assert any("near_image_embedding" in line for line in explained.column(0).to_pylist())


def test_the_ddl_of_a_cluster_is_replicated_and_distributed(db: clipql.Database) -> None:
    made = create_cluster(described(db, "odd"), "default", "odd", "three_by_two")

    database = "CREATE DATABASE IF NOT EXISTS `default` ON CLUSTER 'three_by_two'"
    local = (
        "CREATE TABLE IF NOT EXISTS `default`.`odd_local` ON CLUSTER 'three_by_two'\n(\n"
        "    `id` UInt64,\n    `w` Nullable(Int32),\n    `lang` LowCardinality(Nullable(String)),\n"
        "    `tags` Array(String),\n    `twice` Int64 ALIAS id * 2,\n    `image_embedding` Array(Float32),\n"
        "    INDEX `near_image_embedding` `image_embedding` TYPE vector_similarity('hnsw', 'cosineDistance', 2) "
        "GRANULARITY 100000000\n)\n"
        "ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/default/odd_local', '{replica}')\nORDER BY (id, tags)"
    )
    over = (
        "CREATE TABLE IF NOT EXISTS `default`.`odd` ON CLUSTER 'three_by_two' AS `default`.`odd_local`\n"
        "ENGINE = Distributed('three_by_two', 'default', 'odd_local', cityHash64(`id`))"
    )
    assert made == [database, local, over]
    for statement in made:  # ClickHouse's own parser takes each
        db.registry.engine.run(f"EXPLAIN AST {statement}")


def test_a_column_that_rows_lack_a_vector_in_is_exported_with_empty_arrays_and_no_index(
    db: clipql.Database, server: str
) -> None:
    db.sql("CREATE TABLE partly (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO partly SELECT number, [number, 1] FROM numbers(9)")
    db.sql("ALTER TABLE partly ADD COLUMN w Array(Float32), ADD COLUMN none Array(Float32)")
    db.sql("ALTER TABLE partly UPDATE w = [id, 1, 2] WHERE id % 3 = 1")
    shape = described(db, "partly")
    assert (shape.vectors, shape.lacking) == ({"v": 2, "w": 3, "none": 0}, ("w", "none"))
    made = create_local(shape, "`default`.`partly_copy`")
    assert [line.split()[1] for line in made.splitlines() if "INDEX" in line] == ["`near_v`"]
    engine = db.registry.engine
    engine.run(made)
    engine.run("INSERT INTO partly_copy SELECT id, v, w, none FROM partly")  # an index on w would refuse them
    assert engine.scalar("SELECT count() FROM partly_copy WHERE empty(w)") == 6
    arrays = "v Array(Float32), w Array(Float32), none Array(Float32)"
    there(server, f"CREATE TABLE partly_there (id UInt64, {arrays}) ENGINE = Memory")  # plain columns, as ClickHouse's
    assert export(db, "partly", f"{server}/default.partly_there").rows == 9
    assert there(server, "SELECT id, w FROM partly_there WHERE id < 2 ORDER BY id") == [["0", "[]"], ["1", "[1,1,2]"]]


def test_the_ddl_keeps_a_sorting_key_with_nulls(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE loose (w Nullable(Int32), v Array(Float32)) ENGINE = MergeTree ORDER BY w "
        "SETTINGS allow_nullable_key = 1"
    )

    made = create_local(described(db, "loose"), "`default`.`loose_copy`")

    assert made.endswith("ENGINE = MergeTree\nORDER BY w\nSETTINGS allow_nullable_key = 1")
    db.registry.engine.run(made)


def test_a_table_without_vectors_is_not_for_export(db: clipql.Database) -> None:
    db.sql("CREATE TABLE bare (id UInt64) ENGINE = MergeTree ORDER BY id")

    with pytest.raises(UnknownTable, match="bare has no vector columns"):
        described(db, "bare")


def test_the_command_line_prints_the_ddl(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", server.replace("clickhouse", "http"), "ddl", "--table", "copied.laion"]) == 0

    assert "TYPE vector_similarity('hnsw', 'cosineDistance', 16)" in capsys.readouterr().out
    assert exporting.BLOCK_ROWS == 10_000
