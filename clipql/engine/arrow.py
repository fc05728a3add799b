"""Two small bridges to Arrow: numbers without a copy, and a stream in pieces."""

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
