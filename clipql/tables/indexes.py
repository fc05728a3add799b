"""The vector indexes of tables: defined, built, opened, dropped.

What must stay true: building leaves the table readable, and what a crash leaves of it is swept at the next open, or
gone on from; one index is built at a time; the background holds the write lock only as it begins and ends a build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DiskFull, StorageError, VectorError, VectorIndexError
from clipql.index import folder as index_folder
from clipql.index import kinds
from clipql.index.base import Index
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.store import ColumnStore
from clipql.tables import growing
from clipql.tables.background import Background
from clipql.tables.index_entries import (
    MOST_CHANGED,
    Learned,
    absent_of,
    behind,
    check_column,
    check_dimension,
    entry_of,
    file_name,
    identity,
    lags,
    measured_recall,
    present,
    unbuilt,
    unfinished,
)
from clipql.tables.open_indexes import Chosen, OpenIndexes, warn_of
from clipql.tables.registry import Registry
from clipql.tables.watchers import Progress, watcher

__all__ = ["Chosen", "Indexes"]

_CODES = "\0codes of "  # before the name of a column, where no index can be meant
RESUME_SECONDS = 3.0  # from the opening of a database until what was cut off goes on


class _Outdated(Exception):
    """What an index was built from is not what there is any more."""


class Indexes(OpenIndexes):
    """The indexes of a database: defined, built, dropped. Those that fall behind are built in the background."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.background = Background(self._caught_up)
        self._coming: dict[tuple[str, str], tuple[str, int]] = {}  # the folder of what is being written, and its rows
        if not registry.reads_of:
            registry.codes.want = lambda table, column: self.background.want((table, _CODES + column))

    def fell_behind(self, table_id: str) -> None:
        """Have the indexes that enough rows came for brought up to date in the background. Returns at once."""
        table = self.registry.catalog.by_id(table_id)
        for entry in table.indexes if table else ():
            assert table is not None, "it has indexes"
            if self._is_stale(table, entry):
                key = table.id, entry.name
                self.background.want(key)
                if table.rows > 2 * self._coming.get(key, ("", table.rows))[1]:
                    self.background.restart(key)  # what is being built would be outgrown when it is done

    def resume(self) -> None:
        """Go on, in the background, with what was not done when the database was closed.

        Not at once, as who opens it for one statement would only have it begin.
        """
        for table in self.registry.catalog.tables:
            for entry in table.indexes:
                begun = (self.registry.folder / "index" / table.id / unfinished(entry)).is_dir()
                if begun and entry.folder is None:
                    self.background.want((table.id, entry.name), again=True, after_seconds=RESUME_SECONDS)
                elif behind(entry, table.rows) or lags(entry, table.rows):
                    self.background.want((table.id, entry.name), after_seconds=RESUME_SECONDS)

    def build_later(self, table: Table, name: str) -> None:
        """Have an index built anew in the background. Raises VectorIndexError where there is none of the name."""
        check_dimension(table, entry_of(table, name))
        self.background.want((table.id, name), again=True)

    def wait(self, progress: Progress | None = None) -> None:
        """Return when all that is built in the background is done."""
        self.background.wait(progress or watcher())

    def catching_up(self, table_id: str) -> str:
        """How far the indexes of a table are that are built in the background; empty where none is."""
        table = self.registry.catalog.by_id(table_id)
        return "; ".join(
            f"index {e.name} covers {e.rows:,} of {table.rows:,} rows, the others are added in the background"
            for e in (table.indexes if table else ())
            if table is not None and self.background.stage((table.id, e.name)) is not None
        )

    def after_insert(self, table_id: str, progress: Progress | None = None) -> None:
        """Build the indexes that were learnt from less than half of a table, or none of it; add rows to the others."""
        table = self.registry.catalog.by_id(table_id)
        for entry in table.indexes if table else ():
            assert table is not None, "it has indexes"
            # the rows are in, so the insert has succeeded; a search without the index is slower, not wrong
            with self.registry.write_lock, self.background.turn(), self._noted(table, entry):
                self._bring_up_to_date(table, entry, progress)

    def _caught_up(self, key: tuple[str, str], again: bool) -> None:
        """The background's work on an index: build it anew, or what `after_insert` does; or on a column's codes."""
        if key[1].startswith(_CODES):
            self._coded(key)
            return
        table = self.registry.catalog.by_id(key[0])
        entry = table.index(key[1]) if table else None
        if table is None or entry is None:
            return
        try:
            with self._noted(table, entry):
                if again:
                    self._build(table, entry.name, None)
                else:
                    self._bring_up_to_date(table, entry, None)
        except _Outdated:
            self.background.want(key, again=again)
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it
            self._failures[key] = str(error) or repr(error)

    def _coded(self, key: tuple[str, str]) -> None:
        """Make the codes of a column, or add those of newer rows."""
        table, column = self.registry.catalog.by_id(key[0]), key[1].removeprefix(_CODES)
        if table is None or table.column(column) is None:
            return
        try:
            self.registry.codes.build(table, column, self.registry.store(table, column), self.background.tell)
            with self.background.hold(self.registry.write_lock):
                self._sweep_codes()  # the vectors may have become others meanwhile
                self.registry.announce()
        except Exception as error:  # noqa: BLE001 - derived: searches scan without it
            self._failures[key] = str(error) or repr(error)

    def _is_stale(self, table: Table, entry: IndexEntry) -> bool:
        late = lags(entry, table.rows)
        return behind(entry, table.rows, self._learned(table, entry) if late else None) or (
            late and not absent_of(table, entry) and kinds.can_grow(entry, self.folder(entry))
        )

    def _bring_up_to_date(self, table: Table, entry: IndexEntry, progress: Progress | None) -> None:
        late = lags(entry, table.rows)
        if behind(entry, table.rows, self._learned(table, entry) if late else None):
            self._build(table, entry.name, progress)
        elif late and not absent_of(table, entry) and kinds.can_grow(entry, self.folder(entry)):
            self._grow(table, entry.name, progress)

    @contextlib.contextmanager
    def _noted(self, table: Table, entry: IndexEntry) -> Iterator[None]:
        try:
            yield
        except (VectorError, VectorIndexError, StorageError) as error:
            self._failures[table.id, entry.name] = str(error)

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

        Raises _Outdated where the definition or those rows changed while it was built.
        """
        registry, place = self.registry, self.folder(built)
        with self.background.hold(registry.write_lock):
            now = registry.catalog.by_id(table.id)
            if now is None or now.index(before.name) != before or not now.column(before.column):
                files.remove(place)
                raise _Outdated
            if not registry.store(now, before.column).holds(store):
                files.remove(place)
                raise _Outdated
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
        return Learned(int(getattr(opened, "learned_rows", entry.rows)), bool(getattr(opened, "balanced", False)))

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
                tenths = [10 * rows // max(1, learned) for rows in (entry.rows, index.rows_covered)]
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

    def revised(self, table: Table, touched: Mapping[str, NDArray[np.int64] | None]) -> Table:
        """A table as it shall be once rows of these columns have other vectors: what was built of the older ones goes.

        touched: their numbers, ascending; None for all of a column.
        """
        bare = {i.name: i for i in unbuilt(table)}
        indexes: list[IndexEntry] = []
        for entry in table.indexes:
            rows = touched.get(entry.column)
            if entry.column in touched and entry.folder is not None:
                own = np.union1d(entry.changed, rows[rows < entry.rows]) if rows is not None else None
                few = own is not None and len(own) <= min(MOST_CHANGED, entry.rows // 4)
                changed = tuple(own.astype(int).tolist()) if own is not None and few else ()
                entry = dataclasses.replace(entry, changed=changed) if few else bare[entry.name]
            indexes.append(entry)
        return dataclasses.replace(table, indexes=tuple(indexes))

    def add(self, table: Table, entry: IndexEntry, *, if_not_exists: bool = False) -> None:
        """Define an index; it is built by MATERIALIZE INDEX, OPTIMIZE TABLE, or when enough rows come."""
        registry = self.registry
        if table.index(entry.name):
            if if_not_exists:
                return
            raise VectorIndexError(f"{table.full_name} has an index {entry.name} already")
        check_column(table, entry)
        registry.save(registry.catalog.with_table(table.with_index(entry)))

    def drop(self, table: Table, name: str) -> None:
        """Remove an index."""
        with self.registry.write_lock, self.background.turn():
            table = self.registry.catalog.by_id(table.id) or table
            entry = entry_of(table, name)
            kept = tuple(i for i in table.indexes if i.name != name)
            self.registry.save(self.registry.catalog.with_table(dataclasses.replace(table, indexes=kept)))
            self.background.forget((table.id, name))
            self.forget(entry)
            self._abandon(table, entry)

    def clear(self, table: Table, name: str) -> None:
        """Remove what was built of an index and keep its definition."""
        with self.registry.write_lock, self.background.turn():
            table = self.registry.catalog.by_id(table.id) or table
            entry = entry_of(table, name)
            bare = next(i for i in unbuilt(table) if i.name == name)
            self.registry.save(self.registry.catalog.with_table(table.with_index(bare)))
            self.background.forget((table.id, name))
            self.forget(entry)
            self._abandon(table, entry)
            if entry.kind == "flat":
                self.registry.codes.remove(table, entry.column)

    def sweep(self) -> None:
        """Remove folders that no index refers to. A build that was cut off stays, for the next one to go on from."""
        self.rows.sweep()
        self._sweep_codes()
        kept = {i.folder for t in self.registry.catalog.tables for i in t.indexes}
        kept |= {folder for folder, _ in [*self._coming.values()]}
        begun = {f"{t.id}/{unfinished(i)}" for t in self.registry.catalog.tables for i in t.indexes}
        for table in files.entries(self.registry.folder / "index"):
            for folder in files.entries(Path(table.path)):
                if f"{table.name}/{folder.name}" not in kept | begun:
                    files.remove(Path(folder.path))
            with contextlib.suppress(OSError):
                os.rmdir(table.path)

    def _sweep_codes(self) -> None:
        registry = self.registry
        registry.codes.sweep([(t, functools.partial(registry.store, t)) for t in registry.catalog.tables])


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
