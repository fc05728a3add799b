"""From rows and a metric to the one problem the index solves: the largest inner product.

Every stored row becomes y = x - mean (after scaling to unit length for COSINE), every query v, and the nearest rows
are those with the largest score y.v + bias(y). What must stay true, because lists, codes and bounds rest on it:

    DOT      v = q            bias = 0           y.v = x.q - mean.q, and mean.q is the same for every row
    COSINE   v = q / |q|      bias = 0           the same, on unit vectors
    L2, L2²  v = q - mean     bias = -|y|²/2     2 (y.v + bias) = |v|² - |x - q|²

All of it in units of the column: under DOT and L2 rows, mean and an L2 query are first multiplied by one power of two,
a dot product's query by its own, so that no square leaves float32 whatever the scale.

A row that cannot be placed is flagged here and kept apart, out of the lists: under COSINE a zero vector, whose
distance is NaN; otherwise one of another order of magnitude than the column's, which would leave the codes of the
others no room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorError
from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.kernels import widen
from clipql.storage.vectors.metrics import Metric

Floats = NDArray[np.float32]
Number = float | np.floating[Any]
# A row is kept apart that lies so many times as far from the mean as half of the rows do; where that would be more than
# a few, the limit gives way, up to the second figure. And one that is shorter than this share of the usual length
FARTHEST, FARTHEST_OF_MANY, FEW_APART, SHORTEST = 64.0, 1024.0, 0.02, 2.0**-10
FARTHEST_QUERY = 2.0**20  # in units of the column: from beyond, float32 tells its rows no longer apart
STRETCH = 8.0  # of the logarithm to 2 of lengths: those that count as one order of magnitude
EQUAL = 1e-6  # rows that differ by less than this share of their length count as equal
SHORTEST_SQUARE, LONGEST_SQUARE = np.float32(1e-30), np.float32(1e30)  # that float32 holds with its products
_AT_ONCE = 4096


class Workers:
    """Runs a kernel over slices of a range, one slice a thread. The kernels release the GIL."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads)

    def each(self, count: int, work: Callable[[int, int], object]) -> None:
        """Call work(first, last) until [0, count) is covered; the first error is raised here."""
        cuts = np.linspace(0, count, self.threads + 1).astype(int).tolist()
        waiting = [self._pool.submit(work, a, b) for a, b in itertools.pairwise(cuts) if b > a]
        for one in waiting:
            one.result()

    def close(self) -> None:
        self._pool.shutdown()


@dataclass(frozen=True)
class Space:
    """The inner-product space of one index. mean: float32 (d,), of the rows (unit rows under COSINE), times `unit`.

    unit: the power of two that rows are multiplied by, so that those of any scale lie about 1 from their mean; 1 under
    COSINE. farthest, shortest: a row that lies farther from the mean, or is not zero and shorter, is kept apart.
    """

    metric: Metric
    mean: Floats
    unit: float = 1.0
    farthest: float = math.inf
    shortest: float = 0.0

    @property
    def biased(self) -> bool:
        """True where a row's score has a term of its own (L2)."""
        return self.metric in (Metric.L2, Metric.L2_SQUARED)

    def rows(self, block: NDArray[np.floating], workers: Workers) -> tuple[Floats, NDArray[np.bool_]]:
        """y (n, d) of a block of stored rows, and which rows can be placed; the others come back as zeros."""
        n, d = block.shape
        y, good = np.empty((n, d), np.float32), np.empty(n, np.bool_)
        if block.dtype == np.float16:
            raw: NDArray[Any] = np.ascontiguousarray(block).view(np.uint16)
        else:
            raw = np.ascontiguousarray(block, np.float32)
        unit, directions = np.float32(self.unit), self.metric is Metric.COSINE
        longest, shortest = np.float32(self.farthest**2), np.float32(self.shortest**2)

        def some(a: int, b: int) -> None:
            if raw.dtype == np.uint16:
                widen(raw[a:b], y[a:b])
            else:
                y[a:b] = raw[a:b]
            if directions:
                _directions(self.mean, y[a:b], good[a:b])
            else:
                _centre(self.mean, unit, longest, shortest, y[a:b], good[a:b])

        workers.each(n, some)
        return y, good

    def query(self, query: NDArray[np.floating]) -> Floats:
        """v (d,) of a query, all zeros where no row is nearer than another (a zero query under COSINE)."""
        q = np.ascontiguousarray(query, np.float32)
        if q.shape != self.mean.shape:
            raise VectorError(f"the query has shape {q.shape}; the index holds vectors of {self.mean.size} numbers")
        v = np.empty(q.size, np.float32)
        square = _unit(q, v)
        if not _held(square) and not np.isfinite(q).all():
            raise VectorError("the query holds NaN or infinity")
        if self.metric is Metric.COSINE:
            return v if _held(square) else unit_vector(q)
        with np.errstate(over="ignore"):
            if self.biased:
                return np.asarray(q * np.float32(self.unit) - self.mean, np.float32)
            return np.asarray(q * np.float64(query_unit(q)), np.float32)

    def reaches(self, v: Floats) -> bool:
        """Whether scores with v, which a query was turned into, tell rows apart: not so from very far away."""
        return not self.biased or float(np.dot(v.astype(np.float64), v)) <= FARTHEST_QUERY**2

    def queries(self, raw: Floats) -> Floats:
        """Vectors as queries are turned, all at once: (n, d). Those that are not finite or far from all others become
        zeros; under DOT, where only their direction counts, all have length 1.
        """
        if not self.biased:
            return unit_rows(raw)
        finite = np.isfinite(raw).all(1)
        with np.errstate(over="ignore", invalid="ignore"):
            v = raw * np.float32(self.unit) - self.mean
            length = np.sqrt(np.einsum("ij,ij->i", v, v, dtype=np.float64))
            limit = min(FARTHEST_QUERY, FARTHEST * float(np.median(length[finite]))) if finite.any() else 0.0
            return np.asarray(np.where((finite & (length <= limit))[:, None], v, 0), np.float32)

    def score(self, query: NDArray[np.floating], v: Floats, distance: float) -> float:
        """What a row at this distance from a query scores with v, which the query was turned into."""
        if self.biased:
            squared = distance * abs(distance) if self.metric is Metric.L2 else distance
            return 0.5 * (float(np.dot(v.astype(np.float64), v)) - squared * self.unit * self.unit)
        shift = float(np.dot(v.astype(np.float64), self.mean))
        if self.metric is Metric.COSINE:
            return 1 - distance - shift
        return distance * self.unit * query_unit(query) - shift


def query_unit(query: NDArray[np.floating]) -> float:
    """The power of two that a dot product's query is multiplied by, to be about 1 long; 1 for zeros."""
    long = np.asarray(query, np.float64)
    return _power(float(np.sqrt(long @ long)))


def unit_rows(x: Floats) -> Floats:
    """Rows (n, d) scaled to length 1, whatever their length; those of zeros or not finite become zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("ij,ij->i", x, x, dtype=np.float64)
        good = np.isfinite(square) & (square > 0)
        length = np.where(good, np.sqrt(square), 1)
        out = np.asarray(x * (1 / length).astype(np.float32)[:, None], np.float32)
    odd = np.flatnonzero(good & ((length < 1e-30) | (length > 1e30)))
    out[odd] = x[odd].astype(np.float64) / length[odd, None]
    out[~good] = 0
    return out


@kernel
def _unit(x: Floats, out: Floats) -> np.float32:
    """The squared length of a vector, in float32, and the vector scaled to length 1 if that holds its square."""
    square = np.float32(0)
    for j in range(x.size):
        square += x[j] * x[j]
    length = np.sqrt(square)
    for j in range(x.size):
        out[j] = x[j] / length
    return square


def _held(square: Number) -> bool:
    """Whether float32 holds a squared length, and products of it, without loss; not so if it is no number."""
    return bool(SHORTEST_SQUARE <= square <= LONGEST_SQUARE)


def unit_vector(x: Floats) -> Floats:
    """One vector (d,) scaled to length 1, whatever its length; zeros stay."""
    out = np.empty(x.size, np.float32)
    return out if _held(_unit(x, out)) else np.asarray(unit_rows(x[None])[0], np.float32)


def _power(size: float) -> float:
    """The power of two, as float32 has it, that takes a size to about 1; 1 for nothing."""
    return 2.0 ** -min(126, max(-126, round(math.log2(size)))) if size > 0 else 1.0


def fitted_space(metric: Metric, sample: NDArray[np.floating], workers: Workers) -> Space:
    """The space of a column, from sampled rows (n, d). Rows of another order of magnitude than most do not shape it."""
    if metric is Metric.COSINE:
        y, good = Space(metric, np.zeros(sample.shape[1], np.float32)).rows(sample, workers)
        return Space(metric, np.asarray(y.sum(0, dtype=np.float64) / max(1, int(good.sum())), np.float32))
    length = _lengths(sample, np.zeros(sample.shape[1]))
    size = _usual(length)
    placed = (length == 0) | ((length >= SHORTEST * size) & (length <= FARTHEST * size))
    away = _lengths(sample, _mean(sample, placed))
    spread = float(np.median(away[placed])) if placed.any() else 0.0
    spread = spread if spread > EQUAL * size else size or 1.0
    limit = spread * min(FARTHEST_OF_MANY, max(FARTHEST, float(np.quantile(away, 1 - FEW_APART)) / spread))
    mean = _mean(sample, placed & (away <= limit))
    unit = _power(spread)
    return Space(metric, np.asarray(mean * unit, np.float32), unit, limit * unit, SHORTEST * size * unit)


def _lengths(x: NDArray[np.floating], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each row lies from a point, float64 (n,)."""
    out = np.empty(len(x))
    for a in range(0, len(x), _AT_ONCE):
        part = x[a : a + _AT_ONCE].astype(np.float64) - mean
        out[a : a + _AT_ONCE] = np.sqrt(np.einsum("ij,ij->i", part, part))
    return out


def _mean(x: NDArray[np.floating], which: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean of some of the rows, float64 (d,)."""
    total = np.zeros(x.shape[1])
    for a in range(0, len(x), _AT_ONCE):
        total += x[a : a + _AT_ONCE][which[a : a + _AT_ONCE]].sum(0, dtype=np.float64)
    return total / max(1, int(which.sum()))


def _usual(length: NDArray[np.float64]) -> float:
    """The order of magnitude that most rows are of: the middle of the fullest stretch of lengths, 0 if all are 0."""
    size = np.sort(np.log2(length[length > 0]))
    if not len(size):
        return 0.0
    within = np.searchsorted(size, size + STRETCH, side="right") - np.arange(len(size))
    first = int(np.argmax(within))
    return float(2.0 ** size[first + int(within[first]) // 2])


@kernel
def _centre(
    mean: Floats, unit: Number, longest: Number, shortest: Number, out: Floats, good: NDArray[np.bool_]
) -> None:
    """Turn rows in place into y; zeros for those that are kept apart. longest, shortest: of squared lengths."""
    for i in range(out.shape[0]):
        length, away, largest = np.float32(0), np.float32(0), np.float32(0)
        for j in range(out.shape[1]):
            largest = max(largest, abs(out[i, j]))
            x = out[i, j] * unit
            length += x * x
            out[i, j] = x - mean[j]
            away += out[i, j] * out[i, j]
        good[i] = np.isfinite(away) and away <= longest and (largest == 0 or length >= shortest)
        if not good[i]:
            out[i] = 0


@kernel
def _directions(mean: Floats, out: Floats, good: NDArray[np.bool_]) -> None:
    """Turn rows in place into y, of unit rows; zeros for those of no direction."""
    for i in range(out.shape[0]):
        total = np.float32(0)
        for j in range(out.shape[1]):
            total += out[i, j] * out[i, j]
        if total >= np.float32(1e-30) and total <= np.float32(1e30):
            factor = np.float32(1) / np.sqrt(total)
            for j in range(out.shape[1]):
                out[i, j] = out[i, j] * factor - mean[j]
            good[i] = True
            continue
        long = 0.0
        for j in range(out.shape[1]):
            long += np.float64(out[i, j]) * np.float64(out[i, j])
        good[i] = np.isfinite(long) and long > 0
        for j in range(out.shape[1]):
            out[i, j] = np.float32(np.float64(out[i, j]) / np.sqrt(long)) - mean[j] if good[i] else np.float32(0)
