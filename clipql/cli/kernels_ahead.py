"""The kernels are compiled once on a machine, before a server's walls go up: inside them nothing can be kept of what
was compiled, so that each new process would compile for itself at its first search.

What must stay true: it is done before anything heavy is loaded, in a process of its own; where it cannot be done, the
server starts all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from clipql.serve import logs, scratch
from clipql.version import __version__

_PACKAGE = Path(__file__).parents[1]
_FORGOTTEN = 90 * 86_400.0  # seconds after which nobody starts a server of an installation any more


def compile_ahead() -> None:
    """Compile what this machine has not compiled of this version yet: seconds of one core, once. Needs one thread."""
    with contextlib.suppress(OSError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "clipql"
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / f"compiled-{_state()}"
        if done.exists():
            return
        with open(folder / "compiling", "w") as lock:  # of several servers that start, one compiles and the others wait
            fcntl.flock(lock, fcntl.LOCK_EX)
            if done.exists():
                return
            logs.event("compiling", why="clipql compiles its kernels, once after an installation")
            scratch.in_child(_warm)
            for earlier in folder.glob("compiled-*"):  # those of other installations stay
                if time.time() - earlier.stat().st_mtime > _FORGOTTEN:
                    earlier.unlink(missing_ok=True)
            done.touch()


def _state() -> str:
    """What compiled code depends on, in few letters: the sources, Numba, and the processor."""
    sources = sorted(_PACKAGE.rglob("*.py"))
    kernels = [p for p in sources if any(word in p.read_bytes() for word in (b"import kernel", b"import compiled"))]
    known = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in kernels]
    processor = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags"))))
    places = [os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"), sys.prefix]
    versions = (__version__, importlib.metadata.version("numba"), platform.python_version(), platform.machine())
    return hashlib.sha256(repr((known, versions, places, processor)).encode()).hexdigest()[:20]


def _warm() -> None:
    from clipql.cli.warm import warm

    tempfile.tempdir = None
    warm()


if __name__ == "__main__":
    compile_ahead()
