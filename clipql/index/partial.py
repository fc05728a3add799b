"""An index of the rows that had a vector when it was built, and of those that were given another one since.

The kinds of index know rows 0 to n without gaps. Where rows lack vectors, an index is built over those that have one,
numbered anew (`Dense`), and its answers are numbered back. What must stay true: a row without a vector is in no answer;
a row whose vector was changed since the build is compared exactly, and never by what the index knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index import folder as files
from clipql.index.base import Candidates, Index, Route, Vectors, nearest
from clipql.storage.vectors import metrics
from clipql.storage.vectors.metrics import Metric

PRESENT = "present.npy"
MOST_GAPS = 1 << 20  # each run of rows is a block, of which an index keeps a list


class Dense:
    """The rows of a column that have a vector, numbered without gaps. Satisfies `Vectors`.

    numbers: int64 (n,), ascending, of these rows in the column.
    """

    def __init__(self, vectors: Vectors, numbers: NDArray[np.int64]) -> None:
        self._vectors, self._numbers = vectors, numbers
        gaps = np.flatnonzero(np.diff(numbers) != 1) + 1
        if len(gaps) > MOST_GAPS:
            raise VectorIndexError(
                f"rows without vectors lie in {len(gaps):,} places, and {MOST_GAPS:,} are the most that an index is "
                "built around: fill them, or run OPTIMIZE TABLE … FINAL after rows without vectors were deleted"
            )
        self._runs = np.concatenate([[0], gaps, [len(numbers)]])

    @property
    def rows(self) -> int:
        """Number of rows that have a vector."""
        return len(self._numbers)

    @property
    def dimension(self) -> int:
        """Numbers in each vector."""
        return self._vectors.dimension

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[Any]]]:
        """Mapped views, one or more for each run of rows without a gap."""
        last = self.rows if last is None else min(last, self.rows)
        found: list[tuple[int, NDArray[Any]]] = []
        begin = max(0, int(np.searchsorted(self._runs, first, side="right")) - 1)
        for at in range(begin, len(self._runs) - 1):
            a, b = max(first, int(self._runs[at])), min(last, int(self._runs[at + 1]))
            if a >= last:
                break
            if a < b:
                start = int(self._numbers[a])
                found += [(a + row - start, block) for row, block in self._vectors.blocks(start, start + b - a)]
        return found

    def gathered(self, first: int, last: int, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows [first, last) in order, `size` at a time, copied where they do not lie together."""
        for a in range(first, last, size):
            b = min(last, a + size)
            blocks = self.blocks(a, b)
            yield a, blocks[0][1] if len(blocks) == 1 else np.concatenate([block for _, block in blocks])

    def take(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 (n, d) copies of these rows, in the order given."""
        return self._vectors.take(self._numbers[np.asarray(rows, np.int64)])


class PartialIndex:
    """An index whose rows are numbered as the column's. covered: rows of the column when it was built.

    numbers: int64 (n,), those of its rows, None where it has all; changed: int64 (m,), rows that it does not know the
    vector of, which are compared exactly.
    """

    def __init__(
        self,
        inner: Index,
        vectors: Vectors,
        covered: int,
        numbers: NDArray[np.int64] | None,
        changed: NDArray[np.int64],
    ) -> None:
        self._inner, self._vectors, self._covered, self._numbers = inner, vectors, covered, numbers
        self._changed = changed
        self._known: NDArray[np.bool_] | None = None
        if len(changed):
            known = np.ones(covered, np.bool_)
            known[changed[changed < covered]] = False
            self._known = known if numbers is None else known[numbers]

    def changing(self, vectors: Vectors, changed: NDArray[np.int64]) -> PartialIndex:
        """This index, of a column in which these rows have other vectors by now."""
        return PartialIndex(self._inner, vectors, self._covered, self._numbers, changed)

    @property
    def kind(self) -> str:
        """See `Index.kind`."""
        return self._inner.kind

    @property
    def metric(self) -> Metric:
        """See `Index.metric`."""
        return self._inner.metric

    @property
    def rows_covered(self) -> int:
        """Rows of the column when it was built, or when rows were added to it."""
        return self._covered

    @property
    def learned_rows(self) -> int:
        """Rows with a vector that it was learnt from, before more were added."""
        known = self._covered if self._numbers is None else len(self._numbers)
        return int(getattr(self._inner, "learned_rows", known))

    @property
    def balanced(self) -> bool:
        """See `IvfIndex.balanced`."""
        return bool(getattr(self._inner, "balanced", False))

    def measured_recall(self) -> dict[str, float]:
        """The recall of 10 measured at the build, by kind of query."""
        measured = getattr(self._inner, "measured_recall", None)
        return dict(measured()) if callable(measured) else {}

    def routed(self, routes: Sequence[Route]) -> PartialIndex:
        """See `IvfIndex.routed`."""
        inner: Any = self._inner
        return PartialIndex(inner.routed(routes), self._vectors, self._covered, self._numbers, self._changed)

    def _among(self, among: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Rows that may be returned, as the index numbers them, without those whose vectors it does not know."""
        if among is None:
            return self._known
        own = among[: self._covered] if self._numbers is None else among[self._numbers]
        return own if self._known is None else own & self._known

    def _changed_among(self, among: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        rows = self._changed[self._changed < self._covered]
        there = getattr(self._vectors, "there", None)
        for mask in (among, there):
            rows = rows if mask is None else rows[mask[rows]]
        return rows

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
        ties: bool = False,
    ) -> Candidates:
        """See `Index.search`."""
        found = self._inner.search(query, k, among=self._among(among), knobs=knobs, ties=ties)
        if self._numbers is not None:
            found = Candidates(
                self._numbers[found.rows.astype(np.int64)].astype(np.uint64), found.distances, found.cost
            )
        rows = self._changed_among(among)
        if not len(rows):
            return found
        distances = metrics.distances(self.metric, self._vectors.take(rows), query.astype(np.float64))
        joined = np.concatenate([found.rows.astype(np.int64), rows])
        return nearest(joined, np.concatenate([found.distances, distances]), k, self.metric, found.cost, ties=ties)

    def efforts(
        self, query: NDArray[np.float32], ks: Sequence[int], allowed: int, knobs: Mapping[str, float] | None = None
    ) -> list[float]:
        """See `Index.efforts`."""
        known = self._covered if self._numbers is None else len(self._numbers)
        return self._inner.efforts(query, ks, min(allowed, known), knobs)

    @property
    def has_bounds(self) -> bool:
        """See `Index.has_bounds`."""
        return self._inner.has_bounds

    def within(
        self, query: NDArray[np.float32], distance: float, among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """See `Index.within`."""
        found = self._inner.within(query, distance, self._among(among))
        if found is None:
            return None
        rows = found if self._numbers is None else self._numbers[found]
        more = self._changed_among(among)
        return np.union1d(rows, more) if len(more) else rows

    def doubt(self, query: NDArray[np.float32], knobs: Mapping[str, float]) -> str:
        """See `Index.doubt`."""
        return self._inner.doubt(query, knobs)

    def standing(self) -> str:
        """See `Index.standing`."""
        return self._inner.standing()


def note(folder: Path, numbers: NDArray[np.int64], covered: int) -> None:
    """Write beside an index which rows of how many it is of, before anything refers to it."""
    files.add(folder, PRESENT.removesuffix(".npy"), numbers, {"covered": covered})


def noted(folder: Path) -> tuple[NDArray[np.int64], int] | None:
    """What `note` wrote; None for an index of all rows. Raises DatabaseDamaged, naming the file."""
    meta = files.read_meta(folder)
    if PRESENT not in meta["files"]:
        return None
    files.check_files(folder, meta, [PRESENT])
    return np.load(folder / PRESENT, mmap_mode="r", allow_pickle=False), int(meta["covered"])
