"""Request bodies: read within a limit, unpacked within it off the event loop, and within a ceiling for all of them.

What must stay true: what is held is counted before it is held; nothing is unpacked further than a little beyond the
limit, whatever sizes its headers claim.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from clipql.serve import unpacking
from clipql.serve.fellows import Fellows
from clipql.serve.limits import Limits
from clipql.serve.pool import Busy
from clipql.serve.unpacking import too_large

T = TypeVar("T")
# threads that unpack and take apart bodies; more requests wait for them
READERS = 2


class Held:
    """What one request's body takes, until it is released. Thread-safe."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._size = bodies, 0

    def take(self, size: int) -> None:
        """Count bytes that will be held. Raises Busy where all bodies together would be too large."""
        self._bodies.count(size)
        self._size += size

    def release(self) -> None:
        """Nothing of it is held any more."""
        size, self._size = self._size, 0
        self._bodies.count(-size)


class Bodies:
    """The bodies of all requests of a server."""

    def __init__(self, limits: Limits, fellows: Fellows) -> None:
        self._most, self.held = max(limits.bodies, limits.body), 0
        self._fellows = fellows
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, "clipql-read")

    def count(self, size: int) -> None:
        """Add to what is held. Raises Busy."""
        with self._lock:
            held = self.held + self._fellows.others_bodies(self.held)
            if size > 0 and held + size > self._most:
                raise Busy(
                    f"the bodies of all requests together may have {self._most:,} bytes, and {held:,} are held: "
                    "try again in a second"
                )
            self.held += size
            self._fellows.others_bodies(self.held)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """The result of work on a body, done off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def read(self, request: Request, most: int, held: Held) -> bytes:
        """The body, unpacked as Content-Encoding says.

        Raises QueryError where it is larger than `most` bytes or not packed so, Busy where others hold too much.
        """
        encoding = request.headers.get("content-encoding", "").strip().lower()
        unpacking.check_encoding(encoding)
        length = content_length(request)
        if length is not None and length > most:
            raise too_large(most)
        held.take(length or 0)
        pieces: list[bytes] = []
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise too_large(most)
            if length is None:
                held.take(len(piece))
            pieces.append(piece)
        body = b"".join(pieces)
        pieces.clear()
        if encoding in unpacking.PLAIN:
            return body
        return await self.in_thread(lambda: unpacking.unpacked(encoding, body, most, held.take))

    def close(self) -> None:
        """Wait for what is being unpacked."""
        self._readers.shutdown(wait=True)


def content_length(request: Request) -> int | None:
    """What Content-Length says, None where it says nothing."""
    given = request.headers.get("content-length", "")
    return int(given[:19]) if given.isascii() and given.isdigit() else None
