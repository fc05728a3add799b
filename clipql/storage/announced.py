"""How many changes of a database were acknowledged so far, by which a reader that follows sees whether there is more.

A commit writes the manifest before its change and after it, and what it has only begun is no news: a reader that went
on for it would wait for its end. What must stay true: whatever was acknowledged has changed the number, which the
manifest begins with; statements of which the manifest says nothing count by its time, one step of which is one change,
as a system's own times come in steps of some milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from clipql.errors import NotADatabase
from clipql.storage import catalog, files
from clipql.storage.catalog import Catalog, Stamp

# nanoseconds by which a change moves the time of the manifest; the second is for file systems that round times
STEP, _COARSE = 1_000, 2_000_000_000
_HEAD_BYTES = 512  # of a manifest, in which the stamp is
_STAMP = re.compile(rb'"announced": (\d{1,30}), "time": (\d{1,30}),')
# what a manifest is known by without being read
State = tuple[int, int, int]


def state(folder: Path) -> State:
    """What changes with every step of a commit, and with every other change that was acknowledged.

    Raises NotADatabase.
    """
    try:
        return _state(os.stat(folder / catalog.NAME))
    except OSError as error:
        raise NotADatabase(f"there is no database in {folder}: a reader makes none") from error


def _state(found: os.stat_result) -> State:
    return found.st_ino, found.st_mtime_ns, found.st_size


def number(content: bytes, seen: State) -> int | None:
    """The number of acknowledged changes. content: what a manifest begins with; seen: its state. None where an older
    version wrote it, or somebody else.
    """
    stamp = _STAMP.search(content[:_HEAD_BYTES])
    return None if stamp is None else int(stamp[1]) + max(0, seen[1] - int(stamp[2])) // STEP


def look(folder: Path) -> tuple[State, int | None]:
    """The state of a database, and the number of its acknowledged changes then. Raises NotADatabase."""
    try:
        with files.open_plain(folder / catalog.NAME) as file:
            content, found = os.pread(file.fileno(), _HEAD_BYTES, 0), os.fstat(file.fileno())
    except OSError as error:
        raise NotADatabase(f"there is no database in {folder}: a reader makes none") from error
    return _state(found), number(content, _state(found))


class Announcements:
    """Those of the one process that writes a database. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def save(self, written: Catalog) -> None:
        """Replace the manifest durably. What is under way in it is not acknowledged. Raises StorageError, DiskFull."""
        with self._lock:
            before = None
            with contextlib.suppress(NotADatabase):  # somebody has removed it
                before = look(self._folder)[1]
            if before is None:  # by the clock, as no such number was ever given
                before = time.time_ns() // STEP
            stamp = Stamp(before + (written.pending is None), time.time_ns())
            catalog.save(self._folder, written, stamp)

    def add(self) -> None:
        """Something was changed of which the manifest says nothing. Raises OSError."""
        path = self._folder / catalog.NAME
        with self._lock:
            before = os.stat(path).st_mtime_ns
            for step in (STEP, _COARSE):
                os.utime(path, ns=(before + step, before + step))
                if os.stat(path).st_mtime_ns != before:
                    return
