"""Rows that may lie within a radius: all of them but those that their codes rule out, by the bounds kept beside them.

What must stay true: no row within the radius is left out, whatever float32 rounds; what comes back is compared exactly
by the caller. Where codes rule out so few rows that a scan of all costs less, nothing comes back, after a look at a few
lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.index.cores import each_core
from clipql.index.ivf import bounds
from clipql.index.ivf.arrays import Arrays
from clipql.index.ivf.bitplanes import code_dot
from clipql.index.ivf.codescan import long_dot, quantised
from clipql.index.ivf.geometry import Floats, Number
from clipql.storage.vectors.bits import half_to_float, kernel, prefetch

BOUNDS, SPAN = "bounds", "span"  # the files of what is kept of each row, and of Vᵀ
SAMPLED = 64  # one list of so many is looked at first
# measured at 512 numbers: what it takes to read a code twice, at worst, and to compare a row that it does not rule out,
# in rows that a scan compares meanwhile
CODE, ROW, ENOUGH = 0.1, 2.0, 0.8
AHEAD = 16  # codes that are fetched meanwhile
ROUNDING = 1e-5  # of float32 sums, relative to the lengths of what is multiplied


class _Asked(NamedTuple):
    """A query and what is left of it after that, as `quantise_query` wrote them; missed: how far they are off still."""

    planes: NDArray[np.uint64]
    weights: Floats
    total: Number
    missed: Number


class _Limit(NamedTuple):
    """needed: the score of a row at the radius. share: see `bounds`. turned, outside: |w| and |v'|. longest: of ẑ."""

    needed: Number
    share: Number
    turned: Number
    outside: Number
    longest: Number


@dataclass(frozen=True)
class Ranges:
    """The bounds of an opened index. kept: float16 (n, 2), |e| and |r'| of each row. span: float32 (k, d)."""

    arrays: Arrays
    kept: NDArray[np.float16]
    span: Floats
    longest: float

    def candidates(self, v: Floats, needed: float, among: NDArray[np.bool_]) -> NDArray[np.int64] | None:
        """Rows, ascending, among which are all that score `needed` or more with v (d,), a query as the space turned it.
        among: bool (rows,), or empty. None where a scan costs less.
        """
        ix, lists = self.arrays, len(self.arrays.list_scale)
        first, rest, limit = *self._asked(ix.turn @ v), self._limit(v, needed)
        found: list[NDArray[np.uint32]] = []

        def look(chosen: NDArray[np.int64]) -> int:
            counts: list[int] = []

            def some(a: int, b: int) -> None:
                out = np.empty(int((ix.start[chosen[a:b] + 1] - ix.start[chosen[a:b]]).sum()), np.uint32)
                n = _possible(ix, self.kept.view(np.uint16), v, chosen[a:b], limit, first, rest, among, out)
                found.append(out[:n])
                counts.append(n)

            each_core(len(chosen), some)
            return sum(counts)

        every = np.arange(lists)
        sampled = every[:: max(1, min(SAMPLED, lists // 8))]
        codes = int((ix.start[sampled + 1] - ix.start[sampled]).sum())
        if CODE + ROW * look(sampled) / max(1, codes) > ENOUGH:
            return None
        look(np.setdiff1d(every, sampled))
        return np.sort(np.concatenate(found)).astype(np.int64)

    def _asked(self, turned: Floats) -> tuple[_Asked, _Asked]:
        """The turned query in two steps: what the first misses is a sixteenth or so, and the second takes that up."""
        ix, missed, found = self.arrays, turned, []
        slack = ROUNDING * float(np.linalg.norm(turned))
        for _ in range(2):
            planes, weights, totals = quantised(missed, ix.word_block, ix.word_weight)
            missed = missed - bounds.decoded_query(planes, weights, ix.word_weight, ix.word_block)
            found.append(_Asked(planes, weights, totals.sum(), np.float32(np.linalg.norm(missed) + slack)))
        return found[0], found[1]

    def _limit(self, v: Floats, needed: float) -> _Limit:
        ix = self.arrays
        outside = v - self.span.T @ (self.span @ v) if len(self.span) else np.zeros_like(v)
        whole = float(np.linalg.norm(v))
        own = 0.1 * whole if ix.bias.size else 0.0  # |v|² is part of what is needed, and v was rounded
        return _Limit(
            np.float32(needed - ROUNDING * (abs(needed) + whole * (float(np.linalg.norm(ix.mean)) + own))),
            np.float32(bounds.share(ix.shape, ix.word_block)),
            np.float32(float(np.linalg.norm(ix.turn @ v)) + ROUNDING * whole),
            np.float32(float(np.linalg.norm(outside)) + ROUNDING * whole),
            np.float32(self.longest),
        )


@kernel
def _possible(
    ix: Arrays,
    kept: NDArray[np.uint16],
    v: Floats,
    lists: NDArray[np.int64],
    limit: _Limit,
    asked: _Asked,
    rest: _Asked,
    among: NDArray[np.bool_],
    out: NDArray[np.uint32],
) -> int:
    """Write the rows of these lists that their codes do not rule out; returns how many."""
    n, words, biased, filtered = 0, ix.codes.shape[1], ix.bias.size > 0, among.size > 0
    codes, scale, bias, rows = ix.codes, ix.scale, ix.bias, ix.rows
    c, p, f = uint64(codes.ctypes.data), uint64(asked.planes.ctypes.data), uint64(asked.weights.ctypes.data)
    rp, rf = uint64(rest.planes.ctypes.data), uint64(rest.weights.ctypes.data)
    k, step, total = uint64(kept.ctypes.data), uint64(8 * words), np.float32(asked.total)
    turned, outside, needed = np.float32(limit.turned), np.float32(limit.outside), np.float32(limit.needed)
    share, missed = np.float32(limit.share), np.float32(limit.longest * asked.missed)
    length = np.float32(0)
    for j in range(v.size):
        length += v[j] * v[j]
    slack = np.float32(ROUNDING) * np.sqrt(length)
    for z in range(lists.size):
        base, centre = np.float32(0), np.float32(0)
        for j in range(v.size):
            x = np.float32(ix.list_small[lists[z], j])
            base += x * v[j]
            centre += x * x
        base = ix.list_unit[lists[z]] * base + abs(ix.list_unit[lists[z]]) * np.sqrt(centre) * slack
        for i in range(ix.start[lists[z]], ix.start[lists[z] + 1]):
            at = uint64(i)
            prefetch(c + (at + uint64(AHEAD)) * step)
            if (i & 15) == 0:
                prefetch(k + (at + uint64(4 * AHEAD)) * uint64(4))
            s = code_dot(c + at * step, p, f) if words == 8 else long_dot(codes, i, asked.planes, asked.weights)
            part = share * scale[i]
            most = base + part * (s - total)
            most += half_to_float(kept[i, 0]) * turned + half_to_float(kept[i, 1]) * outside
            if biased:
                most += bias[i] + np.float32(ROUNDING) * abs(bias[i])
            if most + part * missed < needed or (filtered and not among[rows[i]]):
                continue
            s = code_dot(c + at * step, rp, rf) if words == 8 else long_dot(codes, i, rest.planes, rest.weights)
            most += part * (s - rest.total)
            if most + part * limit.longest * rest.missed < needed:
                continue
            out[n] = rows[i]
            n += 1
    return n


def opened(
    arrays: Arrays, kept: NDArray[Any] | None, span: NDArray[Any] | None, longest: float | None
) -> Ranges | None:
    """The bounds of an index; None for one that was built before there were any."""
    if kept is None or span is None or longest is None:
        return None
    return Ranges(arrays, kept, np.ascontiguousarray(span), longest)
