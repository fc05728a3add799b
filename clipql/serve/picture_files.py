"""The files of pictures that rows name, for a server that may not open them itself.

A helper process, made before the sandbox goes up, opens them and hands over the open file: the engine's threads need no
right to read where pictures lie. What must stay true: it opens regular files that begin as pictures do, in the folders
given, for reading, and nothing else; what is in them is decoded by the server, inside its own sandbox.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Protocol

from clipql.errors import PictureError
from clipql.serve import sandbox

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\x00{4}|II[*+]\x00|MM\x00[*+]", re.DOTALL
)
_LONGEST = 1 << 16
_NOT_THERE = "the file that the row names is not there, or not where this server may look"


def begins_as_picture(data: bytes | bytearray) -> bool:
    """Whether some bytes, sixteen or more, are how the file of a picture begins."""
    return _BEGINNINGS.match(data) is not None


class PictureFiles(Protocol):
    """Whoever opens them."""

    def open(self, name: str) -> int:
        """A file descriptor of the file that a row names; the caller closes it. Raises PictureError."""


class Folders:
    """Opens files here. bases: folders that a relative path may be relative to. roots: the folders whose files may be
    opened; None for any."""

    def __init__(self, bases: tuple[Path, ...], roots: tuple[Path, ...] | None) -> None:
        self._bases = bases
        self.roots = None if roots is None else tuple(r.resolve() for r in roots)

    def open(self, name: str) -> int:
        """As `PictureFiles`."""
        if not name or "\0" in name:
            raise PictureError("the row names no file")
        for path in (base / name for base in self._bases):  # an absolute path stays what it is
            with contextlib.suppress(OSError, RuntimeError):
                found = path.resolve(strict=True)
                if self.roots is None or any(found.is_relative_to(r) for r in self.roots):
                    return _opened(found)
        raise PictureError(_NOT_THERE)


class Helper:
    """Asks the helper process. Thread-safe."""

    def __init__(self, folders: Folders, mode: str) -> None:
        """Start it: only while this process has one thread. mode: of its own sandbox."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = os.fork()
        if self._process == 0:
            with contextlib.suppress(BaseException):
                _answer(theirs, folders, mode)
            os._exit(0)
        theirs.close()
        self._socket, self._lock = ours, threading.Lock()

    def open(self, name: str) -> int:
        """As `PictureFiles`."""
        asked = name.encode("utf-8", "surrogateescape")
        if not asked or len(asked) > _LONGEST:
            raise PictureError("the row names no file")
        try:
            with self._lock:
                self._socket.sendall(asked)
                said, handles, _, _ = socket.recv_fds(self._socket, _LONGEST, 1)
        except OSError as error:
            raise PictureError("the process that opens pictures is gone; start the server anew") from error
        if not handles:
            raise PictureError(said.decode() or "the process that opens pictures is gone; start the server anew")
        return handles[0]

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _answer(asked: socket.socket, folders: Folders, mode: str) -> None:
    """The helper process: it ends when the server does."""
    for number in (signal.SIGINT, signal.SIGHUP):  # of the terminal; the server may still be finishing
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, asked.fileno())  # the server's socket among them
    os.closerange(asked.fileno() + 1, 1 << 12)
    os.chdir("/")
    sandbox.apply(sandbox.of_pictures(folders.roots), "off" if mode == "off" else "auto")
    while name := asked.recv(_LONGEST):
        try:
            handle = folders.open(name.decode("utf-8", "surrogateescape"))
        except PictureError as error:
            asked.sendall(str(error).encode())
            continue
        socket.send_fds(asked, [b"open"], [handle])
        os.close(handle)


def _opened(path: Path) -> int:
    """An open picture. Raises OSError, and PictureError for what is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PictureError(_NOT_THERE)
        if not begins_as_picture(os.pread(handle, 16, 0)):
            raise PictureError("the file is no picture that can be read")
    except BaseException:
        os.close(handle)
        raise
    return handle
