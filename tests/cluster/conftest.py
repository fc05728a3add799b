"""Fixtures of the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.fixtures import db, expected, parts
from tests.cluster.machines import Machines

__all__ = ["db", "expected", "machines", "parts"]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    found = Machines(tmp_path_factory.mktemp("nodes"), ("north", "east", "south"))
    yield found
    found.close()
