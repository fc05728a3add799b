"""An engine that opens its folder with the first query, and may go on with another folder.

What must stay true: whoever queries finds the folder opened, prepared and caught up with; a process whose queries need
no ClickHouse never starts it, so that its forks may.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clipql.engine.embedded import Engine
from clipql.engine.users import Connection

# catches up, and returns None, or the folder that is to be opened in place of the one that is open
Later = Callable[[], Path | None]


class EngineOnDemand(Engine):
    """As `Engine`. prepare: called once a folder is open, before any other query; it may query."""

    def __init__(self, folder: Path, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._starting, self._owner = threading.RLock(), os.getpid()
        self._preparing = False
        self._started: int | None = None  # the process that has it open
        self._later: Later | None = None
        self._since = 0.0
        super().__init__(folder)

    def _begin(self) -> None:
        """Nothing yet."""

    @property
    def started(self) -> bool:
        """Whether this process has the folder open."""
        return self._started == os.getpid()

    @property
    def behind_seconds(self) -> float:
        """For how long a later state has been waiting for a query to need it."""
        return time.monotonic() - self._since if self._later else 0.0

    def _alone(self) -> threading.RLock:  # type: ignore[valid-type, unused-ignore]
        """The lock of this process: in a fork, that of its parent may be held by a thread that is not there."""
        if self._owner != os.getpid():
            self._starting, self._owner, self._preparing = threading.RLock(), os.getpid(), False
        return self._starting

    def start(self) -> None:
        """Open the folder now, if it is not open, and catch up with what is later."""
        if self._started == os.getpid() and self._later is None:
            return
        with self._alone():
            if self._preparing:
                return
            if self._started != os.getpid():
                self._open_prepared()
            elif self._later is not None:
                self._catch_up(self._later)

    def _open_prepared(self) -> None:
        self._open_folder()
        self._preparing = True
        try:
            self._prepare()
            self._started, self._later = os.getpid(), None
        except BaseException:
            self._close_folder()
            raise
        finally:
            self._preparing = False

    def _catch_up(self, later: Later) -> None:
        self._preparing = True
        try:
            folder = later()
        finally:
            self._preparing = False
        if folder is None:
            self._later = None
        else:
            self.move(folder)
            self._open_prepared()

    def go_on(self, later: Later) -> None:
        """There is a later state: have it caught up with before the next query, and not before one needs it.

        No query may run.
        """
        with self._alone():
            if self._later is None:
                self._since = time.monotonic()
            self._later = later

    def move(self, folder: Path) -> None:
        """Go on with another folder; what users SET stays. No query may run."""
        with self._alone():
            if self._started == os.getpid():  # a fork leaves what its parent started to it
                self._kills.stop()
                self._close_folder()
                self._started = None
            self._later = None
            self.folder = folder
            for user in self._users:
                user.idle.clear()

    def _send_kill(self, tag: str) -> None:
        """Nothing where the folder is being opened, closed or caught up with, as no query runs then. It is sent again
        where its query goes on.
        """
        lock = self._alone()
        if lock.acquire(blocking=False):
            try:
                if self.started and self._later is None:
                    super()._send_kill(tag)
            finally:
                lock.release()

    @contextlib.contextmanager
    def _borrow(self, user: bool = False) -> Iterator[Connection]:
        self.start()
        with super()._borrow(user) as connection:
            yield connection

    def close(self) -> None:
        """As that of `Engine`; a fork leaves what its parent started to it."""
        if self._started in (None, os.getpid()):
            super().close()
