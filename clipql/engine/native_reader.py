"""Reading ClickHouse's Native format, as far as a single column of UInt64 goes.

A block is the number of its columns and of its rows (LEB128), then for each column its name and type (length and text)
and its values. https://clickhouse.com/docs/interfaces/formats/Native
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.errors import QueryError


def numbers(data: bytes) -> NDArray[np.uint64]:
    """The values of a result of one UInt64 column, in order. Raises QueryError for a result of another shape."""
    at, blocks = 0, []
    while at < len(data):
        columns, at = _varint(data, at)
        rows, at = _varint(data, at)
        if columns == 0:
            continue
        _name, at = _text(data, at)
        kind, at = _text(data, at)
        if columns != 1 or kind != b"UInt64":
            raise QueryError(f"expected one column of UInt64; ClickHouse gave {columns}, the first of {kind.decode()}")
        if at + 8 * rows > len(data):
            raise QueryError(f"a block of {rows:,} rows is cut short at byte {len(data):,}")
        blocks.append(np.frombuffer(data, np.uint64, rows, at))
        at += 8 * rows
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint64)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _varint(data, at)
    return data[at : at + size], at + size
