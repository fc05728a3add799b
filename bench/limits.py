"""A process that may use so much memory, page cache included, where the machine lets us make a control group."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_NAME = "clipql-bench"


def limit_this_process(size: int) -> str:
    """Limit this process to `size` bytes; says how, and what counts."""
    for root, name in ((_V1, "memory.limit_in_bytes"), (_V2, "memory.max")):
        group = root / _NAME
        try:
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(size))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        return f"a control group of {size / 2**30:.0f} GiB, in which the page cache counts"
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    return f"RLIMIT_DATA of {size / 2**30:.0f} GiB, in which the page cache does not count"


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
