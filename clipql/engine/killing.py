"""KILLs of queries by the tags of their connections.

What must stay true: a KILL is sent again until its query has ended, as one that comes before the query has begun hits
nothing; and it hits no other query, so a connection that one was meant for needs another tag.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

AGAIN_SECONDS, MOST_SECONDS = 0.1, 2.0  # until a KILL is sent again, doubled each time


class Kills:
    """The tags in use, and those that a KILL is meant for. send: sends one for a tag. Thread-safe."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send, self._lock = send, threading.Lock()
        self._running: set[str] = set()
        self._meant: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def over(self) -> bool:
        """Whether none is being sent."""
        return self._thread is None

    def began(self, tag: str) -> None:
        """A query is about to run on the connection with this tag."""
        with self._lock:
            self._running.add(tag)

    def ended(self, tag: str) -> bool:
        """It has ended. Whether a KILL was meant for it, which may still be on its way."""
        with self._lock:
            self._running.discard(tag)
            meant = tag in self._meant
            self._meant.discard(tag)
            return meant

    def kill(self, tag: str, is_meant: Callable[[], bool]) -> None:
        """Send KILLs for what runs under a tag, the first at once; nothing where it has ended, or is not meant."""
        with self._lock:
            if tag not in self._running or not is_meant():
                return
            self._meant.add(tag)
            if self._thread is None:
                thread = threading.Thread(target=self._go_on, name="clipql-kill", daemon=True)
                thread.start()
                self._thread = thread
        self._send(tag)

    def stop(self) -> None:
        """Send no more, and wait until none is on its way: one that is sent to a closed engine would open it again."""
        with self._lock:
            self._meant.clear()
            thread = self._thread
        self._stopping.set()
        if thread is not None:
            thread.join()
        self._stopping.clear()

    def _go_on(self) -> None:
        wait = AGAIN_SECONDS
        while True:
            self._stopping.wait(wait)
            with self._lock:
                left = self._meant & self._running
                if not left:
                    self._thread = None
                    return
            for tag in left:
                with contextlib.suppress(Exception):  # it is sent again
                    self._send(tag)
            wait = min(2 * wait, MOST_SECONDS)
