"""As many statements at once as there are cores, where a statement is short and mostly Python's.

Python runs one thread at a time: more threads than cores, each for a few tenths of a millisecond, spend their time on
handing over. Whoever has just had a turn may have the next one at once, which is what saves the time; what must stay
true: a turn that is free is never left unused while somebody waits, and nobody waits for longer than PATIENCE and the
turns of those who have.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType

PATIENCE = 0.005  # seconds until one who waits goes before those who come


@dataclass(eq=False)
class _Waiting:
    """One who waits. asleep: held until there is something to see. woken: it was let go; given: a turn is theirs."""

    since: float
    asleep: Lock = field(default_factory=Lock)
    woken: bool = False
    given: bool = False

    def wake(self) -> None:
        if not self.woken:
            self.woken = True
            self.asleep.release()


class Turns:
    """A context manager that so many threads are within at once; the others wait. No thread may enter it twice."""

    def __init__(self, most: int | None = None) -> None:
        """most: as many as the process may use cores, where it is not given."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._lock = Lock()  # over all below, and never held while waiting
        self._free = most or cores
        self._waiting: deque[_Waiting] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = _Waiting(time.monotonic())
            mine.asleep.acquire()
            self._waiting.append(mine)
        while not self._taken(mine):
            pass

    def _taken(self, mine: _Waiting) -> bool:
        mine.asleep.acquire()
        with self._lock:
            mine.woken = False
            if mine.given:
                return True
            if not self._free:
                return False
            self._free -= 1
            self._waiting.remove(mine)
            if self._free and self._waiting:
                self._waiting[0].wake()
            return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            first = self._waiting[0]
            if time.monotonic() - first.since > PATIENCE:
                self._waiting.popleft()
                first.given = True
            else:
                self._free += 1
            first.wake()
