"""Kernels where their cache can be written, and where it can not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
