"""How much memory this process may use, the machine's, or less where a control group or a limit says so; and has."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from pathlib import Path

# Mapped files of more than this share of memory are taken to lie on disk
RESIDENT = 0.6
_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")
_ON_FAULT = 1  # of mlock2(2): pages are locked as they come, and nothing is waited for


def limit() -> int:
    """Bytes of memory that this process and the page cache of its files share at most."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits(Path("/proc/self/cgroup"))]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    return min(found)


def in_use() -> int:
    """Bytes of memory that this process has and that cannot be dropped: what is no page of a file. 0 where the system
    does not tell.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def on_disk(size: int) -> bool:
    """Whether mapped files of so many bytes are too many to stay in memory. What will be read of them is then asked for
    beforehand, all at once: the kernel's own guess is a read of up to megabytes around each page that is touched.
    """
    return size > RESIDENT * limit()


def lock(address: int, size: int) -> bool:
    """Have the mapped pages of these bytes stay in memory once they are read, until they are unmapped. False where the
    system does not let us (`ulimit -l`).
    """
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        call = ctypes.CDLL(None).mlock2
    except (AttributeError, OSError):
        return False
    return int(call(ctypes.c_void_p(page), ctypes.c_size_t(address + size - page), _ON_FAULT)) == 0


def _group_limits(listing: Path) -> list[int]:
    """The limits of this process's control groups, of either version; those of the groups above hold too."""
    found: list[int] = []
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUP, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUP / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root):
                found += _number(folder / name)
    return found


def _number(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []
