"""The row file of a table as rows come in: made of the blocks on their way into MergeTree, which need not be read back.

What must stay true: a block is only taken as it is where ClickHouse gives back what it was given; where that is not
certain, or anything goes wrong, the row file just stays behind, as one that is derived may.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipql.engine.quoting import quote_string
from clipql.errors import ClipqlError, QueryCancelled
from clipql.storage import files
from clipql.storage.catalog import RowFile, Table
from clipql.tables.columnfile import plain_type
from clipql.tables.registry import INTERNAL, ROW, Registry
from clipql.tables.rowwriter import RowWriter, schema_of, stored_rows, types_of

LEAST_ROWS = 16_384  # fewer than so many rows behind, a row file waits for more
MOST_READ = 65_536  # so many rows that it is behind are read back from ClickHouse
# types beside the plain ones whose values come out of ClickHouse as they went in
_KEPT = re.compile(
    r"(Date(32)?|DateTime(64)?|Decimal|FixedString|UUID|IPv[46]|Array|Tuple|Map|LowCardinality|Nullable|U?Int\d+|"
    r"Float(32|64)|Bool|String)\b"
)


class RowGrowth:
    """Grows the row file of one insertion into one table, which holds the write lock meanwhile."""

    def __init__(self, registry: Registry, table: Table) -> None:
        self._registry, self._table = registry, table
        self._writer: RowWriter | None = None
        self._failed = False
        self._defaults: dict[str, str] = {}

    @property
    def behind(self) -> int:
        """Rows of the table that the row file lacks."""
        return self._table.rows - (self._table.row_file.rows if self._table.row_file else 0)

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Batches with row numbers, on their way."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """The next rows."""
        if self._failed:
            return
        with self._kept_going():
            if self._writer is None:
                self._writer = self._opened()
            self._writer.add(self._as_stored(batch, self._writer.schema))

    def sync(self) -> None:
        """Make what came so far durable, beside whatever else is under way."""
        with self._kept_going():
            if self._writer:
                self._writer.sync()

    def finish(self, rows: int) -> RowFile | None:
        """The row file with these rows, for the manifest; as it was where it could not be grown."""
        with self._kept_going():
            if self._writer:
                grown = self._writer.finish(rows)
                files.sync_folder(self._writer.folder.parent)
                return grown
        return self._table.row_file

    def close(self, kept: RowFile | None) -> None:
        """Close the files, and remove what the manifest does not need. kept: what it names now."""
        if self._writer is None:
            return
        self._writer.close()
        with contextlib.suppress(OSError):
            if kept is None or kept.folder != self._writer.folder.name:
                shutil.rmtree(self._writer.folder, ignore_errors=True)
            else:
                for listing in self._writer.folder.glob("listing-*"):
                    if listing.name != kept.listing:
                        listing.unlink()

    @contextlib.contextmanager
    def _kept_going(self) -> Iterator[None]:
        """Give the row file up where something is wrong with it: the rows come in all the same."""
        try:
            yield
        except QueryCancelled:
            raise
        except (_NotAsStored, ClipqlError, OSError, ValueError, pa.ArrowException):
            self._failed = True
            self.close(self._table.row_file)
            self._writer = None

    def _opened(self) -> RowWriter:
        registry, table = self._registry, self._table
        if registry.traits(table).expires or self.behind > MOST_READ:
            raise _NotAsStored
        found = registry.engine.arrow(
            f"SELECT name, default_kind FROM system.columns WHERE database = '{INTERNAL}' "
            f"AND table = {quote_string(table.id)}"
        )
        self._defaults = dict(zip(*(c.to_pylist() for c in found.columns), strict=True))
        schema, root = schema_of(registry, table), registry.folder / "rows"
        writer = RowWriter(self._place(root), schema, table.row_file)
        try:
            for block in stored_rows(registry, table, schema, table.rows - self.behind, table.rows):
                writer.add(block)
        except BaseException:
            writer.close()
            raise
        return writer

    def _place(self, root: Path) -> Path:
        if self._table.row_file:
            return root / self._table.row_file.folder
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

    def _column(self, batch: pa.RecordBatch, field: pa.Field, kind: str) -> pa.Array:
        at = batch.schema.get_field_index(field.name)
        plain = plain_type(kind)
        if at < 0:
            if plain is None or field.name == ROW or self._defaults.get(field.name) != "":
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
            if self._defaults.get(field.name) != "":
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
