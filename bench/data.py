"""The parts that are measured, made once and kept under bench/data, and what happens to files between two rounds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench import child

FOLDER = child.ROOT / "bench" / "data"
QUERIES = 200


def part(rows: int) -> Path:
    """A folder with one part of so many rows and query vectors, made if it is not there."""
    folder = FOLDER / f"part-{rows}"
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        child.run(make, folder=str(folder), rows=rows)
        whole.touch()
    return folder


def images(rows: int, parts: int = 1) -> Path:
    """The same without caption vectors."""
    folder = FOLDER / f"images-{rows}"
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        child.run(make, folder=str(folder), rows=rows, parts=parts, images_only=True)
        whole.touch()
    return folder


def make(folder: str, rows: int, parts: int = 1, images_only: bool = False) -> None:
    """In a child: write the parts."""
    from clipql import synthetic

    synthetic.write_parts(folder, rows=rows, parts=parts, queries=QUERIES, seed=2, images_only=images_only)


def files(folder: Path) -> list[Path]:
    """The files of the part in a folder."""
    return sorted(p for kind in ("img_emb", "text_emb", "metadata") for p in (folder / kind).iterdir())


def forget(folder: Path) -> None:
    """Have the kernel drop the part's files from memory, after everything written so far has reached the disk."""
    subprocess.run(["sync"], check=True)
    for path in files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clear(*places: Path) -> None:
    """Remove what was measured."""
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def fresh(name: str) -> Path:
    """An empty place under bench/data: whatever was there is gone, and nothing is made."""
    path = FOLDER / name
    clear(path)
    FOLDER.mkdir(parents=True, exist_ok=True)
    return path
