"""`clipql backup` and `clipql restore`: a copy of a database as it was at one moment, listed and hashed.

A backup is a folder: `database/`, which is a database folder as it stands, and `backup.json`, which lists its files
with sizes and hashes. What must stay true: the copy is of one moment, though queries and inserts run; a backup is
there, whole, synced and read back, under its name, or not at all; nothing that exists is overwritten.

How one moment is had: under the write lock, segments, indexes and row files, which never change, are hard-linked into
a folder of the database beside them, ClickHouse FREEZEs its tables (hard links too), and definitions and the manifest
are copied. That takes milliseconds a thousand files; then the lock is let go, and the copying begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipql.care.copying import Tick, copy_tree, hashed, sync_tree, walk
from clipql.engine.quoting import quote_name
from clipql.errors import DatabaseDamaged, DatabaseVersion, NotADatabase, StorageError
from clipql.storage import catalog, files, strays
from clipql.storage.catalog import Catalog, Segment
from clipql.storage.vectors import segments
from clipql.tables import recover
from clipql.version import __version__

if TYPE_CHECKING:
    from clipql.tables.open_database import OpenDatabase

FORMAT = 1
LISTING, INSIDE = "backup.json", "database"
_LARGEST_LISTING = 1 << 30  # some millions of files
_NOT_COPIED = ("shadow", "tmp", "metadata_dropped")


@dataclass(frozen=True)
class BackupReport:
    """What was copied. held_seconds: how long writers had to wait."""

    path: Path
    files: int
    bytes: int
    seconds: float
    held_seconds: float = 0.0


def backup(
    db: OpenDatabase,
    path: str | os.PathLike[str],
    *,
    keep_links: bool = False,
    hard_links: bool = False,
    progress: Tick | None = None,
) -> BackupReport:
    """Copy an open database into a new folder. Queries run on meanwhile, and inserts but for a moment.

    keep_links: leave linked parts (`ingest --link`) where they lie, so that the backup needs them; otherwise they are
    copied into it. hard_links: link what never changes instead of copying it: quick and small, but no help where the
    disk itself fails. progress: told (what, bytes done, bytes in all).
    Raises StorageError where the folder exists, DatabaseDamaged where a segment is not what was written, DiskFull.
    """
    began, place = time.perf_counter(), Path(path).absolute()
    _refuse_existing(place)
    with _staged(db) as stage, _building(place) as made:
        with db.registry.write_lock:
            held = time.perf_counter()
            strays.refuse(db.registry.folder)
            found = _hold(db, stage, keep_links=keep_links)
            held = time.perf_counter() - held
        listing = copy_tree(stage, made / INSIDE, hard_links, progress, ours=True)
        _verify_segments(made / INSIDE, found)
        _write_listing(made, listing)
        sync_tree(made)
        verify(made)
    return BackupReport(
        place, len(listing), sum(size for size, _ in listing.values()), time.perf_counter() - began, held
    )


def restore(
    source: str | os.PathLike[str], path: str | os.PathLike[str], *, progress: Tick | None = None
) -> BackupReport:
    """Make a database of a backup, which is checked first. The folder must not exist.

    Raises NotADatabase for a folder that is no backup, DatabaseDamaged where a file is not what was written, or where
    the backup would lead out of its folder (by a symbolic link, or by a name in its manifest), DiskFull.
    """
    began, place, source = time.perf_counter(), Path(path).absolute(), Path(source).absolute()
    _refuse_existing(place)
    listing = verify(source)
    _verify_linked(source / INSIDE)
    with _building(place) as made:
        copied = copy_tree(source / INSIDE, made, False, progress)
        if copied != listing:
            raise DatabaseDamaged(f"{source} changed while it was copied: try again")
        sync_tree(made)
    return BackupReport(place, len(listing), sum(size for size, _ in listing.values()), time.perf_counter() - began)


def verify(path: str | os.PathLike[str]) -> dict[str, tuple[int, str]]:
    """Read a whole backup and compare it with its listing, which is returned: size and xxh3-128 of each file.

    Raises NotADatabase, DatabaseVersion, or DatabaseDamaged, naming the first file that differs.
    """
    place = Path(path).absolute()
    listing = _read_listing(place)
    if (place / INSIDE).is_symlink() or not (place / INSIDE).is_dir():
        raise NotADatabase(f"{place} is no backup of clipql: it has no folder {INSIDE}")
    strays.refuse(place / INSIDE)
    there = {str(p.relative_to(place / INSIDE)) for p in walk(place / INSIDE)}
    if there != set(listing):
        missing = sorted(set(listing) - there)
        what = f"{missing[0]} is missing" if missing else f"{sorted(there - set(listing))[0]} is not listed"
        raise DatabaseDamaged(f"the backup {place} is not whole: {what}; use another backup")
    for name, known in listing.items():
        found = hashed(place / INSIDE / name)
        if found != known:
            raise DatabaseDamaged(
                f"the backup {place} is damaged: {name} has {found[0]:,} bytes with hash {found[1]}, expected "
                f"{known[0]:,} with {known[1]}; use another backup"
            )
    return listing


# the moment


@contextlib.contextmanager
def _staged(db: OpenDatabase) -> Iterator[Path]:
    stage = db.registry.folder / f"{strays.STAGED}{os.getpid()}"
    name = f"clipql_{os.getpid()}"
    try:
        files.remove(stage)
        with files.translated(stage, "making"):
            stage.mkdir()
        yield stage
    finally:
        with contextlib.suppress(StorageError):
            files.remove(stage)
        with contextlib.suppress(StorageError):
            files.remove(db.registry.folder / "engine" / "shadow" / name)


def _hold(db: OpenDatabase, stage: Path, *, keep_links: bool) -> Catalog:
    """Hard-link, freeze and copy what the database is now. Returns the catalog of the copy."""
    registry = db.registry
    recover.settle(registry)
    found = _without_links(registry.catalog) if not keep_links else registry.catalog
    with files.translated(stage, "linking into"):
        for table, column, old, new in _segment_pairs(registry.catalog, found):
            folder = registry.folder / "vectors" / table / column
            for name, copy in ((old.file, new.file), (old.there, new.there)):
                if name:
                    _link(folder / name, stage / "vectors" / table / column / copy)
        for top, names in (
            ("index", [i.folder for t in found.tables for i in t.indexes if i.folder]),
            ("rows", [t.row_file.folder for t in found.tables if t.row_file]),
        ):
            for name in names:
                for file in walk(registry.folder / top / name):
                    _link(file, stage / top / file.relative_to(registry.folder / top))
        _freeze(db, stage / "engine")
    catalog.save(stage, found)
    return found


def _without_links(found: Catalog) -> Catalog:
    """The same catalog with linked segments as files of the database's own."""

    def own(segment: Segment, number: int) -> Segment:
        if not segment.linked:
            return segment
        return dataclasses.replace(segment, file=f"{segment.first:012d}-link-{number}.npy", linked=False)

    tables = tuple(
        dataclasses.replace(
            table,
            columns=tuple(
                dataclasses.replace(c, segments=tuple(own(s, i) for i, s in enumerate(c.segments)))
                for c in table.columns
            ),
        )
        for table in found.tables
    )
    return dataclasses.replace(found, tables=tables)


def _segment_pairs(before: Catalog, after: Catalog) -> Iterator[tuple[str, str, Segment, Segment]]:
    for old, new in zip(before.tables, after.tables, strict=True):
        for a, b in zip(old.columns, new.columns, strict=True):
            for x, y in zip(a.segments, b.segments, strict=True):
                if not y.linked:
                    yield old.id, a.folder, x, y


def _link(source: Path, target: Path) -> None:
    """Another name for a file that never changes; a link to it where it lies on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        target.symlink_to(source)


def _freeze(db: OpenDatabase, stage: Path) -> None:
    """ClickHouse's half: frozen parts, and the definitions as they are."""
    source, engine = db.registry.folder / "engine", db.registry.engine
    name = f"clipql_{os.getpid()}"
    shadow = source / "shadow" / name
    files.remove(shadow)
    tables = engine.arrow(
        "SELECT database, name, engine, data_paths FROM system.tables WHERE database NOT IN "
        "('system', 'information_schema', 'INFORMATION_SCHEMA') AND NOT is_temporary ORDER BY ALL"
    ).to_pylist()
    for table in tables:
        merge_tree = table["engine"].endswith("MergeTree")
        if merge_tree:
            full = f"{quote_name(table['database'])}.{quote_name(table['name'])}"
            engine.run(f"ALTER TABLE {full} FREEZE WITH NAME '{name}'")
        for folder in map(Path, table["data_paths"]):
            if not folder.is_relative_to(source) or ".." in folder.parts:
                continue  # of a table that is a window on what lies elsewhere, such as of the engine File
            target = stage / os.path.relpath(folder, source)
            if merge_tree:
                (target / "detached").mkdir(parents=True)
                shutil.copy2(folder / "format_version.txt", target / "format_version.txt")
                frozen = shadow / os.path.relpath(folder, source)
                for file in walk(frozen) if frozen.is_dir() else ():
                    _link(file, target / file.relative_to(frozen))
            elif folder.is_dir():  # of the Log family, which ClickHouse appends to
                shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True)
    for path in [source, *_below(source)]:
        target = stage / path.relative_to(source)
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(path))
        elif path.suffix == ".sql" and path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder but what ClickHouse keeps of queries and parts: those are copied by table."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = Path(entry.path)
        if entry.is_symlink() or not entry.is_dir():
            yield path
        elif entry.name not in _NOT_COPIED and not (path / "format_version.txt").exists():
            yield from _below(path)


# the copy


def _refuse_existing(place: Path) -> None:
    if place.exists() or place.is_symlink():
        raise StorageError(f"{place} is there already and is not overwritten: name a new folder")


@contextlib.contextmanager
def _building(place: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own when all went well."""
    made = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        with files.translated(place, "writing"):
            files.make_folder(place.parent)
            files.remove(made)
            made.mkdir()
            yield made
            _refuse_existing(place)
            os.rename(made, place)
        files.sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _verify_segments(folder: Path, found: Catalog) -> None:
    """A damaged segment must not get into a backup unnoticed: compare with the hashes of when it was written."""
    for table in found.tables:
        for column in table.columns:
            for segment in column.segments:
                segments.verify(folder / "vectors" / table.id / column.folder, segment)


def _verify_linked(folder: Path) -> None:
    """The manifest names nothing outside the folder but linked parts, and these are the files that it means.

    One that is not there may be put there later, and is looked at when the database is opened.
    """
    for table in catalog.load(folder).tables:
        for segment in (s for c in table.columns for s in c.segments if s.linked):
            if os.path.lexists(segment.file):
                segments.verify(folder, segment)


def _write_listing(made: Path, listing: Mapping[str, tuple[int, str]]) -> None:
    body = json.dumps({"clipql_version": __version__, "files": listing}, separators=(",", ":"))
    digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
    document = {"clipql": "backup", "format": FORMAT, "hash": digest, "listing": body}
    files.replace(made / LISTING, json.dumps(document).encode())


def _read_listing(place: Path) -> dict[str, tuple[int, str]]:
    path = place / LISTING
    if path.is_symlink() or not path.is_file():
        raise NotADatabase(f"{place} is no backup of clipql: it has no {LISTING}")
    try:
        with files.translated(path, "reading"):
            document: Any = json.loads(files.read_plain(path, most=_LARGEST_LISTING))
        if not isinstance(document, Mapping) or document.get("clipql") != "backup":
            raise NotADatabase(f"{path} is no listing of clipql: name another folder")
        if not isinstance(document.get("format"), int) or document["format"] > FORMAT:
            raise DatabaseVersion(f"{place} is in format {document.get('format')}, this clipql reads up to {FORMAT}")
        body = document["listing"]
        if hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest() != document["hash"]:
            raise DatabaseDamaged(f"{path} does not match its own hash, so it was altered: use another backup")
        return {name: (size, digest) for name, (size, digest) in json.loads(body)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatabaseDamaged(f"{path} cannot be read ({error}): use another backup") from error
