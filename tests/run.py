"""Run the whole suite: each file or folder of tests in a process of its own, one more at a time than there are cores.

Some tests wait (for time-outs, for processes to end), and the one more has the core meanwhile.

chDB leaves threads and open files behind for every database that a process has opened and closed; after some hundreds
of them a single process would run out. With arguments, they go to one pytest as they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 1800  # for one file or folder: what takes longer hangs, however slow the machine
SLOW_FIRST = (
    "index", "cluster", "serve", "tables", "readers", "serve/browser", "ingest", "sql", "faults", "cli", "encode",
    "differential", "care", "test_readme.py", "edges",
)  # fmt: skip


def units() -> list[Path]:
    """The files of tests and the folders that hold such files, those that take long first."""
    found = list(HERE.glob("test_*.py")) + sorted({p.parent for p in HERE.rglob("test_*.py")} - {HERE})
    slow = {name: i for i, name in enumerate(SLOW_FIRST)}
    return sorted(found, key=lambda p: (slow.get(name(p), len(slow)), name(p)))


def name(unit: Path) -> str:
    """How a unit is called."""
    return unit.relative_to(HERE).as_posix()


def run(unit: Path) -> tuple[Path, int, str, float]:
    """One unit: its path, pytest's exit status, its output, the seconds it took."""
    began = time.monotonic()
    tests = [str(p) for p in sorted(unit.glob("test_*.py"))] if unit.is_dir() else [str(unit)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=SECONDS)
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        shown = error.stdout or b""
        status, output = 124, (shown.decode() if isinstance(shown, bytes) else shown) + f"\nstopped after {SECONDS} s"
    return unit, status, output, time.monotonic() - began


def main(arguments: list[str]) -> int:
    """Run everything, or what the arguments ask pytest for."""
    if arguments:
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])
    began, broken, counts = time.monotonic(), [], {"passed": 0, "failed": 0, "skipped": 0}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as pool:
        for done in as_completed([pool.submit(run, unit) for unit in units()]):
            unit, status, output, seconds = done.result()
            for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", output.rstrip().rpartition("\n")[2]):
                counts["failed" if what == "error" else what] += int(count)
            if status:
                broken.append(name(unit))
                print(output)
            last = output.rstrip().rpartition("\n")[2]
            print(
                f"{name(unit):28} {seconds:5.0f} s  {last if status == 0 else f'FAILED (status {status})'}", flush=True
            )
    print(f"in {time.monotonic() - began:.0f} s" + (f"; broken: {', '.join(broken)}" if broken else ""))
    print(f"{counts['passed']} passed, {counts['failed'] + (1 if broken and not counts['failed'] else 0)} failed, "
          f"{counts['skipped']} skipped")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
