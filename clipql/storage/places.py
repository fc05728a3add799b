"""A process's own place in a folder that others use too, such as the `tmp/` of a database.

What must stay true: a place that a living process has is never removed, and one whose process has died goes when
somebody sweeps. A lock on the folder says which is which: the system lets go of it with the last process that has it,
so a fork keeps the place of the process that it was forked from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipql.errors import StorageError
from clipql.storage import files, strays

READER = "reader-"
_TRIES = 100  # a sweep may take a place for a dead one's before it is locked


class Place:
    """A folder with a name that nobody else has, held until `release`."""

    def __init__(self, parent: Path, prefix: str) -> None:
        with files.translated(parent, "making a place in"):
            parent.mkdir(exist_ok=True)
            for _ in range(_TRIES):
                self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
                handle = locked(self.folder)
                if handle is not None and self.folder.exists():
                    self._handle = handle
                    return
                if handle is not None:
                    os.close(handle)
        raise StorageError(f"no folder in {parent} can be locked: its file system knows no locks; use another")

    def release(self) -> None:
        """Let go, and remove it unless a fork still has it; harmless when called twice."""
        if self._handle < 0:
            return
        os.close(self._handle)
        self._handle = -1
        _remove(self.folder)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the places of processes that are gone."""
    for entry in _entries(parent, prefix):
        _remove(Path(entry.path))


def _remove(folder: Path) -> None:
    handle = locked(folder)
    if handle is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def locked(folder: Path) -> int | None:
    """A folder, locked while the handle is open; None where another process has it, or the disk knows no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _entries(parent: Path, prefix: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(StorageError):
        return [e for e in files.entries(parent) if e.name.startswith(prefix) and e.is_dir(follow_symlinks=False)]
    return []


@dataclass(frozen=True)
class Held:
    """What readers' snapshots hold. bytes: of files that have no other name any more."""

    snapshots: int
    bytes: int


def held(folder: Path) -> Held:
    """The snapshots of a database's readers, and the room that would be free without them."""
    found = _entries(folder / strays.SCRATCH, READER)
    names: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], os.stat_result] = {}
    for entry in found:
        for status in _files(Path(entry.path)):
            key = status.st_dev, status.st_ino
            names[key], last[key] = names.get(key, 0) + 1, status
    return Held(len(found), sum(s.st_blocks * 512 for key, s in last.items() if s.st_nlink <= names[key]))


def _files(folder: Path) -> Iterator[os.stat_result]:
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                yield os.lstat(os.path.join(place, name))


def only_snapshots(path: Path) -> bool:
    """Whether all other names of a file `rows/…/…` are in snapshots of the database's readers."""
    folder, before = path.parents[2], path.lstat()
    found = 0
    for entry in _entries(folder / strays.SCRATCH, READER):
        with contextlib.suppress(OSError):
            found += os.path.samestat((Path(entry.path) / path.relative_to(folder)).lstat(), before)
    return before.st_nlink == path.lstat().st_nlink == found + 1


def remove_own(folder: str, process: int) -> None:
    """Remove a folder, in the process that made it: a fork of it would take it away."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
