"""A running `clipql serve`, and a web of pictures, for the browser tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_SECONDS = 60


@dataclass
class Web:
    """A web server of pictures: /good/… has them, /gone/… is 404. referrers: what the requests said they came from."""

    address: str
    folder: Path
    referrers: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Served:
    """A running `clipql serve`."""

    address: str
    folder: Path
    process: subprocess.Popen[str]


@contextmanager
def serve(database: Path, log: Path, *options: str, **environment: str) -> Iterator[Served]:
    """A server process on a free port; stopped as a service manager would stop it."""
    command = [sys.executable, "-m", "clipql", "--db", str(database), "serve", "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, text=True, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (said := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"clipql serve did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield Served(said[0] + "/", database.parent, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("clipql serve did not stop within 20 s of SIGTERM")
