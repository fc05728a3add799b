"""Which rows of a segment have a vector: bits in a file beside it, where some have none.

What must stay true: a row without a vector has zeros in the segment, so its bit alone tells it from a vector of zeros;
the file is complete, synced and never changed after it has its name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, StorageError
from clipql.storage import files
from clipql.storage.catalog import Segment

_SUFFIX = ".there"


def hollow(first: int, rows: int, dimension: int | None = None) -> Segment:
    """A segment of rows none of which has a vector; it has no file."""
    return Segment("", first, rows, dimension or 0, "float16", 0, 0.0, "", absent=rows)


def write(folder: Path, segment: Segment, there: NDArray[np.bool_]) -> Segment:
    """A segment of which only some rows have a vector, bool (rows,): its bits are written beside its file.

    Where none has one, what comes back is hollow, and the file of the vectors is not needed.
    """
    absent = segment.rows - int(np.count_nonzero(there))
    if not absent:
        return segment
    if absent == segment.rows:
        return hollow(segment.first, segment.rows, segment.dimension)
    name = segment.file + _SUFFIX
    bits = np.packbits(there).tobytes()
    with files.new_file(folder / name) as file, files.translated(folder / name, "writing"):
        view = memoryview(bits)
        while view:
            view = view[file.write(view) :]
    return dataclasses.replace(segment, absent=absent, there=name, there_hash=xxhash.xxh3_64_hexdigest(bits))


def read(folder: Path, segment: Segment) -> NDArray[np.bool_] | None:
    """Which rows of a segment have a vector, bool (rows,); None for all.

    Raises DatabaseDamaged, naming the file, where it is not as it was written.
    """
    if not segment.absent:
        return None
    if segment.hollow:
        return np.zeros(segment.rows, np.bool_)
    path = folder / segment.there
    try:
        with files.translated(path, "reading"):
            bits = files.read_plain(path)
    except StorageError as error:
        raise DatabaseDamaged(f"a file of a segment is damaged: {error}; restore it from a backup") from error
    found = xxhash.xxh3_64_hexdigest(bits)
    if found != segment.there_hash or len(bits) != (segment.rows + 7) // 8:
        raise DatabaseDamaged(
            f"{path} has hash {found}, the manifest says {segment.there_hash}: it was altered, restore it from a backup"
        )
    there: NDArray[Any] = np.unpackbits(np.frombuffer(bits, np.uint8), count=segment.rows)
    return there.view(np.bool_)


def joined(parts: list[NDArray[np.bool_] | None], rows: list[int]) -> NDArray[np.bool_] | None:
    """The rows that have a vector of pieces of so many rows, one after the other; None where all have."""
    if all(p is None for p in parts):
        return None
    return np.concatenate([np.ones(n, np.bool_) if p is None else p for p, n in zip(parts, rows, strict=True)])


def joined_hollow(run: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same segments, with those without vectors that lie next to each other as one."""
    found: list[Segment] = []
    for segment in run:
        last = found[-1] if found else None
        if last is not None and last.hollow and segment.hollow:
            found[-1] = hollow(last.first, last.rows + segment.rows, last.dimension or segment.dimension)
        else:
            found.append(segment)
    return tuple(found)
