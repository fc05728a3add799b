"""Threads that do much work leave the processors to others that want them: searches, here and in other processes."""

from __future__ import annotations

import contextlib
import os
import sys

# of Linux's scheduler: beside others a thread has a third of what each of them has; alone it has all
STEPS = 5


def lower_priority() -> None:
    """Have others go before this thread. Only for one that ends with its work and starts none that stays: the system
    lets nobody take that back, and threads have it from those that start them.
    """
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + STEPS)


def lower_priority_of_process() -> None:
    """The same for a process that does much work and nothing else, and what it starts from now on: a command."""
    with contextlib.suppress(OSError):  # a container may forbid it
        os.nice(STEPS)
