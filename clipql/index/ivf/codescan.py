"""One scan of the codes of rows: it keeps the largest of the scores that they stand for.

It estimates a score and keeps it only if it beats the running threshold, which `tighten` raises each time the
buffer fills; so nothing is sorted but the survivors, and a filter costs a look-up only for codes that pass. Lists have
codes, too: `ranking`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.index.ivf.bitplanes import code_dot, code_estimates
from clipql.index.ivf.codes import Words, quantise_query
from clipql.index.ivf.geometry import Floats, Number
from clipql.storage.vectors.bits import PAGE, first_bit, kernel, popcount, prefetch

Integers = NDArray[np.int64]
# the first line of a range is fetched while so many before it are scanned, as its page may have to be looked up first
FAR = 4
LEAST = np.float32(-np.inf)


class Coded(NamedTuple):
    """Codes to scan, with what turns a bit count into a score: codes (n, w), scale (n,), and bias (n,) or empty."""

    codes: Words
    scale: Floats
    bias: Floats


class Ranges(NamedTuple):
    """Which of them: positions [first, last) with the score of their centre, for each range."""

    first: Integers
    last: Integers
    base: Floats


class Asked(NamedTuple):
    """A query as `quantise_query` wrote it, and what to subtract from each sum."""

    planes: Words
    weights: Floats
    total: Number


@kernel
def quantised(turned: Floats, word_block: NDArray[np.int32], word_weight: Floats) -> tuple[Words, Floats, Floats]:
    """What `quantise_query` writes: planes, weights, totals."""
    chunks = (word_block.size + 7) // 8
    planes, weights = np.empty((chunks, 4, 8), np.uint64), np.empty((chunks, 8), np.float32)
    totals = np.empty((chunks, 8), np.float32)
    quantise_query(turned, word_block, word_weight, planes, weights, totals)
    return planes, weights, totals


@kernel
def ask(turned: Floats, word_block: NDArray[np.int32], word_weight: Floats, slack: Number) -> Asked:
    planes, weights, totals = quantised(turned, word_block, word_weight)
    return Asked(planes, weights, totals.sum() - np.float32(slack))


@kernel
def scan(
    coded: Coded,
    ranges: Ranges,
    asked: Asked,
    rows: NDArray[np.uint32],
    among: NDArray[np.bool_],
    wanted: int,
    sparse: bool,
) -> tuple[Floats, Integers]:
    """The largest `wanted` estimates in these ranges, in no order, and their positions; fewer if there are fewer.

    Codes of the next range are fetched meanwhile: a list is too short for the processor to foresee the next.
    """
    codes, scale, bias = coded.codes, coded.scale, coded.bias
    value, at = np.empty(2 * wanted + 64, np.float32), np.empty(2 * wanted + 64, np.int64)
    words, total = codes.shape[1], np.float32(asked.total)
    c, p, f = uint64(codes.ctypes.data), uint64(asked.planes.ctypes.data), uint64(asked.weights.ctypes.data)
    s_address, step = uint64(scale.ctypes.data), uint64(8 * words)
    biased, filtered = bias.size > 0, among.size > 0
    kept, floor = 0, LEAST
    eight = np.zeros(16, np.float32)  # the second eight stay zeros
    out, zeros = uint64(eight.ctypes.data), uint64(eight.ctypes.data) + uint64(32)
    b_address = uint64(bias.ctypes.data)
    many = words == 8 and not sparse
    for z in range(ranges.first.size):
        first, start = ranges.first[z], np.float32(ranges.base[z])
        ahead = uint64(ranges.first[min(z + 1, ranges.first.size - 1)])
        far = uint64(ranges.first[min(z + FAR, ranges.first.size - 1)])
        prefetch(c + far * step)
        prefetch(c + far * step + uint64(PAGE))
        prefetch(s_address + far * uint64(4))
        whole = first
        if many:
            whole = first + ((ranges.last[z] - first) & ~7)
            for i in range(first, whole, 8):
                here = uint64(i - first) + ahead
                for j in range(8):
                    prefetch(c + (here + uint64(j)) * step)
                prefetch(s_address + here * uint64(4))
                at_4 = uint64(i) * uint64(4)
                above = code_estimates(
                    c + uint64(i) * step,
                    p,
                    f,
                    s_address + at_4,
                    b_address + at_4 if biased else zeros,
                    zeros,
                    start,
                    total,
                    np.float32(0),
                    floor,
                    out,
                )
                while above:
                    j = first_bit(above)
                    above &= above - 1
                    if eight[j] > floor and not (filtered and not among[rows[i + j]]):
                        value[kept], at[kept] = eight[j], i + j
                        kept += 1
                        if kept == value.size:
                            kept, floor = tighten(value, at, kept, wanted)
        for i in range(whole, ranges.last[z]):
            if sparse and not among[rows[i]]:
                continue
            here = uint64(i - first) + ahead
            prefetch(c + here * step)
            if (i & 15) == 0:
                prefetch(s_address + here * uint64(4))
            s = code_dot(c + uint64(i) * step, p, f) if words == 8 else long_dot(codes, i, asked.planes, asked.weights)
            s = start + scale[i] * (s - total)
            if biased:
                s += bias[i]
            if s > floor:
                if filtered and not sparse and not among[rows[i]]:
                    continue
                value[kept], at[kept] = s, i
                kept += 1
                if kept == value.size:
                    kept, floor = tighten(value, at, kept, wanted)
    kept, floor = tighten(value, at, kept, wanted)
    return value[:kept], at[:kept]


@kernel
def long_dot(codes: Words, i: int, planes: Words, weights: Floats) -> Number:
    """`code_dot` for any number of words; the last few, short of eight, one by one."""
    words = codes.shape[1]
    full = words >> 3
    c = uint64(codes.ctypes.data) + uint64(i) * uint64(words * 8)
    p, f = uint64(planes.ctypes.data), uint64(weights.ctypes.data)
    s = np.float32(0)
    for chunk in range(full):
        s += code_dot(c + uint64(64 * chunk), p + uint64(256 * chunk), f + uint64(32 * chunk))
    for word in range(full * 8, words):
        lane, bits = word & 7, codes[i, word]
        level = (
            popcount(bits & planes[full, 0, lane])
            + 2 * popcount(bits & planes[full, 1, lane])
            + 4 * popcount(bits & planes[full, 2, lane])
            - 8 * popcount(bits & planes[full, 3, lane])
        )
        s += np.float32(level) * weights[full, lane]
    return s


@kernel
def tighten(value: Floats, at: Integers, kept: int, wanted: int) -> tuple[int, np.float32]:
    """Keep exactly the `wanted` largest of value[:kept], in any order; returns their number and the least of them."""
    if kept <= wanted:
        return kept, LEAST
    copy = value[:kept].copy()
    low, high, goal = 0, kept - 1, wanted - 1
    while low < high:  # Hoare's selection, largest first
        pivot = copy[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while copy[i] > pivot:
                i += 1
            while copy[j] < pivot:
                j -= 1
            if i <= j:
                copy[i], copy[j] = copy[j], copy[i]
                i += 1
                j -= 1
        if goal <= j:
            high = j
        elif goal >= i:
            low = i
        else:
            break
    least, above = copy[goal], 0
    for i in range(kept):
        above += value[i] > least
    ties, m = wanted - above, 0
    for i in range(kept):
        if value[i] > least or (value[i] == least and ties > 0):
            ties -= value[i] == least
            value[m], at[m] = value[i], at[i]
            m += 1
    return m, least


@kernel
def estimates(
    codes: Words, scale: Floats, turned: Floats, word_block: NDArray[np.int32], word_weight: Floats, out: Floats
) -> None:
    """What codes say of residual.query for one turned query: for measuring how far off they are."""
    planes, weights, totals = quantised(turned, word_block, word_weight)
    total = totals.sum()
    for i in range(codes.shape[0]):
        out[i] = scale[i] * (long_dot(codes, i, planes, weights) - total)
