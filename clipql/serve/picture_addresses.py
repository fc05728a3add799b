"""Pictures at addresses that requests name, fetched by a process of its own that a server makes before its walls go up.

The server itself can make no socket. What must stay true: nothing is fetched unless the server was told to; what comes
begins as a picture, is not too large and there in time; the process reads no database, and ends with the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from clipql.errors import PictureError
from clipql.serve import sandbox
from clipql.serve.picture_files import begins_as_picture

MOST_BYTES = 16 << 20
SECONDS, SILENT_SECONDS = 10, 5
OFF = "this server fetches no pictures: `clipql serve --fetch-pictures` lets it; or send the picture itself"
_LONGEST = 1 << 16
_KEPT_SECONDS, _KEPT_BYTES = 300, 64 << 20  # a page of results that goes on asks for its picture again
_GOOD, _BAD = b"+", b"-"
_CERTIFICATES = ("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates")


class PictureAddresses(Protocol):
    """Whoever fetches them."""

    def fetch(self, url: str) -> bytes:
        """The bytes of the picture at an address. Raises PictureError."""


class Helper:
    """Asks the helper process. Thread-safe. Pictures are kept for some minutes."""

    def __init__(self, allowed: Collection[str], mode: str) -> None:
        """Start it: only while this process has one thread. allowed: hosts that may be in a private network. mode: of
        its own sandbox."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = os.fork()
        if self._process == 0:
            with contextlib.suppress(BaseException):
                _answer(theirs, allowed, mode)
            os._exit(0)
        theirs.close()
        self._socket, self._lock = ours, threading.Lock()
        self._kept = OrderedDict[str, tuple[float, bytes]]()

    def fetch(self, url: str) -> bytes:
        """As `PictureAddresses`."""
        with self._lock:
            since, picture = self._kept.get(url, (-float("inf"), b""))
        if time.monotonic() - since > _KEPT_SECONDS:
            picture = self._fetched(url)
            self._keep(url, picture)
        return picture

    def _fetched(self, url: str) -> bytes:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + SECONDS + 1
        with ours:
            try:
                with theirs:
                    socket.send_fds(self._socket, [url.encode()], [theirs.fileno()])
                said = bytearray()
                while len(said) <= MOST_BYTES + 1:
                    ours.settimeout(max(0.001, deadline - time.monotonic()))
                    block = ours.recv(1 << 20)
                    if not block:
                        break
                    said += block
            except TimeoutError:
                said = bytearray()
            except OSError as error:
                raise PictureError("the process that fetches pictures is gone; start the server anew") from error
        if said[:1] == _GOOD:
            return bytes(said[1:])
        told = said[1:].decode(errors="replace")
        raise PictureError(told or f"the picture did not come within {SECONDS} s")

    def _keep(self, url: str, picture: bytes) -> None:
        with self._lock:
            self._kept.pop(url, None)
            self._kept[url] = (time.monotonic(), picture)
            while sum(len(each) for _, each in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _answer(asked: socket.socket, allowed: Collection[str], mode: str) -> None:
    """The helper process: each picture is fetched by a process of that picture's own, which ends in time."""
    for number in (signal.SIGINT, signal.SIGHUP):  # of the terminal; the server may still be finishing
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    os.closerange(3, asked.fileno())  # the server's socket among them
    os.closerange(asked.fileno() + 1, 1 << 12)
    os.chdir("/")
    own = [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
    plan = sandbox.Plan((*sandbox.base(), *map(Path, _CERTIFICATES), *(Path(p) for p in own if p)))
    sandbox.apply(plan, "off" if mode == "off" else "auto", network=True)
    while True:
        url, handles, _, _ = socket.recv_fds(asked, _LONGEST, 1)
        if not url:
            return
        if os.fork() == 0:
            _give(asked, url.decode(), handles[0], allowed)
        os.close(handles[0])


def _give(asked: socket.socket, url: str, handle: int, allowed: Collection[str]) -> None:
    """One picture, or why there is none, in a process of its own, which ends here."""
    try:
        signal.alarm(SECONDS)
        asked.close()
        with socket.socket(fileno=handle) as to:
            try:
                said = _GOOD + fetched(url, allowed)
            except PictureError as error:
                said = _BAD + str(error).encode()
            to.sendall(said)
    finally:
        os._exit(0)


def fetched(url: str, allowed: Collection[str]) -> bytes:
    """The picture at an address. Raises PictureError."""
    from clipql.ingest.fetch.http import Http, shown
    from clipql.ingest.fetch.manners import Patience
    from clipql.ingest.fetch.public import OnlyPublic
    from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile

    patience = Patience(timeout_seconds=SILENT_SECONDS)
    http = Http(patience, {"Accept": "image/*"}, OnlyPublic(allowed))
    content = bytearray()
    try:
        with http.read(RemoteFile(url, None), 0) as reply:
            for block in reply.blocks:
                content += block
                if len(content) > MOST_BYTES:
                    raise PictureError(f"{shown(url)} is larger than {MOST_BYTES >> 20} MB")
                if len(content) >= 16 and not begins_as_picture(content):
                    break
    except (Failure, Changed) as error:
        raise PictureError(str(error)) from error
    finally:
        http.close()
    if not begins_as_picture(content):
        raise PictureError(f"{shown(url)} is no picture that can be read")
    return bytes(content)
