"""The code files of vector columns: found, made in the background when exact searches ask for them, removed.

A code file is derived: it may be deleted at any time. It lies in `codes/<table>/<column>-<digest>`, whose digest is of
the hashes of the segments that it covers, from the first on. What must stay true: a file is used only for exactly those
vectors; so other vectors (UPDATE, OPTIMIZE, a column that is made anew) need nothing but another look, and rows that
came later are scanned until the file is grown. A name is there when its file is whole.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from clipql.errors import ClipqlError
from clipql.index.bounded import file as codes
from clipql.index.bounded.file import CodeFile, Progress
from clipql.storage import files
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.snapshot import CODES
from clipql.storage.vectors.store import ColumnStore
from clipql.tables.background import Stopped

FEWEST_ROWS = 50_000  # a scan of fewer takes a millisecond or two
LONGEST = 2048  # numbers of a vector: a rotation of more takes minutes to learn
GROWN = 8  # a file is grown when one of so many rows is newer
SEARCHES = 2  # exact searches of a column before codes are made: one alone takes less than making them


@dataclass(frozen=True)
class ColumnCodes:
    """The codes of one column for searches of one statement; see `flat.Codes`."""

    owner: CodeFiles
    table: str
    column: VectorColumn
    store: ColumnStore

    def file(self) -> CodeFile | None:
        """The file to search with, or None. Where there is none, or it is behind, it is asked for."""
        return self.owner.file(self.table, self.column, self.store)

    def distrust(self, error: Exception) -> None:
        """Remove a file that is damaged; another one is made when it is asked for."""
        self.owner.distrust(self.table, self.column)


class CodeFiles:
    """The code files of a database. Thread-safe.

    folder: the database's. want: has the codes of a column made soon; None for a reader.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self.want: Callable[[str, str], None] | None = None
        self._opened: dict[tuple[str, str], tuple[ColumnStore, CodeFile | None]] = {}
        # the file of each column that is open, by its name, and checked as far as it was read
        self._whole: dict[tuple[str, str], tuple[str, CodeFile]] = {}
        self._searches: dict[tuple[str, str], int] = {}
        self._failed: dict[tuple[str, str], ColumnStore] = {}  # where it could not be made, and is not tried again
        self._coming: set[str] = set()  # names of files that are being made
        self._guard = threading.Lock()

    def of(self, table: Table, column: str, store: ColumnStore) -> ColumnCodes | None:
        """The codes of a column; None where it is too small for them."""
        found = table.column(column)
        if found is None or store.rows < FEWEST_ROWS or not 0 < store.dimension <= LONGEST:
            return None
        return ColumnCodes(self, table.id, found, store)

    def file(self, table: str, column: VectorColumn, store: ColumnStore) -> CodeFile | None:
        """The file that covers most of a store's first rows, or None. What is missing is asked for."""
        key = table, column.folder
        with self._guard:
            known = self._opened.get(key)
            if known is None or known[0] is not store:
                known = self._opened[key] = store, self._found(table, column, store)
            found = known[1]
            if self.want is not None and store.rows - (found.rows if found else 0) > store.rows // GROWN:
                self._searches[key] = self._searches.get(key, 0) + 1
                if (found or self._searches[key] >= SEARCHES) and self._failed.get(key) is not store:
                    self.want(table, column.name)
        return found

    def ready(self, table: Table, column: str, store: ColumnStore) -> CodeFile | None:
        """The same for EXPLAIN, which asks for nothing."""
        if (codes := self.of(table, column, store)) is None:
            return None
        with self._guard:
            known = self._opened.get((table.id, codes.column.folder))
        found = known[1] if known and known[0] is store else self._found(table.id, codes.column, store)
        return found if found and found.useful else None

    def _found(self, table: str, column: VectorColumn, store: ColumnStore) -> CodeFile | None:
        digests = _digests(store)
        best: tuple[int, Path] | None = None
        for entry in files.entries(self._folder() / CODES / table):
            rows = digests.get(entry.name.removeprefix(f"{column.folder}-"))
            if rows and entry.name.startswith(f"{column.folder}-") and (best is None or rows > best[0]):
                best = rows, Path(entry.path)
        if best is None:
            self._whole.pop((table, column.folder), None)
            return None
        try:
            name, opened = self._whole.get((table, column.folder), ("", None))
            if opened is None or name != best[1].name:
                opened = CodeFile(best[1])
                self._whole[table, column.folder] = best[1].name, opened
            return opened if opened.rows == best[0] else None
        except (ClipqlError, OSError):
            self._forget(table, column.folder, best[1])
            return None

    def distrust(self, table: str, column: VectorColumn) -> None:
        """Use a file no more, and remove it, where this is no reader."""
        with self._guard:
            store, found = self._opened.get((table, column.folder), (None, None))
            if store is not None:
                self._opened[table, column.folder] = store, None
            if found is not None:
                self._forget(table, column.folder, self._folder() / CODES / table / found.folder.name)

    def _forget(self, table: str, column: str, place: Path) -> None:
        self._whole.pop((table, column), None)
        if self.want is not None:
            files.remove(place)

    def build(self, table: Table, column: str, store: ColumnStore, progress: Progress | None = None) -> None:
        """Make the codes of all rows of a column, or of those that came since. Raises DiskFull, StorageError."""
        if (column_codes := self.of(table, column, store)) is None:
            return
        folder, key = column_codes.column.folder, (table.id, column_codes.column.folder)
        before = self._found(table.id, column_codes.column, store)
        if before is not None and before.rows == store.rows:
            return
        digest = next(d for d, rows in _digests(store).items() if rows == store.rows)
        place = self._folder() / CODES / table.id / f"{folder}-{digest}"
        with self._guard:
            self._failed[key] = store  # until it is made
            self._coming.add(place.name)
        try:
            with files.translated(place, "writing"):
                files.make_folder(place.parent)
                codes.write(place, store, older=before, progress=progress)
        except Stopped:
            self._failed.pop(key, None)
            raise
        finally:
            self._coming.discard(place.name)
        with self._guard:
            self._opened.pop(key, None)
            self._failed.pop(key, None)
        if before is not None:
            files.remove(before.folder)

    def remove(self, table: Table, column: str) -> None:
        """Remove the codes of a column."""
        if (found := table.column(column)) is None:
            return
        with self._guard:
            self._opened.pop((table.id, found.folder), None)
            self._searches.pop((table.id, found.folder), None)
        for entry in files.entries(self._folder() / CODES / table.id):
            if entry.name.startswith(f"{found.folder}-"):
                self._forget(table.id, found.folder, Path(entry.path))

    def sweep(self, tables: Iterable[tuple[Table, Callable[[str], ColumnStore]]]) -> None:
        """Remove what is of no table any more, or of other vectors, or was not finished."""
        kept: dict[str, set[str]] = {}
        for table, store in tables:
            kept[table.id] = {f"{c.folder}-{d}" for c in table.columns for d in _digests(store(c.name))}
        for folder in files.entries(self._folder() / CODES):
            for entry in files.entries(Path(folder.path)):
                coming = any(entry.name.startswith(f".{name}.") for name in [*self._coming])
                if not coming and entry.name not in kept.get(folder.name, ()):
                    files.remove(Path(entry.path))
            with contextlib.suppress(OSError):
                os.rmdir(folder.path)  # where nothing is left in it
        with self._guard:
            self._opened.clear()
            for key in [k for k in self._whole if k[0] not in kept]:
                del self._whole[key]


def _digests(store: ColumnStore) -> dict[str, int]:
    """The digest of each run of segments from the first on, and their rows."""
    state, found = xxhash.xxh3_64(f"codes {codes.VERSION} {store.dimension}".encode()), {}
    for segment in store.segments:
        state.update(f"|{segment.hash} {segment.rows} {segment.dtype} {segment.hollow}".encode())
        found[state.hexdigest()] = segment.end
    return found
