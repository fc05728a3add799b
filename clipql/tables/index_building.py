"""Vector indexes of tables, built, grown and copied in.

What must stay true: building leaves the table readable; one index is built at a time; the background holds the write
lock only as it begins and ends a build; an index is put in its place only if its rows and definition are as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clipql.errors import DiskFull, VectorIndexError
from clipql.index import folder as index_folder
from clipql.index import kinds
from clipql.index.base import Index
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.store import ColumnStore
from clipql.tables import growing
from clipql.tables.background import Background
from clipql.tables.index_entries import (
    Learned,
    built_from,
    check_dimension,
    entry_of,
    file_name,
    identity,
    measured_recall,
    present,
    unfinished,
)
from clipql.tables.open_indexes import OpenIndexes, warn_of
from clipql.tables.registry import Registry
from clipql.tables.watchers import Progress, watcher


class Outdated(Exception):
    """What an index was built from is not what there is any more."""


class IndexBuilding(OpenIndexes):
    """Builds the indexes of a database. background: whose turn, and whose lock, its work takes."""

    def __init__(self, registry: Registry, background: Background) -> None:
        super().__init__(registry)
        self.background = background
        self._coming: dict[tuple[str, str], tuple[str, int]] = {}  # the folder of what is being written, and its rows

    def build(self, table: Table, name: str, progress: Progress | None = None, *, model: Path | None = None) -> None:
        """Build an index over all rows there are now, and put it in the place of what there was.

        model: the folder of what was learnt for it, with rows of other tables. A table of fewer rows than pay for an
        index gets none and is scanned. Raises VectorIndexError or DiskFull.
        """
        with self.registry.write_lock, self.background.turn():
            self._build(table, name, progress, model)
            self.background.forget((table.id, name))

    def _build(self, table: Table, name: str, progress: Progress | None, model: Path | None = None) -> None:
        registry = self.registry
        with self._writing(table, name) as (table, entry, folder):
            if entry.kind == "flat":
                registry.codes.build(table, entry.column, registry.store(table, entry.column), self._told(progress))
                registry.announce()
                return
            if present(table, entry) < kinds.FEWEST_ROWS:
                return
            check_dimension(table, entry)
            place, store = registry.folder / "index" / folder, registry.store(table, entry.column)
            files.make_folder(place.parent)
            began = time.perf_counter()
            work = place.parent / unfinished(entry)
            with _kept_told(table, entry, work), files.translated(place, "building"):
                index = kinds.build(
                    entry,
                    store,
                    place,
                    queries=self.captions(table, entry),
                    progress=self._told(progress),
                    work=work,
                    identity=identity(table, entry),
                    model=model,
                )
            built = dataclasses.replace(
                entry,
                folder=folder,
                rows=index.rows_covered,
                seconds=round(time.perf_counter() - began, 3),
                bytes=sum(f.stat().st_size for f in place.rglob("*") if f.is_file()),
                recall=measured_recall(index),
                changed=(),
            )
            self._put(table, entry, built, index, store)
        warn_of(table, built, index)

    def _told(self, progress: Progress | None) -> Progress:
        """Whom a build tells how far it is."""
        told = progress or watcher()

        def tell(stage: str, done: int, total: int) -> None:
            self.background.tell(stage, done, total)
            if told is not None:
                told(stage, done, total)

        return tell

    @contextlib.contextmanager
    def _writing(self, table: Table, name: str) -> Iterator[tuple[Table, IndexEntry, str]]:
        """A table and an index of it as they are now, and the folder that the index is written in."""
        registry = self.registry
        with self.background.hold(registry.write_lock):
            table = registry.catalog.by_id(table.id) or table
            entry = entry_of(table, name)
            folder = f"{table.id}/{file_name(entry)}-{registry.catalog.serial}"
            self._coming[table.id, name] = folder, table.rows
        try:
            yield table, entry, folder
        finally:
            del self._coming[table.id, name]

    def _put(self, table: Table, before: IndexEntry, built: IndexEntry, index: Index, store: ColumnStore) -> Table:
        """Put an index, of the rows of `store`, in the place of what there was; the table with it is returned.

        Raises Outdated where the definition or those rows changed while it was built.
        """
        registry, place = self.registry, self.folder(built)
        with self.background.hold(registry.write_lock):
            now = registry.catalog.by_id(table.id)
            if now is None or now.index(before.name) != before or not now.column(before.column):
                files.remove(place)
                raise Outdated
            if not registry.store(now, before.column).holds(store):
                files.remove(place)
                raise Outdated
            now = now.with_index(built)
            registry.save(registry.catalog.with_table(now))
            self._failures.pop((table.id, before.name), None)
            with self._lock:
                self._opened[built.folder or ""] = index
            self.forget(before)
            self.rows.build(now)
        return now

    def _learned(self, table: Table, entry: IndexEntry) -> Learned:
        """What an index was built from, before rows were added to it."""
        opened = self._open(table, entry) if entry.kind == "ivf" and entry.folder else None
        rows = getattr(opened, "learned_rows", None)
        balanced = bool(getattr(opened, "balanced", False))
        return built_from(table, entry) if rows is None else Learned(int(rows), balanced)

    def _grow(self, table: Table, name: str, progress: Progress | None) -> None:
        """Add the rows that came since to the lists of an index; build it anew where it finds less by that than it did.

        Raises VectorIndexError, DatabaseDamaged or DiskFull.
        """
        learned, more, falls = self._learned(table, entry_of(table, name)).rows, True, False
        while more and not falls:
            with self._writing(table, name) as (table, entry, folder):
                place, store = self.registry.folder / "index" / folder, self.registry.store(table, entry.column)
                began = time.perf_counter()
                with files.translated(place, "building"):
                    captions = self.captions(table, entry)
                    index = kinds.grow(entry, self.folder(entry), place, store, captions, self._told(progress))
                grown = dataclasses.replace(entry, rows=index.rows_covered)
                tenths = [10 * built_from(table, each).rows // max(1, learned) for each in (entry, grown)]
                falls = tenths[0] < tenths[1] and growing.falls(index, store, captions, entry)
                if falls:
                    files.remove(place)
                    continue
                grown = dataclasses.replace(
                    entry,
                    folder=folder,
                    rows=index.rows_covered,
                    seconds=round(entry.seconds + time.perf_counter() - began, 3),
                    recall=measured_recall(index),
                    bytes=sum(f.stat().st_size for f in place.rglob("*") if f.is_file()),
                )
                table = self._put(table, entry, grown, index, store)
                more = grown.rows < store.rows
        if falls:
            self._build(table, name, progress)

    def forecast(self, table: Table, name: str) -> list[str]:
        """What building an index will take, as EXPLAIN shows it."""
        entry = entry_of(table, name)
        title = f"Build of the index {entry.name} of {table.full_name} ({entry.kind}, {table.rows:,} rows)"
        if entry.kind == "flat" or present(table, entry) < kinds.FEWEST_ROWS:
            return [title, "  nothing is built: the rows are scanned"]
        told = kinds.forecast(entry, self.registry.store(table, entry.column), self.registry.folder)
        return [title, f"  takes: {told}"]

    def adopt(self, table: Table, built: IndexEntry, fill: Callable[[Path], None]) -> None:
        """Put an index that was built elsewhere, over the same rows, in the place of what there was.

        fill: writes its files into a folder. Raises VectorIndexError for one that is not of this table's definition or
        covers rows that are not here, DatabaseDamaged where a file is not as its meta.json says.
        """
        registry = self.registry
        with registry.write_lock, self.background.turn():
            table = registry.catalog.by_id(table.id) or table
            entry = entry_of(table, built.name)
            if (entry.column, entry.kind, entry.metric) != (built.column, built.kind, built.metric):
                raise VectorIndexError(
                    f"index {entry.name} of {table.full_name} is {entry.kind} by {entry.metric} on {entry.column}; the "
                    f"one to be copied is {built.kind} by {built.metric} on {built.column}"
                )
            if built.rows > table.rows:
                raise VectorIndexError(
                    f"index {entry.name} covers {built.rows:,} rows, and {table.full_name} has {table.rows:,} here"
                )
            folder = f"{table.id}/{file_name(entry)}-{registry.catalog.serial}"
            place = registry.folder / "index" / folder
            coming = place.with_name(f".{place.name}.new")
            files.remove(coming)
            with files.translated(place, "copying"):
                coming.mkdir(parents=True)
                fill(coming)
                index_folder.verify(coming)
                coming.rename(place)
            files.sync_folder(place.parent)
            copied = dataclasses.replace(built, folder=folder)
            index = kinds.open_index(copied, place, registry.store(table, entry.column))
            registry.save(registry.catalog.with_table(table.with_index(copied)))
            with self._lock:
                self._opened[folder] = index
            self.forget(entry)
            self._abandon(table, entry)
            self.rows.build(table)


@contextlib.contextmanager
def _kept_told(table: Table, entry: IndexEntry, work: Path) -> Iterator[None]:
    """Have the error of a full disk say what became of the build, where it is kept."""
    try:
        yield
    except DiskFull as error:
        if not work.is_dir():
            raise
        name = f"{table.full_name} MATERIALIZE INDEX {entry.name}"
        raise DiskFull(
            f"{error}. The build is kept as far as it came: ALTER TABLE {name} goes on with it, CLEAR INDEX removes it"
        ) from error
