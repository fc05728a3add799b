"""A server's own place in a database folder, `tmp/serve-…`: temporary files, the folder it works in, and an engine's.

What must stay true: a server that only reads changes nothing of the database; what an earlier server has left behind,
killed perhaps, goes at the next start; nothing that a running server uses is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipql.storage import catalog, files, places, strays

PREFIX = "serve-"
# of the engine's folder: what it writes while it only reads; everything else is linked
_ENGINES_OWN = ("status", "tmp", "user_defined", "metadata_dropped")


@dataclass(frozen=True)
class Scratch:
    """The folders. empty: to work in, as chDB takes a bare name that is no table's for a file of the folder it was
    opened in. engine: where the engine of a server that only reads keeps what it must write."""

    folder: Path

    @property
    def parent(self) -> Path:
        """Where the places of all servers are."""
        return self.folder.parent

    @property
    def empty(self) -> Path:
        """To work in."""
        return self.folder / "empty"

    @property
    def temporary(self) -> Path:
        """For temporary files."""
        return self.folder / "temporary"

    @property
    def engine(self) -> Path:
        """For an engine that reads the database's rows and writes none."""
        return self.folder / "engine"

    def link_engine(self, original: Path) -> None:
        """Have the engine's folder show what the database's engine has."""
        for each in original.iterdir():
            if each.name not in _ENGINES_OWN:
                (self.engine / each.name).symlink_to(each)
        for name in _ENGINES_OWN[1:]:
            (self.engine / name).mkdir(exist_ok=True)
        for function in (original / "user_defined").glob("*.sql"):
            shutil.copyfile(function, self.engine / "user_defined" / function.name)


@contextlib.contextmanager
def opened(folder: Path, *, locked: bool = False) -> Iterator[Scratch]:
    """A place in a database folder, which is made if it is not there; the process works in it, with its TMPDIR.

    locked: another process of the same server has the folder's lock. Raises NotADatabase, DatabaseLocked,
    DatabaseDamaged or StorageError.
    """
    catalog.prepare(folder)
    if not locked:
        files.FolderLock(folder).release()  # says it now, where another process has it or it cannot be written
    strays.refuse(folder)
    parent = folder / strays.SCRATCH
    with files.translated(parent, "making"):
        parent.mkdir(exist_ok=True)
        places.sweep(parent, PREFIX)
        place = places.Place(parent, PREFIX)
        found = Scratch(place.folder)
        for each in (found.empty, found.temporary, found.engine):
            each.mkdir()
    before, directory = os.getcwd(), os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(found.temporary), None
    os.chdir(found.empty)
    try:
        yield found
    finally:
        with contextlib.suppress(OSError):  # the sandbox may not let it go back
            os.chdir(before)
        os.environ.pop("TMPDIR")
        if directory is not None:
            os.environ["TMPDIR"] = directory
        tempfile.tempdir = None
        place.release()


def is_settled(folder: Path) -> bool:
    """Whether a database was closed in order, so that opening it has nothing to mend, nor to remove, such as what a
    backup has left. Raises DatabaseDamaged."""
    engine = folder / "engine"
    there = (folder / catalog.NAME).exists() and (engine / "metadata_dropped").is_dir()
    left = [engine / "status", engine / "shadow", folder / (catalog.NAME + ".tmp"), *folder.glob(f"{strays.STAGED}*")]
    return there and not any(map(os.path.lexists, left)) and catalog.load(folder).pending is None


def in_child(work: Callable[[], None]) -> None:
    """Do something in a process of its own, which ends with it; its errors are left for who tries the same here.

    The process that calls has one thread.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            work()
            status = 0
        finally:
            os._exit(status)
    os.waitpid(child, 0)
