"""The built indexes of tables, as they are opened and chosen for searches.

What must stay true: an index is used only when its folder is whole and covers the rows it claims; what is damaged is
named and passed over.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from pathlib import Path

from clipql.brief import Brief
from clipql.errors import ClipqlError, IndexWarning
from clipql.index import kinds
from clipql.index.base import Index
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore
from clipql.tables.index_entries import present, same_order, unfinished
from clipql.tables.registry import Registry
from clipql.tables.rowfile import RowFiles


@dataclasses.dataclass(frozen=True, repr=False)
class Chosen(Brief):
    """The index a search shall use, or None, and why."""

    index: Index | None
    entry: IndexEntry | None
    why: str


class OpenIndexes:
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
            if entry.changed:
                opened = kinds.changing(opened, self.registry.store(table, column), entry.changed)
            return Chosen(opened, entry, "")
        return Chosen(None, None, why)

    def _open(self, table: Table, entry: IndexEntry) -> Index | ClipqlError:
        with self._lock:
            key = entry.folder or ""
            if key not in self._opened:
                try:
                    store = self.registry.store(table, entry.column)
                    opened = self._opened[key] = kinds.open_index(entry, self.folder(entry), store)
                    warn_of(table, entry, opened)
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

    def reopen(self, table: Table) -> None:
        """Open the indexes of a table anew when they are next needed: they map vectors that have gone."""
        with self._lock:
            for entry in table.indexes:
                self._opened.pop(entry.folder or "", None)

    def forget(self, entry: IndexEntry) -> None:
        """Close an index and remove its files."""
        with self._lock:
            self._opened.pop(entry.folder or "", None)
        if entry.folder:
            files.remove(self.folder(entry))

    def _abandon(self, table: Table, entry: IndexEntry) -> None:
        """Remove what a build that was cut off left."""
        files.remove(self.registry.folder / "index" / table.id / unfinished(entry))

    def captions(self, table: Table, entry: IndexEntry) -> ColumnStore | None:
        """The vectors of the captions, which are queries whose answer is known, if the table has them."""
        column = table.column("text_embedding")
        own = table.column(entry.column)
        if column is None or own is None or entry.column == "text_embedding" or column.dimension != own.dimension:
            return None
        return self.registry.store(table, "text_embedding")

    def state(self, table: Table, entry: IndexEntry) -> str:
        """What an index is good for now, in words."""
        if entry.kind == "flat":
            return "exact scan"
        if entry.folder is None:
            failed = self._failures.get((table.id, entry.name))
            few = present(table, entry) < kinds.FEWEST_ROWS
            return "too few rows, exact scan" if few else f"not built: {failed}" if failed else "not built"
        opened = self._open(table, entry)
        return f"damaged: {opened}" if isinstance(opened, ClipqlError) else opened.standing()


def warn_of(table: Table, entry: IndexEntry, index: Index) -> None:
    """Say that an index does not reach what is asked of it by default."""
    if index.standing() != "in use":
        text = f"index {entry.name} of {table.full_name}: {index.standing()}"
        warnings.warn(text, IndexWarning, stacklevel=3)
