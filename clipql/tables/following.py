"""When a reader that may be a little behind takes a later moment: in the background, while statements go on.

It knows nothing of what a moment is. What must stay true: a statement sees all that was acknowledged so many seconds
before it, or waits; one refresh runs at a time, and none while the process forks, as a fork has no thread that would
let go of its locks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from clipql.errors import ClipqlError

# times as long as a refresh took, nothing is refreshed after it, if `seconds` let it be: at most a fifth of the time
REST = 4
FORK_SECONDS = 5.0  # that a fork waits for a refresh


class Following:
    """Refreshes of one reader. current: whether there is nothing later; refresh: goes on to what is latest."""

    def __init__(
        self,
        seconds: float,
        current: Callable[[], bool],
        refresh: Callable[[], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._current, self._refresh, self._clock = seconds, current, refresh, clock
        self._as_of = clock()  # nothing later was there then
        self._next = self._as_of
        self._turn = threading.Lock()  # held while something is refreshed in the background
        self._thread: threading.Thread | None = None
        self._ended = False
        _all.add(self)

    def may_go_on(self) -> bool:
        """Whether a statement may see what is there. What is later is taken meanwhile."""
        now = self._clock()
        if self._current():
            self._as_of = max(self._as_of, now)
            return True
        if now - self._as_of > self._seconds:
            return False
        if now >= self._next and not self._ended and self._turn.acquire(blocking=False):
            self._thread = threading.Thread(target=self._work, name="clipql-follow")
            try:
                self._thread.start()
            except RuntimeError:  # there are too many threads
                self._turn.release()
        return True

    @contextlib.contextmanager
    def refreshed(self) -> Iterator[None]:
        """Around a refresh, whoever asked for it."""
        began = self._clock()
        try:
            yield
            self._as_of = max(self._as_of, began)
        finally:
            ended = self._clock()
            self._next = ended + min(REST * (ended - began), self._seconds / 2)

    def _work(self) -> None:
        try:
            # what is wrong, a statement says that may not go on any more
            with contextlib.suppress(ClipqlError, TimeoutError):
                if not self._ended:
                    self._refresh()
        finally:
            self._turn.release()

    def stop(self) -> None:
        """Wait for what is under way, and begin nothing any more."""
        self._ended = True
        if threading.current_thread() is not self._thread:
            with self._turn:
                pass

    def hold(self) -> bool:
        """A fork is about to be made: wait for what is under way. Whether nothing begins until `go_on`."""
        return self._turn.acquire(timeout=FORK_SECONDS)

    def go_on(self) -> None:
        """The fork was made; here, or in it."""
        self._turn.release()


def _before_fork() -> None:
    _forking.held = [each for each in list(_all) if each.hold()]


def _after_fork() -> None:
    for each in _forking.held:
        each.go_on()


_all: weakref.WeakSet[Following] = weakref.WeakSet()
_forking = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
