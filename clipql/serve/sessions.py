"""Sessions of ClickHouse's HTTP protocol: settings, parameters, the database and temporary tables, kept by session_id.

What must stay true: one statement of a session at a time (a second gets SESSION_IS_LOCKED, as from ClickHouse); a
session that nobody used for its timeout is gone, with its temporary tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from clipql.engine.embedded import Engine
from clipql.engine.users import EngineUser
from clipql.errors import QueryError
from clipql.serve.fellows import Fellows, session_kept, session_runs
from clipql.sql.session import Session

LONGEST_SECONDS, DEFAULT_SECONDS = 3600, 60


@dataclass
class Kept:
    """A session: its user in the engine, its own parameters and settings, and when it ends unless it is used.

    keeps: whether a statement may have left something in it.
    """

    id: str
    user: EngineUser
    session: Session
    timeout: float
    ends: float = 0.0
    keeps: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sessions:
    """All sessions of a server."""

    def __init__(
        self,
        engine: Engine,
        new_user: Callable[[], EngineUser],
        new_session: Callable[[], Session],
        most: int,
        fellows: Fellows,
    ) -> None:
        self._fellows = fellows
        self._engine, self._new_user, self._new_session, self._most = engine, new_user, new_session, most
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()

    def take(self, id: str, timeout: str | None, *, check: bool) -> Kept:
        """The session of this id for one statement; give it back with `release`.

        check: it must be there already. Raises QueryError: SESSION_NOT_FOUND, SESSION_IS_LOCKED, or a bad timeout.
        """
        seconds = _timeout(timeout)
        with self._lock:
            self._sweep()
            kept = self._kept.get(id)
            if kept is None:
                if check:
                    raise QueryError("Session not found", code=372, name="SESSION_NOT_FOUND")
                if len(self._kept) >= self._most:
                    raise QueryError(
                        f"there are {self._most} sessions, as many as may be",
                        code=202,
                        name="TOO_MANY_SIMULTANEOUS_QUERIES",
                    )
                kept = self._kept[id] = Kept(id, self._new_user(), self._new_session(), seconds)
            if not kept.lock.acquire(blocking=False):
                raise _locked()
            self._fellows.began(session_runs(id))
            if self._fellows.runs(session_runs(id)):
                self.release(kept)
                raise _locked()
            kept.timeout = seconds
            return kept

    def release(self, kept: Kept) -> None:
        """The statement is done."""
        self._fellows.ended(session_runs(kept.id))
        kept.ends = time.monotonic() + kept.timeout
        kept.lock.release()

    def end(self, id: str) -> None:
        """Nobody will use a session again, whose last statement may still run."""
        with self._lock:
            kept = self._kept.get(id)
            if kept is not None:
                kept.timeout, kept.ends = 0.0, min(kept.ends, time.monotonic() - 1)
            self._sweep()

    def keeps(self, kept: Kept) -> None:
        """A statement of a session, which runs, may leave something in it."""
        if not kept.keeps:
            kept.keeps = True
            self._fellows.began(session_kept(kept.id))

    def _sweep(self) -> None:
        now = time.monotonic()
        for id, kept in list(self._kept.items()):
            if kept.ends and kept.ends <= now and not kept.lock.locked():
                del self._kept[id]
                if kept.keeps:
                    self._fellows.ended(session_kept(id))
                self._engine.forget(kept.user)


def _locked() -> QueryError:
    return QueryError("Session is locked by a concurrent client", code=373, name="SESSION_IS_LOCKED")


def _timeout(text: str | None) -> float:
    if not text:
        return DEFAULT_SECONDS
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= LONGEST_SECONDS:
        raise QueryError(
            f"Session timeout {text[:20]!r} is invalid: expected 1 to {LONGEST_SECONDS} seconds",
            code=374,
            name="INVALID_SESSION_TIMEOUT",
        )
    return float(text)
