"""A process of its own that writes a database, one statement at a time, as it is told."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent.parent
CODE = """
import json, sys, clipql
def tell(word):
    print(json.dumps(word), flush=True)
for folder in sys.stdin:
    with clipql.connect(json.loads(folder)) as db:
        tell("open")
        for line in sys.stdin:
            tell("begun")
            statements = json.loads(line)
            if statements is None:
                break
            for statement in statements:
                db.sql(statement)
            tell("done")
    tell("closed")
"""
_idle: list[subprocess.Popen[str]] = []  # processes that have closed their database, for the next writer


@atexit.register
def _end() -> None:
    for process in _idle:
        process.communicate()


class Writer:
    """A writer in another process, which goes on to the database of the next one once this is over."""

    def __init__(self, folder: Path) -> None:
        self._process = _idle.pop() if _idle else _started()
        self._send(str(folder))
        self._expect("open")

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, *statements: str) -> None:
        """Have it run statements, and wait only until it begins."""
        self._send(statements)
        self._expect("begun")

    def run(self, *statements: str) -> None:
        """Have it run statements, and wait until they are done."""
        self.begin(*statements)
        self._expect("done")

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.communicate()

    def _send(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == json.dumps(word) + "\n", f"the writer said {line!r}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is not None:
            return
        if kind is not None:  # who knows what it is at
            self._process.communicate()
            return
        self._send(None)
        self._expect("begun")
        self._expect("closed")
        _idle.append(self._process)


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
