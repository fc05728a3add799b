"""What taking parts in will take: bytes from the sizes of their files, seconds from a moment's writing to the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipql.errors import DiskFull
from clipql.ingest.layout import CheckedPart
from clipql.storage import files

# Metadata as Parquet to what ClickHouse keeps of it, and as much again while it merges, and to the row file, in which
# it is not compressed; measured on LAION's columns
METADATA_GROWS = 2.5 + 3
# Reading, checking and hashing beside writing: what an ingest takes of the time that only writing would (docs/scale.md)
BESIDE_WRITING = 2.3
ROW_SECONDS = 1.5e-6  # of metadata, on two cores
MEMORY = 800 << 20  # bytes that stay in use; they do not grow with the parts
FORETOLD = 1_000_000  # rows from which on the disk is tried


@dataclass(frozen=True)
class IngestForecast:
    """Of the parts that are not in the table yet: their rows, bytes of disk, bytes of memory, and seconds (0 for few
    rows, of which none were measured).
    """

    parts: int
    rows: int
    disk: int
    memory: int
    seconds: float


def forecast(parts: Sequence[CheckedPart], folder: Path, *, link: bool) -> IngestForecast:
    """What these parts will take in a database at folder. link: their vectors stay where they are."""
    rows = sum(p.rows for p in parts)
    vectors = 0 if link else sum(a.path.stat().st_size for p in parts for a in p.vectors.values())
    metadata = sum(p.files.metadata.stat().st_size for p in parts)
    disk = vectors + int(METADATA_GROWS * metadata)
    seconds = 0.0
    if rows >= FORETOLD:
        seconds = BESIDE_WRITING * disk / files.write_speed(folder) + ROW_SECONDS * rows
    return IngestForecast(len(parts), rows, disk, MEMORY, seconds)


def check_room(needed: IngestForecast, folder: Path) -> None:
    """Raise DiskFull where the parts cannot fit."""
    free = shutil.disk_usage(folder).free
    if needed.disk > free:
        raise DiskFull(
            f"{needed.parts:,} parts of {needed.rows:,} rows need {needed.disk / 1e9:,.2f} GB of disk; {folder} has "
            f"{free / 1e9:,.2f} GB free: free some room, take fewer (parts), or leave the vectors where they are (link)"
        )
