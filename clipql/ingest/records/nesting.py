"""JSON whose values lie too deep within each other, found before pyarrow reads it: its reader calls itself for each
level, and ends the process where the stack does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from clipql.storage.vectors.compiled import compiled

DEEPEST = 100


class Shallow:
    """A stream of JSON as pyarrow reads it. Reading raises ValueError where values are nested too deep."""

    closed = False

    def __init__(self, plain: pa.NativeFile) -> None:
        self._plain = plain
        self._state = np.zeros(3, np.int64)

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data: bytes = self._plain.read(None if size < 0 else size)
        check(data, self._state)
        return data

    def close(self) -> None:
        """Whoever opened the stream closes it."""
        self.closed = True


def check(data: Any, state: Any = None) -> None:
    """Raise ValueError where JSON is nested too deep. state: of what stands before the data, int64 of length 3."""
    deepest = _deepest(np.frombuffer(data, np.uint8), np.zeros(3, np.int64) if state is None else state)
    if deepest > DEEPEST:
        raise ValueError(f"JSON is nested more than {DEEPEST} values deep")


@compiled
def _deepest(data: Any, state: Any) -> int:
    """The greatest depth. state: depth, whether within a string, whether behind a backslash there."""
    depth, quoted, escaped, most = state[0], state[1], state[2], 0
    for byte in data:
        if quoted:
            if escaped:
                escaped = 0
            elif byte == 92:
                escaped = 1
            elif byte == 34:
                quoted = 0
        elif byte == 34:
            quoted = 1
        elif byte == 91 or byte == 123:
            depth += 1
            most = max(most, depth)
        elif byte == 93 or byte == 125:
            depth = max(depth - 1, 0)
    state[0], state[1], state[2] = depth, quoted, escaped
    return most
