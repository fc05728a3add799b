"""A copy of a table's stored columns in rows that can be mapped: ten rows in 0.1 ms, which ClickHouse takes 4 ms for.

A row file is derived, as an index is: it is built beside one, covers the rows up to a number, and is dropped before
anything changes a stored value. What must stay true: what it gives is what ClickHouse would give; a damaged batch is
noticed when it is first read, and the file is then no longer used.

rows.bin holds Arrow record batches of up to 128 rows (512 in older files), one after the other; batches.bin where each
begins and ends, its first row number and its hash; schema.arrow their schema, in whose metadata ClickHouse's own types
stand; listing-N.json how much of each file is of the first N rows. Beside them lie columns that conditions are read
from (`columnfile`). Rows that come later are appended (`rowgrowth`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import shutil
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from clipql.engine import memory
from clipql.engine.arrow import arrow_numbers, numpy_numbers
from clipql.errors import ClipqlError, DatabaseDamaged
from clipql.storage import files
from clipql.storage.catalog import RowFile, Table
from clipql.syntax.recent import Recent
from clipql.tables import row_loops, rowgather
from clipql.tables.columnfile import ColumnReader
from clipql.tables.registry import Registry
from clipql.tables.rowwriter import PLACES, ROWS, RowWriter, described, schema_of, stored_rows, types_of

FEW = 256  # rows that are taken one by one
KEPT_BATCHES = 4096  # open at once; they are mapped, not read
KEPT_SHAPES = 256


@dataclass(frozen=True)
class _Opened:
    """A batch that has been read. numbers: its row numbers, uint64 (rows,); dense: no number is left out."""

    columns: Sequence[pa.Array]
    numbers: NDArray[np.uint64]
    first: int
    rows: int
    dense: bool

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Opened:
        numbers = numpy_numbers(batch.column(0))
        first, last = (int(numbers[0]), int(numbers[-1])) if len(numbers) else (0, -1)
        return cls(batch.columns, numbers, first, len(numbers), last - first + 1 == len(numbers))


class RowReader:
    """Rows of one row file, by number. Thread-safe. Raises DatabaseDamaged where the file is not what was written.

    older: a reader of fewer rows of the file; what it has looked at need not be looked at again.
    """

    def __init__(self, folder: Path, entry: RowFile, older: RowReader | None = None) -> None:
        self.folder, self.rows = folder, entry.rows
        try:
            hash, schema, places, listing = described(folder, entry.listing)
            if hash != entry.hash:
                raise DatabaseDamaged(f"{folder} does not match its hash, so it was altered")
            self.schema = pa.ipc.read_schema(pa.py_buffer(schema))
            self._places = np.frombuffer(places, PLACES)
            self._firsts = array("Q", self._places["first"].astype(np.uint64).tobytes())
            self._data = _mapped(folder / ROWS) if len(self._places) else None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
            raise DatabaseDamaged(f"{folder} cannot be read: {error}") from error
        size = len(self._data) if self._data else 0
        self._scattered = memory.on_disk(size)
        self._advise(mmap.MADV_RANDOM)
        if size < entry.bytes:
            raise DatabaseDamaged(f"{folder}/{ROWS} holds {size:,} bytes; expected {entry.bytes:,}")
        self.types = types_of(self.schema)
        before = older.columns if older else None
        self.columns: ColumnReader = ColumnReader(folder, listing["columns"], before)
        self._batches: dict[int, _Opened] = dict(older._batches) if older else {}
        self._checked = np.zeros(len(self._places), np.bool_)  # by batch: whether its hash was right
        if older:
            self._checked[: len(older._checked)] = older._checked
        base = rowgather.mapped_address(self._data) if self._data else 0
        self._where = rowgather.Batches(self._places["first"], self._places["start"], self._places["end"], base)
        self._shapes = Recent[Hashable, pa.Schema](KEPT_SHAPES)
        self._plain = rowgather.columns_of(self.schema)
        self._column_at = {name: i for i, name in enumerate(self.schema.names)}
        self._kinds: Sequence[pa.DataType] = self.schema.types
        self._guard = threading.Lock()

    def take(self, rows: Sequence[int] | NDArray[np.integer], columns: Sequence[str]) -> dict[str, pa.Array]:
        """These columns of these rows, in this order, by name. In pieces only where a column has 2 GB of text."""
        wanted = dict.fromkeys(columns)
        plain = {name: self._plain[name] for name in wanted if name in self._plain}
        others = [name for name in wanted if name not in plain]
        asked = np.asarray(rows, np.uint64)
        found = self._gathered(asked, plain) if plain else {}
        if others and len(rows) > FEW:
            batches = np.searchsorted(self._places["first"], asked, side="right") - 1
            found |= self._take_many(asked.astype(np.int64), batches, others)
        elif others:
            found |= self._take_few(asked.tolist(), others)
        return {name: found[name] for name in wanted}

    def _gathered(self, rows: NDArray[np.uint64], columns: Mapping[str, rowgather.Column]) -> dict[str, pa.Array]:
        """Columns of numbers and texts."""
        numbers, messages, sizes, state = self._where.of(rows, self._checked)
        if state >= 0:
            raise self._lacks(int(rows[state]))
        new = np.unique(numbers[~self._checked[numbers]]).tolist() if state == row_loops.SOME_UNCHECKED else []
        if new or self._scattered:
            self._ask_disk(numbers.tolist() if self._scattered else new)
        for number in new:
            self._check(number)
        located, wrong = rowgather.locate(messages, sizes, rows)
        if wrong < len(rows):
            raise self._lacks(int(rows[wrong]))
        try:
            found = dict(zip(columns, rowgather.taken(list(columns.values()), located), strict=True))
        except rowgather.TooLong:
            if len(rows) == 1:  # what one batch holds is never so long
                raise self._lacks(int(rows[0])) from None
            middle = len(rows) // 2
            halves = [self._gathered(half, columns) for half in (rows[:middle], rows[middle:])]
            return {name: _in_turn([half[name] for half in halves]) for name in columns}
        if wrongs := [name for name, values in found.items() if values is None]:
            raise DatabaseDamaged(f"{self.folder}/{ROWS}: the column {wrongs[0]!r} is not what was written")
        return found

    def shape(self, key: Hashable, fields: Callable[[], Sequence[pa.Field]]) -> pa.Schema:
        """The schema of some fields, made once for a key: to make one takes as long as to pick out ten rows."""
        found = self._shapes.find(key)
        if found is None:
            self._shapes.keep(key, found := pa.schema(fields()))
        return found

    def _lacks(self, row: int) -> DatabaseDamaged:
        return DatabaseDamaged(f"{self.folder} has no row {row}, which it should cover")

    def _take_few(self, rows: Sequence[int], columns: Sequence[str]) -> dict[str, pa.Array]:
        numbers = [bisect_right(self._firsts, row) - 1 for row in rows]
        self._ask_disk(numbers)
        places: list[tuple[_Opened, int]] = []
        for row, number in zip(rows, numbers, strict=True):
            opened = self._batches.get(number) or self._opened(number)
            at = row - opened.first
            if not opened.dense:  # rows before it were deleted
                at = int(np.searchsorted(opened.numbers, row))
                if at < opened.rows and int(opened.numbers[at]) != row:
                    at = opened.rows
            if at >= opened.rows:
                raise self._lacks(row)
            places.append((opened, at))
        found: dict[str, pa.Array] = {}
        for name in columns:
            column = self._column_at[name]
            pieces = [opened.columns[column].slice(at, 1) for opened, at in places]
            kind = self._kinds[column]
            if not pieces:
                found[name] = pa.array([], kind)
            elif isinstance(kind, pa.DictionaryType):
                found[name] = pa.chunked_array(pieces, kind).unify_dictionaries().combine_chunks()
            else:
                found[name] = pa.concat_arrays(pieces)
        return found

    def _take_many(
        self, rows: NDArray[np.int64], batches: NDArray[np.int64], columns: Sequence[str]
    ) -> dict[str, pa.Array]:
        """The same for so many rows that each batch is opened once and what is wanted of it taken together."""
        order = np.argsort(batches, kind="stable")
        edges = np.flatnonzero(np.diff(batches[order], prepend=-1, append=-1))
        pieces: dict[str, list[pa.Array]] = {name: [] for name in columns}
        for first, last in itertools.pairwise(edges.tolist()):
            opened = self._opened(int(batches[order[first]]))
            asked = rows[order[first:last]]
            at = asked - opened.first
            if not opened.dense:
                at = np.searchsorted(opened.numbers, asked.astype(np.uint64))
                gone = opened.numbers[np.minimum(at, opened.rows - 1)] != asked.astype(np.uint64)
                at = np.where(gone, opened.rows, at)
            if at.max() >= opened.rows:
                raise self._lacks(int(asked[at.argmax()]))
            for name in columns:
                pieces[name].append(opened.columns[self._column_at[name]].take(arrow_numbers(at)))
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        found: dict[str, pa.Array] = {}
        for name in columns:
            whole = pa.chunked_array(pieces[name], self.schema.field(self._column_at[name]).type)
            if pa.types.is_dictionary(whole.type):
                whole = whole.unify_dictionaries()
            found[name] = whole.combine_chunks().take(arrow_numbers(back))
        return found

    def table(self, rows: Sequence[int]) -> pa.Table:
        """All stored columns of these rows, in this order."""
        return pa.Table.from_arrays(list(self.take(rows, self.schema.names).values()), schema=self.schema)

    def _ask_disk(self, numbers: Sequence[int]) -> None:
        """Have the batches read that may not be in memory, side by side."""
        for number in set(numbers):
            if (self._scattered or not self._checked[number]) and self._data is not None:
                place = self._places[number]
                start = int(place["start"]) // mmap.PAGESIZE * mmap.PAGESIZE
                self._data.madvise(mmap.MADV_WILLNEED, start, int(place["end"]) - start)

    def _advise(self, advice: int) -> None:
        """Tell the kernel how a file is read that is too large for memory: at random, so that it reads what is asked
        for and drops that before pages of an index; or in order.
        """
        if self._scattered and self._data is not None:
            self._data.madvise(advice)

    def verify(self) -> None:
        """Read everything. Raises DatabaseDamaged, naming the first file that is not what was written."""
        self._batches.clear()
        self._checked[:] = False
        self._advise(mmap.MADV_NORMAL)
        for number in range(len(self._places)):
            self._opened(number)
        self._advise(mmap.MADV_RANDOM)
        self.columns.verify()

    def _opened(self, number: int) -> _Opened:
        found = self._batches.get(number)
        if found is None:
            place = self._places[number]
            self._check(number)
            data = pa.py_buffer(self._data).slice(int(place["start"]), int(place["end"] - place["start"]))
            found = _Opened.of(pa.ipc.read_record_batch(data, self.schema))
            with self._guard:
                while len(self._batches) >= KEPT_BATCHES:
                    self._batches.pop(next(iter(self._batches)))
                self._batches[number] = found
        return found

    def _check(self, number: int) -> None:
        """Raises DatabaseDamaged where a batch is not what was written; looked at once."""
        if not self._checked[number]:
            _, start, end, hash = self._places[number].tolist()
            assert self._data is not None  # as there are batches
            with memoryview(self._data) as data:
                if not 0 <= start <= end <= len(data) or xxhash.xxh3_64_intdigest(data[start:end]) != hash:
                    raise DatabaseDamaged(f"{self.folder}/{ROWS} is damaged between bytes {start} and {end}")
            self._checked[number] = True


def _in_turn(pieces: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks = [chunk for piece in pieces for chunk in (piece.chunks if hasattr(piece, "chunks") else [piece])]
    return pa.chunked_array(chunks)


def _mapped(path: Path) -> mmap.mmap:
    with files.open_plain(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class RowFiles:
    """The row files of a database's tables: built, opened, dropped."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._readers: dict[str, RowReader | ClipqlError] = {}

    def _folder(self, entry: RowFile) -> Path:
        return self._registry.folder / "rows" / entry.folder

    def reader(self, table: Table) -> RowReader | None:
        """The rows of a table, where there is a row file that is whole."""
        entry = table.row_file
        if entry is None:
            return None
        found = self._readers.get(entry.folder)
        if found is None or (isinstance(found, RowReader) and found.rows < entry.rows):
            try:
                found = RowReader(self._folder(entry), entry, found)
            except ClipqlError as error:
                found = error
            self._readers[entry.folder] = found
        return None if isinstance(found, ClipqlError) else found

    def move(self) -> None:
        """The tables are those of a later snapshot: forget the row files that it does not have."""
        kept = {t.row_file.folder for t in self._registry.catalog.tables if t.row_file}
        for folder in self._readers.keys() - kept:
            del self._readers[folder]

    def distrust(self, table: Table, error: ClipqlError) -> None:
        """Use a table's row file no more: it gave this error."""
        if table.row_file is not None:
            self._readers[table.row_file.folder] = error

    def build(self, table: Table) -> None:
        """Have the row file cover all rows there are now, where that is possible. Raises DiskFull."""
        registry = self._registry
        with registry.write_lock:
            table = registry.current(table)
            if registry.traits(table).expires or not table.rows:
                return
            known = table.row_file if table.row_file and self._whole(table) else None
            if known and known.rows == table.rows:
                return
            try:
                entry = self._written(table, known)
            except DatabaseDamaged:  # columns may have other types than the file
                known, entry = None, self._written(table, None)
            registry.save(registry.catalog.with_table(dataclasses.replace(table, row_file=entry)))
            if table.row_file and not known:
                files.remove(self._folder(table.row_file))

    def _written(self, table: Table, known: RowFile | None) -> RowFile:
        """Write what a row file lacks, or all of a new one."""
        registry = self._registry
        place = registry.folder / "rows" / (known.folder if known else f"{table.id}-{registry.catalog.serial}")
        with files.translated(place, "writing"):
            if known is None:
                files.make_folder(place.parent)
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
            schema = schema_of(registry, table)
            with contextlib.closing(RowWriter(place, schema, known)) as writer:
                for block in stored_rows(registry, table, schema, known.rows if known else 0, table.rows):
                    writer.add(block)
                entry = writer.finish(table.rows)
            files.sync_folder(place.parent)
        return entry

    def _whole(self, table: Table) -> bool:
        reader = self.reader(table)
        try:
            if reader:
                reader.verify()
        except DatabaseDamaged:
            return False
        return reader is not None

    def drop(self, table: Table) -> None:
        """Forget a table's row file, because stored values are about to change. Hold the write lock until they have."""
        table = self._registry.current(table)
        if table.row_file is None:
            return
        self._registry.save(self._registry.catalog.with_table(dataclasses.replace(table, row_file=None)))
        self._readers.pop(table.row_file.folder, None)
        files.remove(self._folder(table.row_file))

    def sweep(self) -> None:
        """Remove folders that no table refers to, and listings of fewer rows than a row file has."""
        kept = {t.row_file.folder: t.row_file.listing for t in self._registry.catalog.tables if t.row_file}
        for folder in files.entries(self._registry.folder / "rows"):
            if folder.name not in kept:
                files.remove(Path(folder.path))
                continue
            for file in files.entries(Path(folder.path)):
                if file.name.startswith("listing-") and file.name != kept[folder.name]:
                    files.remove(Path(file.path))
