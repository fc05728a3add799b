"""Run the whole suite: each folder of tests in a process of its own, three more at a time than there are cores.

Files beside the folders and folders that take little share a process, as each spends seconds on what it loads first.

Some tests wait (for time-outs, for processes to end), and the three more have the cores meanwhile.

chDB leaves threads and open files behind for every database that a process has opened and closed; after some hundreds
of them a single process would run out. With arguments, they go to one pytest as they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NO_CACHE = "PYTHONDONTWRITEBYTECODE"  # where it is set, each of hundreds of processes would compile all modules anew
SECONDS = 3000  # for one file or folder: what takes longer hangs; a slow machine has needed more than 1,800
ROOM, PREFIX = 12 << 30, "clipql-tests-"
TOGETHER = ("curate", "engine", "storage", "syntax", "edges")  # folders, in which no two files have one name
ALONE = "test_readme.py"  # a file that takes long
HALVED = "serve/browser"  # a folder that takes longer than all others; it is tested by two processes
ON_RAY = ("test_cluster.py", "test_coordinator.py", "test_failures.py")  # they wait for its processes
SLOW_FIRST = (
    "tables", "serve/browser 1", "serve/browser 2", "serve", "index", "cluster on Ray", "sql", "ingest", "readers",
    "small folders", "serve/workers", "differential", "test_readme.py", "faults", "cluster", "encode", "files", "cli",
    "care",
)  # fmt: skip


@contextlib.contextmanager
def place() -> Iterator[str]:
    """A folder for the tests' files: in memory where there is much of it, as databases are synced at every commit."""
    memory = Path("/dev/shm")
    there = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    parent = memory if there else Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*-*"):  # by a run that was killed
        with contextlib.suppress(ValueError, PermissionError):
            try:
                os.kill(int(left.name.removeprefix(PREFIX).partition("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=parent) as folder:
        yield folder


@dataclass(frozen=True)
class Unit:
    """What one process tests: how it is called, and the files."""

    name: str
    files: tuple[Path, ...]


def units() -> list[Unit]:
    """All files of tests, by process, those that take long first."""
    found: dict[str, list[Path]] = {}
    for file in sorted(HERE.rglob("test_*.py")):
        folder = file.parent.relative_to(HERE).as_posix()
        name = "small folders" if folder in TOGETHER else folder
        if folder == ".":
            name = file.name if file.name == ALONE else "files"
        if file.name in ON_RAY:
            name = "cluster on Ray"
        if folder == HALVED:
            halves = [found.setdefault(f"{folder} {half}", []) for half in (1, 2)]
            name = f"{folder} {1 if len(halves[0]) <= len(halves[1]) else 2}"
        found.setdefault(name, []).append(file)
    slow = {name: i for i, name in enumerate(SLOW_FIRST)}
    return [Unit(n, tuple(found[n])) for n in sorted(found, key=lambda n: (slow.get(n, len(slow)), n))]


def run(unit: Unit, folder: str) -> tuple[Unit, int, str, float, float]:
    """One unit: it, pytest's exit status, its output, the seconds it took, and those of processors."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, unit.files)]
    environment = {**os.environ, "TMPDIR": folder}
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(command, cwd=HERE.parent, stdout=said, stderr=subprocess.STDOUT, env=environment)
        late = threading.Timer(SECONDS, started.kill)
        late.daemon = True  # or a run that is broken off would wait for it
        late.start()
        _, waited, used = os.wait4(started.pid, 0)  # which tells of its own processes, too
        late.cancel()
        status = started.returncode = os.waitstatus_to_exitcode(waited)
        said.seek(0)
        output = said.read().decode(errors="replace")
    seconds = time.monotonic() - began
    if seconds >= SECONDS:
        status, output = 124, f"{output}\nstopped after {SECONDS} s"
    return unit, status, output, seconds, used.ru_utime + used.ru_stime


def main(arguments: list[str]) -> int:
    """Run everything, or what the arguments ask pytest for."""
    os.environ.pop(NO_CACHE, None)
    if arguments:
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])
    began, broken, counts = time.monotonic(), [], {"passed": 0, "failed": 0, "skipped": 0}
    with place() as folder, ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 3) as pool:
        for done in as_completed([pool.submit(run, unit, folder) for unit in units()]):
            unit, status, output, seconds, processors = done.result()
            for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", output.rstrip().rpartition("\n")[2]):
                counts["failed" if what == "error" else what] += int(count)
            if status:
                broken.append(unit.name)
                print(output)
            last = f"FAILED (status {status})" if status else output.rstrip().rpartition("\n")[2]
            print(f"{unit.name:20} {seconds:5.0f} s, {processors:4.0f} of processors  {last}", flush=True)
    print(f"in {time.monotonic() - began:.0f} s" + (f"; broken: {', '.join(broken)}" if broken else ""))
    print(f"{counts['passed']} passed, {counts['failed'] + (1 if broken and not counts['failed'] else 0)} failed, "
          f"{counts['skipped']} skipped")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
