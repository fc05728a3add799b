"""Results that chDB gives in pieces, each a whole document of its format, joined into one document.

What must stay true: the pieces joined are the bytes that ClickHouse would have written at once, or for Arrow a stream
with the same batches. Formats with counts or tables drawn to a width are not here: they cannot be joined. Nor can an
answer with totals in a format that writes them.
"""

from __future__ import annotations

import io

import pyarrow as pa

# the same rows whether written in one piece or several
_PLAIN = {
    "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "Raw", "CSV", "JSONEachRow", "JSONLines", "NDJSON",
    "JSONCompactEachRow", "JSONStringsEachRow", "JSONCompactStringsEachRow", "Native", "RowBinary", "LineAsString",
    "RawBLOB", "Null",
}  # fmt: skip
# and those that begin with so many lines of names and types
_LINES = {
    "TabSeparatedWithNames": 1, "TSVWithNames": 1, "TabSeparatedWithNamesAndTypes": 2, "TSVWithNamesAndTypes": 2,
    "TabSeparatedRawWithNames": 1, "TSVRawWithNames": 1, "TabSeparatedRawWithNamesAndTypes": 2,
    "TSVRawWithNamesAndTypes": 2, "JSONCompactEachRowWithNames": 1, "JSONCompactEachRowWithNamesAndTypes": 2,
    "CSVWithNames": 1, "CSVWithNamesAndTypes": 2,
}  # fmt: skip
_BINARY = {"RowBinaryWithNames": 1, "RowBinaryWithNamesAndTypes": 2}
_ARROW = "ArrowStream"


def joins(format: str) -> bool:
    """Whether pieces in this format can be joined."""
    return format in _PLAIN or format in _LINES or format in _BINARY or format == _ARROW


def tells_more(format: str) -> bool:
    """Whether ClickHouse writes totals and extremes behind the rows in a format whose pieces can be joined."""
    return format.startswith(("TabSeparated", "TSV", "CSV", "LineAsString")) or format == "Raw"


def joiner(format: str) -> Joiner:
    """What joins the pieces of a result in this format."""
    return _ArrowJoiner() if format == _ARROW else Joiner(format)


class Joiner:
    """Takes the pieces in turn and gives what each adds to the document."""

    def __init__(self, format: str) -> None:
        self._format = format
        self.empty = True

    @property
    def has_header(self) -> bool:
        """Whether a result of no rows has bytes."""
        return self._format not in _PLAIN or self._format == "Native"

    def add(self, piece: bytes) -> bytes:
        """What this piece adds."""
        first, self.empty = self.empty, False
        return piece if first else piece[self._header(piece) :]

    def end(self) -> bytes:
        """What ends the document."""
        return b""

    def _header(self, piece: bytes) -> int:
        """How many bytes of names and types the piece begins with."""
        if self._format in _BINARY:
            return _binary_header(piece, _BINARY[self._format])
        at = 0
        for _ in range(_LINES.get(self._format, 0)):
            at = _line_end(piece, at, self._format.startswith("CSV"))
        return at


class _ArrowJoiner(Joiner):
    def __init__(self) -> None:
        super().__init__(_ARROW)
        self._sink = io.BytesIO()
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    @property
    def has_header(self) -> bool:
        return True

    def add(self, piece: bytes) -> bytes:
        self.empty = False
        reader = pa.ipc.open_stream(pa.py_buffer(piece))
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_stream(self._sink, reader.schema, options=options)
        for batch in reader:
            self._writer.write_batch(batch)
        return self._taken()

    def end(self) -> bytes:
        if self._writer is not None:
            self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        written = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return written


def _line_end(piece: bytes, at: int, quoted: bool) -> int:
    """The place after the line that begins at `at`; a line of CSV may have line ends within quotes."""
    inside = False
    while at < len(piece):
        byte = piece[at]
        at += 1
        if quoted and byte == 0x22:
            inside = not inside
        elif byte == 0x0A and not inside:
            break
    return at


def _binary_header(piece: bytes, lists: int) -> int:
    """The size of a count and so many lists of as many strings."""
    count, at = _number(piece, 0)
    for _ in range(count * lists):
        length, at = _number(piece, at)
        at += length
    return at


def _number(piece: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = piece[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
