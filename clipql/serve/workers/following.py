"""A worker's reader keeps up with the writer.

What must stay true: a request that is answered here sees every statement whose client had been told that it was done.
The writer counts such statements up, in memory that all share, before it tells; a worker notes the count before it
takes a snapshot. Where the counts differ, the request goes to the writer, and the snapshot is taken meanwhile. So no
request waits for one, and a statement that runs here for long holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from clipql.errors import ClipqlError, StorageError
from clipql.reader import ReadOnlyDatabase
from clipql.serve.workers.board import Board
from clipql.serve.workers.routing import Elsewhere
from clipql.tables.registry import INTERNAL

LOG = logging.getLogger("clipql.serve")
# seconds: between two looks at the database where nobody says that it was changed; that statements which run may hold
# up a refresh, and all others with it; after which it is tried again
LOOK, PATIENCE, AGAIN = 1.0, 0.05, 0.5
_TABLES = (
    "SELECT name, engine FROM system.tables WHERE NOT is_temporary AND database NOT IN "
    f"('system', 'INFORMATION_SCHEMA', 'information_schema', '{INTERNAL}')"
)


class Follower:
    """Refreshes a reader in a thread of its own. failed: called where the reader is of no use any more."""

    def __init__(self, database: ReadOnlyDatabase, board: Board, failed: Callable[[], None]) -> None:
        self._database, self._board, self._failed = database, board, failed
        self._seen = -1
        self.elsewhere = Elsewhere()
        self._defined: frozenset[tuple[str, int, int]] | None = None
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="clipql-follow", daemon=True)

    def start(self) -> None:
        """Look at the database now, then follow it."""
        number = self._board.written
        self._database.refresh()
        self._note()
        self._seen = number
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the reader has all that was acknowledged. If not, it will have it soon."""
        if self._seen == self._board.written:
            return True
        self._wake.set()
        return False

    def _follow(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(LOOK)
            self._wake.clear()
            if self._ended.is_set():
                return
            began, pause = time.monotonic(), 0.0
            try:
                number = self._board.written
                if self._database.refresh(patience=PATIENCE):
                    self._note()
                    pause = 2 * (time.monotonic() - began)  # at most a third of the time goes into it
                self._seen = number
            except TimeoutError:
                pause = AGAIN
                self._wake.set()
            except ClipqlError as error:
                if self._database.closed or not isinstance(error, StorageError):
                    LOG.exception("the reader cannot go on")
                    self._failed()
                    return
                LOG.warning("no snapshot could be taken", extra={"fields": {"why": str(error)}})
                pause = AGAIN
            except Exception:
                LOG.exception("the reader cannot go on")
                self._failed()
                return
            self._ended.wait(pause)

    def _note(self) -> None:
        """Look where tables are; ClickHouse is asked, and catches up for that, only where one was defined otherwise."""
        defined = self._database.definitions()
        if defined == self._defined:
            return
        self.elsewhere = Elsewhere.of(self._database.registry.engine.arrow(_TABLES).to_pylist())
        self._defined = defined

    def stop(self) -> None:
        """Follow no more."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
