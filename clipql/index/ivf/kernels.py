"""The search loops: rank the lists, scan their codes, hand the survivors to `rescore`. All scratch belongs to the call.

Lists are ranked by codes of their own (`ranking`); `codescan.scan` reads those of rows.

Estimates carry the slack of their own error (the error of a code grows with its scale), so the threshold compares
what a row could be, not what it seems.
"""

from __future__ import annotations

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.index.ivf.arrays import Arrays, Integers
from clipql.index.ivf.codescan import Coded, Ranges, ask, scan
from clipql.index.ivf.geometry import Floats, Number
from clipql.index.ivf.packed import unpacked
from clipql.index.ivf.ranking import multiply, rank_lists, scores
from clipql.index.ivf.rescore import rescore_rows
from clipql.storage.vectors.bits import PAGE, cycles, kernel, will_need

# bytes between two ranges that are rather read with them than asked for apart
CLOSE = uint64(16_384)
# where the index and the rows are: all in memory; all on disk; on disk but for the scales and numbers of rows
IN_MEMORY, ON_DISK, CODES_ON_DISK = 0, 1, 2


@kernel
def search(
    told: Integers,
    metric: int,
    query: Floats,
    v: Floats,
    unit: Number,
    among: NDArray[np.bool_],
    k: int,
    nprobe: int,
    rescore: int,
    reach: Number,
    slack: Number,
    ranked: int,
    cold: int,
    routed: Integers,
    sparse: bool,
    context: np.uint64,
) -> tuple[Integers, NDArray[np.float64], Integers, Floats]:
    """Row numbers and exact distances of about k + SPARE best rows, in no order; counts: codes, lists, rescored, and
    the processor's counter before the first stage and after each (rank, scan, rescore); and the edge that
    `rescore_rows` tells.

    told: the index, as `packed.pack` tells it. query (d,) is as given, v (d,) as the space turned it. unit: what the
    space multiplies rows by. among: bool (rows,), or empty for no filter. reach: how many deviations of a list's spread
    count for it. slack: how many deviations of a code's error. ranked: with more lists than that, only those of the
    nearest parents are ranked. cold: where what is read is, IN_MEMORY and so on; what is on disk is asked of it
    beforehand. routed: the lists to look into, where they are ranked already. sparse: `among` lets so few rows through
    that it is looked at before a row's code is. context: as `rescore_rows` takes it.
    """
    ix, table = unpacked(told)
    turned, counts = np.empty(ix.turn.shape[0], np.float32), np.zeros(7, np.int64)
    counts[3] = cycles()
    multiply(ix.turn, v, turned)
    length, deviation = _lengths(ix, turned)
    if routed.size > 0:
        probe = routed
    else:
        probe = rank_lists(ix, v, np.float32(reach) * np.sqrt(deviation), min(nprobe, ix.list_scale.size), ranked)
    base = scores(ix, v, probe)
    first, last = ix.start[probe], np.empty(probe.size, np.int64)
    for z in range(probe.size):
        last[z] = ix.start[probe[z] + 1]
    if cold != IN_MEMORY:
        _ask_disk(ix, first, last, among, sparse, cold)
    counts[0], counts[1] = (last - first).sum(), probe.size
    counts[4] = cycles()
    asked = ask(turned, ix.word_block, ix.word_weight, np.float32(slack) * np.sqrt(length))
    coded = Coded(ix.codes, ix.scale, ix.bias)
    value, at = scan(coded, Ranges(first, last, base), asked, ix.rows, among, rescore, sparse)
    order = np.argsort(-value)
    rows = np.empty(value.size, np.int64)
    for i in range(value.size):
        rows[i] = ix.rows[at[order[i]]]
    counts[5] = cycles()
    found, exact, counts[2], edge = rescore_rows(
        table, metric, query, v, np.float32(unit), ix.mean, rows, value[order], k, cold != IN_MEMORY, context
    )
    counts[6] = cycles()
    return found, exact, counts, edge


@kernel
def rank(ix: Arrays, v: Floats, nprobe: int, reach: Number, ranked: int) -> Integers:
    """The lists that `search` would look into, the most promising first."""
    turned = np.empty(ix.turn.shape[0], np.float32)
    multiply(ix.turn, v, turned)
    deviation = _lengths(ix, turned)[1]
    return rank_lists(ix, v, np.float32(reach) * np.sqrt(deviation), min(nprobe, ix.list_scale.size), ranked)


@kernel
def _lengths(ix: Arrays, turned: Floats) -> tuple[Number, Number]:
    """The squared length of a turned query, and that weighted by how long residuals are in each block."""
    length, deviation = np.float32(0), np.float32(0)
    for b in range(ix.shape.size):
        part = np.float32(0)
        for j in range(64):
            part += turned[b * 64 + j] * turned[b * 64 + j]
        length += part
        deviation += part * ix.shape[b]
    return length, deviation


@kernel
def _ask_disk(ix: Arrays, first: Integers, last: Integers, among: NDArray[np.bool_], sparse: bool, cold: int) -> None:
    """Have the codes of these ranges read, and what belongs to them; ranges that lie close together at once. sparse:
    only of rows that a filter lets through.
    """
    order, step = np.argsort(first), uint64(8 * ix.codes.shape[1])
    if cold == ON_DISK:
        _ask_ranges(uint64(ix.rows.ctypes.data), uint64(4), first, last, order)
        _ask_ranges(uint64(ix.scale.ctypes.data), uint64(4), first, last, order)
        if ix.bias.size > 0:
            _ask_ranges(uint64(ix.bias.ctypes.data), uint64(4), first, last, order)
    if sparse:
        _ask_allowed(ix, first, last, order, among)
    else:
        _ask_ranges(uint64(ix.codes.ctypes.data), step, first, last, order)


@kernel
def _ask_allowed(ix: Arrays, first: Integers, last: Integers, order: Integers, among: NDArray[np.bool_]) -> None:
    """Have the codes of those rows in these ranges read that a filter lets through."""
    step = uint64(8 * ix.codes.shape[1])
    codes, a, b = uint64(ix.codes.ctypes.data), uint64(0), uint64(0)
    for z in order:
        for i in range(first[z], last[z]):
            if among[ix.rows[i]]:
                at = uint64(i) * step
                if at > b + uint64(PAGE):
                    if b > a:
                        will_need(codes + a, b - a)
                    a = at
                b = at + step
    if b > a:
        will_need(codes + a, b - a)


@kernel
def _ask_ranges(address: int, step: int, first: Integers, last: Integers, order: Integers) -> None:
    """Have [first, last) of an array of records of `step` bytes read, in the order given, which ascends."""
    z = 0
    while z < order.size:
        a, b = uint64(first[order[z]]) * step, uint64(last[order[z]]) * step
        z += 1
        while z < order.size and uint64(first[order[z]]) * step <= b + CLOSE:
            b = max(b, uint64(last[order[z]]) * step)
            z += 1
        if b > a:
            will_need(address + a, b - a)
