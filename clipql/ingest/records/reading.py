"""The rows of a group of a file, as Arrow batches in their order, in memory that does not grow with the file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.errors import IngestError, VectorError
from clipql.ingest.layout import DAMAGED
from clipql.ingest.records import lance_files
from clipql.ingest.records.nesting import Shallow
from clipql.ingest.records.nesting import check as check_nesting
from clipql.ingest.records.sources import ARROW, JSON, PARQUET, STREAM, TEXT_BLOCK, RecordFile, csv_reader
from clipql.storage.vectors import segments
from clipql.storage.vectors.segments import ArrayFile

_LET_GO = 64 << 20  # bytes of a mapped file


def read_group(
    file: RecordFile, group: int, vectors: Sequence[str], rows: int, only: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a group, at most `rows` at a time. vectors: columns that hold vectors, also where they are text;
    only: a column of the file, where others are not needed.

    Raises IngestError, naming the file and the row up to which it could be read.
    """
    own = [v for v in vectors if file.beside is None or v != file.beside_name]
    before = sum(n or 0 for n in file.groups[:group])
    beside = _Beside(file.beside, before) if file.beside and only in (None, file.beside_name) else None
    read = 0
    try:
        for whole in _batches(file, group, own, rows, only):
            for start in range(0, whole.num_rows, rows):
                batch = whole.slice(start, rows)
                if beside:
                    batch = batch.append_column(file.beside_name, beside.take(file, batch.num_rows))
                yield batch
                read += batch.num_rows
    except DAMAGED as error:
        raise IngestError(f"{file.where(group, read)} and those after it cannot be read ({error})") from error
    expected = file.groups[group]
    if expected is not None and read != expected:
        raise IngestError(
            f"{file.path} announces {expected:,} rows in {file.unit} {group} and has {read:,}; fetch it again"
        )
    if beside and group == len(file.groups) - 1:
        beside.check_end(file)


def _batches(
    file: RecordFile, group: int, vectors: Sequence[str], rows: int, only: str | None
) -> Iterator[pa.RecordBatch]:
    path = str(file.path)
    if file.fragment is not None:
        yield from lance_files.batches(file.path, file.fragment, rows, None if only is None else [only])
    elif file.form == PARQUET:
        # what is buffered before is a whole row group
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(path, **options) as parquet:
            columns = None if only is None else [only]
            yield from parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    elif file.form == ARROW:
        yield from _mapped(path, group, rows)
    elif file.form == STREAM:
        with pa.OSFile(path, "rb") as plain, pa.ipc.open_stream(plain) as stream:
            for batch in stream:
                batch.validate(full=True)
                yield batch
    elif file.form == JSON:
        yield from _json(file, vectors)
    else:
        kinds = {f.name: pa.string() if f.name in vectors else f.type for f in _own_fields(file)}
        with csv_reader(file.path, kinds) as reader:
            for batch in reader:
                yield _with_parsed(batch, vectors)


def _mapped(path: str, group: int, rows: int) -> Iterator[pa.RecordBatch]:
    """A record batch in pieces; pages that were read are let go, so that one as large as its file takes no memory."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).get_batch(group)
    whole.validate(full=True)  # places beyond the data would be read as they are
    mapped.madvise(mmap.MADV_DONTNEED)
    piece = max(1, whole.nbytes // max(1, whole.num_rows)) * rows
    for number, start in enumerate(range(0, whole.num_rows, rows)):
        yield whole.slice(start, rows)
        if number % max(1, _LET_GO // piece) == 0:
            mapped.madvise(mmap.MADV_DONTNEED)  # which are read once more where they are still in use


def _own_fields(file: RecordFile) -> list[pa.Field]:
    return [f for f in file.schema if file.beside is None or f.name != file.beside_name]


def _json(file: RecordFile, vectors: Sequence[str]) -> Iterator[pa.RecordBatch]:
    floats = pa.list_(pa.float32())
    fields = [f.with_type(floats) if f.name in vectors and not _is_text(f.type) else f for f in _own_fields(file)]
    parsing = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="error")
    reading = pa.json.ReadOptions(block_size=TEXT_BLOCK, use_threads=False)
    with (
        pa.input_stream(str(file.path), compression="detect") as plain,
        pa.json.open_json(pa.PythonFile(Shallow(plain), mode="r"), reading, parsing) as reader,
    ):
        for batch in reader:
            yield _with_parsed(batch, [v for v in vectors if _is_text(batch.schema.field(v).type)])


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _with_parsed(batch: pa.RecordBatch, vectors: Sequence[str]) -> pa.RecordBatch:
    for name in vectors:
        at = batch.schema.get_field_index(name)
        parsed = parse_vectors(batch.column(at))
        batch = batch.set_column(at, name, parsed)
    return batch


def parse_vectors(texts: pa.Array) -> pa.Array:
    """Texts such as [0.5, -1] as lists of float32; a text that is empty as NULL. Raises DAMAGED for other texts."""
    given = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
    lines = pc.binary_join_element_wise('{"v":', given, "}", "", null_handling="replace", null_replacement="null")
    content = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")[0].as_buffer()
    if not len(texts):
        return pa.array([], pa.list_(pa.float32()))
    schema = pa.schema([pa.field("v", pa.list_(pa.float32()))])
    check_nesting(content)
    # one block, so that no line is too long for it
    reading = pa.json.ReadOptions(use_threads=False, block_size=content.size + 1)
    parsing = pa.json.ParseOptions(explicit_schema=schema, newlines_in_values=True)
    try:
        found = pa.json.read_json(pa.BufferReader(content), reading, parsing)
    except pa.ArrowException as error:
        raise ValueError(f"a vector is not written as numbers, such as [0.5, -1.25]: {error}") from error
    if found.num_rows != len(texts):
        raise ValueError("a vector is not written as numbers, such as [0.5, -1.25]")
    return found.column(0).combine_chunks()


class _Beside:
    """The vectors of a `.npy` beside a file of rows, taken as the rows come."""

    def __init__(self, array: ArrayFile, first: int) -> None:
        self._array, self._at = array, first
        self._blocks = segments.read_blocks(array)
        self._rest: NDArray[np.generic] = np.empty((0, array.dimension), np.float32)
        self._skip = first

    def take(self, file: RecordFile, rows: int) -> pa.Array:
        """The next vectors. Raises IngestError where there are too few."""
        parts, need = [], rows
        while need or self._skip:
            if not len(self._rest):
                self._rest = self._next(file)
            dropped = min(self._skip, len(self._rest))
            self._skip, self._rest = self._skip - dropped, self._rest[dropped:]
            piece = self._rest[: 0 if self._skip else need]
            parts.append(np.array(piece))  # the block is only valid until the next one
            self._rest, need = self._rest[len(piece) :], need - len(piece)
        self._at += rows
        block = np.concatenate(parts) if parts else np.empty((0, self._array.dimension), np.float32)
        return pa.FixedSizeListArray.from_arrays(arrow_numbers(block.reshape(-1)), self._array.dimension)

    def _next(self, file: RecordFile) -> NDArray[np.generic]:
        try:
            _, block = next(self._blocks)
        except StopIteration:
            raise IngestError(
                f"{file.path} has more rows than the {self._array.rows:,} vectors of {self._array.path}: each needs one"
            ) from None
        except VectorError as error:
            raise IngestError(str(error)) from error
        return block

    def check_end(self, file: RecordFile) -> None:
        """Raise IngestError where vectors are left."""
        if self._at != self._array.rows:
            raise IngestError(
                f"{self._array.path} has {self._array.rows:,} vectors and {file.path} has {self._at:,} rows: each row "
                "needs one vector"
            )
