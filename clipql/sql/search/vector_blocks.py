"""Vectors as arrays, for numpy, torch and whatever else takes them: blocks of mapped rows with their numbers.

What must stay true: a block shows vectors as they are stored, without a copy where the rows lie together; only rows
that are there and meet the condition are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.arrow import numpy_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import DatabaseDamaged
from clipql.sql.search.conditions import plain_mask
from clipql.storage.catalog import Table
from clipql.tables.registry import ROW, Registry
from clipql.tables.rowfile import RowFiles

ROWS_AT_ONCE = 65_536  # of 512 numbers: 64 MB, which is copied where rows are left out
FEW_RUNS = 16  # so many runs of rows in a block are shown as they lie; more are gathered in one copy


@dataclass(frozen=True, repr=False)
class VectorBlock(Brief):
    """Some rows of a vector column. It is an Arrow array of structs for whatever takes `__arrow_c_array__`.

    vectors: (n, d) float16 or float32, read-only; rows: (n,) int64 row numbers; values: the plain columns that were
    asked for, Arrow arrays of length n by name; name: the column's.
    """

    vectors: NDArray[Any]
    rows: NDArray[np.int64]
    values: Mapping[str, pa.Array] = field(default_factory=dict)
    name: str = "vector"

    def arrow(self) -> pa.RecordBatch:
        """`_row`, the plain columns, and the vectors as a FixedSizeList, which are not copied."""
        n, d = self.vectors.shape
        numbers = pa.Array.from_buffers(
            pa.from_numpy_dtype(self.vectors.dtype), n * d, [None, pa.py_buffer(np.ascontiguousarray(self.vectors))]
        )
        vectors = pa.FixedSizeListArray.from_arrays(numbers, d)
        return pa.RecordBatch.from_pydict({ROW: pa.array(self.rows), **self.values, self.name: vectors})

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """The Arrow C data interface: pyarrow, polars, duckdb and others take a block as it is."""
        return self.arrow().__arrow_c_array__(requested_schema)  # type: ignore[no-any-return]


class VectorBlocks:
    """The blocks of a vector column, once: an iterator, and an Arrow stream for whatever takes `__arrow_c_stream__`."""

    def __init__(self, blocks: Iterator[VectorBlock], empty: VectorBlock) -> None:
        self._blocks, self._empty = blocks, empty

    def __iter__(self) -> VectorBlocks:
        return self

    def __next__(self) -> VectorBlock:
        return next(self._blocks)

    def arrow(self) -> pa.RecordBatchReader:
        """The blocks that are still to come, as record batches; each is made when it is read."""
        schema = self._empty.arrow().schema
        batches = (block.arrow().cast(schema) for block in self)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow C stream interface."""
        return self.arrow().__arrow_c_stream__(requested_schema)


Values = Callable[[NDArray[np.int64]], Mapping[str, pa.Array]]


def vector_blocks(
    registry: Registry, row_files: RowFiles, table: Table, column: str, where: str | None, columns: Sequence[str] = ()
) -> VectorBlocks:
    """The vectors of the rows that are there now and meet a condition, by number, with plain columns.

    Plain columns come from the row file, mapped, or where there is none from ClickHouse, all rows at once.
    """
    wanted = registry.alive(table) if where is None else _meeting(registry, row_files, table, where)
    values = _values(registry, row_files, table, columns) if columns else lambda rows: {}
    wanted = registry.present(table, [column], wanted)
    store = registry.store(table, column)
    mapped = store.blocks(0, table.rows)

    def whole(vectors: NDArray[Any], rows: NDArray[np.int64]) -> VectorBlock:
        return VectorBlock(vectors, rows, values(rows), column)

    kind = np.result_type(*(array.dtype for _, array in mapped)) if mapped else np.dtype(np.float32)
    empty = whole(np.empty((0, store.dimension), kind), np.empty(0, np.int64))
    return VectorBlocks((whole(*block) for block in _blocks(mapped, wanted)), empty)


def _values(registry: Registry, row_files: RowFiles, table: Table, columns: Sequence[str]) -> Values:
    reader = row_files.reader(table)
    if reader is not None and reader.rows == table.rows:
        return lambda rows: reader.take(rows.tolist(), columns)
    names = ", ".join(quote_name(name) for name in columns)
    found = registry.engine.arrow(f"SELECT {ROW}, {names} FROM {registry.physical(table)} ORDER BY {ROW}")
    numbers = numpy_numbers(found.column(0))

    def taken(rows: NDArray[np.int64]) -> Mapping[str, pa.Array]:
        at = pa.array(np.searchsorted(numbers, rows.astype(numbers.dtype)))
        return {name: _joined(found.column(name).take(at)) for name in columns}

    return taken


def _joined(column: pa.ChunkedArray) -> pa.Array:
    whole = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    return whole.combine_chunks()


def _blocks(mapped: Any, wanted: NDArray[np.bool_] | None) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    for first, whole in mapped:
        for start in range(0, len(whole), ROWS_AT_ONCE):
            vectors = whole[start : start + ROWS_AT_ONCE]
            at = first + start
            if wanted is None:
                yield vectors, np.arange(at, at + len(vectors), dtype=np.int64)
            else:
                yield from _chosen(vectors, at, wanted[at : at + len(vectors)])


def _chosen(
    vectors: NDArray[Any], first: int, wanted: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    if len(edges) <= 2 * FEW_RUNS:
        for start, end in edges.reshape(-1, 2).tolist():
            yield vectors[start:end], np.arange(first + start, first + end, dtype=np.int64)
        return
    places = np.flatnonzero(wanted)
    gathered = vectors[places]
    gathered.flags.writeable = False
    yield gathered, (places + first).astype(np.int64)


def _meeting(registry: Registry, row_files: RowFiles, table: Table, where: str) -> NDArray[np.bool_]:
    """The rows that meet a condition: on mapped columns where that can be done, and else by ClickHouse."""
    reader = row_files.reader(table)
    if reader is not None and reader.rows == table.rows:
        try:
            mask = plain_mask(where, reader.columns.column, table.rows, {})
        except DatabaseDamaged as error:
            row_files.distrust(table, error)
            mask = None
        if mask is not None:
            alive = registry.alive(table)
            return mask if alive is None else mask & alive
    sql = f"SELECT {ROW} FROM {registry.physical(table)} WHERE ({where}\n)"
    rows = registry.row_numbers(sql, {})
    found = np.zeros(table.rows, np.bool_)
    found[rows[rows < table.rows]] = True
    return found
