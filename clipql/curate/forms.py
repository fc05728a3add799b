"""The forms that an export can have besides LAION's: each writes the files of one part, row i of each the same row.

    parquet      data/part_0.parquet: all columns, vectors as fixed-size lists
    npy          NAME/NAME_0.npy of each vector column, metadata/metadata_0.parquet
    webdataset   000000.tar: for each row KEY.json, KEY.NAME.npy of each vector column, KEY.txt of a caption
    faiss        NAME/NAME_0.faiss: a flat index of inner products, in float16 where the vectors are; metadata as npy's
    lance        data.lance, a commit for each part; needs Lance's library
    hf           data-00000-of-00003.arrow, dataset_info.json, state.json: `datasets.load_from_disk`

What must stay true: vectors are float16 where they are stored so; memory does not grow with the rows; the same rows
give the same bytes.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import io
import itertools
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.curate.part_files import ROWS_AT_ONCE, listed, metadata, metadata_batches, new_file, npy, stored_as
from clipql.errors import ClipqlError
from clipql.storage import files

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table

Rows = NDArray[Any]
# of how many parts one is, beside the rows of all, and what it writes
Write = Callable[["Database", "Table", Rows, Path, int, int], list[Path]]
CAPTIONS = ("caption", "text", "TEXT")


def _npy(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    made = [_vectors(db, table, name, rows, out, number) for name in (c.name for c in table.columns)]
    return [*made, _metadata(db, table, rows, out, number)]


def _vectors(db: Database, table: Table, name: str, rows: Rows, out: Path, number: int) -> Path:
    column = table.column(name)
    assert column is not None, "a column of the table"
    path = out / name / f"{name}_{number}.npy"
    with new_file(path) as file:
        for piece in npy(db.registry.store(table, name), rows, stored_as(column), column.dimension or 0):
            files.write_all(file, piece)
    return path


def _metadata(db: Database, table: Table, rows: Rows, out: Path, number: int) -> Path:
    path = out / "metadata" / f"metadata_{number}.parquet"
    with new_file(path) as file:
        metadata(db, table, rows, file)
    return path


def _whole_batches(db: Database, table: Table, rows: Rows) -> Iterator[pa.RecordBatch]:
    """All columns of the rows, vectors as fixed-size lists, ROWS_AT_ONCE at most; one batch without rows for none."""
    at = 0
    for batch in metadata_batches(db, table, rows):
        for first in range(0, max(1, batch.num_rows), ROWS_AT_ONCE):
            some = batch.slice(first, ROWS_AT_ONCE)
            for column in table.columns:
                found = db.registry.store(table, column.name).take(rows[at : at + some.num_rows])
                flat = pa.array(found.astype(stored_as(column)).reshape(-1))
                listed = pa.FixedSizeListArray.from_arrays(flat, column.dimension or 1)
                some = some.append_column(column.name, listed)
            at += some.num_rows
            yield some


def _parquet(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    path, writer = out / "data" / f"part_{number}.parquet", None
    with new_file(path) as file:
        for batch in _whole_batches(db, table, rows):
            writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
    return [path]


def _hf(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    """A shard as `datasets` saves one to disk, and what says how many there are."""
    names = [f"data-{i:05d}-of-{parts:05d}.arrow" for i in range(parts)]
    path, writer = out / names[number], None
    with new_file(path) as file:
        for batch in _whole_batches(db, table, rows):
            writer = writer or pa.ipc.new_stream(file, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": _fingerprint(out, path),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    made = [path]
    if number == parts - 1:  # nothing can be loaded before all shards are there
        info = {"description": f"{table.full_name}, by clipql"}
        for name, said in (("dataset_info.json", info), ("state.json", state)):
            files.replace(out / name, json.dumps(said, indent=1).encode())
            made.append(out / name)
    return made


def _fingerprint(out: Path, last: Path) -> str:
    """What `datasets` knows these rows by in its cache: of the hashes of all shards."""
    found = hashlib.sha256(json.dumps(listed(out)).encode())
    with open(last, "rb") as file:
        found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def _lance(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    """A commit of one Lance data set. One that the manifest does not know, as the run was cut off, is undone first."""
    try:
        import lance
    except ImportError as error:
        raise ClipqlError("an export as lance needs Lance's library: pip install 'clipql[lance]'") from error
    place, before = out / "data.lance", sum(part["rows"] for part in listed(out)[:number])
    known = {path for path in place.rglob("*") if path.is_file()}
    if number:
        data = lance.dataset(place)
        versions = (v["version"] for v in data.versions())
        version = next(v for v in versions if data.checkout_version(v).count_rows() == before)
        if version != data.version:
            data.checkout_version(version).restore()
    batches = _whole_batches(db, table, rows)
    first = next(batches)
    reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))
    lance.write_dataset(reader, place, mode="append" if number else "overwrite")
    return [path for path in sorted(place.rglob("*")) if path.is_file() and path not in known]


def _webdataset(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    path = out / f"{number:06d}.tar"
    at = 0
    with new_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for batch in metadata_batches(db, table, rows):
            for first in range(0, batch.num_rows, ROWS_AT_ONCE):
                some = batch.slice(first, ROWS_AT_ONCE)
                chosen = rows[at : at + some.num_rows]
                vectors = {
                    c.name: db.registry.store(table, c.name).take(chosen).astype(stored_as(c)) for c in table.columns
                }
                for i, (row, said) in enumerate(zip(chosen.tolist(), some.to_pylist(), strict=True)):
                    key = f"{row:012d}"
                    shown = {k: None if v != v else v for k, v in said.items()}  # JSON has no NaN
                    _add(tar, f"{key}.json", json.dumps(shown, default=_plain, ensure_ascii=False).encode())
                    caption = next((said[c] for c in CAPTIONS if isinstance(said.get(c), str | bytes)), None)
                    if caption is not None:
                        _add(tar, f"{key}.txt", caption.encode() if isinstance(caption, str) else caption)
                    for name, found in vectors.items():
                        _add(tar, f"{key}.{_member(name)}.npy", _npy_bytes(found[i]))
                at += some.num_rows
    return [path]


def _member(name: str) -> str:
    """A column's name as a part of the name of a file in a tar: what splits names would be read otherwise."""
    return "".join("_" if c in "./\\" or not c.isprintable() else c for c in name)


def _npy_bytes(vector: NDArray[Any]) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array(held, vector, version=(1, 0))
    return held.getvalue()


def _plain(value: Any) -> Any:
    """What JSON has no type for, as text: bytes in base64, times in ISO 8601."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else repr(value)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# faiss/impl/index_write.cpp: what begins an index, and its parts
_DEFAULT, _INNER_PRODUCT, _FP16 = 1 << 20, 0, 4


def _faiss(db: Database, table: Table, rows: Rows, out: Path, number: int, parts: int) -> list[Path]:
    made = []
    for column in table.columns:
        path, size = out / column.name / f"{column.name}_{number}.faiss", column.dimension or 0
        kind, store = stored_as(column), db.registry.store(table, column.name)
        # dimension, rows, two numbers that mean nothing, trained, metric
        head = struct.pack("<iqqqBi", size, len(rows), _DEFAULT, _DEFAULT, 1, _INNER_PRODUCT)
        if kind.itemsize == 2:  # IndexScalarQuantizer: type, range, range's argument, dimension, bytes, nothing learnt
            codes = struct.pack("<iifQQQ", _FP16, 0, 0.0, size, 2 * size, 0)
            head = b"IxSQ" + head + codes + struct.pack("<Q", 2 * size * len(rows))
        else:  # IndexFlatIP, whose length is in numbers
            head = b"IxFI" + head + struct.pack("<Q", size * len(rows))
        with new_file(path) as file:
            files.write_all(file, head)
            for at in range(0, len(rows), ROWS_AT_ONCE):
                files.write_all(file, store.take(rows[at : at + ROWS_AT_ONCE]).astype(kind).tobytes())
        made.append(path)
    return [*made, _metadata(db, table, rows, out, number)]


FORMS: dict[str, Write] = {
    "parquet": _parquet,
    "npy": _npy,
    "webdataset": _webdataset,
    "faiss": _faiss,
    "hf": _hf,
    "lance": _lance,
}
