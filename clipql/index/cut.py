"""Rows prepared for products that bound the score of a pair: whole, or cut to their leading principal components.

What a cut leaves out of a row is one number, its norm: the product of two such norms is the most that the rest can add
to a score (Cauchy–Schwarz). A row may be cut twice, to a few components that rule most pairs out and to more that are
looked at for the others. What must stay true: the product of two prepared rows is at least their score, but for
`slack`; for whole rows it is the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import float32
from numpy.typing import NDArray

from clipql.index.cores import each_core
from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.pairscan import WIDE

# components that are tried
COMPONENTS = (16, 32, 48, 64, 96, 128, 256)
# what a pair costs that the first cut lets through, and what comparing a candidate costs, in products of whole rows
LET_THROUGH, CANDIDATE = 1.2, 40.0
# added to the square of what is left out: squares of such numbers float32 takes for 0, in sums of some thousand
VANISHING = 1e-34
_L2 = (Metric.L2, Metric.L2_SQUARED)
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Cut:
    """basis: float32 (d, m), components in columns, largest first; the `leading` ones are looked at first."""

    basis: Floats
    leading: int

    @property
    def twice(self) -> bool:
        """Whether there are two cuts."""
        return bool(self.leading < self.basis.shape[1])


class Prepared(NamedTuple):
    """Rows as products are taken of: float32 (n, k); and what is looked at next, float32 (n, m) that end in zeros, m a
    multiple of WIDE, or (0, 0).
    """

    first: Floats
    second: Floats


def slack(dimension: int, cut: Cut | None) -> float:
    """How far float32 may be off, of the product of two lengths, however the numbers are added up: a sum of n products
    by n units of 2^-24; and each component of a cut is such a sum, so that a length is off by the root of their number.
    """
    each = (dimension + 16) * 2.0**-24
    return each if cut is None else (1 + 2 * cut.basis.shape[1] ** 0.5) * each


def prepared(metric: Metric, x: Floats, squares: Floats, cut: Cut | None, *, right: bool) -> Prepared:
    """Rows of one side. x: float32 (n, d); squares: float32 (n,), of their lengths. right: of the right side, where
    numbers come in another order.
    """
    if metric is Metric.COSINE and odd(squares).any():
        x, squares = units(x, squares)
    y = (x if cut is None else x @ cut.basis).view()
    y.setflags(write=False)  # rows of all kinds alike, or the loop is compiled for each kind
    leading = y.shape[1] if cut is None else cut.leading
    extra = 2 * (metric in _L2)
    first = np.empty((len(x), leading + (cut is not None) + extra), np.float32)
    wide = -(-(y.shape[1] + 1 + extra) // WIDE) * WIDE
    second = np.zeros((len(x), wide) if cut and cut.twice else (0, 0), np.float32)
    forms = metric is Metric.COSINE, metric in _L2, right, cut is not None
    off = np.float32(slack(x.shape[1], cut))
    each_core(len(x), lambda a, b: _place(y[a:b], squares[a:b], leading, *forms, off, first[a:b], second[a:b]))
    return Prepared(first, second)


@kernel
def _place(
    y: Floats,
    squares: Floats,
    leading: int,
    normalize: bool,
    with_half_norms: bool,
    right: bool,
    with_tail: bool,
    off: np.float32,
    first: Floats,
    second: Floats,
) -> None:
    """Write the numbers of rows into first, the leading ones of them, and where it has room into second, all.

    normalize: to length 1. with_tail, with_half_norms, right, off: as `_end` takes them.
    """
    for i in range(y.shape[0]):
        square, by = squares[i], float32(1)
        if normalize:
            by, square = float32(1) / np.sqrt(square), float32(1)
        kept = float32(0)
        for j in range(leading):
            value = y[i, j] * by
            first[i, j] = value
            kept += value * value
        _end(first[i], leading, kept, square, with_half_norms, right, with_tail, off)
        if second.size:
            for j in range(leading):
                second[i, j] = first[i, j]
            for j in range(leading, y.shape[1]):
                value = y[i, j] * by
                second[i, j] = value
                kept += value * value
            _end(second[i], y.shape[1], kept, square, with_half_norms, right, with_tail, off)


@kernel
def _end(
    row: Floats,
    at: int,
    kept: np.float32,
    square: np.float32,
    with_half_norms: bool,
    right: bool,
    with_tail: bool,
    off: np.float32,
) -> None:
    """Write what follows the numbers of a row: the norm of what is left out (with_tail), of a row whose squared length
    is `square` and that of its kept numbers `kept`, by `off` of it more; and half the squared length and 1, in the
    other order on the right side (with_half_norms).
    """
    if with_tail:
        row[at] = np.sqrt(max(square - kept, float32(0)) + off * square + float32(VANISHING))
        at += 1
    if with_half_norms:
        half = -square / float32(2)
        row[at], row[at + 1] = (float32(1), half) if right else (half, float32(1))


def chosen(metric: Metric, ours: Floats, theirs: Floats, limit: float, rows_a_pair: float, *, same: bool) -> Cut | None:
    """The cut that rules most out for what it costs, by sample rows of both sides; None where whole rows cost least.

    rows_a_pair: how many rows are prepared for each pair.
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
    for leading in shares:
        for m in (m for m in shares if m >= leading):
            cost = (leading + 3) / d + m * rows_a_pair
            cost += (m > leading) * LET_THROUGH * shares[leading] + CANDIDATE * shares[m]
            if cost < least:
                best, least = (leading, m), cost
    return Cut(np.ascontiguousarray(vectors[:, : best[1]]), best[0]) if best else None


def share(metric: Metric, ours: Floats, theirs: Floats, cut: Cut | None, limit: float, *, same: bool) -> float:
    """The share of pairs of sample rows that the first product lets through; same: no row with itself."""
    left = prepared(metric, ours, squared(ours), cut, right=False)
    right = prepared(metric, theirs, squared(theirs), cut, right=True)
    scores = left.first @ right.first.T
    if same:
        np.fill_diagonal(scores, -np.inf)
    return float(np.mean(scores >= limit))


def squared(x: Floats) -> Floats:
    """float32 (n,), the squares of the lengths of rows."""
    with np.errstate(over="ignore"):
        return np.asarray(np.einsum("ij,ij->i", x, x, dtype=np.float64), np.float32)


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
    """Compile what rows are prepared with."""
    x = np.ones((2, 4), np.float32)
    prepared(Metric.COSINE, x, squared(x), Cut(x.T.copy(), 1), right=False)
