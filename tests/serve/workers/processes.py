"""The processes of a server, as the system tells of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.serve.conftest import Running


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(each) for each in found if _state(int(each)) not in ("Z", "X", "")]


def all_of(server: Running) -> list[int]:
    """All processes of a server, its supervisor first."""
    found = [server.process.pid]
    for pid in found:
        found += children(pid)
    return found


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return _state(pid) not in ("Z", "X", "")


def writer(server: Running) -> int | None:
    """The process that has the database's own engine open."""
    return next((pid for pid in children(server.process.pid) if _opened(pid, server)), None)


def workers(server: Running) -> list[int]:
    """The others."""
    first = writer(server)
    return [pid for pid in children(server.process.pid) if pid != first]


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _opened(pid: int, server: Running) -> bool:
    status = os.path.realpath(server.folder / "test.db/engine/status")
    with contextlib.suppress(OSError):
        for each in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{each}") == status:
                    return True
    return False


def _state(pid: int) -> str:
    """The state of a process. Its first thread is a zombie already while others end, which have its files open."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "ending" if found == "Z" and len(os.listdir(f"/proc/{pid}/task")) > 1 else found
    except OSError:
        return ""
