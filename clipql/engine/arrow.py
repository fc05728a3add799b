"""Small bridges to Arrow: numbers without a copy, either way, and a stream in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_WHOLE = 256 << 10


def arrow_numbers(values: NDArray[Any]) -> pa.Array:
    """A numpy array of numbers as an Arrow array, not copied. (`pyarrow.array` would import pandas, for 0.3 s.)"""
    whole = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(whole.dtype)
    return pa.Array.from_buffers(kind, len(whole), [None, pa.py_buffer(whole)])


def numpy_numbers(column: pa.Array | pa.ChunkedArray, null: float | None = None) -> NDArray[Any]:
    """Arrow's numbers or truth values as a numpy array (n,), numbers not copied where they are one piece without NULL.

    null: the number in the place of NULL. By default that is NaN, and integers among which there is NULL are float64.
    (`to_numpy` would import pandas, for 0.3 s.)
    """
    if isinstance(column, pa.ChunkedArray):
        pieces = [numpy_numbers(c, null) for c in column.chunks]
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, _dtype(column.type))])
    values = _values(column)
    if not column.null_count:
        return values
    if null is None:
        null, values = np.nan, values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.where(_values(column.is_null()), values.dtype.type(null), values)


def _values(column: pa.Array) -> NDArray[Any]:
    values, first, rows = column.buffers()[1], column.offset, len(column)
    if values is None or not rows:
        return np.zeros(rows, _dtype(column.type))
    if pa.types.is_boolean(column.type):
        whole = np.frombuffer(values, np.uint8)[first // 8 : (first + rows + 7) // 8]
        return np.unpackbits(whole, bitorder="little")[first % 8 : first % 8 + rows].view(np.bool_)
    return np.frombuffer(values, _dtype(column.type))[first : first + rows]


def _dtype(kind: pa.DataType) -> np.dtype[Any]:
    return np.dtype(np.bool_ if pa.types.is_boolean(kind) else kind.to_pandas_dtype())


def arrow_stream(table: pa.Table) -> bytes:
    """A table in the Arrow IPC stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Appender:
    """A file-like object that hands what is written to it on in pieces of at least a megabyte."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        self._append, self._parts, self._size = append, [], 0  # type: ignore[var-annotated]
        self.closed = False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        if len(piece) >= _WHOLE:  # not copied once more
            self.flush_rest()
            self._append(piece)
            return len(piece)
        self._parts.append(piece)
        self._size += len(piece)
        if self._size >= 1 << 20:
            self.flush_rest()
        return len(piece)

    def flush_rest(self) -> None:
        if self._parts:
            data, self._parts, self._size = b"".join(self._parts), [], 0
            self._append(data)

    def flush(self) -> None:
        """Nothing to do: pyarrow asks for it after each message."""

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False
