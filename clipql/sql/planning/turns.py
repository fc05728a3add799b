"""As many statements at once as there are cores, where a statement is short and mostly Python's.

Python runs one thread at a time: more threads than cores, each for a few tenths of a millisecond, spend their time on
handing over. What must stay true: whoever waits does so for a turn that is taken, and is woken when that one ends; a
fork begins with turns that are all free.
"""

from __future__ import annotations

import itertools
import os
import weakref
from threading import Lock, local
from types import TracebackType

from clipql.index.cores import threads


class Turns:
    """A context manager that so many threads are within at once; the others wait. No thread may enter it twice.

    Each turn is a lock. A thread waits for one and the same, where none is free: one lock for all, which counts, made
    each hand over cost more than what it saved.
    """

    def __init__(self, most: int | None = None) -> None:
        """most: as many as the process may use cores, where it is not given."""
        self._most = most or threads()
        self._threads, self._own = itertools.count(), _Own()
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Make all turns free: after a fork, whose other threads are not there any more."""
        self._turns = [Lock() for _ in range(self._most)]

    def __enter__(self) -> None:
        turns, own = self._turns, self._own
        if own.number < 0:
            own.number = next(self._threads)
        first = own.number % len(turns)
        taken = turns[first]
        if not taken.acquire(blocking=False):
            for other in turns:
                if other.acquire(blocking=False):
                    taken = other
                    break
            else:
                taken.acquire()
        own.taken = taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.taken.release()


class _Own(local):
    """What a thread has. number: of the thread, among those that came."""

    number = -1
    taken: Lock


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _renew() -> None:
    for each in list(_all):
        each.renew()


os.register_at_fork(after_in_child=_renew)
