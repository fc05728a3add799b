"""How long a process of clipql takes that does next to nothing."""

from __future__ import annotations

import subprocess
import sys
import time

from bench import child, data
from bench.results import Comparison, Plot, at_most, median

ROUNDS = 15


def compare(rows: int) -> Comparison:
    """Whole processes, started in turns; `rows` plays no part."""
    place = data.fresh("start")
    processes = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import clipql": [sys.executable, "-c", "import clipql"],
        "clipql --help": [sys.executable, "-m", "clipql", "--help"],
        'clipql sql "SELECT 1"': [sys.executable, "-m", "clipql", "--db", str(place), "sql", "SELECT 1"],
    }
    times: dict[str, list[float]] = {name: [] for name in processes}
    for number in range(2 + ROUNDS):
        for name, command in processes.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, env=child.environment(), stdout=subprocess.DEVNULL)
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    data.clear(place)
    seconds = {name: median(values) for name, values in times.items()}
    return Comparison(
        "start",
        "Start",
        f"Whole processes, with the start of Python, {ROUNDS} times in turns; the database is there already.",
        (
            at_most("`import clipql`, as a process", "", seconds["import clipql"], 0.3, "s"),
            at_most('`clipql sql "SELECT 1"`, as a process', "", seconds['clipql sql "SELECT 1"'], 2, "s"),
        ),
        Plot("start", "Time of a process", "seconds, median", seconds, tuple(n for n in seconds if "clipql" in n)),
        times,
    )
