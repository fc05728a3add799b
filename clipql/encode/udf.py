"""encode_text and encode_image for a ClickHouse server, which runs them as commands that it talks to over pipes.

The server writes rows in TabSeparated, one column and one line each, and waits until it has read as many lines; the
process lives on and gets the rows of the next query. What must stay true: every line gets exactly one line, in order,
whatever it holds, and is answered without waiting for lines that have not come; nothing but answers goes to the output.
A process that dies takes a query with it, so a picture that cannot be read is an empty array and a line in the log.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.encode.base import Encoder

# Lines that go through the model at once: enough to keep it busy, few enough that the server, which waits for each
# block of answers, sees the first of them soon
BATCH = 256
_CHUNK = 1 << 16
_EMPTY = b"[]\n"

_NAMED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"0": b"\0", b"a": b"\a", b"v": b"\v"}
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)

Log = Callable[[str], None]


def serve_texts(encoder: Encoder, source: int, sink: int, log: Log, *, batch: int = BATCH) -> None:
    """Answer every text that comes with its vector, until the input ends.

    source, sink: file descriptors. NULL, which an Array cannot be, is answered with `[]`. Raises ModelError.
    """
    for lines in read_lines(source, batch):
        values = [unescape(line) for line in lines]
        rows = [i for i, value in enumerate(values) if value is not None]
        vectors = encoder.encode_texts([(values[i] or b"").decode("utf-8", "replace") for i in rows])
        _answer(sink, len(lines), rows, vectors)


def serve_pictures(encoder: Encoder, source: int, sink: int, log: Log, *, batch: int = BATCH) -> None:
    """Answer every path of a picture that comes with the picture's vector, until the input ends.

    A picture that cannot be read is answered with `[]` and logged; NULL and an empty path with `[]`. Raises ModelError.
    """
    for lines in read_lines(source, batch):
        values = [unescape(line) for line in lines]
        rows = [i for i, value in enumerate(values) if value and b"\0" not in value]
        encoded = encoder.encode_pictures([Path(os.fsdecode(values[i] or b"")) for i in rows])
        for row, error in zip(rows, encoded.errors, strict=True):
            if error is not None:
                log(f"{os.fsdecode(values[row] or b'')}: {error}")
        good = [i for i, error in enumerate(encoded.errors) if error is None]
        _answer(sink, len(lines), [rows[i] for i in good], encoded.vectors[good])


def read_lines(source: int, most: int) -> Iterator[list[bytes]]:
    """Lines without their ends, as many at once as have come, `most` at the most; never waits while it has one.

    A last line without an end is one too.
    """
    buffered, searched = bytearray(), 0
    ended = False
    while not ended:
        lines: list[bytes] = []
        while len(lines) < most:
            end = buffered.find(b"\n", searched)
            if end >= 0:
                lines.append(bytes(buffered[:end]))
                del buffered[: end + 1]
                searched = 0
                continue
            searched = len(buffered)
            if lines and not select.select([source], [], [], 0)[0]:
                break
            chunk = os.read(source, _CHUNK)
            if not chunk:
                ended = True
                if buffered:
                    lines.append(bytes(buffered))
                break
            buffered += chunk
        if lines:
            yield lines


def unescape(value: bytes) -> bytes | None:
    r"""A TabSeparated value as it was before ClickHouse wrote it; None for NULL (`\N`)."""
    if value == b"\\N":
        return None
    return _ESCAPE.sub(_escaped, value) if b"\\" in value else value


def _escaped(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if what[:1] == b"x" and len(what) == 3:
        return bytes([int(what[1:], 16)])
    # a backslash before anything else stands for itself, other than before itself and quotes
    return _NAMED.get(what) or (what if what in (b"\\", b"'", b'"', b"`", b"/") else b"\\" + what)


def _answer(sink: int, lines: int, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
    answers = [_EMPTY] * lines
    for row, vector in zip(rows, vectors, strict=True):
        answers[row] = array(vector)
    rest = memoryview(b"".join(answers))
    while rest:
        rest = rest[os.write(sink, rest) :]


def array(vector: NDArray[np.float32]) -> bytes:
    """A vector as ClickHouse reads an Array(Float32), with as many digits as tell each float32 from its neighbours."""
    # one format for all is three times as fast as one for each
    return (b"[" + b",".join([b"%.9g"] * len(vector)) + b"]\n") % tuple(vector.tolist())
