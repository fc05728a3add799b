"""All pairs of rows of two columns that are nearer than a bound, exactly: products of matrices, cut short where bounds
rule pairs out.

A pair is a candidate where `score(a, b) >= limit`; the score is a product of two rows, each with a few numbers added
(half its squared length for L2). Where it pays, rows are cut to their leading principal components (`cut.py`), so that
a pair costs 32 products instead of 512. The processor keeps scores in registers (`storage/vectors/pairscan.py`); a
device (`streamed.py`) takes whole products, in larger pieces. What must stay true: no pair within the bound is missed;
candidates are compared in float64; memory does not grow with the rows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index import cut, streamed
from clipql.index.base import Cost
from clipql.index.cores import each_core, threads
from clipql.index.flat import WIDE
from clipql.index.widened import widened
from clipql.storage.vectors import pairscan, rowwise
from clipql.storage.vectors.device import Device, DeviceFull
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

# rows of the left and the right side that are prepared at once, and products of numbers that are made at once, of so
# many rows at least: a tenth of a second's
LEFT, RIGHT = 4_096, 16_384
AT_ONCE, LEAST = 4e9, 96
# rows of each side that a cut is chosen by
SAMPLE = 1_024
# differences whose squares float32 may take for 0
VANISHING = 1e-18
# pairs compared at once, and found at once on each core
PAIRS = 65_536
# products from which a device is asked: fewer take longer to send
FOR_DEVICE = 1e9
Rows = NDArray[np.int64]


class GivenVectors:
    """Vectors in memory, float32 (n, d). dimension: d; largest: the length of the longest."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors, self.dimension = vectors, vectors.shape[1]
        squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        self.largest = float(np.sqrt(squared.max(initial=0.0)))

    def take(self, rows: Rows) -> NDArray[np.float32]:
        """float32 (n, d) copies of some, in the order given."""
        return self._vectors[rows]

    def stored(self, rows: Rows) -> NDArray[np.float32]:
        """The same."""
        return self._vectors[rows]


@dataclass(frozen=True, eq=False)
class Side:
    """The rows of a column that are compared, ascending; None for all of the first `rows`."""

    store: ColumnStore | GivenVectors
    rows: int
    chosen: Rows | None = None

    def __len__(self) -> int:
        return self.rows if self.chosen is None else len(self.chosen)

    def numbers(self, first: int, last: int) -> Rows:
        """The numbers of some of its rows, by their place among them."""
        return np.arange(first, min(last, len(self))) if self.chosen is None else self.chosen[first:last]

    def vectors(self, first: int, last: int) -> NDArray[np.float32]:
        """float32 (n, d) of these, not to be written to."""
        return self.measured(first, last)[0]

    def measured(self, first: int, last: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, and the squares of their lengths, float32 (n,)."""
        found = self.stored(first, last)
        out, squares = np.empty(found.shape, np.float32), np.empty(len(found), np.float32)
        widened(found, out, squares)
        return out, squares

    def stored(self, first: int, last: int) -> NDArray[Any]:
        """The same, of float16 where they are stored so."""
        return self.store.stored(self.numbers(first, last))


@dataclass(frozen=True)
class _Rectangle:
    """Pairs that are still to be compared: places of both sides, from and to."""

    left: int
    left_end: int
    right: int
    right_end: int


@dataclass(frozen=True)
class Found:
    """Pairs: row numbers int64 (n,) of both sides and float64 (n,) distances. unsure: bool (n,), whether ClickHouse's
    own rounding could decide the pair another way.
    """

    left: Rows
    right: Rows
    distances: NDArray[np.float64]
    unsure: NDArray[np.bool_]


class PairsWithin:
    """The pairs of two sides whose distance is at most `bound` (for dotProduct: at least), and those so near to it that
    rounding decides. device: for products, where there are many. cut_to: what rows are cut to, where it was chosen for
    others like them.
    """

    def __init__(
        self,
        metric: Metric,
        left: Side,
        right: Side,
        bound: float,
        *,
        device: Device | None = None,
        cut_to: cut.Cut | None = None,
    ) -> None:
        self._metric, self._left, self._right, self._bound, self._device = metric, left, right, bound, device
        self._cut_to = cut_to
        self.same = left.store is right.store and left.rows == right.rows and _equal(left.chosen, right.chosen)
        self._compared = self._candidates = 0
        self.uses_components = False
        self._began = time.perf_counter()
        largest = left.store.largest * right.store.largest
        self._scale = 1.0 if metric is Metric.COSINE else largest
        if metric in (Metric.L2, Metric.L2_SQUARED):
            self._scale += (left.store.largest**2 + right.store.largest**2) / 2
        apart = {Metric.L2: VANISHING, Metric.L2_SQUARED: VANISHING**2}.get(metric, 0.0)
        # what becomes 0 in float32, of each product, is more than rounding where numbers are tiny
        self._score = self._score_of(bound + apart) - left.store.dimension * streamed.TINY
        # those that ClickHouse's rounding could let in are within, too
        widest = bound + apart + self._slack() * (-1 if metric is Metric.DOT else 1)
        self._least = self._score_of(widest) - left.store.dimension * streamed.TINY

    @property
    def possible(self) -> bool:
        """Whether float32 holds the products of these numbers."""
        widest = max(self._left.store.largest, self._right.store.largest)
        return self._metric is Metric.COSINE or widest < WIDE**0.5

    @property
    def progress(self) -> tuple[int, int]:
        """Pairs compared so far, and in all."""
        total = len(self._left) * len(self._right)
        return self._compared, (total + len(self._left)) // 2 if self.same else total

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        seconds = {"search": time.perf_counter() - self._began}
        return Cost(rows_scanned=self._compared, rows_rescored=self._candidates, seconds=seconds)

    def _score_of(self, bound: float) -> float:
        """The least score of a pair within the bound."""
        if self._metric is Metric.COSINE:
            return 1.0 - bound
        if self._metric is Metric.DOT:
            return bound
        squared = bound * abs(bound) if self._metric is Metric.L2 else bound
        return -squared / 2

    @property
    def expected(self) -> float:
        """How many pairs are about to be found, by sample rows of both sides."""
        ours, theirs = (_sample(side) for side in (self._left, self._right))
        if not len(ours) or not len(theirs):
            return 0.0
        near = cut.share(self._metric, ours, theirs, None, self._least, same=self.same)
        return near * len(self._left) * len(self._right)

    def find(self, check: Callable[[], None] = lambda: None) -> Iterator[Found]:
        """The pairs, piece by piece. check: called between the pieces of work, to stop it by an error."""
        left, right = self._left, self._right
        if not len(left) or not len(right) or not left.store.dimension:
            return
        rest = [_Rectangle(0, len(left), 0, len(right))]
        if self._device is not None and self.products >= FOR_DEVICE:
            yield from self._by_device(self._device, rest, check)
        if not rest:
            return
        chosen = self._cut_to or self._cut()
        self.uses_components = chosen is not None
        for part in rest:
            yield from self._by_processor(part, chosen, check)

    @property
    def products(self) -> float:
        """Products of numbers that all pairs take."""
        return float(self.progress[1]) * self._left.store.dimension

    def _by_processor(self, part: _Rectangle, chosen: cut.Cut | None, check: Callable[[], None]) -> Iterator[Found]:
        left, right = self._left, self._right
        places = np.empty((threads(), 2, max(PAIRS, pairscan.TALL * pairscan.WIDE)), np.int64)
        limit = self._limit(chosen)
        for b in range(part.right, part.right_end, RIGHT):
            b_end = min(part.right_end, b + RIGHT)
            theirs, squares = right.measured(b, b_end)
            columns = _columns(cut.prepared(self._metric, theirs, squares, chosen, right=True))
            step = max(LEAST, min(LEFT, int(AT_ONCE / (len(theirs) * columns.first.shape[1]))))
            for a in range(part.left, self._last(part, b_end), step):
                check()
                ours, squares = left.measured(a, min(part.left_end, a + step))
                rows = cut.prepared(self._metric, ours, squares, chosen, right=False)
                # of a column with itself, pairs of an earlier row with a later one
                before = max(0, a - b) // pairscan.WIDE if self.same else 0
                later = pairscan.Columns(columns.first[before:], columns.second[before * pairscan.WIDE :])
                for i, j in _reaching(rows, later, limit, places):
                    check()
                    yield from self._of_tile(a, b, i, j + before * pairscan.WIDE, ours, theirs)
                self._count(a, a + len(ours), b, b_end)

    def _count(self, a: int, a_end: int, b: int, b_end: int) -> None:
        """Pairs of these places of both sides are compared; of a column with itself, each once."""
        if self.same:
            self._compared += int((b_end - np.clip(np.arange(a, a_end), b, b_end)).sum())
        else:
            self._compared += (a_end - a) * (b_end - b)

    def _limit(self, chosen: cut.Cut | None) -> np.float32:
        """The least product of prepared rows, less what float32 may lose of it."""
        with np.errstate(over="ignore"):
            least = np.float32(self._least - cut.slack(self._left.store.dimension, chosen) * self._scale)
        return np.float32(np.nextafter(least, np.float32(-np.inf)))

    def _by_device(self, device: Device, rest: list[_Rectangle], check: Callable[[], None]) -> Iterator[Found]:
        """The same by a device; what it has no memory for stays in `rest`."""
        left, right = self._left, self._right
        tiles = streamed.Tiles(device, self._metric, left.store.dimension, self._score, self._scale)
        while rest:
            part = rest.pop()
            b, b_end = part.right, min(part.right_end, part.right + tiles.right)
            if b_end < part.right_end:
                rest.append(replace(part, right=b_end))
            a = part.left
            try:
                theirs = tiles.prepared(right.stored(b, b_end))
                for a in range(part.left, self._last(part, b_end), tiles.left):
                    check()
                    a_end = min(part.left_end, a + tiles.left)
                    i, j = tiles.places(tiles.prepared(left.stored(a, a_end)), theirs)
                    self._count(a, a_end, b, b_end)
                    yield from self._of_tile(a, b, i, j)
            except DeviceFull:
                rest.append(replace(part, left=a, right_end=b_end))
                if not tiles.smaller():
                    return

    def _last(self, part: _Rectangle, right_end: int) -> int:
        """Where the rows of the left side end that are compared with those of the right one before `right_end`."""
        return min(part.left_end, right_end) if self.same else part.left_end

    def _of_tile(
        self,
        a: int,
        b: int,
        i: Rows,
        j: Rows,
        ours: NDArray[np.float32] | None = None,
        theirs: NDArray[np.float32] | None = None,
    ) -> Iterator[Found]:
        """The pairs among candidates, places in a tile that begins at these places of both sides. ours, theirs: the
        vectors of the tile, where they are at hand.
        """
        if self.same:  # each pair once
            once = a + i <= b + j
            i, j = i[once], j[once]
        if len(i):
            left, right = self._left.numbers(a, a + int(i.max()) + 1), self._right.numbers(b, b + int(j.max()) + 1)
            for at in range(0, len(i), PAIRS):
                some, others = i[at : at + PAIRS], j[at : at + PAIRS]
                if ours is None or theirs is None:
                    x, y = self._left.store.take(left[some]), self._right.store.take(right[others])
                    distances = rowwise.of_pairs(self._metric, x, y)
                else:
                    distances = _distances(self._metric, ours, theirs, some, others)
                yield from self._decided(left[some], right[others], distances)

    def _cut(self) -> cut.Cut | None:
        """What rows are cut to; None where whole products cost least, or the eigenvectors more than they would save."""
        d = self._left.store.dimension
        return self.best_cut() if len(self._left) * len(self._right) >= max(50 * SAMPLE**2, 20 * d * d) else None

    def best_cut(self) -> cut.Cut | None:
        """What rows are best cut to, however few pairs there are."""
        ours, theirs = (_sample(side) for side in (self._left, self._right))
        # left rows are prepared for each block of right ones
        rows_a_pair = 1 / len(self._left) + 1 / min(len(self._right), RIGHT)
        return cut.chosen(self._metric, ours, theirs, self._least, rows_a_pair, same=self.same)

    def _decided(self, i: Rows, j: Rows, distances: NDArray[np.float64]) -> Iterator[Found]:
        """Those of some pairs that are within the bound."""
        self._candidates += len(i)
        slack = self._slack()
        over = self._bound - distances if self._metric is Metric.DOT else distances - self._bound
        inside = np.flatnonzero(over <= slack)
        if not len(inside):
            return
        i, j, distances, unsure = i[inside], j[inside], distances[inside], np.abs(over[inside]) <= slack
        yield Found(i, j, distances, unsure)
        other = np.flatnonzero(i != j)
        if self.same and len(other):
            yield Found(j[other], i[other], distances[other], unsure[other])

    def _slack(self) -> float:
        """How far ClickHouse's distance may be from ours: it adds float32 numbers up in sixteen sums."""
        relative = (self._left.store.dimension / 16 + 16) * 2.0**-23
        if self._metric is Metric.COSINE:
            return relative
        if self._metric is Metric.DOT:
            return relative * self._scale
        return relative * abs(self._bound) + (VANISHING if self._metric is Metric.L2 else VANISHING**2)


def _equal(one: Rows | None, other: Rows | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _distances(
    metric: Metric, ours: NDArray[np.float32], theirs: NDArray[np.float32], i: Rows, j: Rows
) -> NDArray[np.float64]:
    """The distance of ours[i] to theirs[j] for each pair of places, in float64."""
    out = np.empty(len(i))
    each_core(len(i), lambda a, b: rowwise.of_chosen_pairs(metric, ours, theirs, i[a:b], j[a:b], out[a:b]))
    return out


def _sample(side: Side) -> NDArray[np.float32]:
    places = np.unique(np.linspace(0, len(side) - 1, SAMPLE).astype(np.int64)) if len(side) else np.empty(0, np.int64)
    return side.store.take(places if side.chosen is None else side.chosen[places])


def _columns(rows: cut.Prepared) -> pairscan.Columns:
    """What is multiplied with the rows of the other side; of `rows` no copy is held."""
    return pairscan.Columns(pairscan.side_by_side(rows.first), rows.second)


def _reaching(
    rows: cut.Prepared, columns: pairscan.Columns, limit: np.float32, places: NDArray[np.int64]
) -> Iterator[tuple[Rows, Rows]]:
    """The places of pairs that reach the limit, piece by piece. places: int64 (cores, 2, n), overwritten each time."""
    n = len(rows.first)
    edges = [n * core // len(places) for core in range(len(places) + 1)]
    shares = [
        (a, pairscan.Rows(pairscan.padded(rows.first[a:b]), rows.second[a:b]))
        for a, b in itertools.pairwise(edges)
        if b > a
    ]
    states = [pairscan.BEGIN for _ in shares]
    going_on = list(range(len(shares)))

    def work(first: int, last: int) -> None:
        for at in range(first, last):
            core = going_on[at]
            states[core] = pairscan.scan(shares[core][1], columns, limit, states[core], *places[core])

    while going_on:
        each_core(len(going_on), work)
        for core in going_on:
            i, j = places[core, :, : states[core].found]
            if len(i):
                yield i + shares[core][0], j.copy()
        going_on = [core for core in going_on if states[core].block < len(shares[core][1].first)]
