"""Kills `clipql embed` at every durable step: `python embed_crashes.py SOURCE FOLDER` runs it again and again.

For the n-th step there is a folder FOLDER/n, which a process wrote to until it was killed at that step. Prints the
number of steps of a whole run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from embedding import Colours, shade

from clipql.encode.embed import embed_pictures


def run(source: str, out: Path, last_step: int) -> None:
    """One run; killed just before the step of this number, if it has so many."""
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            nonlocal done
            if done == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return real(*arguments)

        return step

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    embed_pictures(source, out, encoder=Colours(), part_rows=5, batch=2)


def child(source: str, out: Path, last_step: int) -> bool:
    """Whether a run in a process of its own came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            run(source, out, last_step)
        except BaseException as error:  # noqa: BLE001  a forked child must not run on into the loop below
            sys.stderr.write(f"{error!r}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    return os.WIFEXITED(status)


if __name__ == "__main__":
    source, folder = sys.argv[1], Path(sys.argv[2])
    # what a run imports late is imported once, and not in every child
    pa.table({"n": pa.array([1])}).to_pylist()
    Colours().encode_pictures([shade(0)])
    steps = 0
    while not child(source, folder / str(steps), steps):
        steps += 1
    sys.stdout.write(f"{steps}\n")
