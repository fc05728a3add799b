"""Python's collector of circular garbage, held back while many objects are made that are all kept.

It goes through all objects of the process again and again as their number grows: a seventh of the time of a batch of
searches, whose results hold no circles. What must stay true: it is on again after the last of the threads that held it
back, if it was on before the first.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from threading import Lock

_guard = Lock()
_holding = 0
_was_on = False


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Have no circles collected within."""
    global _holding, _was_on
    with _guard:
        if not _holding:
            _was_on = gc.isenabled()
            gc.disable()
        _holding += 1
    try:
        yield
    finally:
        with _guard:
            _holding -= 1
            if not _holding and _was_on:
                gc.enable()


def _begin_anew() -> None:
    """In a fork, where the threads that held it back are not."""
    global _guard, _holding
    _guard = Lock()
    if _holding and _was_on:
        gc.enable()
    _holding = 0


os.register_at_fork(after_in_child=_begin_anew)
