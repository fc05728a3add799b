"""A snapshot: what a database is at one moment, as a database folder of hard links that a reader has for itself.

What must stay true: a snapshot is what a crash at one moment would have left, so that recovery makes the last commit of
it, whole; taking one changes nothing of the database, and waits for nobody; its files stay whatever a writer does.

How one moment is had: parts, segments and indexes never change, so their names say all. The names of all parts, and the
state of ClickHouse's small files, which are copied, are listed twice in a row; where both lists are alike, and the
manifest was the same before and after, they are those of one moment. They are linked then; where the writer has removed
one meanwhile, all is listed anew. So the database must stay as it is only while names are listed, for a millisecond.

Where no hard links can be made (a file system that is read-only, or another one) there are symbolic ones, and a
shared lock keeps writers out as long as the snapshot is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clipql.errors import DatabaseDamaged, DatabaseLocked, DiskFull, StorageError
from clipql.storage import announced, catalog, files, places, strays
from clipql.storage.announced import State, state
from clipql.storage.catalog import Catalog, Table
from clipql.storage.places import Place

CODES = "codes"  # the code files of vector columns, by table
BACKUP = "backup.json"  # beside the folder of a database that is in a backup
UNSETTLED_SECONDS, _LONGEST_SECONDS, _WAIT_SECONDS = 0.25, 30.0, 0.002
# how long a file that the manifest names may be missing while the manifest stays the same
_MISSING_SECONDS = 1.0
_TABLE = "format_version.txt"  # lies in the folder of a MergeTree table, beside its parts
_OF_THE_PROCESS = ("status", "tmp", "shadow", "metadata_dropped")
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}
# what lies in ClickHouse's folder: each path, and what is there
Names = list[tuple[str, str]]


class _Changed(Exception):
    """The database went on while links were made. missing: what was to be linked and is gone."""

    def __init__(self, missing: Path | None = None) -> None:
        super().__init__(missing)
        self.missing = missing


class _CannotLink(Exception):
    """The file system makes no hard links here."""


@dataclass(frozen=True)
class Snapshot:
    """A moment of the database `source` in the folder of `place`. catalog: without tables that are only being made.

    state: that of the manifest then. acknowledged: how many changes had been, None where the manifest does not say.
    lock: the handle of the shared lock, where there are no hard links.
    """

    source: Path
    place: Place
    catalog: Catalog
    state: State
    acknowledged: int | None
    lock: int | None = None
    linked: bool = True

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.place.folder

    def is_last(self) -> bool:
        """Whether no change was acknowledged since. Raises NotADatabase where the database is gone."""
        now, number = announced.look(self.source)
        return now == self.state or (number is not None and number == self.acknowledged)

    def release(self) -> None:
        """Remove it, unless a fork still has it."""
        if self.lock is not None:
            with contextlib.suppress(OSError):
                os.close(self.lock)
        self.place.release()


def take(
    source: Path, home: Path | None = None, *, again: bool = False, settled_seconds: float = UNSETTLED_SECONDS
) -> Snapshot:
    """A snapshot of the last commit. home: the database in whose folder it shall lie, where that is not the source.

    again: what lies in the folder was looked at when the last one was taken. settled_seconds: how long a change
    under way is waited for, before it is to be brought to its end in the snapshot. Raises NotADatabase,
    DatabaseVersion, DatabaseDamaged, DiskFull, StorageError where the database changes faster than links are made;
    DatabaseLocked where no hard links can be made and a writer has it open.
    """
    state(source)
    if not again:  # before anything is made, listed or copied by a link in it
        for folder in dict.fromkeys((source, home or source)):
            strays.refuse(folder)
    parent = _parent(home or source)
    places.sweep(parent, places.READER)
    place = Place(parent, places.READER)
    try:
        with files.translated(place.folder, "linking a snapshot into"):
            try:
                found, then, number = _linked(source, place.folder, settled_seconds)
            except _CannotLink:
                return _with_symbolic_links(source, place)
        strays.refuse(place.folder)
        return Snapshot(source, place, found, then, number)
    except BaseException:
        place.release()
        raise


def _parent(source: Path) -> Path:
    """Where snapshots of a database lie: in its folder, if that can be written and is no backup's."""
    if not (source.parent / BACKUP).exists() and os.access(source, os.W_OK | os.X_OK):
        with contextlib.suppress(OSError):
            (source / strays.SCRATCH).mkdir(exist_ok=True)
            return source / strays.SCRATCH
    parent = Path(tempfile.gettempdir()) / f"clipql-{os.getuid()}"
    with contextlib.suppress(OSError):
        parent.mkdir(mode=0o700, exist_ok=True)
        found = parent.lstat()
        if parent.is_dir() and not parent.is_symlink() and found.st_uid == os.getuid():
            return parent
    return Path(tempfile.mkdtemp(prefix="clipql-"))


def _linked(source: Path, place: Path, settled_seconds: float) -> tuple[Catalog, State, int | None]:
    began = time.monotonic()
    unsettled: State | None = None
    lacking: tuple[State, Path] | None = None
    since = began
    while time.monotonic() < began + _LONGEST_SECONDS:
        then = state(source)
        patient = time.monotonic() <= began + settled_seconds
        if patient and then == unsettled:  # nothing has changed, so it need not be read again
            time.sleep(_WAIT_SECONDS)
            continue
        try:
            then, content, names = _seen(source)
            found = catalog.parsed(source / catalog.NAME, content)
            unsettled = then if found.pending is not None else None
            if unsettled is None or not patient:
                _link_moment(source, place, found, names)
                shown = _shown(found)
                (place / catalog.NAME).write_bytes(catalog.encoded(shown))
                return shown, then, announced.number(content, then)
        except _Changed as changed:
            now = (then, changed.missing) if changed.missing is not None else None
            if now != lacking:
                lacking, since = now, time.monotonic()
            elif lacking is not None and time.monotonic() > since + _MISSING_SECONDS:
                raise DatabaseDamaged(
                    f"{lacking[1]} is missing, which the manifest names: restore it from a backup"
                ) from changed
        time.sleep(_WAIT_SECONDS)
    raise StorageError(f"{source} changes faster than a snapshot of it can be linked: try again when less is written")


def _seen(source: Path) -> tuple[State, bytes, Names]:
    """The manifest and the names of ClickHouse's parts and files at one moment. Raises _Changed."""
    then = state(source)
    content = catalog.content(source)
    names = sorted(_walk(source / strays.ENGINE))
    if sorted(_walk(source / strays.ENGINE)) != names or state(source) != then:
        raise _Changed
    return then, content, names


def _shown(found: Catalog) -> Catalog:
    """Without tables that a rewrite is making. What a change under way appends to files, its writer may take back."""
    kept = tuple(t for t in found.tables if t.database != catalog.INTERNAL)
    pending = found.pending
    if pending is None:
        return replace(found, tables=kept)
    ids = {t.id for t in (pending.before, pending.after) if t}
    kept = tuple(replace(t, row_file=None) if t.id in ids else t for t in found.tables)
    bare = [t and replace(t, row_file=None) for t in (pending.before, pending.after)]
    return replace(found, tables=kept, pending=replace(pending, before=bare[0], after=bare[1]))


def _link_moment(source: Path, place: Path, found: Catalog, names: Names) -> None:
    """Link what a moment consists of; first what the next commits may replace."""
    engine = place / strays.ENGINE
    files.remove(engine)
    pending = found.pending
    tables = [*found.tables, *(t for t in (pending.before, pending.after) if t)] if pending else found.tables
    for table in tables:
        for folder, needed, others in _folders(source, table):
            target = place / folder.relative_to(source)
            target.mkdir(parents=True, exist_ok=True)
            for name in dict.fromkeys([*needed, *(_listed(folder) if others else [])]):
                _link(f"{folder}/{name}", f"{target}/{name}")
    _link_codes(source, place, found)
    engine.mkdir()
    for name in _OF_THE_PROCESS[1:]:
        (engine / name).mkdir()
    for path, kind in names:
        _carry(source / strays.ENGINE / path, engine / path, kind, _link)


def _link_codes(source: Path, place: Path, found: Catalog) -> None:
    """Link the code files of vector columns, which are whole under their names, and tell by them what they are of. One
    that the writer removes meanwhile is missing.
    """
    for table in found.tables:
        for folder in files.entries(source / CODES / table.id):
            target = place / CODES / table.id / folder.name
            if folder.name.startswith(".") or target.exists():
                continue
            target.mkdir(parents=True)
            with contextlib.suppress(_Changed):
                for name in _listed(Path(folder.path)):
                    _link(f"{folder.path}/{name}", f"{target}/{name}")


def _folders(source: Path, table: Table) -> Iterator[tuple[Path, list[str], bool]]:
    """The folders of a table outside ClickHouse, files that must be in them, and whether all others count too."""
    for column in table.columns:
        yield source / "vectors" / table.id / column.folder, [n for s in column.segments for n in s.files], False
    if table.row_file:
        yield source / "rows" / table.row_file.folder, [table.row_file.listing], True
    for index in table.indexes:
        if index.folder:
            yield source / "index" / index.folder, [], True


def _listed(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if not entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError as error:
        raise _Changed(folder) from error


def _link(source: str, target: str) -> None:
    """Of text, as a snapshot links thousands and a Path takes longer than a link."""
    try:
        os.link(source, target)
    except FileExistsError:
        return  # of the last try, and files of a name never change
    except FileNotFoundError as error:
        raise _Changed(Path(source)) from error
    except OSError as error:
        if error.errno in _CANNOT_LINK:
            raise _CannotLink from error
        raise


def _walk(engine: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """What ClickHouse's folder holds, each with what it is: 'part', 'link', 'folder', or the state of a file.

    Without the folders `store/…` in which nothing is: hundreds are left of tables that are gone.
    """
    try:
        entries = list(os.scandir(engine / below))
    except FileNotFoundError as error:
        if not below:
            raise StorageError(f"{engine} is missing, where the rows are: restore a backup") from error
        raise _Changed from error
    table = any(entry.name == _TABLE for entry in entries)
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if not below and entry.name in _OF_THE_PROCESS:
            continue
        if entry.is_symlink():
            yield path, "link"
        elif not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):
                yield path, _state_of(entry.stat(follow_symlinks=False))
        elif below == "store":
            found = () if _is_bare(entry) else tuple(_walk(engine, path))
            if found:
                yield path, "folder"
                yield from found
        elif not table or entry.name == "detached":
            yield path, "folder"
            yield from _walk(engine, path)
        elif not entry.name.startswith(("tmp_", "delete_tmp_", "tmp-fetch_")):
            yield path, "part"


def _is_bare(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is known to have no folders in it without being listed; each of them has it as its `..`."""
    try:
        return entry.stat(follow_symlinks=False).st_nlink == 2
    except FileNotFoundError:
        return True


def _state_of(found: os.stat_result) -> str:
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def _carry(source: Path, target: Path, kind: str, link: Callable[[str, str], None]) -> None:
    """Bring one thing of ClickHouse's into a snapshot: files of parts are linked, others copied."""
    try:
        if kind == "link":
            target.symlink_to(os.readlink(source))
        elif kind == "folder":
            target.mkdir()
        elif kind != "part":
            _check_room(source, target)
            shutil.copy2(source, target, follow_symlinks=False)
            if _state_of(source.lstat()) != kind:
                raise _Changed
        else:
            linked = 0
            for place, _, names in os.walk(source):
                made = f"{target}{place[len(os.fspath(source)) :]}"
                os.mkdir(made)
                linked += len(names)
                for name in names:
                    link(f"{place}/{name}", f"{made}/{name}")
            if not linked:
                raise _Changed
    except FileNotFoundError as error:
        raise _Changed from error


def _check_room(source: Path, target: Path) -> None:
    """Raise DiskFull for a file that cannot be copied, before the disk is full of it."""
    size, free = source.lstat().st_size, shutil.disk_usage(target.parent).free
    if size > free:
        raise DiskFull(
            f"{source} has {size:,} bytes, which a reader copies, and {target.parent} has {free:,} free: free some "
            "room, or look what it is: ClickHouse's own such files are small"
        )


def _point(source: str, target: str) -> None:
    os.symlink(source, target)


def _with_symbolic_links(source: Path, place: Place) -> Snapshot:
    """Where no hard links can be made. What a database's writer would remove must stay, so there must be none."""
    strays.refuse(source)
    try:
        lock = files.share_lock(source)
    except DatabaseLocked as error:
        raise DatabaseLocked(
            f"{error}, and no hard links of its files can be made in {place.folder.parent}, by which a reader would "
            "keep them: close it there, or read as a user who may write its folder"
        ) from error
    try:
        (then, number), found = announced.look(source), catalog.load(source)
        if found.pending is not None:
            raise StorageError(
                f"{source} was not closed in order, and nothing can be finished where no hard links can be made: open "
                "it once where it can be written"
            )
        files.remove(place.folder / strays.ENGINE)
        for table in found.tables:
            for folder, _, _ in _folders(source, table):
                target = place.folder / folder.relative_to(source)
                files.remove(target)
                if folder.is_dir():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(folder)
            for codes in files.entries(source / CODES / table.id):
                target = place.folder / CODES / table.id / codes.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(codes.path)
        engine = place.folder / strays.ENGINE
        engine.mkdir()
        for name in _OF_THE_PROCESS[1:]:
            (engine / name).mkdir()
        for path, kind in sorted(_walk(source / strays.ENGINE)):
            _carry(source / strays.ENGINE / path, engine / path, kind, _point)
        shown = _shown(found)
        (place.folder / catalog.NAME).write_bytes(catalog.encoded(shown))
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    return Snapshot(source, place, shown, then, number, lock, linked=False)
