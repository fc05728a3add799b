"""What a fork of a process with an open database must not do: ClickHouse's threads are not in it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

REFUSED = (
    "this process was forked from process {process}, which has opened a database; ClickHouse lives on in that one "
    "only: start processes by multiprocessing's 'spawn', or connect after the fork"
)


def leave_to_parent(connections: Iterable[Any]) -> None:
    """In the child: never end the parent's chDB, which would wait for its threads for ever."""
    for raw in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # of glibc: ends the process before chDB's own handlers are called
        library.on_exit(library._exit, None)
