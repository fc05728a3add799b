"""A segment whose vectors come in any order: mapped to be written, then closed for good.

What must stay true: its room is taken before it is mapped, as a full disk would end the process later; rows that no
vector came for are zeros.
"""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipql.storage import files
from clipql.storage.catalog import Segment
from clipql.storage.vectors import segments
from clipql.storage.vectors.segments import HEADER, ArrayFile


class ScatteredSegment:
    """Writes a segment of a known number of rows; use within `files.new_file`.

    file: what that gives, which lies under the name `path` with `.tmp` behind it as long as it is written.
    """

    def __init__(self, file: BinaryIO, path: Path, rows: int, dimension: int, dtype: str) -> None:
        self._file, self._path, self._temporary = file, path, path.with_name(path.name + ".tmp")
        self._shape, self._dtype = (rows, dimension), np.dtype(dtype)
        size = HEADER + rows * dimension * self._dtype.itemsize
        with files.translated(path, "writing"):
            files.take_room(file.fileno(), size)
            file.truncate(size)
            file.write(segments.header(rows, dimension, self._dtype))
            with open(self._temporary, "r+b") as whole:
                self._mapped = mmap.mmap(whole.fileno(), size)
        self._vectors: NDArray[Any] = np.frombuffer(self._mapped, self._dtype, rows * dimension, HEADER)
        self._vectors = self._vectors.reshape(self._shape)

    def put(self, rows: NDArray[np.int64], block: NDArray[Any]) -> None:
        """Store (n, dimension) vectors, finite and of numbers that the segment holds, as those of these rows."""
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            self._vectors[rows[0] : rows[0] + len(rows)] = block
        else:
            self._vectors[rows] = block

    def copy(self, other: ScatteredSegment) -> None:
        """Begin with all that another segment, of as many rows, has by now."""
        self._vectors[:] = other._vectors

    def finish(self) -> Segment:
        """Write everything, read it once more, and describe the segment. Raises VectorError for NaN or infinity."""
        with files.translated(self._path, "writing"):
            self._mapped.flush()
        array = ArrayFile(self._temporary, *self._shape, self._dtype, HEADER)
        found = segments.segment_of(array, 0, str(self._path))
        return dataclasses.replace(found, file=self._path.name, linked=False)
