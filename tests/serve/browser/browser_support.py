"""A running `clipql serve`, and a web of pictures, for the browser tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from patience import LAST_NET_SECONDS, until


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
        address = re.compile(r"http://127\.0\.0\.1:\d+")
        until(lambda: process.poll() is not None or address.search(log.read_text()), "clipql serve has started")
        if (said := address.search(log.read_text())) is None:
            pytest.fail(f"clipql serve did not start:\n{log.read_text()}")
        yield Served(said[0] + "/", database.parent, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LAST_NET_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("clipql serve did not stop on SIGTERM")
