"""The vectors of one column: its segments, mapped, as one run of rows.

A store is a value: it never changes, a commit makes a new one that shares the mappings. It satisfies the `Vectors`
protocol of `clipql.index.base`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine import memory
from clipql.errors import DatabaseDamaged
from clipql.storage.catalog import Segment, VectorColumn
from clipql.storage.vectors import presence, segments
from clipql.storage.vectors.metrics import Metric

_COMPARED = 4096  # rows that are compared at once
_MANY = 1024  # rows from which on a compiled loop that widens them is worth its loading
_FEW = 64  # rows that Python looks at one by one
_Piece = tuple[slice | NDArray[np.bool_], NDArray[Any], NDArray[np.int64]]


class ColumnStore:
    """The mapped segments of a vector column. Rows are float16 or float32, as stored; those without a vector are zeros.

    there: bool (rows,), which rows have a vector; None for all.
    Raises DatabaseDamaged, naming the file, where a segment is not what the manifest says.
    """

    def __init__(self, folder: Path, column: VectorColumn, known: ColumnStore | None = None) -> None:
        shared: Mapping[Segment, NDArray[Any]] = known._mapped if known else {}
        self._mapped: dict[Segment, NDArray[Any]] = {
            s: shared[s]
            if s in shared and not (s.hollow and shared[s].shape[1] != (column.dimension or 0))
            else segments.map_segment(folder, s, column.dimension or 0)
            for s in column.segments
        }
        self._arrays = list(self._mapped.values())
        self._firsts = [s.first for s in column.segments]
        end = 0
        for segment in column.segments:
            if segment.first != end:
                raise DatabaseDamaged(
                    f"{folder} lacks rows {end:,} to {segment.first - 1:,}: the manifest and its segments disagree"
                )
            end = segment.end
        self._rows = end
        self._dimension = column.dimension or 0
        self._on_disk = memory.on_disk(sum(a.nbytes for s, a in self._mapped.items() if s.file))
        self.there = self._there(folder, column, known)
        self.largest = max((s.largest for s in column.segments), default=0.0)

    def _there(self, folder: Path, column: VectorColumn, known: ColumnStore | None) -> NDArray[np.bool_] | None:
        """Which rows have a vector, bool (rows,); None for all."""
        if not column.absent:
            return None
        if known is not None and known.there is not None and [*known._mapped] == [*self._mapped]:
            return known.there
        found = [presence.read(folder, s) for s in column.segments]
        there = presence.joined(found, [s.rows for s in column.segments])
        assert there is not None, "some segment lacks vectors"
        there.setflags(write=False)
        return there

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._rows

    @property
    def segments(self) -> Sequence[Segment]:
        """What it is made of, in the order of rows."""
        return [*self._mapped]

    @property
    def dimension(self) -> int:
        """Numbers in a vector; 0 while there are none."""
        return self._dimension

    def continues(self, known: ColumnStore) -> bool:
        """Whether all rows of another store are here, under the same numbers."""
        return [*known._mapped] == [*self._mapped][: len(known._mapped)]

    def holds(self, known: ColumnStore) -> bool:
        """Whether all rows of another store are here as they were, also where segments were merged since."""
        same = 0
        for one, other in zip(self._mapped, known._mapped, strict=False):
            if one != other:
                break
            same = one.end
        if known.rows > self._rows or known.dimension != self._dimension:
            return False
        for first in range(same, known.rows, _COMPARED):
            rows = np.arange(first, min(known.rows, first + _COMPARED))
            if not np.array_equal(self.take(rows).view(np.uint32), known.take(rows).view(np.uint32)):
                return False
        return True

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[Any]]]:
        """Mapped views that cover rows [first, last): pairs of first row and (n, d) array, in order, without gaps."""
        last = self._rows if last is None else min(last, self._rows)
        found: list[tuple[int, NDArray[Any]]] = []
        at = max(0, bisect_right(self._firsts, first) - 1)
        while first < last:
            start, array = self._firsts[at], self._arrays[at]
            end = min(last, start + len(array))
            if end > first:
                found.append((first, array[first - start : end - start]))
                first = end
            at += 1
        return found

    def take(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 (n, d) copies of these rows, in the order given. Raises IndexError for a row that is not there."""
        return self._copied(rows, np.dtype(np.float32))

    def stored(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The same, but of float16 where all rows of the column are stored so, and a mapped view where they lie side by
        side: not to be written to.
        """
        halves = all(array.dtype == np.float16 for array in self._arrays)
        dtype, run = np.dtype(np.float16 if halves else np.float32), self._run(rows)
        return run if run is not None and run.dtype == dtype else self._copied(rows, dtype)

    def _run(self, rows: NDArray[Any]) -> NDArray[Any] | None:
        """These rows as a view, where they are a run of a segment."""
        if not len(rows) or rows[0] < 0 or rows[-1] - rows[0] + 1 != len(rows) or self._on_disk:
            return None
        at = bisect_right(self._firsts, int(rows[0])) - 1
        array, first = self._arrays[at], int(rows[0]) - self._firsts[at]
        if first + len(rows) > len(array) or not (rows[1:] > rows[:-1]).all():
            return None
        return array[first : first + len(rows)]

    def _copied(self, rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), self._dimension), dtype)
        for places, array, wanted in self.pieces(rows):
            if dtype == np.float32 and array.dtype == np.float16 and len(wanted) >= _MANY:
                from clipql.storage.vectors.kernels import rows_as_float32  # loads the compiler

                found = rows_as_float32(array, wanted)
                if isinstance(places, slice):  # which are all
                    return np.asarray(found)
                out[places] = found
            else:
                out[places] = array[wanted]
        return out

    def distances(self, metric: Metric, rows: NDArray[Any], query: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 distances of these rows to a query, each the same whatever the others. Raises IndexError."""
        from clipql.storage.vectors import chosen  # loads the compiler

        out = np.empty(len(rows))
        for places, array, wanted in self.pieces(np.asarray(rows, np.int64)):
            found = chosen.distances(metric, array, wanted, query)
            if isinstance(places, slice):  # which are all
                return found
            out[places] = found
        return out

    def distances_each(
        self, metric: Metric, rows: NDArray[np.int64], first: NDArray[np.int64], queries: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The distances of rows[first[i] : first[i + 1]] to each of the queries (n, d), as `distances` gives them."""
        from clipql.storage.vectors import chosen  # loads the compiler

        out = np.empty(len(rows))
        for places, array, wanted in self.pieces(rows):
            own = first if isinstance(places, slice) else np.concatenate([[0], np.cumsum(places)])[first]
            out[places] = chosen.distances_each(metric, array, wanted, own, queries)
        return out

    def pieces(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[slice | NDArray[np.bool_], NDArray[Any], NDArray[np.int64]]]:
        """For each segment with some of the rows: which of them, the segment, and where in it they are."""
        if len(rows):
            # two numbers of a few take numpy as long as their distances
            each = rows.tolist() if len(rows) < _FEW else (int(rows.min()), int(rows.max()))
            if min(each) < 0 or max(each) >= self._rows:
                raise IndexError(f"row {max(each):,} of {self._rows:,}")
        if len(self._arrays) == 1 and not self._on_disk and not self._firsts[0]:
            yield slice(None), self._arrays[0], rows
            return
        which = np.searchsorted(self._firsts, rows, side="right") - 1
        for at in np.unique(which):
            places = which == at
            array, wanted = self._arrays[at], rows[places] - self._firsts[at]
            self.ask(array, wanted)
            yield places, array, wanted

    @property
    def on_disk(self) -> bool:
        """Whether the vectors are too many to stay in memory."""
        return self._on_disk

    def ask(self, block: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Have these rows of a block read side by side, where they lie on the disk; nothing is waited for."""
        if self._on_disk:
            from clipql.storage.vectors.bits import ask_disk  # loads the compiler

            ask_disk(np.uint64(block.ctypes.data), rows, block.strides[0], block.shape[1] * block.itemsize)

    def vector_bytes(self, row: int) -> bytes:
        """One vector as the bytes of an Array(Float32), none where the row has no vector; none for row 0 of an empty
        column, which DDL tries out.
        """
        if row == 0 == self._rows:
            return b""
        if not 0 <= row < self._rows:
            raise IndexError(f"row {row:,} of {self._rows:,}")
        if self.there is not None and not self.there[row]:
            return b""
        at = bisect_right(self._firsts, row) - 1
        return bytes(self._arrays[at][row - self._firsts[at]].astype(np.float32).tobytes())
