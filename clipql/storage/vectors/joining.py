"""Small segments at the end of a column, which many small inserts make, as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipql.storage import files
from clipql.storage.catalog import Segment
from clipql.storage.vectors import presence, segments
from clipql.storage.vectors.segments import SegmentWriter

SMALL_ROWS, SMALL_SEGMENTS, MERGED_ROWS = 4_096, 32, 131_072


def small_from(run: Sequence[Segment]) -> int:
    """Where in a column's segments the small ones begin that are to be joined; len(run) where they are too few."""
    first = len(run)
    rows = 0
    while first and not run[first - 1].linked and rows + run[first - 1].rows <= MERGED_ROWS:
        if run[first - 1].rows > max(SMALL_ROWS, rows):
            break
        rows += run[first - 1].rows
        first -= 1
    return first if len(run) - first >= SMALL_SEGMENTS else len(run)


def join(folder: Path, tail: Sequence[Segment], dimension: int, path: Path) -> Segment:
    """Write the vectors of segments that lie one after the other into a new one, at a path in their folder."""
    dtype = "float16" if all(s.dtype == "float16" for s in tail) else "float32"
    with files.new_file(path) as file:
        writer = SegmentWriter(file, path, tail[0].first, dimension, dtype)
        for segment in tail:
            writer.append(segments.map_segment(folder, segment, dimension), str(folder / segment.file), 0)
        joined = writer.finish()
    there = presence.joined([presence.read(folder, s) for s in tail], [s.rows for s in tail])
    if there is not None:
        joined = presence.write(folder, joined, there)
    files.sync_folder(folder)
    return joined
