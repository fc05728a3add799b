"""What a server's processes know of each other, as its parts ask for it; a server of one process has no fellows.

What must stay true: limits of a server hold for all its processes together, and so does what a query id names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from clipql.engine.users import Acting


def session_runs(id: str) -> str:
    """What stands among the ids of queries while a statement of a session runs."""
    return f"\0runs {id}"


def session_kept(id: str) -> str:
    """What stands there while something is kept in it."""
    return f"\0kept {id}"


class Fellows:
    """The processes of a server, seen from one that is alone; `workers/member.py` has one that is not."""

    # where figures of all processes lie; None where there is one
    metrics: str | None = None

    def __init__(self) -> None:
        self._running = 0

    def start(self, most: int) -> bool:
        """Whether one request more may run, which is counted then. Call it from the event loop."""
        if self._running >= most:
            return False
        self._running += 1
        return True

    def finish(self) -> None:
        """A request that ran has ended."""
        self._running -= 1

    def others_taken(self, ours: int) -> int:
        """The requests that run or wait in other processes. ours: those of this one."""
        return 0

    def others_bodies(self, ours: int) -> int:
        """The bytes of bodies that other processes hold. ours: those of this one."""
        return 0

    def began(self, query_id: str) -> None:
        """A query runs here."""

    def ended(self, query_id: str) -> None:
        """It does not any more."""

    def runs(self, query_id: str) -> bool:
        """Whether another process runs a query of this id."""
        return False

    def kill(self, query_id: str) -> bool:
        """Have another process stop a query; whether one runs it. From any thread."""
        return False

    def wrote(self) -> None:
        """A statement may have changed the database, and its client has not been told yet. From any thread."""


class Running:
    """The queries that run, by their ids. stop: cancels a request, from any thread."""

    def __init__(self, fellows: Fellows, stop: Callable[[Acting], None]) -> None:
        self._fellows, self._stop = fellows, stop
        self._here: dict[str, Acting] = {}
        self._lock = threading.Lock()

    def __contains__(self, query_id: str) -> bool:
        return query_id in self._here or self._fellows.runs(query_id)

    def add(self, query_id: str, acting: Acting) -> None:
        """A query begins."""
        with self._lock:
            self._here[query_id] = acting
            self._fellows.began(query_id)

    def remove(self, query_id: str, acting: Acting | None) -> bool:
        """It has ended; whether it had begun."""
        with self._lock:
            if acting is None or self._here.get(query_id) is not acting:
                return False
            del self._here[query_id]
            self._fellows.ended(query_id)
            return True

    def kill_here(self, query_id: str, but: Acting | None = None) -> bool:
        """Stop a query of this process; whether one runs. but: whose wish it is."""
        found = self._here.get(query_id)
        if found is not None and found is not but:
            self._stop(found)
        return found is not None

    def kill(self, query_id: str, but: Acting | None) -> bool:
        """Stop a query, whichever process runs it; whether one does."""
        return self.kill_here(query_id, but) or self._fellows.kill(query_id)
