"""Durable files: the only place that writes, renames, syncs and locks.

What must stay true: a file under its final name is complete and synced; replacing a file is atomic; an error of the
operating system leaves here as one of clipql's own, with the path and the cause.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clipql.errors import DatabaseLocked, DiskFull, StorageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PROBED = 64 << 20
_PIECES = 1_000  # the kernel takes 1,024 in one call
_FEW_FILES = 10_000  # with fewer names left, a full disk may be one of names
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def translated(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError raised inside into a StorageError that says what was being done to which path."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(
                f"the disk is full while {doing} {path}: {_room(path)}; nothing was changed, free some room and "
                "try again"
            ) from error
        raise StorageError(f"cannot finish {doing} {path}: {error.strerror or error}") from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, translated or not, says that the disk is full."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)


def open_plain(path: Path, *, follow: bool = False) -> FileIO:
    """Open a regular file to read, unbuffered. Raises OSError for anything else: a pipe would be waited for, a device
    has no end, and a symbolic link (unless `follow`) leads to a file that nobody has named.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, f"it is a symbolic link to {os.readlink(path)}", str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return FileIO(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: Path, *, most: int | None = None, follow: bool = False) -> bytes:
    """The contents of a regular file, as `open_plain` opens it. Raises OSError, for more than `most` bytes too."""
    with open_plain(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EINVAL, f"it has {size:,} bytes, and {most:,} are the most that are read", str(path))
        return file.read()


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name; nothing where there is none, or a symbolic link in its place."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with translated(folder, "listing"), os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def take_room(handle: int, size: int) -> None:
    """Take the room for a file of so many bytes now: a full disk is an error here, and not, where the file is mapped,
    the death of the process later. The file lies in one piece. Raises OSError.
    """
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _room(path: Path) -> str:
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return "its free room is unknown"
    # file systems that have no such limit say 0 of 0
    files = f" and {found.f_favail:,} files" if found.f_files and found.f_favail < _FEW_FILES else ""
    return f"{found.f_bavail * found.f_frsize / 1e6:,.0f} MB{files} are free"


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside a folder durable."""
    with translated(folder, "syncing"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably: its name is synced, so what is synced inside it stays reachable."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with translated(made, "making"):
            made.mkdir(exist_ok=True)
        sync_folder(made.parent)


def replace(path: Path, content: bytes, *, time_ns: int | None = None) -> None:
    """Write a whole file durably and atomically: a reader sees the old content or the new, never a mixture.

    time_ns: its time of modification, by default that of now.
    """
    with new_file(path) as file:
        write_all(file, content)
        if time_ns is not None:
            os.utime(file.fileno(), ns=(time_ns, time_ns))
    sync_folder(path.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name, complete and synced, when the block ends without an error.

    On any error, Ctrl-C included, nothing is left behind. The caller syncs the folder once all its files are there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with translated(path, "writing"):
            with os.fdopen(_fresh(temporary), "wb", buffering=0) as file:
                yield file
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _fresh(path: Path) -> int:
    """A file that was not there: what a crash or somebody else has left there is removed, never written into."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        path.unlink()
        return os.open(path, flags, 0o666)


class GrownFile:
    """A file that is appended to behind its first `size` bytes, which stay as they are.

    What lies behind them is of an append that was cut off, and goes. A file that has another name too, such as a hard
    link in a backup, is copied first, so that what has the other name stays what it is.

    shared: whether all other names are of those who read no more than the first `size` bytes.
    """

    def __init__(self, path: Path, size: int, *, shared: Callable[[Path], bool] = lambda path: False) -> None:
        self.path, self.size = path, size
        with translated(path, "opening"):
            if path.exists() and path.lstat().st_nlink > 1 and not (size and shared(path)):
                self._copy() if size else path.unlink()
            self._handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (0 if size else os.O_CREAT), 0o644)
            try:
                if os.fstat(self._handle).st_size < size:
                    raise StorageError(f"{path} is shorter than the {size:,} bytes that it should have")
                os.ftruncate(self._handle, size)
            except BaseException:
                self.close()
                raise

    def _copy(self) -> None:
        with new_file(self.path) as copy, open_plain(self.path) as file:
            while piece := file.read(1 << 20):
                write_all(copy, piece)
        sync_folder(self.path.parent)

    def read(self, start: int) -> bytes:
        """Its content from a place on."""
        with translated(self.path, "reading"):
            return os.pread(self._handle, self.size - start, start)

    def write(self, *pieces: Buffer) -> None:
        """Append."""
        left = [view for piece in pieces if (view := memoryview(piece).cast("B"))]
        with translated(self.path, "writing"):
            while left:
                done = os.pwritev(self._handle, left[:_PIECES], self.size)
                self.size += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if done:
                    left[0] = left[0][done:]

    def sync(self) -> None:
        """Make what was appended durable."""
        with translated(self.path, "syncing"):
            os.fsync(self._handle)

    def close(self) -> None:
        """Close it; harmless when called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def share_lock(folder: Path) -> int | None:
    """Keep writers from opening a database while the handle that is returned is open; None where it has no lock file.

    Raises DatabaseLocked where a writer has it, StorageError where the lock cannot be read.
    """
    path = folder / "lock"
    if not path.exists():
        return None
    with translated(path, "locking"):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 400, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise DatabaseLocked(f"{folder} is open in {holder}") from error
    return handle


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk of a folder, by writing 64 MB and syncing them."""
    path, began = folder / f"probe.{os.getpid()}.tmp", time.perf_counter()
    with translated(path, "writing"):
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(bytes(_PROBED))
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
    return _PROBED / max(time.perf_counter() - began, 1e-6)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; no error where there is none."""
    with translated(path, "removing"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    # a fork shares the lock: it would outlive its holder
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)


class FolderLock:
    """An exclusive lock on a database folder, which dies with the process that holds it.

    The lock file names the holder, so that whoever is refused can be told.
    """

    def __init__(self, folder: Path, held: int | None = None) -> None:
        """held: a handle by which another process of the same server, which made this one, has the lock."""
        if held is not None:
            self._handle = os.dup(held)
            _held.add(self)
            return
        path = folder / "lock"
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise StorageError(
                    f"{folder} cannot be written ({error.strerror}): open it with read_only=True (`clipql "
                    "--read-only`), or copy it to a folder of yours on a disk that can be written"
                ) from error
            with translated(path, "locking"):
                raise
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # it is written into
            os.close(self._handle)
            raise StorageError(f"{path} is no file of its own (a hard link, or no regular file): remove it")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 400, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(self._handle)
            raise DatabaseLocked(
                f"{folder} is open in {holder}; one process opens a database at a time to write: close it there, or "
                "read beside it with read_only=True (`clipql --read-only`)"
            ) from error
        os.ftruncate(self._handle, 0)
        _held.add(self)
        command = " ".join(os.path.basename(a) if i == 0 else a for i, a in enumerate(sys.argv))[:300]
        os.pwrite(self._handle, f"process {os.getpid()} ({command or 'python'})".encode(), 0)

    def shared(self) -> int:
        """A handle for `held`, which keeps the lock until it is closed; a fork keeps it too."""
        return os.dup(self._handle)

    def release(self) -> None:
        """Let go of the folder; harmless when called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
