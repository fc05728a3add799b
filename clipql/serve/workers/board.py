"""What the processes of a server write down for each other, in memory that they share.

A row belongs to one process, which alone writes it; when that has died, the supervisor clears it. So no count is lost
with a process that was killed, and no lock is held by one. What must stay true: each number is written as a whole.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
import threading

# the numbers of a row, then the hashes of the ids of queries that run, and of sessions. FULL: not all had room. TOP:
# into how many places to look, so that looking at many processes that run little costs little
BEAT, RUNNING, TAKEN, BODIES, CLOSED, FULL, TOP, _NUMBERS = range(8)
QUERIES = 1 << 11
_ROW = _NUMBERS + QUERIES


class Board:
    """The memory; it is made before the processes. written: grows with each statement that wrote, before its client is
    told."""

    def __init__(self, members: int) -> None:
        self.members = members
        self._map = mmap.mmap(-1, 8 * (1 + members * _ROW))
        self._at = memoryview(self._map).cast("q")
        self._noting = threading.Lock()  # of a process's own threads, over its own places

    @property
    def written(self) -> int:
        """The number of the last statement that wrote and is, or will be, acknowledged."""
        return self._at[0]

    @written.setter
    def written(self, number: int) -> None:
        self._at[0] = number

    def get(self, member: int, what: int) -> int:
        """A number of a process."""
        return self._at[1 + member * _ROW + what]

    def put(self, member: int, what: int, number: int) -> None:
        """Write down a number; only the process itself does, or the supervisor when it is dead."""
        self._at[1 + member * _ROW + what] = number

    def add(self, member: int, what: int, number: int) -> None:
        """The same, with what is there."""
        self._at[1 + member * _ROW + what] += number

    def sum(self, what: int, but: int | None = None) -> int:
        """Of all processes, or of all but one."""
        return sum(self.get(member, what) for member in range(self.members) if member != but)

    def clear(self, member: int) -> None:
        """Nothing is of a process that has died."""
        start = 1 + member * _ROW
        for at in range(start, start + _ROW):
            self._at[at] = 0

    def note(self, member: int, query_id: str) -> int | None:
        """Write down that a query runs; the place, to be given to `forget`, or None where there is no room."""
        with self._noting:
            place = self._place(member, 0, QUERIES)
            if place is None:
                self.put(member, FULL, 1)
            else:
                self._at[1 + member * _ROW + _NUMBERS + place] = _hash(query_id)
                self.put(member, TOP, max(self.get(member, TOP), place + 1))
            return place

    def forget(self, member: int, place: int) -> None:
        """The query there has ended."""
        with self._noting:
            first, top = 1 + member * _ROW + _NUMBERS, self.get(member, TOP)
            self._at[first + place] = 0
            while top and not self._at[first + top - 1]:
                top -= 1
            self.put(member, TOP, top)

    def who_runs(self, query_id: str, but: int) -> int | None:
        """The process, but for one, that runs a query of this id."""
        wanted = _hash(query_id)
        others = (member for member in range(self.members) if member != but)
        used = ((member, top) for member in others if (top := self.get(member, TOP)))
        return next((member for member, top in used if self._place(member, wanted, top) is not None), None)

    def _place(self, member: int, wanted: int, places: int) -> int | None:
        """Where a number stands among the first hashes of a process."""
        start = 8 * (1 + member * _ROW + _NUMBERS)
        end, value = start + 8 * places, wanted.to_bytes(8, sys.byteorder, signed=True)
        found = self._map.find(value, start, end)
        while found >= 0 and found % 8:
            found = self._map.find(value, found + 1, end)
        return (found - start) // 8 if found >= 0 else None


def _hash(query_id: str) -> int:
    digest = hashlib.blake2b(query_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1
