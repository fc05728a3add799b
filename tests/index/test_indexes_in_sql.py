"""Vector indexes as SQL sees them: made, built, used, passed over, dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.tables import index_entries
from tests.cases import some

ROWS, DIMENSION = 5_000, 16
KINDS = (
    "annoy()",
    "annoy('L2Distance', 20)",
    "usearch('L2Distance')",
    "hnsw('L2Distance', 16, 64)",
    "ivf('L2Distance')",
    "vector_similarity('hnsw', 'L2Distance', 16, 'bf16', 16, 64)",
    "flat('L2Distance')",
)


def vectors(seed: int, n: int = ROWS) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((50, DIMENSION))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 50, n)] + 0.4 * rng.standard_normal((n, DIMENSION))).astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    folder = tmp_path_factory.mktemp("indexes")
    image, text = vectors(1), vectors(2)
    for name, x in (("img", image), ("text", text)):
        np.save(folder / f"{name}_emb_0.npy", x)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"url": [f"u{i}" for i in range(ROWS)], "k": np.arange(ROWS) % 100}), folder / "metadata_0.parquet"
    )
    with pytest.MonkeyPatch.context() as patch, clipql.connect(folder / "db") as db:
        patch.setattr(index_entries, "UNCOVERED", 4_000)  # from so many rows on, an INSERT builds an index
        db.ingest(folder, table="laion")
        yield db


def nearest(db: clipql.Database, table: str, query: np.ndarray, more: str = "", where: str = "1") -> list[int]:
    statement = (
        f"SELECT id FROM {table} WHERE {where} ORDER BY L2Distance(image_embedding, {{q:Array(Float32)}}) LIMIT 10"
    )
    return [i for (i,) in db.sql(f"{statement} {more}", q=query).rows]


def explained(db: clipql.Database, table: str, metric: str = "L2Distance", way: str = "") -> str:
    statement = (
        f"EXPLAIN SELECT id FROM {table} ORDER BY {metric}(image_embedding, {{q:Array(Float32)}}) {way} LIMIT 10"
    )
    return "\n".join(line for (line,) in db.sql(statement, q=np.ones(DIMENSION)).rows)


def create(db: clipql.Database, name: str, *indexes: str) -> None:
    listed = "".join(f", INDEX {i}" for i in indexes)
    db.sql(f"DROP TABLE IF EXISTS {name}")
    db.sql(
        f"CREATE TABLE {name} (id UInt64, url String, k Int64, image_embedding Array(Float32), "
        f"text_embedding Array(Float32){listed}) ENGINE = MergeTree ORDER BY id SETTINGS index_granularity = 8192"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_of_an_index_is_built_and_used(db: clipql.Database, kind: str) -> None:
    create(db, "t", f"near image_embedding TYPE {kind} GRANULARITY 1000")
    db.sql("INSERT INTO t SELECT * FROM laion")
    db.wait_for_indexes()
    assert f"INDEX `near` `image_embedding` TYPE {kind} GRANULARITY 1000" in db.sql("SHOW CREATE TABLE t").rows[0][0]
    assert ("near (" in explained(db, "t")) == (not kind.startswith("flat"))
    hits = 0
    for query in vectors(3, 20):
        found, exact = nearest(db, "t", query), nearest(db, "t", query, "SETTINGS vector_index = 0")
        assert len(set(found)) == 10
        hits += len(set(found) & set(exact))
    assert hits >= 180


def test_the_tutorial_builds_its_annoy_indexes_and_uses_them(db: clipql.Database) -> None:
    create(db, "laion_annoy", "annoy_image image_embedding TYPE annoy()", "annoy_text text_embedding TYPE annoy()")
    db.sql("INSERT INTO laion_annoy SELECT * FROM laion;")
    db.wait_for_indexes()
    assert "annoy_image (annoy, L2Distance)" in explained(db, "laion_annoy")
    rows = db.sql(
        "SELECT name, type, rows_covered, state FROM clipql.indexes WHERE table = 'laion_annoy' ORDER BY name"
    ).rows
    assert rows == [("annoy_image", "annoy", ROWS, "in use"), ("annoy_text", "annoy", ROWS, "in use")]


def test_rows_that_came_after_the_build_are_found_and_deleted_ones_are_not(db: clipql.Database) -> None:
    create(db, "t", "near image_embedding TYPE ivf('L2Distance')")
    db.sql("INSERT INTO t SELECT * FROM laion")
    db.wait_for_indexes()
    query = vectors(4, 1)[0]
    db.sql(f"INSERT INTO t VALUES (777777, 'new', 1, {query.tolist()}, {query.tolist()})")
    assert nearest(db, "t", query)[0] == 777777
    assert "1 newer rows are scanned" in explained(db, "t")
    before = nearest(db, "t", query)
    db.sql(f"DELETE FROM t WHERE id IN ({before[0]}, {before[1]})")
    after = nearest(db, "t", query)
    assert len(after) == 10
    assert not set(before[:2]) & set(after)
    db.sql("OPTIMIZE TABLE t")
    assert "newer" not in explained(db, "t")
    db.sql("OPTIMIZE TABLE t FINAL")
    assert nearest(db, "t", query) == nearest(db, "t", query, "SETTINGS recall = 1")
    assert db.sql("SELECT rows, rows_covered FROM clipql.indexes WHERE table = 't'").rows == [(ROWS - 1, ROWS - 1)]


@pytest.mark.parametrize("kind", ["annoy('L2Distance', 20)", "hnsw('L2Distance', 16, 64)", "ivf('L2Distance')"])
@pytest.mark.parametrize(
    ("where", "matching"),
    some(
        [("k = 3", ROWS // 100), ("k < 90", ROWS // 10 * 9), ("id = 5", 1), ("id < 0", 0), ("k < 95 AND id > 20", 9)], 2
    ),
)
def test_a_filtered_search_gives_k_rows_whenever_k_qualify(
    db: clipql.Database, kind: str, where: str, matching: int
) -> None:
    if db.registry.find(None, "f") is None or kind.split("(")[0] != db.registry.find(None, "f").indexes[0].kind:  # type: ignore[union-attr]
        create(db, "f", f"near image_embedding TYPE {kind}")
        db.sql("INSERT INTO f SELECT * FROM laion")
        db.wait_for_indexes()
    query = vectors(5, 1)[0]
    found = nearest(db, "f", query, where=where)
    exact = nearest(db, "f", query, "SETTINGS vector_index = 0", where)
    assert len(found) == min(10, matching) or matching == 9
    assert len(found) == len(exact)
    assert len(set(found) & set(exact)) >= 0.7 * len(exact)


def test_a_range_search_by_an_index_finds_what_the_scan_finds(db: clipql.Database) -> None:
    create(db, "t", "near image_embedding TYPE ivf('L2Distance')")
    db.sql("INSERT INTO t SELECT * FROM laion")
    db.wait_for_indexes()
    statement = (
        "SELECT count() FROM t WHERE L2Distance(image_embedding, {q:Array(Float32)}) < 1.6 SETTINGS recall = 0.99"
    )
    for query in vectors(6, 5):
        found = db.sql(statement, q=query)
        exact = db.sql(statement + ", vector_index = 0", q=query)
        assert found.stats.searches[0].kind in ("range", "distances")
        assert found.rows[0][0] >= 0.95 * exact.rows[0][0]
        assert found.rows[0][0] <= exact.rows[0][0]


def test_an_index_by_another_metric_is_passed_over_and_explain_says_so(db: clipql.Database) -> None:
    create(db, "t", "near image_embedding TYPE ivf('cosineDistance')")
    db.sql("INSERT INTO t SELECT * FROM laion")
    db.wait_for_indexes()
    assert "near is by cosineDistance, the query by L2Distance" in explained(db, "t")
    assert "near (ivf, cosineDistance)" in explained(db, "t", "cosineDistance")
    assert "the farthest rows are asked for" in explained(db, "t", "cosineDistance", "DESC")


def test_indexes_are_added_built_cleared_and_dropped_by_alter(db: clipql.Database) -> None:
    create(db, "t")
    db.sql("INSERT INTO t SELECT * FROM laion LIMIT 3000")
    db.wait_for_indexes()
    db.sql("ALTER TABLE t ADD INDEX near image_embedding TYPE ivf('L2Distance') GRANULARITY 1")
    assert "near is not built yet: ALTER TABLE default.t MATERIALIZE INDEX near" in explained(db, "t")
    db.sql("ALTER TABLE t MATERIALIZE INDEX near")
    assert "near (ivf, L2Distance)" in explained(db, "t")
    db.sql("ALTER TABLE t CLEAR INDEX near")
    assert "not built" in explained(db, "t")
    db.sql("ALTER TABLE t DROP INDEX near")
    assert "no index on the column" in explained(db, "t")
    assert "INDEX" not in db.sql("SHOW CREATE TABLE t").rows[0][0]
    db.sql("ALTER TABLE t ADD INDEX plain k TYPE minmax GRANULARITY 1")
    assert "INDEX plain k TYPE minmax" in db.sql("SHOW CREATE TABLE t").rows[0][0]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE laion ADD INDEX i url TYPE ivf()", "url is no vector column of default.laion"),
        (
            "ALTER TABLE laion ADD INDEX i image_embedding TYPE kdtree()",
            "there is no type kdtree; vector indexes are annoy",
        ),
        (
            "ALTER TABLE laion ADD INDEX i image_embedding TYPE ivf('L7')",
            "there is no distance 'L7'; known are L2Distance",
        ),
        (
            "ALTER TABLE laion ADD INDEX i image_embedding TYPE annoy('L2Distance', 'x')",
            "trees = x; expected a whole number",
        ),
        (
            "ALTER TABLE laion ADD INDEX i image_embedding TYPE usearch('L2Distance', 'f7')",
            "there is no quantization 'f7'",
        ),
        ("ALTER TABLE laion ADD INDEX i image_embedding TYPE ivf('L2Distance', 1, 2)", "it got 3 arguments"),
        (
            "ALTER TABLE laion ADD INDEX i image_embedding TYPE vector_similarity('hnsw', 'L2Distance', 7)",
            "is for vectors of 7",
        ),
        ("ALTER TABLE laion MATERIALIZE INDEX nope", "nope"),
        ("SELECT 1 SETTINGS recall = 2", "recall = 2: expected more than 0 and at most 1"),
        ("SELECT 1 SETTINGS nprobe = 0", "nprobe = 0: expected a whole number of at least 1"),
        ("SELECT 1 SETTINGS rescore = 'many'", "rescore = 'many': expected a whole number"),
        (
            "CREATE TABLE x (v Array(Float32), INDEX i w TYPE ivf()) ENGINE = MergeTree ORDER BY tuple()",
            "w is no vector column",
        ),
        ("CREATE TABLE x (v Array(Float32), INDEX i v TYPE ivf()) ENGINE = Memory", "x has no vector column"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(db: clipql.Database, statement: str, message: str) -> None:
    with pytest.raises(clipql.ClipqlError) as caught:
        db.sql(statement)
    assert message in str(caught.value)
    assert db.sql("EXISTS TABLE x").rows == [(0,)]
    assert db.sql("SELECT count() FROM clipql.indexes WHERE table = 'laion'").rows == [(0,)]


def test_too_few_rows_are_scanned_and_the_listing_says_so(db: clipql.Database) -> None:
    create(db, "t", "near image_embedding TYPE ivf('L2Distance')")
    db.sql("INSERT INTO t SELECT * FROM laion LIMIT 200")
    db.wait_for_indexes()
    db.sql("OPTIMIZE TABLE t")
    assert db.sql("SELECT state FROM clipql.indexes WHERE table = 't'").rows == [("too few rows, exact scan",)]
    assert len(nearest(db, "t", vectors(7, 1)[0])) == 10


@pytest.mark.parametrize("kind", ["annoy('L2Distance', 20)", "hnsw('L2Distance', 16, 64)", "ivf('L2Distance')"])
def test_a_damaged_index_is_named_passed_over_and_rebuilt_on_request(
    tmp_path: Path, db: clipql.Database, kind: str
) -> None:
    create(db, "d", f"near image_embedding TYPE {kind}")
    db.sql("INSERT INTO d SELECT * FROM laion LIMIT 4500")
    db.wait_for_indexes()
    query = vectors(8, 1)[0]
    exact = nearest(db, "d", query, "SETTINGS vector_index = 0")
    entry = db.registry.find(None, "d").indexes[0]  # type: ignore[union-attr]
    folder = db.indexes.folder(entry)
    victim = max((f for f in folder.iterdir() if f.suffix != ".json"), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-100])
    db.indexes.close_all()
    assert nearest(db, "d", query) == exact
    assert str(victim.name) in explained(db, "d")
    assert "damaged" in db.sql("SELECT state FROM clipql.indexes WHERE table = 'd'").rows[0][0]
    db.sql("ALTER TABLE d MATERIALIZE INDEX near")
    assert f"near ({entry.kind}" in explained(db, "d")
