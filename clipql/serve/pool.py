"""Where requests are carried out: a few threads and a bounded queue before them.

What must stay true: what is neither running nor waiting is refused at once, so that a crowd costs no memory; a
request's whole work is done by one thread, as the engine expects.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clipql.errors import QueryCancelled
from clipql.serve.limits import Limits

T = TypeVar("T")


class Busy(Exception):
    """As many requests run and wait as may."""


class Pool:
    """Runs synchronous work for asynchronous callers."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.running + limits.waiting
        self._threads = ThreadPoolExecutor(limits.running, "clipql-serve")
        self.taken = 0

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The work's result, in time. Call it from the event loop. Raises Busy."""
        if self.taken >= self._most:
            raise Busy(f"{self.taken} requests are running or waiting, as many as may: try again in a second")
        self.taken += 1
        future = asyncio.wrap_future(self._threads.submit(work))
        future.add_done_callback(self._done)
        return future

    def _done(self, future: asyncio.Future[T]) -> None:
        self.taken -= 1
        if not future.cancelled():
            future.exception()  # whoever waited for it may be gone

    def close(self) -> None:
        """Wait for what runs."""
        self._threads.shutdown(wait=True)


class Pipe:
    """Pieces of a result from a working thread to the event loop, a few at a time."""

    ROOM = 4

    def __init__(self, stall_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(self.ROOM)
        self._stall = stall_seconds
        self._closed = False

    def put(self, piece: bytes) -> None:
        """From the thread: hand a piece over. Raises QueryCancelled where nobody takes it."""
        if not self._room.acquire(timeout=self._stall):
            raise QueryCancelled(
                f"the client read nothing for {self._stall:.0f} s", code=394, name="QUERY_WAS_CANCELLED"
            )
        if self._closed:
            raise QueryCancelled("the client has gone", code=394, name="QUERY_WAS_CANCELLED")
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def get(self, done: asyncio.Future[T]) -> bytes | None:
        """On the loop: the next piece, or None once the work is done and nothing is left."""
        while self._pieces.empty():
            if done.done():
                return None
            waiting = asyncio.ensure_future(self._pieces.get())
            try:
                await asyncio.wait((waiting, done), return_when=asyncio.FIRST_COMPLETED)
            except BaseException:
                waiting.cancel()
                raise
            if waiting.done():
                self._room.release()
                return waiting.result()
            waiting.cancel()
            await asyncio.sleep(0)
        self._room.release()
        return self._pieces.get_nowait()

    def close(self) -> None:
        """On the loop: nobody will take more."""
        self._closed = True
        for _ in range(self.ROOM):
            self._room.release()
