"""What all forms of an export share: a file that is whole or not there, `.npy`, and the metadata in Parquet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import StorageError
from clipql.storage import files
from clipql.tables.registry import ROW
from clipql.tables.shape import insertable

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table, VectorColumn
    from clipql.storage.vectors.store import ColumnStore

MANIFEST = "manifest.json"
ROWS_AT_ONCE = 8_192


def listed(out: Path) -> list[dict[str, Any]]:
    """The parts that the manifest of an export has so far: their rows, and sizes and hashes of their files."""
    found: list[dict[str, Any]] = json.loads((out / MANIFEST).read_bytes())["parts"]
    return found


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name once it is whole and on the disk, in a folder that is made for it."""
    files.make_folder(path.parent)
    with files.new_file(path) as file:
        yield file
    files.sync_folder(path.parent)


def npy(store: ColumnStore, rows: NDArray[Any], kind: np.dtype[Any], dimension: int) -> Iterator[bytes]:
    """A `.npy` file of the vectors of these rows."""
    header = {"descr": kind.str, "fortran_order": False, "shape": (len(rows), dimension)}
    head = pa.BufferOutputStream()
    np.lib.format.write_array_header_1_0(head, header)
    yield head.getvalue().to_pybytes()
    for at in range(0, len(rows), ROWS_AT_ONCE):
        yield store.take(rows[at : at + ROWS_AT_ONCE]).astype(kind).tobytes()


def metadata(db: Database, table: Table, rows: NDArray[Any], file: BinaryIO) -> None:
    """The columns that are no vectors. Raises StorageError where rows of ClickHouse's are missing."""
    writer = None
    try:
        for batch in metadata_batches(db, table, rows):
            writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
            writer.write_batch(batch)
    finally:
        if writer is not None:
            writer.close()


def metadata_batches(db: Database, table: Table, rows: NDArray[Any]) -> Iterator[pa.RecordBatch]:
    """The columns that are no vectors, in the order of the rows, which ascend; one batch without rows for none.

    Raises StorageError where rows of ClickHouse's are missing.
    """
    stored = [n for n, _ in insertable(db.registry.engine, table) if table.column(n) is None]
    select = f"SELECT {', '.join(map(quote_name, stored))} FROM {db.registry.physical(table)}"
    chosen = pa.table({"r": arrow_numbers(rows.astype(np.uint64))})
    sql = f"{select} WHERE {ROW} IN (SELECT r FROM Python(chosen)) ORDER BY {ROW}"
    count = 0
    for batch in db.registry.engine.stream(sql, tables={"chosen": chosen}):
        yield batch
        count += batch.num_rows
    if not count:
        yield pa.RecordBatch.from_pylist([], db.registry.engine.arrow(f"{select} LIMIT 0").schema)
    if count != len(rows):
        raise StorageError(f"{table.full_name} gave {count:,} rows of {len(rows):,}; run `clipql check`")


def stored_as(column: VectorColumn) -> np.dtype[Any]:
    """float16 where all vectors of a column are stored so, else float32."""
    return np.dtype("<f2" if all(s.dtype == "float16" for s in column.segments) else "<f4")
