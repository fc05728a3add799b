"""How much memory there is, and how much of it this process has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipql.engine import memory

SIZE = 256 << 20  # other threads of the process take and give back a little meanwhile


def test_memory_in_use_is_what_the_process_has_written_and_no_page_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    before = memory.in_use()
    mapped = np.memmap(path, np.uint8, "r")
    assert int(mapped.sum()) == 0
    assert abs(memory.in_use() - before) < SIZE // 4
    held = np.ones(SIZE, np.uint8)
    assert 0.75 * SIZE < memory.in_use() - before < 1.25 * held.nbytes


def test_memory_in_use_is_0_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nothing")
    assert memory.in_use() == 0
    (tmp_path / "nothing").write_text("Name:\tpython3\nVmRSS:\t  123 kB\n")
    assert memory.in_use() == 0
