"""The vector indexes of tables: defined, kept up with their rows, dropped, swept.

What must stay true: what a crash leaves of a build is swept at the next open, or gone on from; who inserts waits for no
build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.errors import StorageError, VectorError, VectorIndexError
from clipql.index import kinds
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.tables.background import Background
from clipql.tables.index_building import IndexBuilding, Outdated
from clipql.tables.index_entries import (
    MOST_CHANGED,
    behind,
    built_from,
    check_column,
    check_dimension,
    entry_of,
    late,
    present,
    unbuilt,
    unfinished,
)
from clipql.tables.open_indexes import Chosen
from clipql.tables.registry import Registry
from clipql.tables.watchers import Progress, watcher

__all__ = ["Chosen", "Indexes"]

_CODES = "\0codes of "  # before the name of a column, where no index can be meant
RESUME_SECONDS = 3.0  # from the opening of a database until what was cut off goes on


class Indexes(IndexBuilding):
    """The indexes of a database: defined, built, dropped. Those that fall behind are built in the background."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, Background(self._caught_up))
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
                elif behind(entry, present(table, entry), built_from(table, entry)) or late(table, entry):
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
        except Outdated:
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
        return self._outgrown(table, entry) or self._can_grow(table, entry)

    def _bring_up_to_date(self, table: Table, entry: IndexEntry, progress: Progress | None) -> None:
        if self._outgrown(table, entry):
            self._build(table, entry.name, progress)
        elif self._can_grow(table, entry):
            self._grow(table, entry.name, progress)

    def _outgrown(self, table: Table, entry: IndexEntry) -> bool:
        learned = self._learned(table, entry) if late(table, entry) else built_from(table, entry)
        return behind(entry, present(table, entry), learned)

    def _can_grow(self, table: Table, entry: IndexEntry) -> bool:
        return late(table, entry) and kinds.can_grow(entry, self.folder(entry))

    @contextlib.contextmanager
    def _noted(self, table: Table, entry: IndexEntry) -> Iterator[None]:
        try:
            yield
        except (VectorError, VectorIndexError, StorageError) as error:
            self._failures[table.id, entry.name] = str(error)

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
