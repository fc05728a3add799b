"""All pairs of rows of two columns that are nearer than a bound, exactly: products of matrices, cut short where bounds
rule pairs out.

A pair is a candidate where `score(a, b) >= limit`; the score is a product of two rows, each with a few numbers added
(half its squared length for L2). Where it pays, the product is taken of the leading principal components alone, and the
rest is bounded by the lengths of what they leave out (Cauchy–Schwarz), which is one more number: so a pair costs 64
products instead of 512. A device (`streamed.py`) takes whole products, in larger pieces. What must stay true: no pair
within the bound is missed; candidates are compared in float64; memory does not grow with the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index import streamed
from clipql.index.base import Cost
from clipql.index.flat import WIDE, each_core
from clipql.index.widened import widened
from clipql.storage.vectors import rowwise
from clipql.storage.vectors.device import Device, DeviceFull
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

# rows of the left and the right side that are made ready at once, and scores made at once, of a few rows at least
LEFT, RIGHT = 4_096, 16_384
SCORES, LEAST = 1 << 23, 64
# components that are tried, and the rows of each side that they are chosen by
COMPONENTS, SAMPLE = (32, 64, 128, 256), 1_024
# what comparing a candidate costs, in products of whole rows
CANDIDATE = 40.0
# of the largest score: what float32 may lose of a product, and of the length that components leave out
ROUNDING, LENGTHS = 1e-5, 8e-6
# differences whose squares float32 may take for 0
VANISHING = 1e-18
# pairs compared at once
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
        found = self.stored(first, last)
        if found.dtype == np.float32:
            return found
        out = np.empty(found.shape, np.float32)
        widened(found, out, np.empty(len(found), np.float32))
        return out

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
    rounding decides. device: for products, where there are many.
    """

    def __init__(self, metric: Metric, left: Side, right: Side, bound: float, *, device: Device | None = None) -> None:
        self._metric, self._left, self._right, self._bound, self._device = metric, left, right, bound, device
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
        self._limit = self._score - ROUNDING * self._scale

    @property
    def possible(self) -> bool:
        """Whether float32 holds the products of these numbers."""
        widest = max(self._left.store.largest, self._right.store.largest)
        return self._metric is Metric.COSINE or widest < WIDE**0.5

    @property
    def progress(self) -> tuple[int, int]:
        """Pairs compared so far, and in all."""
        total = len(self._left) * len(self._right)
        return self._compared, total // 2 if self.same else total

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
        return self._share(ours, theirs, None) * len(self._left) * len(self._right)

    def _share(
        self, ours: NDArray[np.float32], theirs: NDArray[np.float32], basis: NDArray[np.float32] | None
    ) -> float:
        """The share of pairs of sample rows that are candidates; no row with itself, where both sides are the same."""
        scores = self._prepared(ours, basis, right=False) @ self._prepared(theirs, basis, right=True).T
        if self.same:
            np.fill_diagonal(scores, -np.inf)
        return float(np.mean(scores >= self._limit))

    def find(self, check: Callable[[], None] = lambda: None) -> Iterator[Found]:
        """The pairs, piece by piece. check: called between the pieces of work, to stop it by an error."""
        left, right = self._left, self._right
        if not len(left) or not len(right):
            return
        rest = [_Rectangle(0, len(left), 0, len(right))]
        if self._device is not None and self.products >= FOR_DEVICE:
            yield from self._by_device(self._device, rest, check)
        if not rest:
            return
        basis = self._basis()
        self.uses_components = basis is not None
        scores = np.empty(max(SCORES, LEAST * min(RIGHT, len(right))), np.float32)
        for part in rest:
            yield from self._by_processor(part, basis, scores, check)

    @property
    def products(self) -> float:
        """Products of numbers that all pairs take."""
        return float(self.progress[1]) * self._left.store.dimension

    def _by_processor(
        self,
        part: _Rectangle,
        basis: NDArray[np.float32] | None,
        scores: NDArray[np.float32],
        check: Callable[[], None],
    ) -> Iterator[Found]:
        left, right = self._left, self._right
        for b in range(part.right, part.right_end, RIGHT):
            b_end = min(part.right_end, b + RIGHT)
            theirs = right.vectors(b, b_end)
            columns = self._prepared(theirs, basis, right=True)
            step = max(LEAST, SCORES // len(columns))
            for a in range(part.left, self._last(part, b_end), LEFT):
                ours = left.vectors(a, min(part.left_end, a + LEFT))
                rows = self._prepared(ours, basis, right=False)
                for at in range(0, len(rows), step):
                    check()
                    some = rows[at : at + step]
                    tile = scores[: len(some) * len(columns)].reshape(len(some), len(columns))
                    np.matmul(some, columns.T, out=tile)
                    self._compared += tile.size
                    yield from self._of_tile(a + at, b, *candidates(tile, self._limit), ours[at : at + step], theirs)

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
                    self._compared += (a_end - a) * (b_end - b)
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

    def _prepared(
        self, x: NDArray[np.float32], basis: NDArray[np.float32] | None, *, right: bool
    ) -> NDArray[np.float32]:
        """Rows of a side as scores are made of them."""
        lengths = np.einsum("ij,ij->i", x, x)
        if self._metric is Metric.COSINE and (basis is None or _odd(lengths).any()):
            x, lengths = _units(x, lengths)
        parts = [x if basis is None else x @ basis]
        if self._metric is Metric.COSINE and basis is not None:
            parts[0] /= np.sqrt(lengths)[:, None]
            lengths = np.ones(len(x), np.float32)
        if basis is not None:
            kept = np.einsum("ij,ij->i", parts[0], parts[0])
            parts.append(np.sqrt(np.maximum(lengths - kept, 0) + np.float32(LENGTHS) * lengths)[:, None])
        if self._metric in (Metric.L2, Metric.L2_SQUARED):
            half, one = -lengths[:, None] / np.float32(2), np.ones((len(x), 1), np.float32)
            parts += [one, half] if right else [half, one]
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _basis(self) -> NDArray[np.float32] | None:
        """The principal components that rule most out for what they cost; None where whole products cost least."""
        d = self._left.store.dimension
        if d <= 2 * COMPONENTS[0] or len(self._left) * len(self._right) < 50 * SAMPLE**2:
            return None
        ours, theirs = (_sample(side) for side in (self._left, self._right))
        if self._metric is Metric.COSINE:
            ours, theirs = (_units(x, np.einsum("ij,ij->i", x, x))[0] for x in (ours, theirs))
        both = np.nan_to_num(np.concatenate([ours, theirs])).astype(np.float64)
        _, vectors = np.linalg.eigh(both.T @ both)
        best, least = None, 1.0
        for m in (m for m in COMPONENTS if m < d):
            basis = np.ascontiguousarray(vectors[:, ::-1][:, :m], np.float32)
            cost = (m + 3) / d + CANDIDATE * self._share(ours, theirs, basis)
            if cost < least:
                best, least = basis, cost
        return best

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


def _units(x: NDArray[np.float32], lengths: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows scaled to length 1, whatever their length, and their squared lengths; a row of zeros stays one of NaN."""
    odd = np.flatnonzero(_odd(lengths))
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.asarray(x / np.sqrt(lengths)[:, None], np.float32)
        if len(odd):
            long = x[odd].astype(np.float64)
            units[odd] = long / np.sqrt(np.einsum("ij,ij->i", long, long))[:, None]
    return units, np.ones(len(x), np.float32)


def _odd(lengths: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which squared lengths float32 does not hold with all their digits."""
    return ~((lengths >= 1e-30) & (lengths <= 1e30))


def candidates(scores: NDArray[np.float32], limit: float) -> tuple[Rows, Rows]:
    """The places of scores that are at least the limit, row by row."""
    counts, least = np.empty(len(scores), np.int64), np.float32(limit)
    each_core(len(scores), lambda a, b: rowwise.count_from(scores[a:b], least, counts[a:b]))
    ends = np.cumsum(counts)
    i, j = np.repeat(np.arange(len(scores)), counts), np.empty(int(ends[-1]), np.int64)
    if len(j):
        each_core(len(scores), lambda a, b: rowwise.places_from(scores[a:b], least, counts[a:b], ends[a:b], j))
    return i, j
