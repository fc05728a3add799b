"""What a statement has read while it runs: from the thread that works on it to the event loop, now and then.

What must stay true: numbers never fall; the thread waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipql.sql.session import Answer

# seconds between two that are told, unless the client asks for others
INTERVAL = 0.1
_MOST_SECONDS = 600


@dataclass(frozen=True)
class Counts:
    """Rows and bytes that were read, rows and bytes that are to be, rows and bytes that were written."""

    rows: int = 0
    size: int = 0
    total_rows: int = 0
    total_size: int = 0
    written: int = 0
    written_size: int = 0
    seconds: float = 0.0

    def since(self, before: Counts) -> Counts:
        """What came since."""
        return Counts(*(a - b for a, b in zip(self._all(), before._all(), strict=True)))

    def at_least(self, other: Counts) -> Counts:
        """The greater of each."""
        return Counts(*(max(a, b) for a, b in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[Any, ...]:
        return (
            self.rows, self.size, self.total_rows, self.total_size, self.written, self.written_size, self.seconds
        )  # fmt: skip

    def json(self) -> str:
        """As X-ClickHouse-Progress has them."""
        return json.dumps(
            {
                "read_rows": str(self.rows),
                "read_bytes": str(self.size),
                "written_rows": str(self.written),
                "written_bytes": str(self.written_size),
                "total_rows_to_read": str(self.total_rows),
                "result_rows": "0",
                "result_bytes": "0",
                "elapsed_ns": str(int(self.seconds * 1e9)),
            },
            separators=(",", ":"),
        )


class Meter:
    """Give it to what runs; it tells on the event loop that it was made on. now: what is known by now."""

    def __init__(self, tell: Callable[[Counts], None], seconds: float = INTERVAL) -> None:
        """tell: called at most once in so many seconds."""
        self._tell, self._seconds = tell, seconds
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._last = self._began
        self._closed = False
        self.now = Counts()

    def __call__(self, progress: Mapping[str, Any]) -> None:
        """From the thread: what ClickHouse, or the build of an index, says of itself."""
        now = time.monotonic()
        self.now = self.now.at_least(
            Counts(
                int(progress.get("read_rows", 0)),
                int(progress.get("read_bytes", 0)),
                int(progress.get("total_rows_to_read", 0)),
                int(progress.get("total_bytes_to_read", 0)),
                int(progress.get("written_rows", 0)),
                int(progress.get("written_bytes", 0)),
                now - self._began,
            )
        )
        if now - self._last >= self._seconds and not self._closed:
            self._last = now
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._told, self.now)

    def _told(self, counts: Counts) -> None:
        if not self._closed:
            self._tell(counts)

    def counted(self, answer: Answer) -> Answer:
        """An answer with what ClickHouse says that it has read for it."""
        output, now = answer.output, self.now
        rows, size = now.rows or output.rows_read, now.size or output.bytes_read
        return replace(answer, output=replace(output, rows_read=rows, bytes_read=size))

    def close(self) -> None:
        """On the loop: tell nothing more."""
        self._closed = True


def interval(text: str) -> float:
    """The seconds of `http_headers_progress_interval_ms`; chDB tells of no shorter time than INTERVAL."""
    if not (text.isascii() and text.isdigit()):
        return INTERVAL
    return min(max(int(text[:9]) / 1000, INTERVAL), _MOST_SECONDS)
