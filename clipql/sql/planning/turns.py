"""As many statements at once as there are cores, where a statement is short and mostly Python's.

Python runs one thread at a time: more threads than cores, each for a few tenths of a millisecond, spend their time on
handing over. Whoever has just had a turn may have the next one at once, which is what saves the time; and where a
thread has come back at once before, nobody is woken for the moment until it does so again. What must stay true: a turn
that is free is left unused for no longer than LOOK while somebody waits, and nobody waits for longer than PATIENCE, the
statements that run, and BETWEEN for each who has waited for longer.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Lock, local
from types import TracebackType

PATIENCE = 0.005  # seconds until one who waits goes before those who come,
BETWEEN = 0.001  # and from one to whom a turn was handed so to the next: handing over each time is what costs
LOOK = 0.002  # after which the first who waits looks for a turn that nobody told of
AT_ONCE = 0.0003  # a thread that comes back within this did so at once


@dataclass(eq=False)
class _Waiting:
    """One who waits. asleep: held until there is something to see. woken: it was let go; given: a turn is theirs;
    looks: it is the first, and looks now and then by itself."""

    since: float
    looks: bool
    asleep: Lock = field(default_factory=Lock)
    woken: bool = False
    given: bool = False

    def wake(self) -> None:
        if not self.woken:
            self.woken = True
            self.asleep.release()


class _Own(local):
    """What a thread did last: when it left, and whether it had come back at once."""

    left: float = 0.0
    comes_back: bool = False


class Turns:
    """A context manager that so many threads are within at once; the others wait. No thread may enter it twice."""

    def __init__(self, most: int | None = None) -> None:
        """most: as many as the process may use cores, where it is not given."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._lock = Lock()  # over all below, and never held while waiting
        self._free = most or cores
        self._waiting: deque[_Waiting] = deque()
        self._handed = 0.0  # when a turn was last handed to one who had waited so
        self._own = _Own()

    def __enter__(self) -> None:
        now, own = time.monotonic(), self._own
        own.comes_back = now - own.left < AT_ONCE
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = _Waiting(now, looks=not self._waiting)
            mine.asleep.acquire()
            self._waiting.append(mine)
        while not self._taken(mine):
            pass

    def _taken(self, mine: _Waiting) -> bool:
        told = mine.asleep.acquire(timeout=LOOK) if mine.looks else mine.asleep.acquire()
        with self._lock:
            if told:
                mine.woken = False
            if mine.given:
                return True
            if not self._free:
                return False
            self._free -= 1
            self._waiting.remove(mine)
            self._next_looks(at_once=self._free > 0)
            return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        own = self._own
        now = own.left = time.monotonic()
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            first = self._waiting[0]
            if now - first.since > PATIENCE and now - self._handed > BETWEEN:
                self._waiting.popleft()
                first.given, self._handed = True, now
                first.wake()
                self._next_looks(at_once=False)
                return
            self._free += 1
            if not own.comes_back:
                first.wake()

    def _next_looks(self, *, at_once: bool) -> None:
        """Have the one who is the first now look for a turn by itself; it wakes for that."""
        if self._waiting and (at_once or not self._waiting[0].looks):
            self._waiting[0].looks = True
            self._waiting[0].wake()
