"""An engine that opens its folder with the first query, and may go on with another folder.

What must stay true: whoever queries finds the folder opened and prepared; a process whose queries need no ClickHouse
never starts it, so that its forks may.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from clipql.engine.embedded import Engine
from clipql.engine.users import Connection


class EngineOnDemand(Engine):
    """As `Engine`. prepare: called once a folder is open, before any other query; it may query."""

    def __init__(self, folder: Path, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._starting = threading.RLock()
        self._preparing = False
        self._started: int | None = None  # the process that has it open
        super().__init__(folder)

    def _begin(self) -> None:
        """Nothing yet."""

    @property
    def started(self) -> bool:
        """Whether this process has the folder open."""
        return self._started == os.getpid()

    def start(self) -> None:
        """Open the folder now, if it is not open."""
        if self._started == os.getpid():
            return
        with self._starting:
            if self._started == os.getpid() or self._preparing:
                return
            self._open_folder()
            self._preparing = True
            try:
                self._prepare()
                self._started = os.getpid()
            except BaseException:
                self._close_folder()
                raise
            finally:
                self._preparing = False

    def move(self, folder: Path) -> None:
        """Go on with another folder; what users SET stays. No query may run."""
        if self._started == os.getpid():  # a fork leaves what its parent started to it
            self._kills.stop()
            self._close_folder()
            self._started = None
        self.folder = folder
        for user in self._users:
            user.idle.clear()

    @contextlib.contextmanager
    def _borrow(self, user: bool = False) -> Iterator[Connection]:
        self.start()
        with super()._borrow(user) as connection:
            yield connection

    def close(self) -> None:
        """As that of `Engine`; a fork leaves what its parent started to it."""
        if self._started in (None, os.getpid()):
            super().close()
