"""Runs operations below the shim, and opens what their faults leave: for tests, and for `python -m bench.faults`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clipql

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

from operations import content  # noqa: E402
from replay import Change, lay_out, read, states  # noqa: E402


class Bench:
    """A folder with the shim and the logs of operations."""

    def __init__(self, work: Path) -> None:
        self.work, self.shim = work, work / "shim.so"
        (work / "root").mkdir(parents=True)
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self.shim), str(HERE / "shim.c"), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)

    def _child(self, *arguments: object, seconds: int) -> None:
        environment = os.environ | {"LD_PRELOAD": str(self.shim), "CLIPQL_FAULT_ROOT": str(self.work / "root")}
        verb, *rest = map(str, arguments)
        command = [sys.executable, str(HERE / "child.py"), verb, str(self.work / "out"), *rest]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr[-2000:]}")

    def record(self, operations: Sequence[str]) -> None:
        """Run operations once and note their changes."""
        self._child("record", *operations, seconds=300)

    def changes(self, operation: str) -> list[Change]:
        """What an operation did to the disk."""
        return read(self.work / "out" / operation / "log")

    def failed(
        self, operation: str, number: int, *, sticky: bool, first: int = 1, every: int = 1
    ) -> list[dict[str, Any]]:
        """Let the changes of an operation fail in turn with an error number; what came of each."""
        self._child("fail", number, int(sticky), first, every, operation, seconds=3000)
        found: list[dict[str, Any]] = json.loads((self.work / "out" / operation / f"fail-{number}.json").read_text())
        return found

    def outcomes(
        self, operation: str, *, torn: str | None, ordered: bool = True, names: bool = False, most: int | None = None
    ) -> tuple[Counter[str], list[str]]:
        """Open what a kill (torn None) or a power loss leaves after the changes of an operation, at most so many of
        them. How many are as before and as after the operation; and what must not be.
        """
        place, changes = self.work / "out" / operation, self.changes(operation)
        before, after = json.loads((place / "content.json").read_text())
        found = list(states(place / "before", changes, ordered=ordered, torn=torn, names=names))
        if most is not None and len(found) > most:
            found = [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
        counted: Counter[str] = Counter()
        wrong: list[str] = []
        for number, state in found:
            folder = Path(tempfile.mkdtemp(dir=self.work))
            lay_out(state, folder / "x")
            where = f"{operation} after {number} of {len(changes)} changes"
            try:
                with clipql.connect(folder / "x" / operation / "db") as db:
                    now = content(db)
                if now not in (before, after):
                    wrong.append(f"{where}: {str(now)[:500]}")
                elif number == len(changes) and now != after:
                    wrong.append(f"{where}: what was acknowledged is lost")
                counted["after" if now == after else "before"] += 1
            except clipql.ClipqlError as error:
                wrong.append(f"{where}: {type(error).__name__}: {str(error)[:500]}")
            shutil.rmtree(folder)
        return counted, wrong
