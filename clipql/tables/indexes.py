"""The vector indexes of tables: defined, built, opened, dropped.

What must stay true: an index is used only when its folder is whole and covers the rows it claims; what is damaged is
named and passed over; building leaves the table readable, and what a crash leaves of it is swept at the next open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, DiskFull, IndexWarning, StorageError, VectorError, VectorIndexError
from clipql.index import folder as index_folder
from clipql.index import kinds
from clipql.index.base import Index
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore
from clipql.tables import growing
from clipql.tables.index_entries import (
    MOST_CHANGED,
    behind,
    check_column,
    check_dimension,
    entry_of,
    file_name,
    identity,
    lags,
    measured_recall,
    recall_text,
    same_order,
    unbuilt,
    unfinished,
)
from clipql.tables.registry import Registry
from clipql.tables.rowfile import RowFiles

Progress = Callable[[str, int, int], None]
_watcher: ContextVar[Progress | None] = ContextVar("clipql_build_watcher", default=None)


@dataclasses.dataclass(frozen=True, repr=False)
class Chosen(Brief):
    """The index a search shall use, or None, and why."""

    index: Index | None
    entry: IndexEntry | None
    why: str


@contextlib.contextmanager
def watching(progress: Progress) -> Iterator[None]:
    """Have the builds, and other long work, that this thread starts reported as (stage, done, total)."""
    before = _watcher.set(progress)
    try:
        yield
    finally:
        _watcher.reset(before)


def reported(stage: str, done: int, total: int) -> None:
    """Tell whoever watches this thread's work."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(stage, done, total)


class Indexes:
    """The opened indexes of a database; `registry` holds their tables."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.rows = RowFiles(registry)
        self._failures: dict[tuple[str, str], str] = {}
        self._opened: dict[str, Index | ClipqlError] = {}
        self._lock = threading.Lock()

    def folder(self, entry: IndexEntry) -> Path:
        """Where an index's files lie."""
        return self.registry.folder / "index" / (entry.folder or "none")

    def choose(self, table: Table, column: str, metric: Metric) -> Chosen:
        """The index to search a column by a metric with."""
        of_column = [i for i in table.indexes if i.column == column]
        if not of_column:
            return Chosen(None, None, "no index on the column")
        fitting = [i for i in of_column if same_order(Metric(i.metric), metric)]
        if not fitting:
            others = ", ".join(f"{i.name} is by {i.metric}" for i in of_column)
            return Chosen(None, None, f"{others}, the query by {metric.value}")
        why = ""
        for entry in sorted(fitting, key=lambda i: i.kind != "ivf"):
            if entry.kind == "flat":
                return Chosen(None, entry, "the index is flat")
            if entry.folder is None:
                command = f"ALTER TABLE {table.full_name} MATERIALIZE INDEX {entry.name}"
                failed = self._failures.get((table.id, entry.name))
                why = why or (
                    f"{entry.name} could not be built: {failed}"
                    if failed
                    else f"{entry.name} is not built yet: {command}"
                )
                continue
            opened = self._open(table, entry)
            if isinstance(opened, ClipqlError):
                why = f"{entry.name} is out of use: {opened}"
                continue
            store = self.registry.store(table, column)
            return Chosen(kinds.changing(opened, store, entry.changed), entry, "")
        return Chosen(None, None, why)

    def _open(self, table: Table, entry: IndexEntry) -> Index | ClipqlError:
        with self._lock:
            key = entry.folder or ""
            if key not in self._opened:
                try:
                    store = self.registry.store(table, entry.column)
                    opened = self._opened[key] = kinds.open_index(entry, self.folder(entry), store)
                    _warn(table, entry, opened)
                except ClipqlError as error:
                    self._opened[key] = error
            return self._opened[key]

    def close_all(self) -> None:
        """Close every index; each is opened, and checked, again when it is next needed."""
        with self._lock:
            self._opened.clear()

    def move(self) -> None:
        """The tables are those of a later snapshot: close the indexes that it does not have."""
        self.rows.move()
        kept = {i.folder for t in self.registry.catalog.tables for i in t.indexes}
        with self._lock:
            for folder in self._opened.keys() - kept:
                del self._opened[folder]

    def forget(self, entry: IndexEntry) -> None:
        """Close an index and remove its files."""
        with self._lock:
            self._opened.pop(entry.folder or "", None)
        if entry.folder:
            files.remove(self.folder(entry))

    def _abandon(self, table: Table, entry: IndexEntry) -> None:
        """Remove what a build that was cut off left."""
        files.remove(self.registry.folder / "index" / table.id / unfinished(entry))

    def after_insert(self, table_id: str, progress: Progress | None = None) -> None:
        """Build the indexes that were learnt from less than half of a table, or none of it; add rows to the others."""
        table = self.registry.catalog.by_id(table_id)
        for entry in table.indexes if table else ():
            assert table is not None, "it has indexes"
            # the rows are in, so the insert has succeeded; a search without the index is slower, not wrong
            with self._noted(table, entry):
                late = lags(entry, table.rows)
                if behind(entry, table.rows, self._learned(table, entry) if late else entry.rows):
                    self.build(table, entry.name, progress)
                elif late and not self._absent(table, entry) and kinds.can_grow(entry, self.folder(entry)):
                    self.grow(table, entry.name, progress)

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
        registry = self.registry
        with registry.write_lock:
            table = registry.catalog.by_id(table.id) or table
            entry = entry_of(table, name)
            if entry.kind == "flat" or self._present(table, entry) < kinds.FEWEST_ROWS:
                return
            check_dimension(table, entry)
            folder = f"{table.id}/{file_name(entry)}-{registry.catalog.serial}"
            place = registry.folder / "index" / folder
            files.make_folder(place.parent)
            began = time.perf_counter()
            work = place.parent / unfinished(entry)
            with _kept_told(table, entry, work), files.translated(place, "building"):
                index = kinds.build(
                    entry,
                    registry.store(table, entry.column),
                    place,
                    queries=self.captions(table, entry),
                    progress=progress or _watcher.get() or (lambda stage, done, total: None),
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
            registry.save(registry.catalog.with_table(table.with_index(built)))
            self._failures.pop((table.id, entry.name), None)
            with self._lock:
                self._opened[folder] = index
            self.forget(entry)
            self.rows.build(table)
        _warn(table, built, index)

    def _learned(self, table: Table, entry: IndexEntry) -> int:
        """The rows that an index was built from, before others were added to it."""
        opened = self._open(table, entry) if entry.kind == "ivf" and entry.folder else None
        return int(getattr(opened, "learned_rows", entry.rows))

    def grow(self, table: Table, name: str, progress: Progress | None = None) -> None:
        """Add the rows that came since to the lists of an index; build it anew where it finds less by that than it did.

        Raises VectorIndexError, DatabaseDamaged or DiskFull.
        """
        registry = self.registry
        with registry.write_lock:
            table = registry.catalog.by_id(table.id) or table
            entry = entry_of(table, name)
            learned = self._learned(table, entry)
            while entry.rows < table.rows:
                folder = f"{table.id}/{file_name(entry)}-{registry.catalog.serial}"
                place, store = registry.folder / "index" / folder, registry.store(table, entry.column)
                began, told = time.perf_counter(), progress or _watcher.get() or (lambda stage, done, total: None)
                with files.translated(place, "building"):
                    index = kinds.grow(entry, self.folder(entry), place, store, told)
                tenths = [10 * rows // max(1, learned) for rows in (entry.rows, index.rows_covered)]
                if tenths[0] < tenths[1] and growing.falls(index, store, self.captions(table, entry), entry):
                    files.remove(place)
                    self.build(table, name, progress)
                    return
                grown = dataclasses.replace(
                    entry,
                    folder=folder,
                    rows=index.rows_covered,
                    seconds=round(entry.seconds + time.perf_counter() - began, 3),
                    bytes=sum(f.stat().st_size for f in place.rglob("*") if f.is_file()),
                )
                table = table.with_index(grown)
                registry.save(registry.catalog.with_table(table))
                with self._lock:
                    self._opened[folder] = index
                self.forget(entry)
                entry = grown

    def _absent(self, table: Table, entry: IndexEntry) -> int:
        """How many rows have no vector for an index."""
        column = table.column(entry.column)
        return column.absent if column else 0

    def _present(self, table: Table, entry: IndexEntry) -> int:
        return table.rows - self._absent(table, entry)

    def forecast(self, table: Table, name: str) -> list[str]:
        """What building an index will take, as EXPLAIN shows it."""
        entry = entry_of(table, name)
        title = f"Build of the index {entry.name} of {table.full_name} ({entry.kind}, {table.rows:,} rows)"
        if entry.kind == "flat" or self._present(table, entry) < kinds.FEWEST_ROWS:
            return [title, "  nothing is built: the rows are scanned"]
        told = kinds.forecast(entry, self.registry.store(table, entry.column), self.registry.folder)
        return [title, f"  takes: {told}"]

    def adopt(self, table: Table, built: IndexEntry, fill: Callable[[Path], None]) -> None:
        """Put an index that was built elsewhere, over the same rows, in the place of what there was.

        fill: writes its files into a folder. Raises VectorIndexError for one that is not of this table's definition or
        covers rows that are not here, DatabaseDamaged where a file is not as its meta.json says.
        """
        registry = self.registry
        with registry.write_lock:
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

    def captions(self, table: Table, entry: IndexEntry) -> ColumnStore | None:
        """The vectors of the captions, which are queries whose answer is known, if the table has them."""
        column = table.column("text_embedding")
        own = table.column(entry.column)
        if column is None or own is None or entry.column == "text_embedding" or column.dimension != own.dimension:
            return None
        return self.registry.store(table, "text_embedding")

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

    def reopen(self, table: Table) -> None:
        """Open the indexes of a table anew when they are next needed: they map vectors that have gone."""
        with self._lock:
            for entry in table.indexes:
                self._opened.pop(entry.folder or "", None)

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
        entry = entry_of(table, name)
        kept = tuple(i for i in table.indexes if i.name != name)
        self.registry.save(self.registry.catalog.with_table(dataclasses.replace(table, indexes=kept)))
        self.forget(entry)
        self._abandon(table, entry)

    def clear(self, table: Table, name: str) -> None:
        """Remove what was built of an index and keep its definition."""
        entry = entry_of(table, name)
        bare = next(i for i in unbuilt(table) if i.name == name)
        self.registry.save(self.registry.catalog.with_table(table.with_index(bare)))
        self.forget(entry)
        self._abandon(table, entry)

    def sweep(self) -> None:
        """Remove folders that no index refers to. A build that was cut off stays, for the next one to go on from."""
        self.rows.sweep()
        kept = {i.folder for t in self.registry.catalog.tables for i in t.indexes}
        begun = {f"{t.id}/{unfinished(i)}" for t in self.registry.catalog.tables for i in t.indexes}
        for table in files.entries(self.registry.folder / "index"):
            for folder in files.entries(Path(table.path)):
                if f"{table.name}/{folder.name}" not in kept | begun:
                    files.remove(Path(folder.path))
            with contextlib.suppress(OSError):
                os.rmdir(table.path)

    def listing(self) -> pa.Table:
        """All indexes, as `SELECT * FROM clipql.indexes` shows them."""
        rows = [(t, i) for t in self.registry.catalog.tables for i in t.indexes]
        text = pa.string()
        return pa.table(
            {
                "database": pa.array([t.database for t, _ in rows], text),
                "table": pa.array([t.name for t, _ in rows], text),
                "name": pa.array([i.name for _, i in rows], text),
                "column": pa.array([i.column for _, i in rows], text),
                "type": pa.array([i.kind for _, i in rows], text),
                "metric": pa.array([i.metric for _, i in rows], text),
                "definition": pa.array([i.definition for _, i in rows], text),
                "rows": pa.array([t.rows for t, _ in rows], pa.uint64()),
                "rows_covered": pa.array([i.rows for _, i in rows], pa.uint64()),
                "bytes": pa.array([i.bytes for _, i in rows], pa.uint64()),
                "build_seconds": pa.array([i.seconds for _, i in rows], pa.float64()),
                "recall": pa.array([recall_text(i) for _, i in rows], text),
                "state": pa.array([self._state(t, i) for t, i in rows], text),
                "rows_without_vector": pa.array([self._absent(t, i) for t, i in rows], pa.uint64()),
                "rows_changed": pa.array([len(i.changed) for _, i in rows], pa.uint64()),
            }
        )

    def statement(self, table: Table) -> str:
        """CREATE TABLE as its user gave it, vector indexes and all."""
        shape = str(self.registry.engine.scalar(f"SHOW CREATE TABLE {self.registry.shape(table)}"))
        lines = shape.split("\n")
        lines[0] = f"CREATE TABLE {table.full_name}"
        end = lines.index(")")
        for entry in table.indexes:
            lines[end - 1] += ","
            lines.insert(end, f"    INDEX {quote_name(entry.name)} {quote_name(entry.column)} {entry.definition}")
            end += 1
        return "\n".join(lines)

    def _state(self, table: Table, entry: IndexEntry) -> str:
        if entry.kind == "flat":
            return "exact scan"
        if entry.folder is None:
            failed = self._failures.get((table.id, entry.name))
            few = self._present(table, entry) < kinds.FEWEST_ROWS
            return "too few rows, exact scan" if few else f"not built: {failed}" if failed else "not built"
        opened = self._open(table, entry)
        return f"damaged: {opened}" if isinstance(opened, ClipqlError) else opened.standing()


def _warn(table: Table, entry: IndexEntry, index: Index) -> None:
    """Say that an index does not reach what is asked of it by default."""
    if index.standing() != "in use":
        text = f"index {entry.name} of {table.full_name}: {index.standing()}"
        warnings.warn(text, IndexWarning, stacklevel=3)


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
