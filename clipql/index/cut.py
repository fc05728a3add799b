"""Rows made ready for products that bound the score of a pair: whole, or cut to their leading principal components.

What a cut leaves out of a row is one number, its length: the product of two such lengths is the most that the rest can
add to a score (Cauchy–Schwarz). A row may be cut twice, to a few components that rule most pairs out and to more that
are looked at for the others. What must stay true: the product of two rows that are made ready is at least their score,
but for rounding; for whole rows it is the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import float32
from numpy.typing import NDArray

from clipql.index.flat import each_core
from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.pairscan import WIDE

# components that are tried
COMPONENTS = (16, 32, 48, 64, 96, 128, 256)
# what a pair costs that the first cut lets through, and what comparing a candidate costs, in products of whole rows
LET_THROUGH, CANDIDATE = 1.2, 40.0
# of a squared length: what float32 may lose of what components leave out
LENGTHS = 8e-6
_L2 = (Metric.L2, Metric.L2_SQUARED)
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Cut:
    """basis: float32 (d, m), components in columns, largest first; of these the first `few` are looked at first."""

    basis: Floats
    few: int

    @property
    def twice(self) -> bool:
        """Whether there are two cuts."""
        return bool(self.few < self.basis.shape[1])


class Ready(NamedTuple):
    """Rows as products are taken of: float32 (n, k); and what is looked at next, float32 (n, m) that end in zeros, m
    a multiple of WIDE, or (0, 0).
    """

    first: Floats
    second: Floats


def ready(metric: Metric, x: Floats, squares: Floats, cut: Cut | None, *, right: bool) -> Ready:
    """Rows of one side. x: float32 (n, d); squares: float32 (n,), of their lengths. right: of the second of both."""
    if metric is Metric.COSINE and odd(squares).any():
        x, squares = units(x, squares)
    y = x if cut is None else x @ cut.basis
    few = y.shape[1] if cut is None else cut.few
    extra = 2 * (metric in _L2)
    first = np.empty((len(x), few + (cut is not None) + extra), np.float32)
    wide = -(-(y.shape[1] + 1 + extra) // WIDE) * WIDE
    second = np.zeros((len(x), wide) if cut and cut.twice else (0, 0), np.float32)
    forms = metric is Metric.COSINE, metric in _L2, right
    each_core(
        len(x),
        lambda a, b: _place(y[a:b], squares[a:b], *forms, few, cut is not None, first[a:b], second[a:b]),
    )
    return Ready(first, second)


@kernel
def _place(
    y: Floats,
    squares: Floats,
    unit: bool,
    halved: bool,
    right: bool,
    few: int,
    cut: bool,
    first: Floats,
    second: Floats,
) -> None:
    """Write numbers of rows: scaled to length 1 (unit), with the length of what is left out (cut), and with half the
    squared length and 1 (halved).
    """
    for i in range(y.shape[0]):
        square, by = squares[i], float32(1)
        if unit:
            by, square = float32(1) / np.sqrt(square), float32(1)
        kept = float32(0)
        for j in range(few):
            value = y[i, j] * by
            first[i, j] = value
            kept += value * value
        _end(first[i], few, kept, square, halved, right, cut)
        if second.size:
            for j in range(few):
                second[i, j] = first[i, j]
            for j in range(few, y.shape[1]):
                value = y[i, j] * by
                second[i, j] = value
                kept += value * value
            _end(second[i], y.shape[1], kept, square, halved, right, cut)


@kernel
def _end(row: Floats, at: int, kept: float, square: float, halved: bool, right: bool, cut: bool) -> None:
    if cut:
        row[at] = np.sqrt(max(square - kept, float32(0)) + float32(LENGTHS) * square)
        at += 1
    if halved:
        half = -square / float32(2)
        row[at], row[at + 1] = (float32(1), half) if right else (half, float32(1))


def chosen(metric: Metric, ours: Floats, theirs: Floats, limit: float, made_ready: float, *, same: bool) -> Cut | None:
    """The cut that rules most out for what it costs, by sample rows of both sides; None where whole rows cost least.

    made_ready: how many rows are made ready for each pair.
    """
    d = ours.shape[1]
    if metric is Metric.COSINE:
        ours, theirs = (units(x, squared(x))[0] for x in (ours, theirs))
    both = np.nan_to_num(np.concatenate([ours, theirs])).astype(np.float64)
    vectors = np.ascontiguousarray(np.linalg.eigh(both.T @ both)[1][:, ::-1], np.float32)

    def let_through(m: int) -> float:
        return share(metric, ours, theirs, Cut(np.ascontiguousarray(vectors[:, :m]), m), limit, same=same)

    shares = {m: let_through(m) for m in COMPONENTS if m < d / 2}
    best, least = None, 1.0
    for few in shares:
        for m in (m for m in shares if m >= few):
            cost = (few + 3) / d + m * made_ready + (m > few) * LET_THROUGH * shares[few] + CANDIDATE * shares[m]
            if cost < least:
                best, least = (few, m), cost
    return Cut(np.ascontiguousarray(vectors[:, : best[1]]), best[0]) if best else None


def share(metric: Metric, ours: Floats, theirs: Floats, cut: Cut | None, limit: float, *, same: bool) -> float:
    """The share of pairs of sample rows that the first product lets through; same: no row with itself."""
    left, right = (
        ready(metric, ours, squared(ours), cut, right=False),
        ready(metric, theirs, squared(theirs), cut, right=True),
    )
    scores = left.first @ right.first.T
    if same:
        np.fill_diagonal(scores, -np.inf)
    return float(np.mean(scores >= limit))


def squared(x: Floats) -> Floats:
    """float32 (n,), the squares of the lengths of rows."""
    return np.asarray(np.einsum("ij,ij->i", x, x))


def units(x: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Rows scaled to length 1, whatever their length, and their squared lengths; a row of zeros stays one of NaN."""
    unlike = np.flatnonzero(odd(squares))
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.asarray(x / np.sqrt(squares)[:, None], np.float32)
        if len(unlike):
            long = x[unlike].astype(np.float64)
            scaled[unlike] = long / np.sqrt(np.einsum("ij,ij->i", long, long))[:, None]
    return scaled, np.ones(len(x), np.float32)


def odd(squares: Floats) -> NDArray[np.bool_]:
    """Which squared lengths float32 does not hold with all their digits."""
    return ~((squares >= 1e-30) & (squares <= 1e30))


def warm() -> None:
    """Compile what rows are made ready with."""
    x = np.ones((2, 4), np.float32)
    ready(Metric.COSINE, x, squared(x), Cut(x.T.copy(), 1), right=False)
