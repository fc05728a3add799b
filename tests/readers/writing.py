"""A process of its own that writes a database, one statement at a time, as it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent.parent
CODE = """
import json, sys, clipql
with clipql.connect(sys.argv[1]) as db:
    print(json.dumps("open"), flush=True)
    for line in sys.stdin:
        print(json.dumps("begun"), flush=True)
        for statement in json.loads(line):
            db.sql(statement)
        print(json.dumps("done"), flush=True)
"""


class Writer:
    """A writer in another process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", CODE, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._expect("open")

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, *statements: str) -> None:
        """Have it run statements, and wait only until it begins."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()
        self._expect("begun")

    def run(self, *statements: str) -> None:
        """Have it run statements, and wait until they are done."""
        self.begin(*statements)
        self._expect("done")

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.communicate()

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == json.dumps(word) + "\n", f"the writer said {line!r}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.communicate()
