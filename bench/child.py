"""Runs a function of `bench` in a process of its own, once or on demand; arguments and results travel as JSON.

A child starts with an empty memory, its own numba and BLAS threads, and the one chDB folder a process may have.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# settings for old builds of OpenBLAS, which slow a current numpy: that would flatter whoever does not use it; and one
# by which each process compiles the modules anew
_SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")


def environment() -> dict[str, str]:
    """The environment of a measured process."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**{k: v for k, v in os.environ.items() if k not in _SLOWING}, "PYTHONPATH": path}


def run(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call a function of a bench module in a new process and return what it returns."""
    with Worker(function, **arguments) as worker:
        return worker.ready


class Worker:
    """A process that calls a function, and then what the function yielded, each time it is asked.

    function: returns a value, which is `ready`; or is a generator that yields one callable, which `ask` calls.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self._name = f"{function.__module__}:{function.__name__}"
        command = [sys.executable, "-m", "bench.child", self._name, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        )
        self.ready = self._answer()

    def ask(self, **arguments: Any) -> Any:
        """Call what the function yielded."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait() and error is None:
            raise RuntimeError(f"{self._name} ended with status {self._process.returncode}")


def peak_memory() -> int:
    """The most memory this process has had, in bytes, mapped files included."""
    # not ru_maxrss: that one starts with what the parent had
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _serve() -> None:
    name, arguments = sys.argv[1:]
    module, _, function = name.partition(":")
    # libraries print as they like; the real standard output is kept for answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    found = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    if not isinstance(found, Iterator):
        answer(found)
        return
    with contextlib.closing(found) as steps:  # type: ignore[type-var]
        call = next(steps)
        answer(None)
        for line in sys.stdin:
            answer(call(**json.loads(line)))


if __name__ == "__main__":
    _serve()
