"""The compiled loops of `rowgather`: they read Arrow's messages where they lie in memory.

Nothing outside a message is read, whatever it holds. What is read next is fetched ahead for all rows, as each one lies
in a page of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, uint64
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel, pointer, prefetch

Integers = NDArray[np.int64]
Number = Any  # an int64 of the loop's
BITS, TEXT = 0, -1  # widths of what is no whole number of bytes
ALL_CHECKED, SOME_UNCHECKED = -1, -2
HEADER = 640  # bytes of a message, or of a text, that are fetched ahead: most have no longer table
FETCHED = 1024  # rows at most that are fetched ahead, as the processor's cache holds no more
_PREFIX = 8  # bytes before a message's table: a mark, and the table's length
_MARK = 0xFFFFFFFF


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
def _buffer(body: np.uint64, size: Number, listed: np.uint64, buffers: Number, number: int) -> tuple[np.uint64, int]:
    """Address and bytes of a buffer; -1 bytes where it does not add up."""
    if number >= buffers:
        return body, -1
    at = _number(listed + uint64(16 * number), 8)
    bytes = _number(listed + uint64(16 * number + 8), 8)
    if at < 0 or bytes < 0 or at > size or bytes > size - at:
        return body, -1
    return body + uint64(at), bytes


@kernel
def batches(
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
        if rows.size <= FETCHED and (i == 0 or messages[i] != messages[i - 1]):
            for line in range(0, HEADER, 64):
                prefetch(messages[i] + uint64(line))
        if not checked[at]:
            state = SOME_UNCHECKED
    return state


@kernel
def locate(messages: NDArray[np.uint64], sizes: Integers, rows: NDArray[np.uint64], found: NDArray[np.uint64]) -> int:
    for i in range(rows.size):
        if i > 0 and messages[i] == messages[i - 1]:
            found[:4, i] = found[:4, i - 1]
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
            buffers = _number(start + uint64(many), 4)
            if buffers > (size - many - 4) // 16:
                return i
            found[0, i], found[1, i] = start + uint64(size), uint64(sizes[i] - _PREFIX - size)
            found[2, i], found[3, i] = start + uint64(many + 4), uint64(buffers)
            prefetch(found[0, i])
    for i in range(rows.size):
        numbers, bytes = _listed(found, i, 1)
        at = _place(numbers, bytes // 8, rows[i])
        if at < 0:
            return i
        found[4, i] = uint64(at)
    return rows.size


@kernel
def _listed(table: NDArray[np.uint64], i: int, number: int) -> tuple[np.uint64, int]:
    """`_buffer` of the i-th row."""
    return _buffer(table[0, i], np.int64(table[1, i]), table[2, i], np.int64(table[3, i]), number)


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
def _there(table: NDArray[np.uint64], i: int, number: int, valid: NDArray[np.uint8]) -> int:
    """Whether the i-th value is no NULL, 0 or 1, noted in `valid`; -1 where the buffer does not add up."""
    at = np.int64(table[4, i])
    bits, bytes = _listed(table, i, number)
    if bytes < 0 or (bytes > 0 and at // 8 >= bytes):
        return -1
    there = 1 if bytes == 0 else (_byte(bits + uint64(at // 8)) >> (at & 7)) & 1
    valid[i // 8] |= np.uint8(there << (i & 7))
    return there


@kernel
def _fetch(table: NDArray[np.uint64], number: int, width: int) -> None:
    """Have the values of a buffer fetched from memory side by side, and what says which are NULL."""
    for i in range(table.shape[1] if table.shape[1] <= FETCHED else 0):
        bits, bytes = _listed(table, i, number)
        if bytes > 0:
            prefetch(bits + table[4, i] // uint64(8))
        values, bytes = _listed(table, i, number + 1)
        if bytes > 0:
            prefetch(values + table[4, i] * uint64(width))


@kernel
def numbers(
    table: NDArray[np.uint64], buffer: int, width: int, out: NDArray[np.uint8], valid: NDArray[np.uint8]
) -> int:
    """Write values of so many bytes, or bits; returns how many are NULL, -1 where a message does not add up."""
    nulls = 0
    _fetch(table, buffer, width)
    for i in range(table.shape[1]):
        at, there = np.int64(table[4, i]), _there(table, i, buffer, valid)
        values, bytes = _listed(table, i, buffer + 1)
        if there < 0 or bytes < 0:
            return -1
        nulls += 1 - there
        if width == BITS:
            if at // 8 >= bytes:
                return -1
            bit = (_byte(values + uint64(at // 8)) >> (at & 7)) & 1
            out[i // 8] |= np.uint8(bit << (i & 7))
            continue
        if at >= bytes // width:
            return -1
        source = carray(pointer(values + uint64(at * width)), width, np.uint8)
        for j in range(width):
            out[i * width + j] = source[j]
    return nulls


@kernel
def measured(
    table: NDArray[np.uint64],
    buffers: Integers,
    offsets: NDArray[np.int32],
    address: NDArray[np.uint64],
    valid: NDArray[np.uint8],
    begins: Integers,
    nulls: Integers,
    most: int,
) -> bool:
    """For each column, by the number of its first buffer: where each text begins in the message and in the column, how
    many are NULL, -1 where a message does not add up, and where the column begins, where all lie after one another.
    True where the texts of a column have more than `most` bytes.
    """
    for c in range(buffers.size):
        _fetch(table, buffers[c], 4)
    for c in range(buffers.size):
        nulls[c] = _lengths(table, buffers[c], offsets[c], address[c], valid[c], most)
        if nulls[c] == -2:
            return True
        begins[c + 1] = begins[c] + (offsets[c, table.shape[1]] if nulls[c] >= 0 else 0)
    return False


@kernel
def _lengths(
    table: NDArray[np.uint64],
    buffer: int,
    offsets: NDArray[np.int32],
    address: NDArray[np.uint64],
    valid: NDArray[np.uint8],
    most: int,
) -> int:
    """`measured` of one column: how many are NULL, -1 where a message does not add up, -2 where they are too long."""
    nulls, total = 0, np.int64(0)
    offsets[0] = 0
    for i in range(table.shape[1]):
        at, there = np.int64(table[4, i]), _there(table, i, buffer, valid)
        edges, bytes = _listed(table, i, buffer + 1)
        data, length = _listed(table, i, buffer + 2)
        if there < 0 or bytes < 0 or length < 0 or at + 1 >= bytes // 4:
            return -1
        first, last = _number(edges + uint64(4 * at), 4), _number(edges + uint64(4 * at + 4), 4)
        if first > last or last > length:
            return -1
        nulls += 1 - there
        address[i] = data + uint64(first)
        for line in range(0, min(last - first, HEADER) if table.shape[1] <= FETCHED else 0, 64):
            prefetch(address[i] + uint64(line))
        total += last - first if there else 0
        if total > most:
            return -2
        offsets[i + 1] = np.int32(total)
    return nulls


@kernel
def copied(address: NDArray[np.uint64], offsets: NDArray[np.int32], begins: Integers, data: NDArray[np.uint8]) -> None:
    for c in range(begins.size - 1):
        if begins[c] == begins[c + 1]:
            continue
        for i in range(address.shape[1]):
            n, to = np.int64(offsets[c, i + 1] - offsets[c, i]), begins[c] + np.int64(offsets[c, i])
            source = carray(pointer(address[c, i]), n, np.uint8)
            for j in range(n):
                data[to + j] = source[j]
