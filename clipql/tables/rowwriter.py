"""Writing a row file, or more rows behind those it has.

What must stay true: what an entry of the manifest covers of a file never changes; what lies behind that, of a write
that was cut off, is cut away by the next. Whoever keeps the entry has synced the files first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from clipql.engine.arrow import numpy_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import DatabaseDamaged
from clipql.storage import files, strays
from clipql.storage.catalog import RowFile, Table
from clipql.storage.files import GrownFile
from clipql.storage.places import only_snapshots
from clipql.tables.columnfile import ColumnWriter
from clipql.tables.registry import ROW, Registry

BATCH_ROWS = 128  # read and hashed whole when one of its rows is first wanted: 26 KB of LAION's
PLACES = np.dtype([("first", "<u8"), ("start", "<u8"), ("end", "<u8"), ("hash", "<u8")])
ROWS, BATCHES, SCHEMA = "rows.bin", "batches.bin", "schema.arrow"
_TYPES = b"clickhouse_types"
_SYNCED_AT_ONCE = 8


class RowWriter:
    """Writes Arrow batches of a schema whose first column is the row number, in ascending order.

    schema: of the rows, with ClickHouse's types in its metadata; None for that of what is there already. entry: of
    what is there already, None for a new file. Raises StorageError, and DatabaseDamaged, for another schema too.
    """

    def __init__(self, folder: Path, schema: pa.Schema | None, entry: RowFile | None = None) -> None:
        self.folder, self._entry = folder, entry
        listing: dict[str, Any] = {"batches": 0, "columns": []}
        if entry:
            known, listing = _known(folder, entry)
            if schema is not None and not known.equals(schema, check_metadata=True):
                raise DatabaseDamaged(f"{folder} holds other columns, or columns of other types, than the table")
            schema = known
        self.schema: pa.Schema = schema
        self._batches: int = listing["batches"]
        kinds = {name: kind for name, kind in types_of(self.schema).items() if name != ROW}
        with contextlib.ExitStack() as opened:
            self._rows = GrownFile(folder / ROWS, entry.bytes if entry else 0, shared=only_snapshots)
            opened.callback(self._rows.close)
            self._places = GrownFile(folder / BATCHES, self._batches * PLACES.itemsize, shared=only_snapshots)
            opened.callback(self._places.close)
            self._columns = ColumnWriter(folder, kinds, entry.rows if entry else 0, listing["columns"])
            opened.callback(self._columns.close)
            self._opened = opened.pop_all()

    def add(self, block: pa.RecordBatch) -> None:
        """More rows."""
        if not block.num_rows:
            return
        numbers = numpy_numbers(block.column(0))
        self._columns.add(numbers, block)
        places, batches, at = [], [], self._rows.size
        for start in range(0, block.num_rows, BATCH_ROWS):
            data = block.slice(start, BATCH_ROWS).serialize()
            batches.append(data)
            places.append((int(numbers[start]), at, at + len(data), xxhash.xxh3_64_intdigest(data)))
            at += len(data)
        self._rows.write(*batches)
        self._places.write(np.array(places, PLACES).tobytes())
        self._batches += len(places)

    def sync(self) -> None:
        """Make what came so far durable, which takes what is left for `finish` less time."""
        self._rows.sync()

    def finish(self, rows: int) -> RowFile:
        """Cover so many rows, durably. Returns the entry for the manifest."""
        columns = self._columns.finish(rows)
        grown = [self._rows, self._places, *self._columns.files()]
        if self._entry is None:
            with files.new_file(self.folder / SCHEMA) as file:
                files.write_all(file, self.schema.serialize().to_pybytes())
        listing = f"listing-{rows}.json"
        with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
            syncing = [pool.submit(file.sync) for file in grown]
            with files.new_file(self.folder / listing) as file:
                files.write_all(file, json.dumps({"batches": self._batches, "columns": columns}).encode())
            for each in syncing:
                each.result()
        files.sync_folder(self.folder)
        return RowFile(self.folder.name, rows, self._rows.size, described(self.folder, listing)[0], listing)

    def close(self) -> None:
        """Close the files; harmless when called twice."""
        self._opened.close()


def _known(folder: Path, entry: RowFile) -> tuple[pa.Schema, dict[str, Any]]:
    """The schema and the listing of a row file. Raises DatabaseDamaged where they are not what was written."""
    try:
        hash, schema, _, listing = described(folder, entry.listing)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatabaseDamaged(f"{folder} cannot be read: {error}") from error
    if hash != entry.hash:
        raise DatabaseDamaged(f"{folder} does not match its hash, so it was altered")
    return pa.ipc.read_schema(pa.py_buffer(schema)), listing


def described(folder: Path, listing: str) -> tuple[str, bytes, bytes, dict[str, Any]]:
    """The hash of what tells what is where in a row file, its schema, the places of its batches and its listing."""
    schema, written = files.read_plain(folder / SCHEMA), files.read_plain(folder / listing)
    told: dict[str, Any] = json.loads(written)
    with files.open_plain(folder / BATCHES) as file:
        size = int(told["batches"]) * PLACES.itemsize
        if not 0 <= size <= os.fstat(file.fileno()).st_size:
            raise ValueError(f"{BATCHES} does not have {told['batches']:,} batches")
        places = file.read(size)
    arrays = [array for column in told["columns"] for array in (column["values"], column["nulls"]) if array]
    if not all(strays.is_name(array["file"]) and type(array["bytes"]) is int for array in arrays):
        raise ValueError(f"{listing} names files that are none of its folder")
    return xxhash.xxh3_64_hexdigest(schema + places + written), schema, places, told


def types_of(schema: pa.Schema) -> dict[str, str]:
    """ClickHouse's types of the columns of a row file."""
    found: dict[str, str] = json.loads(schema.metadata[_TYPES])
    return found


def selecting(registry: Registry, table: Table, first: int, end: int) -> str:
    """The SELECT of the rows that a row file holds, from one number up to another."""
    stored = registry.traits(table).stored
    listed = ", ".join(map(quote_name, [ROW, *(c for c in stored if c != ROW)]))
    return f"SELECT {listed} FROM {registry.physical(table)} WHERE {ROW} >= {first} AND {ROW} < {end} ORDER BY {ROW}"


def schema_of(registry: Registry, table: Table) -> pa.Schema:
    """The schema of a table's row file, with ClickHouse's types in its metadata."""
    select = selecting(registry, table, 0, 0)
    found = registry.engine.arrow(f"DESCRIBE TABLE ({select})")
    types: Mapping[str, str] = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
    schema = registry.engine.arrow(f"{select} LIMIT 0").schema
    return schema.with_metadata({_TYPES: json.dumps(types).encode()})


def stored_rows(registry: Registry, table: Table, schema: pa.Schema, first: int, end: int) -> Iterator[pa.RecordBatch]:
    """Rows as ClickHouse has them. Raises DatabaseDamaged where they are not of the schema."""
    for block in registry.engine.stream(selecting(registry, table, first, end)):
        if not block.schema.equals(schema, check_metadata=False):
            raise DatabaseDamaged(f"the rows of {table.full_name} are not of the types that its row file has")
        yield block
