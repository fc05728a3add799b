"""Fixtures that every test may ask for. chDB serves one folder a process, so no two databases are open at once."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import clipql

# on a slow machine an example takes as long as it takes
settings.register_profile("any machine", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("any machine")

# a shell that runs the tests in the background has SIGINT ignored, which the processes of tests would inherit
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: no search for garbage looks at it again."""
    gc.freeze()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[clipql.Database]:
    """A fresh database in its own folder, closed afterwards."""
    with clipql.connect(tmp_path / "test.db") as database:
        yield database
