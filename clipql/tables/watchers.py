"""Who is told how far long work is: builds of indexes, and whatever else a statement waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Progress = Callable[[str, int, int], None]
_watcher: ContextVar[Progress | None] = ContextVar("clipql_build_watcher", default=None)


def watcher() -> Progress | None:
    """Who watches the work of this thread."""
    return _watcher.get()


@contextlib.contextmanager
def watching(progress: Progress) -> Iterator[None]:
    """Have the builds, and other long work, that this thread starts reported as (stage, done, total)."""
    before = _watcher.set(progress)
    try:
        yield
    finally:
        _watcher.reset(before)


def reported(stage: str, done: int, total: int) -> None:
    """Tell whoever watches this thread's work."""
    told = _watcher.get()
    if told is not None:
        told(stage, done, total)
