"""What a source gives: one row a picture or caption, in the same order every time it is read.

What must stay true: a row's `key` says where it comes from and needs no payload to be known, so that a run that goes
on can pass over millions of rows and still notice that they are no longer the same ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from clipql.encode.base import Picture

# a member of a tar or a value of a Parquet file larger than this is no picture of the web
LARGEST = 64 << 20
EXAMPLES = 5  # of errors and of what is unused, in a report


@dataclass(frozen=True)
class Row:
    """One picture or caption on its way through.

    picture: None for a caption alone, or where `error` says why there is none. path: where the picture lies, a file's
    absolute path or `file#member`. extra: further columns by name; types: their Arrow types, where the source
    declares them (values of int64 kin for times, see `parquet.py`).
    """

    key: str
    picture: Picture | None = None
    path: str = ""
    caption: str = ""
    error: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, pa.DataType] = field(default_factory=dict)


@dataclass
class Skip:
    """How many of the coming rows are there already; a source need not read what these hold, only give their keys."""

    rows: int = 0

    def __bool__(self) -> bool:
        return self.rows > 0


class Unused:
    """What lies in the sources and makes no row: how much, and what and why as it is noted, one by one.

    write: takes a line for each, such as one to a file.
    """

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self.number = 0
        self.examples: list[str] = []
        self._write = write

    def note(self, where: str, reason: str) -> None:
        """Something that lies at `where` makes no row."""
        self.number += 1
        line = f"{where}: {reason}"
        if len(self.examples) < EXAMPLES:
            self.examples.append(line)
        if self._write is not None:
            self._write(line)


class Ahead:
    """The rows of a source, read ahead in a thread of their own; use as a context manager and iterate.

    At most `rows` rows and, beyond the first, `size` bytes of pictures wait at any time.
    """

    def __init__(self, rows: Iterator[Row], room: int, size: int = 64 << 20) -> None:
        self._rows, self._room, self._size = rows, room, size
        self._waiting: deque[Row] = deque()
        self._bytes, self._ended, self._stop = 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="clipql-embed-reader", daemon=True)

    def _read(self) -> None:
        try:
            for row in self._rows:
                with self._changed:
                    self._changed.wait_for(self._has_room)
                    if self._stop:
                        return
                    self._waiting.append(row)
                    self._bytes += _weight(row)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  raised again where the rows are wanted
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._stop or not self._waiting or (len(self._waiting) < self._room and self._bytes < self._size)

    def __iter__(self) -> Iterator[Row]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
                if not self._waiting:
                    break
                row = self._waiting.popleft()
                self._bytes -= _weight(row)
                self._changed.notify_all()
            yield row
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()


def _weight(row: Row) -> int:
    return len(row.picture) if isinstance(row.picture, bytes) else 0
