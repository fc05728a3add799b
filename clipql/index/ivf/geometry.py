"""From rows and a metric to the one problem the index solves: the largest inner product.

Every stored row becomes y = x - mean (after scaling to unit length for COSINE), every query v, and the nearest rows
are those with the largest score y.v + bias(y). What must stay true, because lists, codes and bounds rest on it:

    DOT      v = q            bias = 0           y.v = x.q - mean.q, and mean.q is the same for every row
    COSINE   v = q / |q|      bias = 0           the same, on unit vectors
    L2, L2²  v = q - mean     bias = -|y|²/2     2 (y.v + bias) = |v|² - |x - q|²

A row that cannot be placed (a zero vector under COSINE, whose distance is NaN, or one that is not finite) is flagged
here and kept out of the lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorError
from clipql.storage.vectors.bits import half_to_float, kernel
from clipql.storage.vectors.metrics import Metric

Floats = NDArray[np.float32]
Number = float | np.floating[Any]


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
    """The inner-product space of one index. mean: float32 (d,), of the rows (unit rows under COSINE)."""

    metric: Metric
    mean: Floats

    @property
    def biased(self) -> bool:
        """True where a row's score has a term of its own (L2)."""
        return self.metric in (Metric.L2, Metric.L2_SQUARED)

    def rows(self, block: NDArray[np.floating], workers: Workers) -> tuple[Floats, NDArray[np.bool_]]:
        """y (n, d) of a block of stored rows, and which rows can be placed; the others come back as zeros."""
        n, d = block.shape
        y, good = np.empty((n, d), np.float32), np.empty(n, np.bool_)
        unit = self.metric is Metric.COSINE
        if block.dtype == np.float16:
            raw = np.ascontiguousarray(block).view(np.uint16)
            workers.each(n, lambda a, b: _place_half(raw[a:b], self.mean, unit, y[a:b], good[a:b]))
        else:
            flat = np.ascontiguousarray(block, np.float32)
            workers.each(n, lambda a, b: _place_float(flat[a:b], self.mean, unit, y[a:b], good[a:b]))
        return y, good

    def query(self, query: NDArray[np.floating]) -> Floats:
        """v (d,) of a query, all zeros where no row is nearer than another (a zero query under COSINE)."""
        q = np.ascontiguousarray(query, np.float32)
        if q.shape != self.mean.shape:
            raise VectorError(f"the query has shape {q.shape}; the index holds vectors of {self.mean.size} numbers")
        norm = float(np.sqrt(q.dot(q)))
        if not np.isfinite(norm):
            raise VectorError("the query holds NaN or infinity")
        if self.metric is Metric.COSINE:
            return np.asarray(q / np.float32(norm) if norm > 0 else np.zeros_like(q), np.float32)
        return np.asarray(q - self.mean, np.float32) if self.biased else q

    def score(self, v: Floats, distance: float) -> float:
        """What a row at this distance from a query scores with v, which the query was turned into."""
        if self.biased:
            squared = distance * abs(distance) if self.metric is Metric.L2 else distance
            return 0.5 * (float(np.dot(v.astype(np.float64), v)) - squared)
        shift = float(np.dot(v.astype(np.float64), self.mean))
        return (1 - distance if self.metric is Metric.COSINE else distance) - shift


def column_mean(metric: Metric, sample: NDArray[np.floating], workers: Workers) -> Floats:
    """The mean that centres a space, from sampled rows."""
    y, good = Space(metric, np.zeros(sample.shape[1], np.float32)).rows(sample, workers)
    return np.asarray(y.sum(0, dtype=np.float64) / max(1, int(good.sum())), np.float32)


@kernel
def _centre(mean: Floats, unit: bool, out: Floats) -> bool:
    """Turn a row in place into y; False (and zeros) if it cannot be placed."""
    total = np.float32(0)
    for j in range(out.size):
        total += out[j] * out[j]
    if not np.isfinite(total) or (unit and total <= 0):
        out[:] = 0
        return False
    factor = np.float32(1) / np.sqrt(total) if unit else np.float32(1)
    for j in range(out.size):
        out[j] = out[j] * factor - mean[j]
    return True


@kernel
def _place_half(raw: NDArray[np.uint16], mean: Floats, unit: bool, out: Floats, good: NDArray[np.bool_]) -> None:
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            out[i, j] = half_to_float(raw[i, j])
        good[i] = _centre(mean, unit, out[i])


@kernel
def _place_float(raw: Floats, mean: Floats, unit: bool, out: Floats, good: NDArray[np.bool_]) -> None:
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            out[i, j] = raw[i, j]
        good[i] = _centre(mean, unit, out[i])
