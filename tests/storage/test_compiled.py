"""Kernels where their cache can be written, and where it can not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipql.cli import kernels_ahead

MODULE = """
from clipql.storage.vectors.compiled import compiled

@compiled
def twice(x):
    return x + x
"""
RUN = """
import sys, tempfile
from numba.core import caching

if sys.argv[1] == "closed":
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")
    caching.tempfile = type("closed", (), {"TemporaryFile": staticmethod(refused)})
    caching.IndexDataCacheFile._open_for_write = refused
import loops
print(loops.twice(21), sum(loops.twice.stats.cache_hits.values()))
"""


def run(folder: Path, how: str) -> list[str]:
    """What a process prints that compiles a loop, or has it from the cache."""
    if not (folder / "loops.py").exists():
        (folder / "loops.py").write_text(MODULE)
    command = [sys.executable, "-c", RUN, how]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_cache_that_cannot_be_written_is_no_error_and_is_read(tmp_path: Path) -> None:
    assert run(tmp_path, "closed") == ["42", "0"]
    assert run(tmp_path, "open") == ["42", "0"]
    assert run(tmp_path, "closed") == ["42", "1"]


def test_kernels_are_compiled_ahead_once_for_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels_ahead.scratch, "in_child", lambda work: done.append(work.__name__))
    for state in ("one", "one", "two"):
        monkeypatch.setattr(kernels_ahead, "_state", lambda state=state: state)
        kernels_ahead.compile_ahead()
    assert done == ["_warm", "_warm"]
    marks = tmp_path / "cache/clipql"
    assert sorted(p.name for p in marks.glob("compiled-*")) == ["compiled-one", "compiled-two"]
    os.utime(marks / "compiled-one", (0, 0))  # of an installation that is long gone
    monkeypatch.setattr(kernels_ahead, "_state", lambda: "three")
    kernels_ahead.compile_ahead()
    assert sorted(p.name for p in marks.glob("compiled-*")) == ["compiled-three", "compiled-two"]
    assert len(done) == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # where nothing can be kept
    kernels_ahead.compile_ahead()
    assert len(done) == 3
    monkeypatch.undo()
    assert kernels_ahead._state() == kernels_ahead._state()
