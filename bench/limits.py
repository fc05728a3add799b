"""A process that may use so much memory, page cache included, where the machine lets us make a control group."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from pathlib import Path

# a version 1 machine's controller of memory, and the one tree of version 2
_ROOTS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
_NAME = "clipql-bench"


def limit_this_process(size: int) -> str:
    """Limit this process to `size` bytes; says how, and what counts."""
    shown = f"{size / 2**30:.3g} GiB"
    for root, name in _ROOTS:
        _remove_left_over(root)
        group = root / f"{_NAME}-{os.getpid()}"
        try:
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(size))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return f"a control group of {shown}, in which the page cache counts"
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    return f"RLIMIT_DATA of {shown}, in which the page cache does not count"


def counts_page_cache(limited: str) -> bool:
    """Whether what `limit_this_process` said limits what is kept of files too."""
    return "does not count" not in limited


def _remove_left_over(root: Path) -> None:
    """Remove the groups of processes that have ended; what they left in the page cache goes to the group above."""
    for group in root.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):  # one with a process in it stays
            group.rmdir()


def bytes_read() -> int:
    """What this process has had read from disks so far, by faults and by what it asked for beforehand."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


class Watch:
    """The most anonymous memory this process has while the block runs, in bytes: what cannot be dropped."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.2)
