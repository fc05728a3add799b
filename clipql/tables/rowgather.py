"""Rows picked out of Arrow record batches by a compiled loop: where a batch's columns lie is read from its message.

To open a batch with pyarrow takes 25 µs, of which nearly all is the making of objects, and a search wants one row of
each of ten batches; this takes 1 µs a row. The format is Arrow's, whose messages are flatbuffers
(https://arrow.apache.org/docs/format/Columnar.html). What must stay true: values are those that pyarrow gives, and
nothing outside a message is read whatever it holds; a message that does not add up is told of, not guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.tables import row_loops
from clipql.tables.row_loops import BITS, TEXT

Integers = NDArray[np.int64]
MOST_TEXT = 2**31 - 1  # bytes of one column that its offsets can count


@dataclass(frozen=True)
class Column:
    """Where a column is in each batch. buffer: number of its first buffer. width: bytes of a value, BITS or TEXT."""

    kind: pa.DataType
    buffer: int
    width: int


def columns_of(schema: pa.Schema) -> Mapping[str, Column]:
    """The columns that can be read so: numbers, days and times, texts. The first is the row number."""
    found, buffer = {}, 0
    for field in schema:
        width = _width(field.type)
        if width is not None:
            found[field.name] = Column(field.type, buffer, width)
        taken = _buffers(field.type)
        if taken is None:
            break  # nothing behind it can be told
        buffer += taken
    return found


def _width(kind: pa.DataType) -> int | None:
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return TEXT
    if pa.types.is_boolean(kind):
        return BITS
    if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
        return int(kind.bit_width) // 8 or None
    return None


def _buffers(kind: pa.DataType) -> int | None:
    """How many buffers a column of a type has in a message."""
    if _width(kind) is not None or pa.types.is_dictionary(kind):
        return 3 if _width(kind) == TEXT else 2
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return 3
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        return _summed(2, [kind.field(i).type for i in range(kind.num_fields)])
    if pa.types.is_struct(kind) or pa.types.is_fixed_size_list(kind):
        return _summed(1, [kind.field(i).type for i in range(kind.num_fields)])
    return None


def _summed(own: int, kinds: Sequence[pa.DataType]) -> int | None:
    found = [_buffers(kind) for kind in kinds]
    return None if any(n is None for n in found) else own + sum(n for n in found if n is not None)


@dataclass(frozen=True)
class Located:
    """Rows in their batches: uint64 (5, n), for each the body of its message, its size, where its buffers are listed,
    how many there are, and its place in the batch.
    """

    table: NDArray[np.uint64]


def locate(messages: NDArray[np.uint64], sizes: Integers, rows: NDArray[np.uint64]) -> tuple[Located, int]:
    """Find rows, uint64 (n,), in these messages, addresses and bytes (n,), and the position of the first that is not
    there, or whose message does not add up; n for none.
    """
    found = np.empty((5, len(rows)), np.uint64)
    return Located(found), int(row_loops.locate(messages, sizes, rows, found))


class Batches:
    """Where the batches of a file are: the number of each one's first row, ascending, its place and its end in bytes,
    uint64 (m,). base: the address of the file in memory.
    """

    def __init__(
        self, first: NDArray[np.uint64], start: NDArray[np.uint64], end: NDArray[np.uint64], base: int
    ) -> None:
        # copies, as Numba compiles anew for an array that may not be written to, which a file of one batch has
        self._first, self._start = np.array(first, np.uint64), np.array(start, np.uint64)
        self._end, self._base = np.array(end, np.uint64), np.uint64(base)

    def of(
        self, rows: NDArray[np.uint64], checked: NDArray[np.bool_]
    ) -> tuple[Integers, NDArray[np.uint64], Integers, int]:
        """The batches of rows (n,): number, address and bytes (n,) each; and ALL_CHECKED, SOME_UNCHECKED, or the
        position of a row that is before the first batch.

        checked: bool (m,).
        """
        n = len(rows)
        numbers, messages, sizes = np.empty(n, np.int64), np.empty(n, np.uint64), np.empty(n, np.int64)
        state = row_loops.batches(
            self._first, self._start, self._end, self._base, rows, checked, numbers, messages, sizes
        )
        return numbers, messages, sizes, int(state)


class TooLong(Exception):
    """Texts of more bytes than one array can count."""


def taken(columns: Sequence[Column], located: Located) -> list[pa.Array | None]:
    """Columns of the rows that were found. None for one of which a message does not add up. Raises TooLong."""
    found: list[pa.Array | None] = [None] * len(columns)
    texts = [i for i, column in enumerate(columns) if column.width == TEXT]
    for i, array in zip(texts, _texts([columns[i] for i in texts], located.table) if texts else (), strict=True):
        found[i] = array
    for i, column in enumerate(columns):
        if column.width != TEXT:
            found[i] = _of_numbers(column, located.table)
    return found


def _texts(columns: Sequence[Column], table: NDArray[np.uint64]) -> list[pa.Array | None]:
    """Columns of texts, all measured by one call of the loop and copied by another, as a call takes more than they."""
    n, many = table.shape[1], len(columns)
    buffers, nulls = np.array([column.buffer for column in columns]), np.empty(many, np.int64)
    offsets, address = np.empty((many, n + 1), np.int32), np.empty((many, n), np.uint64)
    valid, begins = np.zeros((many, (n + 7) // 8), np.uint8), np.zeros(many + 1, np.int64)
    if row_loops.measured(table, buffers, offsets, address, valid, begins, nulls, MOST_TEXT):
        raise TooLong
    data, edges = np.empty(int(begins[many]), np.uint8), begins.tolist()
    row_loops.copied(address, offsets, begins, data)
    text, found = pa.py_buffer(data), []
    for i, (column, missing) in enumerate(zip(columns, nulls.tolist(), strict=True)):
        part = text.slice(edges[i], edges[i + 1] - edges[i])
        kept = [pa.py_buffer(valid[i]) if missing else None, pa.py_buffer(offsets[i]), part]
        found.append(None if missing < 0 else pa.Array.from_buffers(column.kind, n, kept, null_count=missing))
    return found


def _of_numbers(column: Column, table: NDArray[np.uint64]) -> pa.Array | None:
    n = table.shape[1]
    valid = np.zeros((n + 7) // 8, np.uint8)
    numbers = np.zeros((n + 7) // 8 if column.width == BITS else n * column.width, np.uint8)
    nulls = row_loops.numbers(table, column.buffer, column.width, numbers, valid)
    if nulls < 0:
        return None
    kept = [pa.py_buffer(valid) if nulls else None, pa.py_buffer(numbers)]
    return pa.Array.from_buffers(column.kind, n, kept, null_count=int(nulls))


def mapped_address(data: Any) -> int:
    """The address of what a map begins with. It must be kept open as long as the address is used."""
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def warm() -> None:
    """Compile the loops."""
    columns = {"_row": pa.array([0], pa.uint64()), "text": pa.array(["a"]), "truth": pa.array([True])}
    data = np.frombuffer(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).serialize(), np.uint8)
    rows, ends = np.zeros(1, np.uint64), np.full(1, len(data), np.uint64)
    _, messages, sizes, _ = Batches(rows, rows, ends, data.ctypes.data).of(rows, np.ones(1, np.bool_))
    located, _ = locate(messages, sizes, rows)
    taken(list(columns_of(pa.schema([(name, array.type) for name, array in columns.items()])).values()), located)
