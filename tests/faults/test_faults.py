"""Faults at the changes an operation makes to the disk, ClickHouse's among them: all of it or nothing, and an error.

`python -m bench.faults` tries every change; here some of each operation are tried.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import Bench
from operations import OPERATIONS

from tests.cases import crossed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the shim below the C library needs Linux and a cc"
)
TRIED = ("insert", "first insert", "file", "column", "delete", "optimise", "index", "create", "drop", "rename")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    memory = Path("/dev/shm")  # there a sync takes no time
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        made = Bench(Path(folder) / "work")
        made.record(TRIED)
        yield made


def test_the_changes_that_clickhouse_makes_are_seen_too(bench: Bench) -> None:
    names = [c.name for c in bench.changes("insert")]
    assert any("/engine/store/" in n and n.endswith("data.bin") for n in names)
    assert any(n.endswith("manifest.json.tmp") for n in names)
    assert set(TRIED) <= set(OPERATIONS)


@pytest.mark.parametrize("operation", TRIED)
def test_a_kill_after_any_change_leaves_all_or_nothing(bench: Bench, operation: str) -> None:
    counted, wrong = bench.outcomes(operation, torn=None, most=5)
    assert wrong == []
    assert counted["after"] >= 1


@pytest.mark.parametrize("operation", TRIED)
def test_what_is_acknowledged_survives_a_power_loss(bench: Bench, operation: str) -> None:
    """Contents that were not synced are zeros, and names that no sync came after are gone."""
    counted, wrong = bench.outcomes(operation, torn="zeros", most=4)
    assert wrong == []
    assert counted["after"] >= 1


@pytest.mark.parametrize("operation", ["insert", "optimise", "index"])
def test_half_written_files_under_their_names_are_no_harm(bench: Bench, operation: str) -> None:
    """The worst order of writes: all names are there, what was not synced is cut in half."""
    _, wrong = bench.outcomes(operation, torn="half", names=True, most=5)
    assert wrong == []


@pytest.mark.parametrize("operation", ["first insert", "insert", "delete"])
def test_rows_survive_where_only_what_posix_promises_is_kept(bench: Bench, operation: str) -> None:
    """A name is there once its own folder was synced, and not before."""
    counted, wrong = bench.outcomes(operation, torn="empty", ordered=False, most=4)
    assert wrong == []
    assert counted["after"] >= 1


@pytest.mark.parametrize(
    ("operation", "number"),
    crossed(
        ["insert", "file", "column", "delete", "optimise", "index", "create", "rename"],
        [errno.ENOSPC, errno.EIO],
        every=3,
    ),
)
def test_an_error_of_the_disk_is_told_and_changes_nothing(bench: Bench, operation: str, number: int) -> None:
    """A full disk stays full until the operation has failed; an I/O error comes once. Then the operation succeeds."""
    changes = len(bench.changes(operation))
    step = max(1, changes // 2)
    found = bench.failed(operation, number, sticky=number == errno.ENOSPC, first=1 + number % step, every=step)
    assert [f for f in found if f["problem"]] == []
    assert any(f["error"] for f in found)
