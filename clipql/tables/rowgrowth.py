"""The row file of a table as rows come in: made of the blocks on their way into MergeTree, which need not be read back.

What must stay true: a block is only taken as it is where ClickHouse gives back what it was given; where that is not
certain, or anything goes wrong, the row file just stays behind, as one that is derived may.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipql.engine.quoting import quote_string
from clipql.errors import ClipqlError
from clipql.storage import files
from clipql.storage.catalog import RowFile, Table
from clipql.tables.columnfile import plain_type
from clipql.tables.registry import INTERNAL, Registry
from clipql.tables.rowwriter import RowWriter, schema_of, stored_rows, types_of

LEAST_ROWS = 16_384  # fewer than so many rows behind, a row file waits for more
MOST_READ = 65_536  # so many rows that it is behind are read back from ClickHouse
MOST_WAITING = 2  # blocks of the insertion that wait to be written
# types beside the plain ones whose values come out of ClickHouse as they went in
_KEPT = re.compile(
    r"(Date(32)?|DateTime(64)?|Decimal|FixedString|UUID|IPv[46]|Array|Tuple|Map|LowCardinality|Nullable|U?Int\d+|"
    r"Float(32|64)|Bool|String)\b"
)


class RowGrowth:
    """Grows the row file of one insertion into one table, which holds the write lock meanwhile.

    It has a thread of its own, which writes while ClickHouse takes the same rows in; no more than a few blocks wait.
    """

    def __init__(self, registry: Registry, table: Table) -> None:
        self._registry, self._table = registry, table
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: deque[Future[None]] = deque()
        self._writer: RowWriter | None = None
        self._grown: RowFile | None = None
        self._failed = False
        self._without_default: frozenset[str] | None = None

    @property
    def behind(self) -> int:
        """Rows of the table that the row file lacks."""
        return self._table.rows - (self._table.row_file.rows if self._table.row_file else 0)

    def open(self) -> None:
        """Rows are about to come. Call it while no other statement of the insertion runs: a second connection of
        ClickHouse would have to be made for what is asked here.
        """
        if self._writer is None:
            self._kept_going(self._open)

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Batches with row numbers, on their way."""
        for batch in batches:
            self.add(batch)
            yield batch
        self._do(self._sync)

    def add(self, batch: pa.RecordBatch) -> None:
        """The next rows."""
        self._do(self._add, batch)

    def end(self, rows: int) -> None:
        """No more rows come: the row file covers so many."""
        if self._thread:
            self._do(self._finish, rows)

    def result(self) -> RowFile | None:
        """The row file for the manifest, durable; as it was where it was not grown."""
        self._await(0)
        return self._grown or self._table.row_file

    def close(self, kept: RowFile | None) -> None:
        """Close the files, and remove what the manifest does not need. kept: what it names now."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._clean(kept)

    def _do(self, task: Callable[..., None], *arguments: Any) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "clipql-rows")
        if not self._failed:
            self._tasks.append(self._thread.submit(self._kept_going, task, *arguments))
            self._await(MOST_WAITING)

    def _await(self, left: int) -> None:
        while len(self._tasks) > left:
            self._tasks.popleft().result()

    def _kept_going(self, task: Callable[..., None], *arguments: Any) -> None:
        """Give the row file up where something is wrong with it: the rows come in all the same."""
        if self._failed:
            return
        try:
            task(*arguments)
        except (_NotAsStored, ClipqlError, OSError, ValueError, MemoryError, pa.ArrowException):
            self._failed, self._grown = True, None
            self._clean(self._table.row_file)

    def _clean(self, kept: RowFile | None) -> None:
        if self._writer is None:
            return
        self._writer.close()
        folder, self._writer = self._writer.folder, None
        with contextlib.suppress(OSError):
            if kept is None or kept.folder != folder.name:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                for listing in folder.glob("listing-*"):
                    if listing.name != kept.listing:
                        listing.unlink()

    # in the thread

    def _add(self, batch: pa.RecordBatch) -> None:
        assert self._writer is not None, "it was opened"
        self._writer.add(self._as_stored(batch, self._writer.schema))

    def _sync(self) -> None:
        if self._writer:
            self._writer.sync()

    def _finish(self, rows: int) -> None:
        if self._writer:
            self._grown = self._writer.finish(rows)
            files.sync_folder(self._writer.folder.parent)

    def _open(self) -> None:
        registry, table = self._registry, self._table
        known, root = table.row_file, registry.folder / "rows"
        if self.behind > MOST_READ or (known is None and registry.traits(table).expires):
            raise _NotAsStored
        if known is None:
            self._writer = RowWriter(self._new_folder(root), schema_of(registry, table))
        else:  # whatever changes the columns drops the row file
            self._writer = RowWriter(root / known.folder, None, known)
        if self.behind:
            first = table.rows - self.behind
            for block in stored_rows(registry, table, self._writer.schema, first, table.rows):
                self._writer.add(block)

    def _new_folder(self, root: Path) -> Path:
        place = root / f"{self._table.id}-{self._registry.catalog.serial}"
        files.make_folder(root)
        files.remove(place)
        with files.translated(place, "making"):
            place.mkdir()
        return place

    def _as_stored(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """The rows with the columns and types that ClickHouse gives them. Raises _NotAsStored."""
        types = types_of(schema)
        columns = [self._column(batch, field, types[field.name]) for field in schema]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _lacks_default(self, column: str) -> bool:
        """Whether ClickHouse puts a zero, an empty text or NULL where no value comes."""
        if self._without_default is None:
            where = f"database = '{INTERNAL}' AND table = {quote_string(self._table.id)} AND default_kind = ''"
            found = self._registry.engine.arrow(f"SELECT name FROM system.columns WHERE {where}")
            self._without_default = frozenset(found.column(0).to_pylist())
        return column in self._without_default

    def _column(self, batch: pa.RecordBatch, field: pa.Field, kind: str) -> pa.Array:
        at = batch.schema.get_field_index(field.name)
        plain = plain_type(kind)
        if at < 0:
            if plain is None or not self._lacks_default(field.name):
                raise _NotAsStored
            nothing = pa.nulls(batch.num_rows, field.type)
            return nothing if plain["null"] else _filled(nothing)
        column = batch.column(at)
        if plain is None:
            if column.type != field.type or not _is_kept(kind) or (column.null_count and "Nullable" not in kind):
                raise _NotAsStored
            return column
        column = _widened(column, field.type)
        if column.null_count and not plain["null"]:
            if not self._lacks_default(field.name):
                raise _NotAsStored
            column = _filled(column)
        return column


class _NotAsStored(Exception):
    """The rows cannot be told from what was inserted."""


def _is_kept(kind: str) -> bool:
    """Whether all types that a type is made of keep their values."""
    names = re.findall(r"[A-Z]\w*", re.sub(r"'(?:[^'\\]|\\.)*'", "", kind))
    return all(_KEPT.fullmatch(name) for name in names)


def _filled(column: pa.Array) -> pa.Array:
    """NULLs as the value that ClickHouse puts in their place."""
    kind = column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    nothing = "" if text else False if pa.types.is_boolean(kind) else 0
    return pc.fill_null(column, pa.scalar(nothing, kind))


def _widened(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in the type of its place, which has room for all of its type's values. Raises _NotAsStored."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    given = column.type
    if given == kind:
        return column
    if pa.types.is_large_binary(given):
        given, column = pa.large_string(), column.view(pa.large_string())
    if pa.types.is_binary(given):
        given, column = pa.string(), column.view(pa.string())
    whole = pa.types.is_integer(given) and pa.types.is_integer(kind)
    if whole and pa.types.is_signed_integer(given) and not pa.types.is_signed_integer(kind):
        raise _NotAsStored
    wider = whole and (given.bit_width < kind.bit_width or given == kind)
    wider = wider or (pa.types.is_float32(given) and pa.types.is_float64(kind))
    texts = all(pa.types.is_string(t) or pa.types.is_large_string(t) for t in (given, kind))
    if not (wider or texts or given == kind):
        raise _NotAsStored
    return column if given == kind else column.cast(kind)
