"""Which lists a query looks into: the most promising ones, by codes of their own.

All lists' estimates are written side by side, and then the largest are picked: much is wanted of what comes in no
order, so most of what a running threshold let in would be dropped again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.index.ivf.arrays import Arrays, Integers
from clipql.index.ivf.bitplanes import code_estimates
from clipql.index.ivf.codes import Words
from clipql.index.ivf.codescan import LEAST, ask, long_dot, tighten
from clipql.index.ivf.geometry import Floats, Number
from clipql.index.ivf.lookup import TILE, tables_of, tile_estimates
from clipql.storage.vectors.bits import LANES, PAGE, above, bfloat16_to_float, first_bit, kernel, popcount, prefetch

STEPS = 24  # at most, until little more is left than what is wanted
SPREAD = 4  # deviations from the mean, below which no parent's score is looked for
_MOST = np.float32(np.inf)


class Lists(NamedTuple):
    """Codes of lists, and what turns what they say into a score. codes: (l, w) words, or `lookup.tiled`. scale, bias,
    spread: (l,), the last two perhaps empty. reach: so many times the spread is added.
    """

    codes: Words
    scale: Floats
    bias: Floats
    spread: Floats
    reach: Number


class TurnedQuery(NamedTuple):
    """A query as codes of lists are compared with it. turned: float32 (64 b,). word_block, word_weight: (w,), as
    `codes.Coder` has them.
    """

    turned: Floats
    word_block: NDArray[np.int32]
    word_weight: Floats


@kernel
def rank_lists(ix: Arrays, v: Floats, deviation: Number, nprobe: int, ranked: int) -> Integers:
    """The lists to scan, most promising first."""
    count, turned = ix.list_scale.size, np.empty(ix.list_turn.shape[0], np.float32)
    multiply(ix.list_turn, v, turned)
    if count <= ranked:
        first, last = np.zeros(1, np.int64), np.full(1, count, np.int64)
    else:
        first, last = _near_parents(ix, v, ranked)
    lists = Lists(ix.list_codes, ix.list_scale, ix.list_bias, ix.list_spread, np.float32(deviation))
    query = TurnedQuery(turned, ix.list_word_block, ix.list_word_weight)
    value = np.empty((last - first).sum(), np.float32)
    estimate(lists, query, first, last, value)
    value, at = largest(value, first, last, nprobe)
    return at[largest_first(value)]


@kernel
def multiply(matrix: NDArray[Any], v: Floats, out: Floats) -> None:
    """A matrix of bfloat16 times a vector."""
    for i in range(matrix.shape[0]):
        s = np.float32(0)
        for j in range(v.size):
            s += bfloat16_to_float(matrix[i, j]) * v[j]
        out[i] = s


@kernel
def scores(ix: Arrays, v: Floats, probe: Integers) -> Floats:
    """The exact score of the centroid of each of these lists."""
    base, step = np.empty(probe.size, np.float32), uint64(8 * ix.codes.shape[1])
    for z in range(probe.size):
        s, i, ahead = np.float32(0), probe[z], probe[min(z + 3, probe.size - 1)]
        for line in range(0, v.size, 64):
            prefetch(uint64(ix.list_small.ctypes.data) + uint64(ahead * v.size + line))
        codes = uint64(ix.codes.ctypes.data) + uint64(ix.start[i]) * step
        prefetch(codes)  # for the sake of its page, which may have to be looked up
        prefetch(codes + uint64(PAGE))
        prefetch(uint64(ix.scale.ctypes.data) + uint64(4 * ix.start[i]))
        for j in range(v.size):
            s += np.float32(ix.list_small[i, j]) * v[j]
        base[z] = s * ix.list_unit[i]
    return base


@kernel
def largest(value: Floats, first: Integers, last: Integers, wanted: int) -> tuple[Floats, Integers]:
    """The largest `wanted` estimates, in no order, and their positions; all if there are fewer. value: of positions
    [first, last) of each range, one range after the other.
    """
    total, z, before, m = value.size, 0, 0, 0
    floor = _floor(value, wanted)
    kept, at = np.empty(total, np.float32), np.empty(total, np.int64)
    for block in range(0, total, LANES):
        ones = _above(value, block, floor)
        while ones:
            n = block + first_bit(ones)
            ones &= ones - 1
            while n - before >= last[z] - first[z]:
                before += last[z] - first[z]
                z += 1
            kept[m], at[m] = value[n], first[z] + n - before
            m += 1
    m, _ = tighten(kept, at, m, wanted)
    return kept[:m], at[:m]


@kernel
def estimate(lists: Lists, query: TurnedQuery, first: Integers, last: Integers, value: Floats) -> None:
    """Write what codes say of a query, for positions [first, last) of each range, one range after the other."""
    if lists.codes.shape[1] == TILE:
        _by_tables(lists, query, first, last, value)
    else:
        _by_planes(lists, query, first, last, value)


@kernel
def _by_tables(lists: Lists, query: TurnedQuery, first: Integers, last: Integers, value: Floats) -> None:
    tiles, scale, bias, spread = lists.codes, lists.scale, lists.bias, lists.spread
    tables, unit, offset = tables_of(query.turned, query.word_block, query.word_weight)
    s, b, w = uint64(scale.ctypes.data), uint64(bias.ctypes.data), uint64(spread.ctypes.data)
    t, size, out = uint64(tiles.ctypes.data), uint64(8 * TILE), uint64(value.ctypes.data)
    for z in range(first.size):
        ahead = uint64(first[min(z + 1, first.size - 1)] // LANES)
        for tile in range(first[z] // LANES, (last[z] + LANES - 1) // LANES):
            for line in range(0, size, 64):
                prefetch(t + ahead * size + uint64(line))
            ahead += uint64(1)
            position = tile * LANES
            four = uint64(4 * position)
            tile_estimates(
                t + uint64(tile) * size,
                uint64(tables.ctypes.data),
                s + four,
                b + four if bias.size > 0 else uint64(0),
                w + four if spread.size > 0 else uint64(0),
                unit,
                offset,
                np.float32(lists.reach),
                max(0, first[z] - position),
                min(LANES, last[z] - position),
                out + four - uint64(4 * first[z]),
            )
        out += uint64(4 * (last[z] - first[z]))


@kernel
def _by_planes(lists: Lists, query: TurnedQuery, first: Integers, last: Integers, value: Floats) -> None:
    codes, scale, bias, spread = lists.codes, lists.scale, lists.bias, lists.spread
    asked = ask(query.turned, query.word_block, query.word_weight, np.float32(0))
    c, step = uint64(codes.ctypes.data), uint64(8 * codes.shape[1])
    p, f = uint64(asked.planes.ctypes.data), uint64(asked.weights.ctypes.data)
    nothing = np.zeros(8, np.float32)
    out, total = uint64(value.ctypes.data), np.float32(asked.total)
    s, b, w = uint64(scale.ctypes.data), uint64(bias.ctypes.data), uint64(spread.ctypes.data)
    at = 0
    for z in range(first.size):
        ahead, zeros = uint64(first[min(z + 1, first.size - 1)]), uint64(nothing.ctypes.data)
        if codes.shape[1] == 8 and last[z] - first[z] >= 8:
            for i in range(first[z], last[z], 8):
                for j in range(i - first[z], i - first[z] + 8):
                    prefetch(c + (ahead + uint64(j)) * step)
                i = min(i, last[z] - 8)  # the last eight may be some that were written before
                four = uint64(4 * i)
                code_estimates(
                    c + uint64(i) * step,
                    p,
                    f,
                    s + four,
                    b + four if bias.size > 0 else zeros,
                    w + four if spread.size > 0 else zeros,
                    np.float32(0),
                    total,
                    np.float32(lists.reach),
                    _MOST,
                    out + uint64(4 * (at + i - first[z])),
                )
        else:
            for i in range(first[z], last[z]):
                x = scale[i] * (long_dot(codes, i, asked.planes, asked.weights) - total)
                if bias.size > 0:
                    x += bias[i]
                if spread.size > 0:
                    x += np.float32(lists.reach) * spread[i]
                value[at + i - first[z]] = x
        at += last[z] - first[z]


@kernel
def _floor(value: Floats, wanted: int) -> Number:
    """What at least `wanted` of these exceed, and not many more; LEAST where less than half of them are to be dropped.

    To count them takes a fiftieth of the time that it took to estimate them, so it is found step by step.
    """
    total, squares = np.float32(0), np.float32(0)
    for n in range(value.size):
        total += value[n]
        squares += value[n] * value[n]
    floor = total / np.float32(value.size)
    step = np.sqrt(max(squares / np.float32(value.size) - floor * floor, np.float32(0)))
    if _count(value, floor) < wanted:
        return LEAST
    for _ in range(STEPS):
        count = _count(value, floor + step)
        if count < wanted:
            step *= np.float32(0.5)
            continue
        floor += step
        if count <= wanted + (wanted >> 2) + 8:
            break
    return floor


@kernel
def _count(value: Floats, floor: Number) -> int:
    """How many of these are above a floor."""
    count = 0
    for block in range(0, value.size, LANES):
        count += popcount(uint64(_above(value, block, floor)))
    return int(count)


@kernel
def _above(value: Floats, block: int, floor: Number) -> int:
    """Which of LANES values from the one at `block` on are above a floor, as bits."""
    if block + LANES <= value.size:
        return int(above(uint64(value.ctypes.data) + uint64(4 * block), np.float32(floor)))
    ones = 0
    for n in range(block, value.size):
        ones |= int(value[n] > floor) << (n - block)
    return ones


@kernel
def largest_first(value: Floats) -> Integers:
    """The order of these, none of which is NaN, from the largest to the least."""
    bits, keys = value.view(np.uint32), np.empty(value.size, np.uint64)
    for i in range(value.size):
        u = uint64(bits[i])
        falling = u if u >> uint64(31) else u ^ uint64(0x7FFFFFFF)  # as whole numbers, larger values come first
        keys[i] = falling << uint64(32) | uint64(i)
    keys.sort()
    order = np.empty(value.size, np.int64)
    for i in range(value.size):
        order[i] = np.int64(keys[i] & uint64(0xFFFFFFFF))
    return order


@kernel
def _near_parents(ix: Arrays, v: Floats, wanted: int) -> tuple[Integers, Integers]:
    """Ranges of the lists of the nearest parents, in any order: hardly more than hold as many as wanted."""
    near = np.empty(ix.edges.size - 1, np.float32)
    multiply(ix.parents, v, near)
    if ix.bias.size > 0:
        for p in range(near.size):
            square = np.float32(0)
            for j in range(v.size):
                x = bfloat16_to_float(ix.parents[p, j])
                square += x * x
            near[p] -= np.float32(0.5) * square
    floor = _floor_of_parents(near, ix.edges, wanted)
    taken = np.flatnonzero(near > floor)
    return ix.edges[taken], ix.edges[taken + 1]


@kernel
def _floor_of_parents(near: Floats, edges: Integers, wanted: int) -> Number:
    """What parents exceed that hold as many lists as wanted, and not many more."""
    step = np.float32(SPREAD) * near.std()
    floor = np.float32(near.mean() - step)
    if _held(near, edges, floor) < wanted:
        return LEAST
    for _ in range(STEPS):
        held = _held(near, edges, floor + step)
        if held < wanted:
            step *= np.float32(0.5)
            continue
        floor += step
        if held <= wanted + (wanted >> 6):
            break
    return floor


@kernel
def _held(near: Floats, edges: Integers, floor: Number) -> int:
    """How many lists parents above a floor hold."""
    held = 0
    for p in range(near.size):
        held += (edges[p + 1] - edges[p]) * int(near[p] > floor)
    return int(held)
