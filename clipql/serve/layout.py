"""Laying points out in the plane by UMAP, in a process of its own that a server makes before its walls go up.

UMAP compiles and computes for minutes, holding the interpreter's lock: here nobody waits for it, it ends when it is
told to, and it keeps what it compiled, which the server may not. See McInnes, Healy and Melville, "UMAP", 2018,
https://arxiv.org/abs/1802.03426. What must stay true: it is given numbers in an open file and gives numbers back in
another; it reads no database, and ends with the server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from clipql.errors import ClipqlError
from clipql.serve import sandbox

if TYPE_CHECKING:  # what has threads is not loaded before the walls are up
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

LEAST_POINTS = 500  # of fewer PCA tells as much, at once
NEIGHBOURS, APART = 15, 0.25
_LONGEST, _LOOK_SECONDS = 4096, 0.2
_SHAPE = struct.Struct("<QQ")
_LIBRARY = "umap"
Tell = Callable[[str, int, int], None]


class Layout(Protocol):
    """Whoever lays points out."""

    def lay_out(self, values: Floats, tell: Tell) -> Floats:
        """Places, float32 (n, 2), of points, float32 (n, m). Raises ClipqlError, and what `tell` raises to stop it."""


def is_there() -> bool:
    """Whether the library is installed: the extra `map`."""
    return importlib.util.find_spec(_LIBRARY) is not None


def umap(values: Floats, tell: Tell) -> Floats:
    """By UMAP, the same each time for the same points."""
    import numpy as np
    from umap import UMAP

    class Bar:
        """What tqdm writes its progress to."""

        def write(self, text: str) -> None:
            found = re.search(r"(\d+)%", text)
            if found:
                tell("laying out", int(found[1]), 100)

        def flush(self) -> None:
            """Nothing is held back."""

    tell("finding neighbours", 0, 0)
    made = UMAP(
        n_neighbors=NEIGHBOURS,
        min_dist=APART,
        random_state=7,
        n_jobs=1,
        verbose=True,
        tqdm_kwds={"file": Bar(), "mininterval": 0.5},
    )
    return np.asarray(made.fit_transform(values), np.float32)


class Helper:
    """Asks the helper process. One thread at a time."""

    def __init__(self, mode: str, fit: Callable[[Floats, Tell], Floats] = umap) -> None:
        """Start it: only while this process has one thread. mode: of its own sandbox."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = os.fork()
        if self._process == 0:
            with contextlib.suppress(BaseException):
                _answer(theirs, mode, fit)
            os._exit(0)
        theirs.close()
        self._socket, self._lock = ours, threading.Lock()

    def lay_out(self, values: Floats, tell: Tell) -> Floats:
        """As `Layout`."""
        import numpy as np

        with self._lock, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as taken:
            given.write(np.ascontiguousarray(values).tobytes())
            given.flush()
            try:
                said = self._asked(values, given.fileno(), taken.fileno(), tell)
            except OSError as error:
                raise ClipqlError("the process that lays points out is gone; start the server anew") from error
            taken.seek(0)
            found = np.frombuffer(taken.read(), np.float32)
            if said != "done" or len(found) != 2 * len(values) or not np.isfinite(found).all():
                raise ClipqlError(f"UMAP gave no map of {len(values):,} points: {said or 'its process is gone'}")
            return found.reshape(-1, 2)

    def _asked(self, values: Floats, given: int, taken: int, tell: Tell) -> str:
        """The last word on one layout."""
        socket.send_fds(self._socket, [_SHAPE.pack(*values.shape)], [given, taken])
        stage: tuple[str, int, int] = ("beginning", 0, 0)
        while True:
            if not select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                try:
                    tell(*stage)
                except BaseException:
                    self._socket.send(b"stop")
                    while b"\t" in self._socket.recv(_LONGEST):
                        pass  # it may have ended just now: its last word is then another one
                    raise
                continue
            said = self._socket.recv(_LONGEST).decode(errors="replace")
            name, *figures = said.split("\t")
            if len(figures) != 2:
                return said
            stage = (name, int(figures[0]), int(figures[1]))

    def close(self) -> None:
        """Let it end, and what it is at."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _answer(asked: socket.socket, mode: str, fit: Callable[[Floats, Tell], Floats]) -> None:
    """The helper process: it loads nothing, and has each layout made by a process of that layout's own."""
    for number in (signal.SIGINT, signal.SIGHUP):  # of the terminal; the server may still be finishing
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.closerange(3, asked.fileno())  # the server's socket among them
    os.closerange(asked.fileno() + 1, 1 << 12)
    os.chdir("/")
    while True:
        shape, handles, _, _ = socket.recv_fds(asked, _LONGEST, 2)
        if not shape:
            return
        if len(handles) != 2:
            continue  # the "stop" of one that had ended
        worker = os.fork()
        if worker == 0:
            _lay_out(asked, handles, shape, mode, fit)
        for handle in handles:
            os.close(handle)
        _wait(asked, worker)


def _wait(asked: socket.socket, worker: int) -> None:
    """Until a layout has ended, by itself or as it is told to."""
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            asked.send(b"done" if status == 0 else b"failed" if status > 0 else b"")
            return
        if select.select([asked], [], [], _LOOK_SECONDS)[0]:
            told = asked.recv(_LONGEST)
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            if told:
                asked.send(b"stopped")
            return


def _lay_out(
    asked: socket.socket, handles: list[int], shape: bytes, mode: str, fit: Callable[[Floats, Tell], Floats]
) -> None:
    """One layout, in a process of its own, which ends here."""
    status = 1
    try:
        os.nice(10)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "clipql" / "layout"
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            os.environ["NUMBA_CACHE_DIR"] = str(cache)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - they last as long as the process
        plan = sandbox.Plan((*sandbox.base(), cache), (Path(os.devnull), cache))
        sandbox.apply(plan, "off" if mode == "off" else "auto")
        import numpy as np

        rows, width = _SHAPE.unpack(shape)
        values = np.frombuffer(_whole(handles[0]), np.float32).reshape(rows, width)

        def tell(stage: str, done: int, total: int) -> None:
            asked.send(f"{stage}\t{done}\t{total}".encode())

        places: Any = np.ascontiguousarray(fit(values, tell), np.float32)
        with open(handles[1], "wb") as file:
            file.write(places.tobytes())
        status = 0
    finally:
        os._exit(status)


def _whole(handle: int) -> bytes:
    with open(handle, "rb") as file:
        file.seek(0)
        return file.read()
