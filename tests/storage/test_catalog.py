"""The manifest: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clipql
from clipql.errors import DatabaseDamaged, DatabaseVersion, NotADatabase
from clipql.storage import catalog, strays
from clipql.storage.catalog import Catalog, Part, Pending, Segment, Table, VectorColumn

TEXT = st.text(max_size=8)
NAMES = st.text(min_size=1, max_size=8).filter(strays.is_name)
COUNTS = st.integers(0, 2**62)
SEGMENTS = st.builds(
    Segment,
    file=NAMES,
    first=COUNTS,
    rows=COUNTS,
    dimension=st.integers(1, 4096),
    dtype=st.sampled_from(["float16", "float32"]),
    offset=COUNTS,
    largest=st.floats(0, allow_nan=False, allow_infinity=False),
    hash=TEXT,
).flatmap(lambda s: st.sampled_from([s, dataclasses.replace(s, linked=True, file=f"/data/{s.file}")]))
COLUMNS = st.builds(
    VectorColumn,
    TEXT,
    NAMES,
    st.none() | st.integers(1, 4096),
    st.none() | TEXT,
    st.lists(SEGMENTS, max_size=3).map(tuple),
)
TABLES = st.builds(
    Table,
    database=TEXT,
    name=TEXT,
    id=NAMES,
    columns=st.lists(COLUMNS, max_size=3).map(tuple),
    rows=COUNTS,
    parts=st.lists(st.builds(Part, TEXT, COUNTS, COUNTS, TEXT), max_size=2).map(tuple),
)
TWO = ["insert", "truncate", "rename", "rewrite", "vectors"]
PENDING = st.one_of(
    st.builds(Pending, st.sampled_from(TWO), TABLES, TABLES),
    st.builds(Pending, st.just("alter"), TABLES, TABLES, st.tuples(TEXT, TEXT)),
    st.builds(Pending, st.just("create"), st.none(), TABLES),
    st.builds(Pending, st.sampled_from(["drop", "replace"]), TABLES, st.none()),
)
SEVERAL = st.lists(TABLES, max_size=3, unique_by=lambda table: table.id).map(tuple)
CATALOGS = st.builds(Catalog, SEVERAL, st.none() | PENDING, COUNTS)


@given(CATALOGS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_catalog_is_read_back_as_it_was_written(tmp_path: Path, given_catalog: Catalog) -> None:
    catalog.save(tmp_path, given_catalog)
    assert catalog.load(tmp_path) == given_catalog


def test_every_field_of_the_catalog_takes_part_in_the_round_trip(tmp_path: Path) -> None:
    segment = Segment("/data/a.npy", 0, 3, 4, "float16", 128, 1.5, "ab", True)
    column = VectorColumn("v", "column-0", 4, "ViT-B/32", (segment,))
    table = Table("default", "t", "t-1", (column,), 3, (Part("k", 0, 3, "f"),))
    whole = Catalog((table,), Pending("alter", table, dataclasses.replace(table, rows=4), ("a", "b")), 7)
    catalog.save(tmp_path, whole)
    found = catalog.load(tmp_path)
    assert found == whole
    assert hash(found) == hash(whole), "lists have come back as tuples"


def test_a_catalog_finds_tables_by_name_and_id_and_replaces_them_by_id() -> None:
    one, two = Table("default", "one", "one-1", ()), Table("other", "one", "one-2", ())
    both = Catalog().with_table(one).with_table(two)
    assert both.table("other", "one") == two
    assert both.by_id("one-1") == one
    assert both.table("default", "two") is None
    renamed = dataclasses.replace(one, name="two")
    assert both.with_table(renamed).table("default", "two") == renamed
    assert both.with_table(renamed).table("default", "one") is None
    assert both.without("one-2").tables == (one,)


def change(folder: Path, **fields: Any) -> None:
    path = folder / catalog.NAME
    document = json.loads(path.read_text())
    document.update(fields)
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


DAMAGE = [
    ({"format": 3}, DatabaseVersion, "is in format 3, this clipql reads up to 2: upgrade clipql"),
    ({"format": "x"}, DatabaseVersion, "is in format x, this clipql reads up to 2"),
    ({"hash": "0" * 64}, DatabaseDamaged, "manifest.json does not match its own hash, so it was altered: restore it"),
    ({"catalog": '{"tables":[]}'}, DatabaseDamaged, "does not match its own hash"),
    ({"catalog": None}, DatabaseDamaged, "does not match its own hash"),
    ({"clipql": "something"}, NotADatabase, "manifest.json is not a clipql manifest: name another folder"),
]


@pytest.mark.parametrize(("fields", "error", "message"), DAMAGE)
def test_an_altered_manifest_is_refused_with_the_reason(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    clipql.connect(tmp_path).close()
    change(tmp_path, **fields)
    before = (tmp_path / catalog.NAME).read_bytes()
    with pytest.raises(error) as caught:
        clipql.connect(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / catalog.NAME).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"clipql": "manif'])
def test_a_manifest_that_is_not_json_is_damaged(tmp_path: Path, content: bytes) -> None:
    clipql.connect(tmp_path).close()
    (tmp_path / catalog.NAME).write_bytes(content)
    with pytest.raises(DatabaseDamaged, match=f"{tmp_path}/manifest.json is not JSON"):
        clipql.connect(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"3", b'"clipql"', b'{"name": "my-app"}'])
def test_a_manifest_of_something_else_is_not_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / catalog.NAME).write_bytes(content)
    with pytest.raises(NotADatabase, match="is not a clipql manifest: name another folder"):
        clipql.connect(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["manifest.json"], ["lock", "manifest.json"])


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("picture")
    with pytest.raises(NotADatabase, match=r"holds holiday\.jpg but no manifest\.json, so clipql did not make it"):
        clipql.connect(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "laion.db"
    path.write_text("")
    with pytest.raises(NotADatabase, match=r"laion\.db is a file; a database is a folder"):
        clipql.connect(path)


def test_a_database_without_its_manifest_is_refused(tmp_path: Path) -> None:
    clipql.connect(tmp_path).close()
    (tmp_path / catalog.NAME).unlink()
    with pytest.raises(NotADatabase, match=r"holds engine but no manifest\.json"):
        clipql.connect(tmp_path)


def test_half_written_files_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    (segment,) = tmp_path.glob("vectors/*/*/*")
    strays = [tmp_path / "manifest.json.tmp", segment.with_name("000000000001-9-0.npy.tmp"), segment.with_name("x.npy")]
    for stray in strays:
        stray.write_bytes(b"half")
    (tmp_path / "vectors" / "gone-9" / "column-0").mkdir(parents=True)
    with clipql.connect(tmp_path) as db:
        assert db.sql("SELECT * FROM t").rows == [(1, [1.0, 2.0])]
    assert not any(stray.exists() for stray in strays)
    assert list(tmp_path.glob("vectors/*/*/*")) == [segment]
    assert not (tmp_path / "vectors" / "gone-9").exists()


def test_an_empty_folder_and_one_that_a_first_open_left_half_made_are_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 (gone)")
    (tmp_path / "manifest.json.tmp").write_text("{")
    with clipql.connect(tmp_path) as db:
        assert db.sql("SHOW TABLES").rows == []
    assert not (tmp_path / "manifest.json.tmp").exists()


def filled(folder: Path) -> None:
    with clipql.connect(folder) as db:
        db.sql("CREATE TABLE t (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t VALUES (1, [1, 2])")


def test_an_older_manifest_than_the_table_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path)
    old = (tmp_path / catalog.NAME).read_bytes()
    with clipql.connect(tmp_path) as db:
        db.sql("INSERT INTO t VALUES (2, [3, 4])")
    segments = {p: p.read_bytes() for p in tmp_path.glob("vectors/*/*/*")}
    (tmp_path / catalog.NAME).write_bytes(old)
    with pytest.raises(DatabaseDamaged, match=r"default\.t has 1 rows beyond the 1 of the manifest"):
        clipql.connect(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.glob("vectors/*/*/*")} == segments, "nothing is removed unasked"


def test_a_manifest_that_lacks_a_table_is_noticed(tmp_path: Path) -> None:
    clipql.connect(tmp_path).close()
    old = (tmp_path / catalog.NAME).read_bytes()
    filled(tmp_path)
    (tmp_path / catalog.NAME).write_bytes(old)
    with pytest.raises(DatabaseDamaged, match=r"table default\.t is in engine/ but not in the manifest"):
        clipql.connect(tmp_path)


def test_a_table_that_the_engine_lost_is_noticed_by_name(tmp_path: Path) -> None:
    filled(tmp_path)
    with clipql.connect(tmp_path) as db:
        db.registry.engine.run("DROP TABLE default.t SYNC")
    with pytest.raises(DatabaseDamaged, match=r"table default\.t is in the manifest but not in engine/"):
        clipql.connect(tmp_path)


def test_a_database_can_be_moved(tmp_path: Path) -> None:
    filled(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    with clipql.connect(tmp_path / "there") as db:
        assert db.sql("SELECT * FROM t").rows == [(1, [1.0, 2.0])]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def mutate(value: Any, luck: Any, replacement: Any) -> Any:
    """The value with one place in it taken away or put in another's place."""
    places: list[tuple[Any, Any]] = []
    rest = [value]
    while rest:
        inner = rest.pop()
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            places.append((inner, key))
            rest.append(inner[key])
    inner, key = places[luck.randrange(len(places))]
    if luck.random() < 0.3:
        del inner[key]
    else:
        inner[key] = replacement
    return value


@given(CATALOGS, st.randoms(use_true_random=False), JSON)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_catalog_of_another_shape_with_a_right_hash_is_damaged_or_read(
    tmp_path: Path, given_catalog: Catalog, luck: Any, replacement: Any
) -> None:
    catalog.save(tmp_path, given_catalog)
    document = json.loads((tmp_path / catalog.NAME).read_text())
    body = json.dumps(mutate(json.loads(document["catalog"]), luck, replacement))
    (tmp_path / catalog.NAME).write_text(json.dumps(document | {"catalog": body, "hash": catalog._hash(body)}))
    said = "has a right hash and does not hold a catalog"
    try:
        assert isinstance(catalog.load(tmp_path), Catalog)
    except DatabaseDamaged as error:
        said = str(error)
    assert "has a right hash and does not hold a catalog" in said


@given(st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_manifest_of_any_content_gives_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / catalog.NAME).write_bytes(content)
    with pytest.raises(clipql.errors.StorageError):
        catalog.load(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000])
def test_a_manifest_that_is_nested_too_deep_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / catalog.NAME).write_bytes(content)
    with pytest.raises(DatabaseDamaged, match="is not JSON"):
        catalog.load(tmp_path)
