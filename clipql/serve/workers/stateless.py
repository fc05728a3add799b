"""Sessions that have kept nothing yet: clients name one with each request, and most never SET anything in it.

A SELECT of such a session means the same wherever it runs, so a worker answers it. What must stay true: a session in
which anything was kept is the writer's alone; one statement of a session runs at a time, whichever process has it; the
writer knows of each session that is in use, so it is sent a request of it from time to time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote_plus

from clipql.serve.fellows import session_kept, session_runs
from clipql.serve.workers import board as numbers
from clipql.serve.workers.board import Board
from clipql.serve.workers.supervisor import WRITER

_MOST = 10_000
_SECONDS = re.compile(r"[1-9]\d{0,3}", re.ASCII)
LONGEST, DEFAULT = 3600, 60
_OURS = (b"session_id", b"session_timeout", b"session_check")


@dataclass(frozen=True)
class Named:
    """The session that a request names, how long it is kept, and the request's address without it."""

    id: str
    seconds: int
    rest: bytes


def named(query_string: bytes) -> Named | None:
    """What an address says of a session; None where it says it in a way that only the writer understands."""
    found: dict[bytes, str] = {}
    rest = []
    for piece in query_string.split(b"&"):
        name, _, value = piece.partition(b"=")
        if name not in _OURS:
            rest.append(piece)
        elif name in found:
            return None
        else:
            found[name] = unquote_plus(value.decode("latin-1"))
    id, seconds = found.get(b"session_id", ""), found.get(b"session_timeout") or str(DEFAULT)
    if not id or found.get(b"session_check", "0") not in ("", "0") or not _SECONDS.fullmatch(seconds):
        return None
    return Named(id, int(seconds), b"&".join(rest)) if int(seconds) <= LONGEST else None


class Stateless:
    """The sessions of a worker's requests."""

    def __init__(self, board: Board, number: int) -> None:
        self._board, self._number = board, number
        self._told: dict[str, float] = {}
        self._running: set[str] = set()

    @contextmanager
    def running(self, session: Named) -> Iterator[bool]:
        """Whether a worker may run a SELECT of a session, which then has no other statement until the end."""
        now = time.monotonic()
        told = self._told.get(session.id)
        if told is None or now - told > session.seconds / 3:
            self._told.pop(session.id, None)
            self._told[session.id] = now
            if len(self._told) > _MOST:
                del self._told[next(iter(self._told))]
            yield False
            return
        if session.id in self._running:
            yield False
            return
        self._running.add(session.id)
        place = self._board.note(self._number, session_runs(session.id))
        try:
            yield place is not None and self._is_free(session.id)
        finally:
            self._running.discard(session.id)
            if place is not None:
                self._board.forget(self._number, place)

    def _is_free(self, id: str) -> bool:
        """Whether no other process runs a statement of it, and the writer has kept nothing of it."""
        board = self._board
        return (
            not board.get(WRITER, numbers.FULL)
            and board.who_runs(session_runs(id), but=self._number) is None
            and board.who_runs(session_kept(id), but=self._number) is None
        )
