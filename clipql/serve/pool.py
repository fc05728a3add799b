"""Where requests are carried out: a few threads and a bounded queue before them.

What must stay true: what is neither running nor waiting is refused at once, so that a crowd costs no memory; a
request's whole work is done by one thread, as the engine expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from clipql.engine.users import Acting
from clipql.errors import ClipqlError, QueryCancelled
from clipql.serve.fellows import Fellows
from clipql.serve.limits import Limits

LOG = logging.getLogger("clipql.serve")
T = TypeVar("T")
# seconds: after its time, until a query is cancelled here; after that, until it is answered for though it still runs
FIRST_WORD, GIVEN_UP = 0.3, 1.0
# seconds after which a query that was cancelled, and runs, is cancelled again
AGAIN = 0.25
# statements that make room and may wait for each other
MOST_ASIDE = 16
# seconds after which what waits for other processes of the server looks again
TURN = 0.01


class Busy(Exception):
    """As many requests run and wait as may."""


@dataclass
class _Job:
    """One request's work. ended: called once it has ended in truth, or will not begin; over: it has been."""

    work: Callable[[], Any]
    acting: Acting
    ended: Callable[[], None]
    outer: asyncio.Future[Any]
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    over: bool = False

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits, who may be gone."""
        if not self.outer.done():
            self.outer.set_exception(error)
            self.outer.exception()


class Pool:
    """Runs synchronous work for asynchronous callers, each for its time.

    cancel: stops what somebody's request runs, as the engine does. The queue is ours, not the threads': what is stopped
    before its turn leaves it at once, with what it holds.
    """

    def __init__(
        self,
        limits: Limits,
        cancel: Callable[[Acting], None],
        fellows: Fellows,
        moment: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """fellows: whose requests count too. moment: what a request's work is done in."""
        self._running, self._most = limits.running, limits.running + limits.waiting
        self._seconds, self._cancel = limits.seconds, cancel
        self._fellows, self._moment = fellows, moment
        self._threads = ThreadPoolExecutor(limits.running, "clipql-serve")
        self._cancellers = ThreadPoolExecutor(4, "clipql-cancel")
        self._aside, self._aside_taken = ThreadPoolExecutor(1, "clipql-kill"), 0
        self._all: dict[int, _Job] = {}
        self._queue: dict[int, _Job] = {}
        self._stopping: set[int] = set()
        self._work: set[Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look: asyncio.TimerHandle | None = None
        self.taken = 0

    def check(self) -> None:
        """Raise Busy where a request would be refused, before its body is read."""
        taken = self.taken + self._fellows.others_taken(self.taken)
        if taken >= self._most:
            raise Busy(f"{taken} requests are running or waiting, as many as may: try again in a second")

    def submit(
        self, work: Callable[[], T], acting: Acting, ended: Callable[[], None] = lambda: None
    ) -> asyncio.Future[T]:
        """The work's result, in time. Call it from the event loop. Raises Busy.

        The future has an error at the latest a moment after the time limit; ended: called once the work has ended
        in truth.
        """
        self.check()
        self.taken += 1
        self._fellows.others_taken(self.taken)
        self._loop = asyncio.get_running_loop()
        outer: asyncio.Future[T] = self._loop.create_future()
        job = _Job(work, acting, ended, outer)
        self._all[id(acting)] = job
        self._queue[id(acting)] = job
        self._start_next()
        return outer

    def aside(self, work: Callable[[], T], ended: Callable[[], None]) -> asyncio.Future[T]:
        """The result of short work that shall be done though all places are taken: what makes room. As `submit`."""
        if self._aside_taken >= MOST_ASIDE:
            raise Busy(f"{self._aside_taken} queries are being killed, as many as may at once: try again in a second")
        self._aside_taken += 1
        found = asyncio.wrap_future(self._aside.submit(work))

        def done(_: asyncio.Future[Any]) -> None:
            self._aside_taken -= 1
            ended()

        found.add_done_callback(done)
        return found

    def _start_next(self) -> None:
        """Start what waits, as far as all processes together may."""
        while self._queue:
            if self._fellows.start(self._running):
                self._start(self._queue.pop(next(iter(self._queue))))
                continue
            if not self._work and self._look is None and self._loop is not None:  # nothing of ours will end
                self._look = self._loop.call_later(TURN, self._look_again)
            return

    def _look_again(self) -> None:
        self._look = None
        self._start_next()

    def _start(self, job: _Job) -> None:
        acting, loop = job.acting, job.outer.get_loop()

        def begin() -> None:
            if not job.over:  # not its future: an error that has this frame would have itself by it
                job.timers.append(loop.call_later(self._time(acting), late))

        def late() -> None:
            acting.late = acting.late or self._time(acting)
            self.stop(acting)

        def run() -> Any:
            if acting.cancelled:
                raise acting.stopped()
            loop.call_soon_threadsafe(begin)
            try:
                with self._moment():
                    found = job.work()
            except ClipqlError as error:
                if acting.cancelled:  # whatever it was stopped by
                    raise acting.stopped() from error
                raise
            if acting.cancelled:  # what it gave may be a part
                raise acting.stopped()
            return found

        def done(inner: asyncio.Future[Any]) -> None:
            self._work.discard(working)
            self._fellows.finish()
            self._ended(job)
            error = None if inner.cancelled() else inner.exception()
            if inner.cancelled():
                job.outer.cancel()
            elif error is not None:
                job.fail(error)
            elif not job.outer.done():
                job.outer.set_result(inner.result())
            self._start_next()

        working = self._threads.submit(run)
        self._work.add(working)
        asyncio.wrap_future(working).add_done_callback(done)

    def _ended(self, job: _Job) -> None:
        self.taken -= 1
        self._fellows.others_taken(self.taken)
        self._all.pop(id(job.acting), None)
        job.over = True
        for timer in job.timers:
            timer.cancel()
        job.ended()

    def _time(self, acting: Acting) -> float:
        """The seconds that a request may run; ClickHouse, which counts them too, gets the first word."""
        try:
            asked = float(acting.settings.get("max_execution_time", 0))
        except ValueError:
            asked = 0
        return (asked if 0 < asked < self._seconds else self._seconds) + FIRST_WORD

    def stop(self, acting: Acting) -> None:
        """Cancel what a request runs. Call it from the event loop."""
        acting.cancelled = True
        job = self._queue.pop(id(acting), None)
        if job is not None:
            self._ended(job)
            job.fail(acting.stopped())
        elif id(acting) not in self._stopping:
            self._stopping.add(id(acting))
            self._cancel_until_ended(acting)
            running = self._all.get(id(acting))
            if running is not None:
                running.timers.append(running.outer.get_loop().call_later(GIVEN_UP, self._give_up, running))

    @staticmethod
    def _give_up(job: _Job) -> None:
        """Answer for a job that goes on for a while though it was cancelled."""
        if not job.outer.done():
            LOG.warning("a query does not stop")
            job.fail(job.acting.stopped())

    def _cancel_until_ended(self, acting: Acting) -> None:
        """Again and again: ClickHouse does not know a query yet that is just being sent to it."""
        if id(acting) not in self._all or self._loop is None:
            self._stopping.discard(id(acting))
            return
        self._cancellers.submit(self._cancel, acting)
        self._loop.call_later(AGAIN, self._cancel_until_ended, acting)

    def stop_soon(self, acting: Acting) -> None:
        """The same, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop, acting)

    def stop_all(self) -> None:
        """Cancel everything, as the server ends: who waits is told so."""
        for job in list(self._all.values()):
            job.acting.ending = job.acting.ending or not job.acting.cancelled
            self.stop(job.acting)

    def close(self, seconds: float) -> bool:
        """Take nothing more, and wait for what runs, so long at most; whether it has ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._aside.shutdown(wait=False, cancel_futures=True)
        if wait(self._work, seconds).not_done:
            return False
        self._threads.shutdown(wait=True)
        self._cancellers.shutdown(wait=True)
        return True


async def gone(request: Request) -> None:
    """Wait until the client goes. Its body must have been read."""
    with contextlib.suppress(Exception):
        while True:
            await asyncio.sleep(0.2)  # first: to look costs as much as a short request
            if await request.is_disconnected():
                return


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
