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
from numba import carray, uint64
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel, pointer

Integers = NDArray[np.int64]
Number = Any  # an int64 of the loop's
BITS, TEXT = 0, -1  # widths of what is no whole number of bytes
MOST_TEXT = 2**31 - 1  # bytes of one column that its offsets can count
_PREFIX = 8  # bytes before a message's table: a mark, and the table's length
_MARK = 0xFFFFFFFF


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
    """Rows in their batches: the body of each one's message, its size, where its buffers are listed, how many there
    are, and its place in the batch. uint64 and int64 (n,).
    """

    body: NDArray[np.uint64]
    size: Integers
    listed: NDArray[np.uint64]
    buffers: Integers
    at: Integers


def locate(messages: NDArray[np.uint64], sizes: Integers, rows: NDArray[np.uint64]) -> tuple[Located, int]:
    """Find rows, uint64 (n,), in these messages, addresses and bytes (n,), and the position of the first that is not
    there, or whose message does not add up; n for none.
    """
    n = len(rows)
    found = Located(
        np.empty(n, np.uint64),
        np.empty(n, np.int64),
        np.empty(n, np.uint64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
    )
    wrong = _locate(messages, sizes, rows, found.body, found.size, found.listed, found.buffers, found.at)
    return found, int(wrong)


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
        found = _batches(self._first, self._start, self._end, self._base, rows, checked, numbers, messages, sizes)
        return numbers, messages, sizes, int(found)


ALL_CHECKED, SOME_UNCHECKED = -1, -2


class TooLong(Exception):
    """Texts of more bytes than one array can count."""


def taken(column: Column, found: Located) -> pa.Array | None:
    """A column of the rows that were found. None where a message does not add up. Raises TooLong."""
    n = len(found.at)
    valid = np.zeros((n + 7) // 8, np.uint8)
    where = (found.body, found.size, found.listed, found.buffers, found.at, column.buffer)
    if column.width == TEXT:
        offsets, address = np.zeros(n + 1, np.int64), np.empty(n, np.uint64)
        nulls = _measured(*where, offsets, address, valid)
        if nulls < 0:
            return None
        if offsets[n] > MOST_TEXT:
            raise TooLong
        data = np.empty(int(offsets[n]), np.uint8)
        _copied(address, offsets, data)
        buffers: list[NDArray[Any]] = [offsets.astype(np.int32), data]
    else:
        size = (n + 7) // 8 if column.width == BITS else n * column.width
        numbers = np.zeros(size, np.uint8)
        nulls, buffers = _numbers(*where, column.width, numbers, valid), [numbers]
        if nulls < 0:
            return None
    kept = [pa.py_buffer(valid) if nulls else None, *(pa.py_buffer(b) for b in buffers)]
    return pa.Array.from_buffers(column.kind, n, kept, null_count=int(nulls))


@kernel
def _byte(address: np.uint64) -> Number:
    return np.int64(carray(pointer(address), 1, np.uint8)[0])


@kernel
def _number(address: np.uint64, bytes: int) -> Number:
    """Little-endian, unsigned but for 8 bytes."""
    value = np.int64(0)
    for i in range(bytes):
        value |= _byte(address + uint64(i)) << np.int64(8 * i)
    return value


@kernel
def _field(start: np.uint64, size: int, table: int, field: int) -> int:
    """Where a field of a flatbuffer's table is, in bytes from the start; -1 for none, -2 where it does not add up."""
    if table < 0 or table + 4 > size:
        return -2
    back = np.int64(np.int32(_number(start + uint64(table), 4)))
    described = table - back
    if described < 0 or described + 4 > size:
        return -2
    slot = 4 + 2 * field
    if slot + 2 > _number(start + uint64(described), 2):
        return -1
    if described + slot + 2 > size:
        return -2
    offset = _number(start + uint64(described + slot), 2)
    return table + offset if offset > 0 else -1


@kernel
def _followed(start: np.uint64, size: int, at: int) -> int:
    """What an offset of a flatbuffer leads to; -2 where it does not add up."""
    if at < 0 or at + 4 > size:
        return -2
    found = at + _number(start + uint64(at), 4)
    return found if found + 4 <= size else -2


@kernel
def _buffer(body: np.uint64, size: int, listed: np.uint64, buffers: int, number: int) -> tuple[np.uint64, int]:
    """Address and bytes of a buffer; -1 bytes where it does not add up."""
    if number >= buffers:
        return body, -1
    at = _number(listed + uint64(16 * number), 8)
    bytes = _number(listed + uint64(16 * number + 8), 8)
    if at < 0 or bytes < 0 or at > size or bytes > size - at:
        return body, -1
    return body + uint64(at), bytes


@kernel
def _batches(
    first: NDArray[np.uint64],
    start: NDArray[np.uint64],
    end: NDArray[np.uint64],
    base: np.uint64,
    rows: NDArray[np.uint64],
    checked: NDArray[np.bool_],
    numbers: Integers,
    messages: NDArray[np.uint64],
    sizes: Integers,
) -> int:
    state = ALL_CHECKED
    for i in range(rows.size):
        low, high = np.int64(0), np.int64(first.size)
        while low < high:
            middle = (low + high) >> 1
            if first[middle] <= rows[i]:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return i
        at = low - 1
        numbers[i], messages[i], sizes[i] = at, base + start[at], np.int64(end[at] - start[at])
        if not checked[at]:
            state = SOME_UNCHECKED
    return state


@kernel
def _locate(
    messages: NDArray[np.uint64],
    sizes: Integers,
    rows: NDArray[np.uint64],
    body: NDArray[np.uint64],
    room: Integers,
    listed: NDArray[np.uint64],
    buffers: Integers,
    at: Integers,
) -> int:
    for i in range(rows.size):
        if i > 0 and messages[i] == messages[i - 1]:
            body[i], room[i], listed[i], buffers[i] = body[i - 1], room[i - 1], listed[i - 1], buffers[i - 1]
        else:
            if sizes[i] < _PREFIX or _number(messages[i], 4) != _MARK:
                return i
            size, start = _number(messages[i] + uint64(4), 4), messages[i] + uint64(_PREFIX)
            if size > sizes[i] - _PREFIX:
                return i
            message = _followed(start, size, 0)
            batch = _followed(start, size, _field(start, size, message, 2))
            if _field(start, size, batch, 3) != -1:  # compressed: none is written so
                return i
            many = _followed(start, size, _field(start, size, batch, 2))
            if many < 0:
                return i
            buffers[i] = _number(start + uint64(many), 4)
            if buffers[i] > (size - many - 4) // 16:
                return i
            listed[i], body[i] = start + uint64(many + 4), start + uint64(size)
            room[i] = sizes[i] - _PREFIX - size
        numbers, bytes = _buffer(body[i], room[i], listed[i], buffers[i], 1)
        at[i] = _place(numbers, bytes // 8, rows[i])
        if at[i] < 0:
            return i
    return rows.size


@kernel
def _place(numbers: np.uint64, n: int, row: int) -> Number:
    """Where a number is among n that ascend, -1 if it is not."""
    low, high = np.int64(0), np.int64(n)
    if n > 0:  # nearly always no number is left out before it
        guess = np.int64(uint64(row) - uint64(_number(numbers, 8)))
        if 0 <= guess < n and _number(numbers + uint64(8 * guess), 8) == np.int64(row):
            return guess
    while low < high:
        middle = (low + high) >> 1
        if uint64(_number(numbers + uint64(8 * middle), 8)) < uint64(row):
            low = middle + 1
        else:
            high = middle
    return low if low < n and _number(numbers + uint64(8 * low), 8) == np.int64(row) else -1


@kernel
def _there(
    body: np.uint64, size: int, listed: np.uint64, buffers: int, number: int, at: int, valid: NDArray[np.uint8], i: int
) -> int:
    """Whether a value is no NULL, 0 or 1, noted in `valid`; -1 where the buffer does not add up."""
    bits, bytes = _buffer(body, size, listed, buffers, number)
    if bytes < 0 or (bytes > 0 and at // 8 >= bytes):
        return -1
    there = 1 if bytes == 0 else (_byte(bits + uint64(at // 8)) >> (at & 7)) & 1
    valid[i // 8] |= np.uint8(there << (i & 7))
    return there


@kernel
def _numbers(
    body: NDArray[np.uint64],
    size: Integers,
    listed: NDArray[np.uint64],
    buffers: Integers,
    at: Integers,
    buffer: int,
    width: int,
    out: NDArray[np.uint8],
    valid: NDArray[np.uint8],
) -> int:
    """Write values of so many bytes, or bits; returns how many are NULL, -1 where a message does not add up."""
    nulls = 0
    for i in range(at.size):
        there = _there(body[i], size[i], listed[i], buffers[i], buffer, at[i], valid, i)
        values, bytes = _buffer(body[i], size[i], listed[i], buffers[i], buffer + 1)
        if there < 0 or bytes < 0:
            return -1
        nulls += 1 - there
        if width == BITS:
            if at[i] // 8 >= bytes:
                return -1
            bit = (_byte(values + uint64(at[i] // 8)) >> (at[i] & 7)) & 1
            out[i // 8] |= np.uint8(bit << (i & 7))
            continue
        if at[i] >= bytes // width:
            return -1
        source = carray(pointer(values + uint64(at[i] * width)), width, np.uint8)
        for j in range(width):
            out[i * width + j] = source[j]
    return nulls


@kernel
def _measured(
    body: NDArray[np.uint64],
    size: Integers,
    listed: NDArray[np.uint64],
    buffers: Integers,
    at: Integers,
    buffer: int,
    offsets: Integers,
    address: NDArray[np.uint64],
    valid: NDArray[np.uint8],
) -> int:
    """Write where each text begins, and what their lengths sum up to; returns as `_numbers` does."""
    nulls = 0
    for i in range(at.size):
        there = _there(body[i], size[i], listed[i], buffers[i], buffer, at[i], valid, i)
        edges, bytes = _buffer(body[i], size[i], listed[i], buffers[i], buffer + 1)
        data, length = _buffer(body[i], size[i], listed[i], buffers[i], buffer + 2)
        if there < 0 or bytes < 0 or length < 0 or at[i] + 1 >= bytes // 4:
            return -1
        first, last = _number(edges + uint64(4 * at[i]), 4), _number(edges + uint64(4 * at[i] + 4), 4)
        if first > last or last > length:
            return -1
        nulls += 1 - there
        address[i] = data + uint64(first)
        offsets[i + 1] = offsets[i] + (last - first if there else 0)
    return nulls


@kernel
def _copied(address: NDArray[np.uint64], offsets: Integers, data: NDArray[np.uint8]) -> None:
    for i in range(address.size):
        n = offsets[i + 1] - offsets[i]
        source = carray(pointer(address[i]), n, np.uint8)
        for j in range(n):
            data[offsets[i] + j] = source[j]


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
    for column in columns_of(pa.schema([(name, array.type) for name, array in columns.items()])).values():
        taken(column, located)
