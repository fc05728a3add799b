"""A folder of somebody else's, a backup or a database, leads nowhere: what lies elsewhere stays as it is, unread."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from parts import make_part

import clipql
from clipql.care.backup import INSIDE, LISTING, restore
from clipql.errors import ClipqlError, DatabaseDamaged, DiskFull, NotADatabase, StorageError
from clipql.index import folder as index_folder
from clipql.storage import catalog, strays
from clipql.storage.catalog import Catalog, Table

SECRET = b"do not touch"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database `db`, closed, and a backup of it, `copy`."""
    folder = tmp_path_factory.mktemp("whole")
    with clipql.connect(folder / "db") as db:
        db.sql(
            "CREATE TABLE t (id UInt32, c String, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) "
            "ENGINE = MergeTree ORDER BY id"
        )
        db.sql("INSERT INTO t SELECT number, 'c', [number % 7, number % 11, number % 13, 1] FROM numbers(1500)")
        db.sql("ALTER TABLE t MATERIALIZE INDEX near")
        db.backup(folder / "copy")
    return folder


@pytest.fixture
def given(whole: Path, tmp_path: Path) -> Path:
    """A copy of that, and a folder `victim` beside it."""
    for name in ("db", "copy"):
        shutil.copytree(whole / name, tmp_path / name, symlinks=True)
    (tmp_path / "victim" / "inner").mkdir(parents=True)
    for name in ("a.txt", "inner/b.npy", "format_version.txt", "listing-3.json"):
        (tmp_path / "victim" / name).write_bytes(SECRET)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def listed_anew(backup: Path) -> None:
    """Write the listing of a backup as whoever made it would: with everything that lies there."""
    files = {}
    inside = backup / INSIDE
    for place, folders, names in os.walk(inside):
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(place, f)))]:
            path = Path(place, name)
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            files[str(path.relative_to(inside))] = [len(content), xxhash.xxh3_128_hexdigest(content)]
    listing = json.dumps({"clipql_version": "0", "files": files}, separators=(",", ":"))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    document = {"clipql": "backup", "format": 1, "hash": digest, "listing": listing}
    (backup / LISTING).write_text(json.dumps(document))


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    """Put something else in the place of a file or folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# where a link is put, and where it leads to
LINKS = {
    "among the segments": ("vectors/t-1/evil", "../../../victim"),
    "in the place of a column": ("vectors/t-1/column-0", "../../../victim/inner"),
    "in the place of a table": ("vectors/t-1", "../../victim"),
    "as a table that is gone": ("vectors/gone", "../../victim"),
    "in the place of all vectors": ("vectors", "../victim"),
    "in the place of all indexes": ("index", "../victim"),
    "as an index": ("index/t-1/evil", "../../../victim"),
    "in the place of the row files": ("rows", "../victim"),
    "as a row file": ("rows/evil", "../../victim"),
    "for the lock": ("lock", "../victim/a.txt"),
    "for the next manifest": ("manifest.json.tmp", "../victim/a.txt"),
    "for the manifest": ("manifest.json", "../victim/a.txt"),
    "for servers": ("tmp", "../victim"),
    "for parts that come": ("incoming", "../victim"),
    "for ClickHouse": ("engine", "../victim"),
    "as a table of ClickHouse's": ("engine/data/default/evil", "../../../../victim"),
    "with an absolute path": ("engine/data/default/evil", "/tmp"),
    "down and up again": ("engine/data/default/evil", "../../store/../../../victim"),
    "in what ClickHouse removes": ("engine/store/evil/tmp_merge_all_1_1_0", "../../../../victim"),
    "to the folder itself": ("engine/data/default/evil", "../../.."),
    "by backslashes": ("engine/data/default/evil", "..\\..\\victim"),
}


@pytest.mark.parametrize("where", LINKS)
def test_a_link_that_leaves_a_backup_is_refused(given: Path, where: str) -> None:
    name, target = LINKS[where]
    replaced(given / "copy" / INSIDE / name, to(target))
    listed_anew(given / "copy")
    before = contents(given / "victim")
    with pytest.raises(ClipqlError, match=f"{given}/copy/database/{name} is a symbolic link to"):
        restore(given / "copy", given / "again")
    assert not list(given.glob("*again*"))
    assert contents(given / "victim") == before


@pytest.mark.parametrize("where", LINKS)
def test_a_link_that_leaves_a_database_is_never_followed(given: Path, where: str) -> None:
    name, target = LINKS[where]
    replaced(given / "db" / name, to(target))
    before = contents(given / "victim")
    with pytest.raises(StorageError, match=f"{given}/db/{name}"):
        clipql.connect(given / "db")
    if where == "for the lock":
        with pytest.raises(StorageError, match="lock"):
            clipql.check(given / "db", deep=True)
    else:
        assert f"{given}/db/{name} is a symbolic link to {target}" in str(clipql.check(given / "db", deep=True))
    with pytest.raises(DatabaseDamaged, match=f"{given}/db/{name} is a symbolic link to"):
        clipql.connect(given / "db", read_only=True)
    assert contents(given / "victim") == before


def test_links_that_come_while_a_database_is_open_are_not_followed_either(given: Path) -> None:
    before = contents(given / "victim")
    with clipql.connect(given / "db") as db:
        for name, target in (("vectors/gone", "../../victim"), ("rows/gone", "../../victim")):
            (given / "db" / name).symlink_to(target)
        with pytest.raises(DatabaseDamaged, match="is a symbolic link to"):
            db.backup(given / "second")
        assert {f.what for f in db.check().findings} == {"folder"}
    assert not list(given.glob("*second*"))
    assert contents(given / "victim") == before


@pytest.mark.parametrize("name", ["vectors/t-1/column-0/000000000000-9-9.npy", "manifest.json", "engine/data/pipe"])
def test_pipes_are_not_waited_for(given: Path, name: str) -> None:
    for folder in (given / "db", given / "copy" / INSIDE):
        replaced(folder / name, os.mkfifo)
    listed_anew(given / "copy")
    with pytest.raises(DatabaseDamaged, match=f"{name} is neither a file nor a folder"):
        restore(given / "copy", given / "again")
    with pytest.raises(DatabaseDamaged, match=f"{name} is neither a file nor a folder"):
        clipql.connect(given / "db")
    assert "neither a file nor a folder" in str(clipql.check(given / "db"))


def test_a_backup_whose_listing_or_folder_lies_elsewhere_is_none(given: Path) -> None:
    for name in (INSIDE, LISTING):
        os.rename(given / "copy" / name, given / name)
        (given / "copy" / name).symlink_to(given / name)
        with pytest.raises(NotADatabase, match="is no backup of clipql"):
            restore(given / "copy", given / "again")
        (given / "copy" / name).unlink()
        os.rename(given / name, given / "copy" / name)
    os.rename(given / "copy" / LISTING, given / LISTING)
    os.mkfifo(given / "copy" / LISTING)
    with pytest.raises(NotADatabase, match="is no backup of clipql"):
        restore(given / "copy", given / "again")


@pytest.mark.parametrize("listing", ["[" * 100_000, '{"files":' * 50_000, '{"files": [1]}', '{"files": {"a": 3}}', "7"])
def test_an_odd_listing_is_refused(given: Path, listing: str) -> None:
    digest = hashlib.sha256(listing.encode()).hexdigest()
    document = {"clipql": "backup", "format": 1, "hash": digest, "listing": listing}
    (given / "copy" / LISTING).write_text(json.dumps(document))
    with pytest.raises(DatabaseDamaged, match=r"backup\.json cannot be read"):
        restore(given / "copy", given / "again")


BAD_NAMES: list[Any] = ["/etc", "..", ".", "", "a/b", "..\\victim", "a\0b", "x" * 300, 7, None, ["a"], "../../victim"]


@pytest.mark.parametrize("field", ["id", "column", "segment", "index", "row file", "listing", "pending"])
def test_a_manifest_names_nothing_outside_its_folder(given: Path, field: str) -> None:
    before = contents(given / "victim")
    (table,) = catalog.load(given / "db").tables
    for name in BAD_NAMES:
        catalog.save(given / "db", naming(table, field, name))
        with pytest.raises(DatabaseDamaged, match=r"manifest\.json has a right hash and does not hold a catalog"):
            catalog.load(given / "db")
    shutil.copy(given / "db" / catalog.NAME, given / "copy" / INSIDE / catalog.NAME)
    listed_anew(given / "copy")
    with pytest.raises(DatabaseDamaged, match="does not hold a catalog"):
        clipql.connect(given / "db")
    with pytest.raises(DatabaseDamaged, match="does not hold a catalog"):
        restore(given / "copy", given / "again")
    assert clipql.check(given / "db").findings[0].what == "manifest"
    assert contents(given / "victim") == before


def test_a_reader_says_what_is_missing(given: Path) -> None:
    (segment,) = (given / "db").glob("vectors/t-1/column-0/*.npy")
    segment.unlink()
    with pytest.raises(DatabaseDamaged, match=f"{segment} is missing"):
        clipql.connect(given / "db", read_only=True)


def test_a_file_that_the_disk_cannot_hold_twice_is_not_copied_by_a_reader(given: Path) -> None:
    with open(given / "db" / "engine" / "huge", "wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(DiskFull, match=r"engine/huge has 8,796,093,022,208 bytes, which a reader copies"):
        clipql.connect(given / "db", read_only=True)


ODD: list[Any] = [
    None, True, -1, 1 << 63, 10**400, float("nan"), float("inf"), -float("inf"), "", "x", "9" * 5_000, "\ud800",
    [], {}, [[]], [1], {"a": 1},
]  # fmt: skip


def altered(value: Any) -> Iterator[None]:
    """Stop with something odd in the place of each thing in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(min(len(value), 1)):
        kept = value[key]
        for odd in ODD:
            value[key] = odd
            yield
        value[key] = kept
        if isinstance(kept, (dict, list)):
            yield from altered(kept)


def test_a_manifest_of_other_types_is_damaged(whole: Path) -> None:
    path = whole / "db" / catalog.NAME
    document = json.loads(path.read_text())
    body = json.loads(document["catalog"])
    (table,) = body["tables"]
    refused = 0
    for kind in (
        "insert",
        "create",
        "drop",
        "replace",
        "truncate",
        "rename",
        "alter",
        "rewrite",
        "vectors",
        "x",
        ["x"],
    ):
        for before, after, told in itertools.product((None, table), (None, table), (None, ["a", "b"], ["a"], "ab")):
            body["pending"] = {"kind": kind, "before": before, "after": after, "definitions": told}
            refused += not parsed(path, document, body)
    assert refused == 11 * 16 - 9  # each kind but the odd ones has one form
    body["pending"] = None
    tried = 0
    for _ in altered(body):
        tried += 1
        refused += not parsed(path, document, body)
    assert parsed(path, document, body)
    assert tried > 500
    assert refused > tried // 2
    assert not parsed(path, document, {**body, "tables": [table, table]})
    (index,) = table["indexes"]
    for odd in ({"column": "w"}, {"metric": "x"}, {"kind": "x"}, {"recall": {"image": "x"}}):
        assert not parsed(path, document, {**body, "tables": [{**table, "indexes": [{**index, **odd}]}]})


def parsed(path: Path, document: dict[str, Any], body: Any) -> bool:
    """Whether it is a catalog, and otherwise damaged."""
    text = json.dumps(body)
    content = json.dumps({**document, "hash": hashlib.sha256(text.encode()).hexdigest(), "catalog": text})
    try:
        catalog.parsed(path, content.encode())
    except DatabaseDamaged:
        return False
    return True


def naming(table: Table, field: str, name: Any) -> Catalog:
    """A catalog in which something of the table has another name."""
    (column,), (index,), rows = table.columns, table.indexes, table.row_file
    assert rows is not None
    if field == "pending":
        return Catalog((table,), catalog.Pending("drop", replace(table, id=name), None))
    if field == "segment":
        column = replace(column, segments=(replace(column.segments[0], file=name),))
    changes: dict[str, dict[str, Any]] = {
        "id": {"id": name},
        "column": {"columns": (replace(column, folder=name),)},
        "segment": {"columns": (column,)},
        "index": {"indexes": (replace(index, folder=f"t-1/{name}/near-4" if name in ("a/b", None) else name),)},
        "row file": {"row_file": replace(rows, folder=name)},
        "listing": {"row_file": replace(rows, listing=name)},
    }
    return Catalog((replace(table, **changes[field]),))


@pytest.mark.parametrize("name", ["../../../victim/a.txt", "/etc/passwd", "a\0b", ""])
def test_an_index_and_a_row_file_name_only_their_own_files(given: Path, name: str) -> None:
    (place,) = (given / "db" / "index" / "t-1").iterdir()
    meta = index_folder.read_meta(place)
    index_folder.write_meta(place, {**meta, "files": {**meta["files"], name: {"size": 12, "xxh3": "", "head": ""}}})
    with pytest.raises(DatabaseDamaged, match=r"meta\.json does not list its files"):
        index_folder.verify(place)
    (rows,) = (given / "db" / "rows").iterdir()
    (listing,) = rows.glob("listing-*")
    told = json.loads(listing.read_text())
    told["columns"][0]["values"]["file"] = name
    listing.write_text(json.dumps(told))
    with clipql.connect(given / "db") as db:
        why = db.sql("SELECT state FROM clipql.indexes").rows
        assert db.sql("SELECT id FROM t ORDER BY L2Distance(v, [1, 1, 1, 1]) LIMIT 1").rows
        found = {f.what: f.problem for f in db.check().findings}
    assert "does not list its files" in found["index"], why
    assert "none of its folder" in found["row file"] or "does not match its hash" in found["row file"]


def test_an_index_of_right_hashes_over_nonsense_is_out_of_use(given: Path) -> None:
    (place,) = (given / "db" / "index" / "t-1").iterdir()
    meta = index_folder.read_meta(place)
    for change in ({"metric": "x"}, {"rows": "many"}, {"code_error": None}, {"files": {}}):
        index_folder.write_meta(place, {**meta, **change})
        with clipql.connect(given / "db") as db:
            assert db.sql("SELECT id FROM t ORDER BY L2Distance(v, [1, 1, 1, 1]) LIMIT 1").rows
            assert {f.what for f in db.check().findings} == {"index"}


def test_hard_links_are_not_written_into(given: Path) -> None:
    for name in ("lock", "manifest.json.tmp"):
        replaced(given / "db" / name, lambda path: os.link(given / "victim" / "a.txt", path))
        if name == "lock":
            with pytest.raises(StorageError, match="lock is no file of its own"):
                clipql.connect(given / "db")
            (given / "db" / name).unlink()
    with clipql.connect(given / "db") as db:
        db.sql("INSERT INTO t VALUES (2000, 'c', [1, 2, 3, 4])")
    assert (given / "victim" / "a.txt").read_bytes() == SECRET


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A database with linked parts, and a backup that leaves them where they lie."""
    make_part(tmp_path / "parts", rows=12, dimension=4)
    with clipql.connect(tmp_path / "db") as db:
        db.ingest(tmp_path / "parts", link=True)
        db.backup(tmp_path / "copy", keep_links=True)
    return tmp_path


def test_a_linked_file_is_the_one_that_the_manifest_names(linked: Path) -> None:
    (image,) = linked.glob("parts/**/img_emb_0.npy")
    kept = image.with_name("moved.npy")
    os.rename(image, kept)
    for make in (lambda path: path.symlink_to(kept), os.mkfifo, lambda path: np.save(path, np.load(kept) + 1)):
        replaced(image, make)
        with pytest.raises(DatabaseDamaged, match=str(image)):
            restore(linked / "copy", linked / "again")
        with pytest.raises(DatabaseDamaged, match=str(image)):
            clipql.connect(linked / "db")
        assert str(image) in str(clipql.check(linked / "db"))
        assert not list(linked.glob("*again*"))
    image.unlink()
    restore(linked / "copy", linked / "again")  # may come later
    os.rename(kept, image)
    clipql.connect(linked / "again").close()


@pytest.mark.parametrize("file", ["img.npy", "../img.npy", "/parts/../img.npy", "/a\0b"])
def test_a_linked_file_has_an_absolute_address(linked: Path, file: str) -> None:
    found = catalog.load(linked / "db")
    (table,) = found.tables
    column = table.columns[0]
    other = replace(column, segments=(replace(column.segments[0], file=file),))
    catalog.save(linked / "db", Catalog((replace(table, columns=(other, *table.columns[1:])),)))
    with pytest.raises(DatabaseDamaged, match="is no address of a linked file"):
        clipql.connect(linked / "db")


def test_names_are_of_one_place() -> None:
    assert all(strays.is_name(name) for name in ("a", "t-1", "..a", "a..", "Ω", "a b", "x" * 255))
    assert not any(strays.is_name(name) for name in BAD_NAMES)
