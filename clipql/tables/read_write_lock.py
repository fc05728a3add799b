"""A lock that many readers share and one writer has alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType


class ReadWriteLock:
    """Planned queries read; statements that take rows or tables away write. A waiting writer goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers: dict[int, int] = {}
        self._writer: int | None = None
        self._waiting = 0

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Hold the gate together with other readers; a thread may enter again."""
        return _Reading(self)

    def _entered(self, me: int) -> None:
        with self._changed:
            while not (me in self._readers or self._writer == me or (self._writer is None and not self._waiting)):
                self._changed.wait()
            self._readers[me] = self._readers.get(me, 0) + 1

    @contextlib.contextmanager
    def reading_now(self) -> Iterator[bool]:
        """As `reading`, without waiting: whether it is held."""
        me = threading.get_ident()
        with self._changed:
            held = me in self._readers or self._writer == me or (self._writer is None and not self._waiting)
            if held:
                self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield held
        finally:
            if held:
                self._left(me)

    def _left(self, me: int) -> None:
        with self._changed:
            self._readers[me] -= 1
            if not self._readers[me]:
                del self._readers[me]
            if self._waiting:  # nobody but a writer waits for a reader
                self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the gate alone. A thread that is reading must not ask for this.

        seconds: raise TimeoutError where others have it for longer.
        """
        end = None if seconds is None else time.monotonic() + seconds
        me = threading.get_ident()
        with self._changed:
            if self._writer == me:
                nested = True
            else:
                nested = False
                self._waiting += 1
                try:
                    while self._writer is not None or any(reader != me for reader in self._readers):
                        left = None if end is None else end - time.monotonic()
                        if left is not None and left <= 0:
                            raise TimeoutError
                        self._changed.wait(left)
                except BaseException:
                    self._changed.notify_all()  # those that this one held up
                    raise
                finally:
                    self._waiting -= 1
                self._writer = me
        try:
            yield
        finally:
            if not nested:
                with self._changed:
                    self._writer = None
                    self._changed.notify_all()


class _Reading:
    """What `reading` gives: each statement enters one, and a generator's would take three times as long."""

    __slots__ = ("_gate", "_me")

    def __init__(self, gate: ReadWriteLock) -> None:
        self._gate, self._me = gate, 0

    def __enter__(self) -> None:
        self._me = threading.get_ident()
        self._gate._entered(self._me)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._left(self._me)
