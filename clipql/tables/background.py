"""Work that goes on behind a database's statements: one piece at a time, by one thread, which ends with the work.

It knows nothing of what the work is. What must stay true: two pieces never run at once, nor one beside what `turn`
covers; the work is told to stop by `Stopped` out of `tell` or `hold`, which it calls often, and can be done again
later; closing waits until it has stopped, and nothing begins after that.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

Key = tuple[str, str]
QUIET_SECONDS = 0.2  # without anything new being wanted, before work begins: statements that come together are one
LONGEST_QUIET_SECONDS = 2.0
_LOOK_SECONDS = 0.05


class Lock(Protocol):
    """What `threading` makes."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class Stopped(BaseException):
    """The work shall end here; it is not done. As Ctrl-C, it is no error."""


@dataclass(frozen=True)
class Stage:
    """How far a piece of work is: `done` of `total`, 0 where that is not known."""

    name: str = "waiting"
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {min(100, 100 * self.done // self.total)} %" if self.total else self.name


class Background:
    """The work of one database. work(key, again): does one piece; again: also where it seems done."""

    def __init__(self, work: Callable[[Key, bool], None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._wanted: dict[Key, bool] = {}  # whether also where it seems done
        self._now: Key | None = None
        self._stage, self._latest, self._first = Stage(), 0.0, 0.0
        self._stop, self._closed, self._turns = False, False, 0
        self._thread: threading.Thread | None = None
        self._alone = threading.RLock()  # held by whoever works

    def want(self, key: Key, *, again: bool = False, after_seconds: float = 0.0) -> None:
        """Have a piece done soon, or a while later. Returns at once."""
        with self._changed:
            if self._closed:
                return
            self._latest = time.monotonic() + after_seconds
            if not self._wanted:
                self._first = self._latest
            self._wanted[key] = again or self._wanted.get(key, False)
            self._start()

    def _start(self) -> None:
        if self._thread is None and self._wanted and not self._turns and not self._closed:
            self._thread = threading.Thread(target=self._run, name="clipql background")
            self._thread.start()

    def stage(self, key: Key) -> Stage | None:
        """How far a piece is that is wanted or under way; None where it is neither."""
        with self._changed:
            if key == self._now:
                return self._stage
            return Stage() if key in self._wanted else None

    def tell(self, name: str, done: int, total: int) -> None:
        """The work is so far. Raises Stopped in the background's thread where it shall end."""
        if threading.current_thread() is self._thread:
            self._stage = Stage(name, done, total)
            self._check()

    def _check(self) -> None:
        if threading.current_thread() is self._thread and (self._stop or not threading.main_thread().is_alive()):
            raise Stopped

    @contextlib.contextmanager
    def hold(self, lock: Lock) -> Iterator[None]:
        """Hold a lock that somebody may have who waits for the work to stop. Raises Stopped as `tell` does."""
        while not lock.acquire(timeout=_LOOK_SECONDS):
            self._check()
        try:
            yield
        finally:
            lock.release()

    def restart(self, key: Key) -> None:
        """Have a piece that is under way begin again: what it is of has changed."""
        with self._changed:
            if key == self._now:
                self._stop, self._wanted[key] = True, self._wanted.get(key, False)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Work of the calling thread's own: what goes on is stopped, and goes on afterwards."""
        if threading.current_thread() is self._thread:
            yield
            return
        with self._changed:
            self._turns += 1
            self._stop = self._now is not None
        try:
            with self._alone:
                yield
        finally:
            with self._changed:
                self._turns -= 1
                self._start()

    def forget(self, key: Key) -> None:
        """Do not do a piece that is wanted; what is under way is stopped by `turn`."""
        with self._changed:
            self._wanted.pop(key, None)

    def wait(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Return when nothing is wanted or under way any more. Nobody may wait who has a lock that the work holds."""
        with self._changed:
            while not self._closed and (self._wanted or self._now):
                self._latest = self._first = -math.inf  # no quiet is waited for
                self._changed.notify_all()
                stage = self._stage if self._now else None
                self._changed.wait(_LOOK_SECONDS)
                if progress is not None and stage is not None:
                    progress(stage.name, stage.done, stage.total)

    def close(self) -> None:
        """Stop what goes on, and begin nothing any more."""
        with self._changed:
            self._closed = self._stop = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._settle()
                if not self._wanted or self._closed or self._turns or not threading.main_thread().is_alive():
                    self._now, self._thread = None, None
                    self._changed.notify_all()
                    return
                key = next(iter(self._wanted))
                again = self._wanted.pop(key)
                self._now, self._stage, self._stop = key, Stage("beginning"), False
            try:
                with self._alone, self._wanted_still(key, again):
                    self._work(key, again)
            finally:
                with self._changed:
                    self._now = None
                    self._changed.notify_all()

    @contextlib.contextmanager
    def _wanted_still(self, key: Key, again: bool) -> Iterator[None]:
        try:
            yield
        except Stopped:
            with self._changed:
                self._wanted[key] = again or self._wanted.get(key, False)

    def _settle(self) -> None:
        """Wait until nothing new has been wanted for a moment."""
        while self._wanted and not self._closed and not self._turns and threading.main_thread().is_alive():
            now = time.monotonic()
            left = min(self._latest + QUIET_SECONDS, self._first + LONGEST_QUIET_SECONDS) - now
            if left <= 0:
                return
            self._changed.wait(min(left, _LOOK_SECONDS))
