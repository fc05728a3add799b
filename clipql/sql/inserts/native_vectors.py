"""Blocks of Native taken apart: vectors as matrices where they lie, all other columns for ClickHouse to read.

ClickHouse would read vectors into its own arrays, and give them back as Arrow's, for the segments that they are written
to; each way copies them. What must stay true: what is not plain here is left to ClickHouse, with whatever it says of
it; rows keep their vectors, in whichever order ClickHouse gives them back, as each has its number.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.engine.row_writer import varint
from clipql.errors import QueryError
from clipql.sql.inserts.native_columns import Reader

_VECTORS = "Array(Float32)"
# the type of the numbers that stand in their place
NUMBERS = "UInt64"


@dataclass(frozen=True)
class Matrices:
    """The vectors of a column, in blocks. first: the number of the first row of each block, and that after the last."""

    blocks: Sequence[NDArray[np.float32]]
    first: Sequence[int]

    def take(self, rows: NDArray[np.uint64]) -> Iterator[NDArray[np.float32]]:
        """Those of rows, in their order, in blocks float32 (n, d)."""
        numbers = rows.astype(np.int64)
        if not len(numbers):
            return
        begin, end = int(numbers[0]), int(numbers[0]) + len(numbers)
        if (np.diff(numbers) == 1).all():
            for block, first in zip(self.blocks, self.first, strict=False):
                if first < end and first + len(block) > begin:
                    yield block[max(begin - first, 0) : end - first]
            return
        places = np.searchsorted(self.first, numbers, side="right") - 1
        found = np.empty((len(numbers), self.blocks[0].shape[1]), np.float32)
        for place in np.unique(places):
            chosen = places == place
            found[chosen] = self.blocks[place][numbers[chosen] - self.first[place]]
        yield found


@dataclass(frozen=True)
class Apart:
    """Data without its vectors. pieces: Native, with the row's number in the place of each vector."""

    pieces: Sequence[bytes]
    vectors: Mapping[str, Matrices]


def taken_apart(pieces: Sequence[bytes], names: Collection[str]) -> Apart | None:
    """The data with the vectors of some columns apart, all of one length in a column. None where ClickHouse should read
    all of it: a column is missing or of another type, vectors are of several lengths, or something is not understood.
    """
    try:
        return _apart(pieces, names)
    except (IndexError, OverflowError, ValueError, struct.error, QueryError):
        return None


def _apart(pieces: Sequence[bytes], names: Collection[str]) -> Apart | None:
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    out, first, row = list[bytes](), [0], 0
    for piece in pieces:
        reader = Reader(piece)
        while reader.at < reader.size:
            columns, rows = reader.number(), reader.number()
            if not rows:
                return None
            numbers = np.arange(row, row + rows, dtype=np.uint64).tobytes()
            left = [varint(columns) + varint(rows)]
            missing = set(names)
            for _ in range(columns):
                begin = reader.at
                name = reader.text().decode()
                named = reader.at
                type = reader.text().decode()
                if name in missing:
                    matrix = _matrix(reader, rows) if type == _VECTORS else None
                    if matrix is None:
                        return None
                    missing.discard(name)
                    found[name].append(matrix)
                    left += (piece[begin:named], varint(len(NUMBERS)), NUMBERS.encode(), numbers)
                else:
                    reader.column(reader.layout(type), rows)
                    left.append(piece[begin : reader.at])
            if missing or reader.at > reader.size:
                return None
            out.append(b"".join(left))
            row += rows
            first.append(row)
    lengths = {name: {each.shape[1] for each in blocks} for name, blocks in found.items()}
    if not out or any(len(each) != 1 for each in lengths.values()):
        return None
    return Apart(out, {name: Matrices(blocks, first) for name, blocks in found.items()})


def _matrix(reader: Reader, rows: int) -> NDArray[np.float32] | None:
    """The vectors of a column, float32 (rows, d); None where they are of several lengths, or have none."""
    offsets = np.frombuffer(reader.data, np.uint64, rows, reader.at)
    length = int(offsets[0])
    if not length or not np.array_equal(offsets, np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(length)):
        return None
    values = np.frombuffer(reader.data, np.float32, rows * length, reader.at + 8 * rows)
    reader.at += 8 * rows + 4 * rows * length
    return np.require(values, requirements="A").reshape(rows, length)
