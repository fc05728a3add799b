"""Products of matrices on a device: rows are streamed to it in blocks, and what may be near comes back.

What must stay true: nothing that is near is left out, as each score is compared with as much slack as float32 may be
off (`device.rounding`); memory on the device does not grow with the rows; float16 rows go as float16. Distances and
order are decided by whoever asked, on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.storage.vectors.device import Device, DeviceFull, rounding
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

# scores on the device at once, and numbers of rows that are sent at once: 256 MB and 64 to 128 MB
SCORES, SENT = 1 << 26, 1 << 25
# rows of a block that is not made smaller where memory is short
LEAST = 256
QUERIES = 4_096
# rows of the left and the right side of a range join
LEFT, RIGHT = 1_024, 32_768
# lengths that float32 divides by without a loss
SHORTEST, LONGEST = 1e-15, 1e15
# scores whose terms are all smaller lose digits, or become 0
SMALL, TINY = 1e-30, float(np.finfo(np.float32).tiny)
# of a score's size: by how much two distances may differ that are the same Float32
TIED = 2.0**-21
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Best:
    """scores: float32 (queries, n), the largest of each query in no order, larger is nearer, -infinity where there are
    fewer numbers; rows: int64 (queries, n). margin: how far two scores may be apart of which either may be the larger.
    """

    scores: Floats
    rows: NDArray[np.int64]
    margin: float


def best_rows(
    device: Device,
    store: ColumnStore,
    metric: Metric,
    queries: Floats,
    keep: int,
    among: NDArray[np.bool_] | None,
    first: int,
    stopped: Callable[[], bool],
) -> Best | None:
    """The rows [first, store.rows) with the `keep` largest scores for each query; None where it was stopped.

    The squares of all numbers are such that float32 holds them. Raises DeviceFull.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    sides = queries
    if metric is Metric.COSINE:
        with np.errstate(divide="ignore", invalid="ignore"):
            sides = np.asarray(queries / lengths[:, None], np.float32)
    with device.working():
        asked = device.sent(sides)
    best: tuple[Any, Any] | None = None
    longest = 0.0
    step = max(LEAST, min(SENT // max(1, store.dimension), SCORES // max(1, len(queries))))
    for start, block in store.blocks(first, store.rows):
        at = 0
        while at < len(block):
            if stopped():
                return None
            end = min(len(block), at + step)
            x, numbers = block[at:end], np.arange(start + at, start + end)
            if among is not None:
                allowed = among[numbers]
                x, numbers = x[allowed], numbers[allowed]
            try:
                if len(x):
                    best, reach = _with_block(device, metric, asked, x, numbers, keep, best)
                    longest = max(longest, reach)
            except DeviceFull:
                if step <= LEAST:
                    raise
                step = max(LEAST, step // 2)
                continue
            at = end
    if best is None:
        return Best(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0.0)
    with device.working():
        scores, rows = device.fetched(best[0]), device.fetched(best[1])
    widest = max(longest, float(lengths.max(initial=0)))
    scale = 1.0 if metric is Metric.COSINE else widest * widest
    if metric is Metric.DOT:
        scale = longest * float(lengths.max(initial=0))
    margin = (2 * rounding(store.dimension) + TIED) * scale + 2 * store.dimension * TINY
    return Best(scores, rows, margin if scale >= SMALL else np.inf)


def _with_block(
    device: Device,
    metric: Metric,
    asked: Any,
    block: NDArray[Any],
    numbers: NDArray[np.int64],
    keep: int,
    best: tuple[Any, Any] | None,
) -> tuple[tuple[Any, Any], float]:
    """The best of before and of these rows, and the length of the longest of these."""
    with device.working():
        x = device.wide(device.sent(block))
        lengths = device.lengths(x)
        reach = 0.0
        if metric is Metric.COSINE:
            x = units(device, x, lengths)
        else:
            reach = float(device.fetched(lengths).max())
        scores = device.products(asked, x)
        if metric in (Metric.L2, Metric.L2_SQUARED):
            scores -= device.wide(lengths * lengths / 2)
        scores, places = device.largest(scores, keep)
        rows = device.sent(numbers)[places]
        if best is not None:
            scores, rows = device.side_by_side(best[0], scores), device.side_by_side(best[1], rows)
            scores, places = device.largest(scores, keep)
            rows = device.picked(rows, places)
        return (scores, rows), reach


def units(device: Device, x: Any, lengths: Any) -> Any:
    """Rows scaled to length 1, whatever their length, as float32; NaN for those of zeros."""
    out = x / device.wide(lengths)[:, None]
    odd = (lengths < SHORTEST) | (lengths > LONGEST)
    if odd.any():
        out[odd] = device.wide(x[odd] / lengths[odd][:, None])  # in float64, as the lengths are
    return out


class Tiles:
    """Scores of all of some rows with all of others, for a range join: which are at least a limit.

    left, right: rows of a tile. scale: the largest score there may be. least: the score of a pair at the bound.
    """

    def __init__(self, device: Device, metric: Metric, dimension: int, least: float, scale: float) -> None:
        self._device, self._metric = device, metric
        self.left, self.right = LEFT, max(LEAST, min(RIGHT, SENT // max(1, dimension)))
        # ClickHouse adds up in float32 as well (`within._slack`), and an L2 bound may be four times the scale
        theirs = 4 * (dimension / 16 + 16) * 2.0**-23
        slack = (rounding(dimension) + theirs) * scale + dimension * TINY
        self._limit = float(np.nextafter(np.float32(least - slack), np.float32(-np.inf)))

    def smaller(self) -> bool:
        """Take half as many rows at once; False where they are few already."""
        if self.left <= LEAST:
            return False
        self.left, self.right = self.left // 2, max(LEAST, self.right // 2)
        return True

    def prepared(self, x: NDArray[Any]) -> tuple[Any, Any]:
        """Rows as `places` takes them."""
        with self._device.working():
            there = self._device.wide(self._device.sent(x))
            lengths = self._device.lengths(there)
            if self._metric is Metric.COSINE:
                return units(self._device, there, lengths), None
            return there, self._device.wide(lengths * lengths / 2)

    def places(self, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of rows of both sides whose score is large enough, row by row."""
        with self._device.working():
            scores = self._device.products(ours[0], theirs[0])
            if self._metric in (Metric.L2, Metric.L2_SQUARED):
                scores -= ours[1][:, None]
                scores -= theirs[1][None, :]
            return self._device.at_least(scores, self._limit)


def closest(device: Device, x: Floats, centroids: Floats, n: int) -> tuple[NDArray[np.int32], Floats]:
    """The n closest centroids of each row, closest first, int32 (rows, n), and |x|² / 2 less half the squared distance,
    float32 (rows, n). Raises DeviceFull.
    """
    found = [_sorted(device, *each[:2]) for each in _assigned(device, x, centroids, n)]
    lists, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    return lists, scores


def sums(device: Device, x: Floats, centroids: Floats) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The closest centroid of each row, int32 (rows,), and the sum of the rows of each, float64 (k, d).

    Raises DeviceFull.
    """
    with device.working():
        total = device.zeros(centroids.shape)
    lists = []
    for _, places, rows in _assigned(device, x, centroids, 1):
        with device.working():
            lists.append(device.fetched(places)[:, 0])
            device.add_up(total, places[:, 0], rows)
    with device.working():
        return np.concatenate(lists).astype(np.int32), device.fetched(total)


def _assigned(device: Device, x: Floats, centroids: Floats, n: int) -> Iterator[tuple[Any, Any, Any]]:
    """Block by block: scores and places of the closest centroids, and the rows, on the device."""
    half = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64) / 2
    with device.working():
        to, off = device.sent(centroids), device.sent(half.astype(np.float32))
    step = max(LEAST, min(SENT // x.shape[1], SCORES // len(centroids)))
    at = 0
    while at < len(x):
        try:
            with device.working():
                rows = device.sent(x[at : at + step])
                scores = device.products(rows, to)
                scores -= off
                found = device.largest(scores, n)
        except DeviceFull:
            if step <= LEAST:
                raise
            step = max(LEAST, step // 2)
            continue
        yield (*found, rows)
        at += step


def _sorted(device: Device, scores: Any, places: Any) -> tuple[NDArray[np.int32], Floats]:
    with device.working():
        values, lists = device.fetched(scores), device.fetched(places)
    order = np.lexsort((lists, -values), axis=1)
    return np.take_along_axis(lists, order, axis=1).astype(np.int32), np.take_along_axis(values, order, axis=1)
