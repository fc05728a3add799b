"""Work on every core: one pool of threads for all that is compared, whoever asks for it."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

_pool: ThreadPoolExecutor | None = None
_pool_guard = threading.Lock()


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> ThreadPoolExecutor:
    """A thread for each of them, which all work shares."""
    global _pool
    with _pool_guard:
        if _pool is None:
            _pool = ThreadPoolExecutor(threads(), thread_name_prefix="clipql-scan")
        return _pool


def each_core(n: int, work: Callable[[int, int], None]) -> None:
    """Run work(first, last) over shares of range(n), one a core, and wait for all."""
    edges = [n * i // threads() for i in range(threads() + 1)]
    futures = [workers().submit(work, a, b) for a, b in itertools.pairwise(edges) if b > a]
    for future in futures:
        future.result()


def in_pieces(n: int, most: int, work: Callable[[int, int], T], meanwhile: Callable[[], None]) -> list[T]:
    """What work(first, last) gives for pieces of range(n), of so many at most, in their order; each core takes one
    after the other. meanwhile: called before each is waited for; where it raises, those that are not begun are not run.
    """
    size = min(most, -(-n // threads()))
    futures = [workers().submit(work, first, min(n, first + size)) for first in range(0, n, size)]
    found: list[T] = []
    try:
        for future in futures:
            meanwhile()
            found.append(future.result())
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    return found
