"""Fixtures that every test may ask for. chDB serves one folder a process, so no two databases are open at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clipql


@pytest.fixture
def db(tmp_path: Path) -> Iterator[clipql.Database]:
    """A fresh database in its own folder, closed afterwards."""
    with clipql.connect(tmp_path / "test.db") as database:
        yield database
