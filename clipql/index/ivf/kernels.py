"""The search loops: rank the lists, scan their codes, hand the survivors to `rescore`. All scratch belongs to the call.

One loop, `codescan.scan`, does both scans: list centroids have codes of their own and are ranked as if they were one
long list.

Estimates carry the slack of their own error (the error of a code grows with its scale), so the threshold compares
what a row could be, not what it seems.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from clipql.index.ivf.codes import Words
from clipql.index.ivf.codescan import LEAST, Coded, Ranges, ask, largest, scan
from clipql.index.ivf.geometry import Floats, Number
from clipql.index.ivf.rescore import Table, rescore_rows
from clipql.storage.vectors.bits import PAGE, as_bfloat16, bfloat16_to_float, cycles, kernel, prefetch, will_need

Integers = NDArray[np.int64]
# bytes between two ranges that are rather read with them than asked for apart
CLOSE = uint64(16_384)
# where the index and the rows are: all in memory; all on disk; on disk but for the scales and numbers of rows
IN_MEMORY, ON_DISK, CODES_ON_DISK = 0, 1, 2


class Arrays(NamedTuple):
    """The mapped arrays of an index, as the kernels take them. n rows placed, l lists, w words, p parents.

    start: int64 (l + 1,), list i holds positions [start[i], start[i + 1]). rows: uint32, row at each position (any
    rows after the last position are in no list). codes: uint64 (n, w), scale: float32 (n,), bias: float32 (n,) or
    empty. list_*: the same of centroids; list_small (l, d) int8 and list_unit: float32 (l,) are the centroids;
    list_spread: float32 (l,), root mean square length of coded residuals. shape: float32 (b,), share of that length
    in one number of each block. mean: float32 (d,). turn: float32 (64 b, d), the query's side of the coder.

    `in_bfloat16` gives those that the kernels take, where turn, list_turn and parents are bfloat16.
    """

    start: Integers
    rows: NDArray[np.uint32]
    codes: Words
    scale: Floats
    bias: Floats
    list_codes: Words
    list_scale: Floats
    list_bias: Floats
    list_small: NDArray[np.int8]
    list_unit: Floats
    list_spread: Floats
    parents: Floats
    edges: Integers
    turn: Floats
    word_block: NDArray[np.int32]
    word_weight: Floats
    list_turn: Floats
    list_word_block: NDArray[np.int32]
    list_word_weight: Floats
    shape: Floats
    mean: Floats


def in_bfloat16(arrays: Arrays) -> Arrays:
    """The arrays with what each query is multiplied by in half the bytes: that is more than the processor's cache has
    room for beside the codes. It is rounded by a two-hundredth of what a query is rounded by next.
    """
    short: dict[str, Any] = {}
    for name in ("turn", "list_turn", "parents"):
        short[name] = as_bfloat16(getattr(arrays, name))
        short[name].setflags(write=False)  # as what is mapped, or the kernels are compiled once more
    return arrays._replace(**short)


@kernel
def search(
    ix: Arrays,
    table: Table,
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

    query (d,) is as given, v (d,) as the space turned it. unit: what the space multiplies rows by. among: bool (rows,),
    or empty for no filter. reach: how many deviations of a list's spread count for it. slack: how many deviations of a
    code's error. ranked: with more lists than that, only those of the nearest parents are ranked. cold: where
    what is read is, IN_MEMORY and so on; what is on disk is asked of it beforehand. routed: the lists to look into,
    where they are ranked already. sparse: `among` lets so
    few rows through that it is looked at before a row's code is. context: as `rescore_rows` takes it.
    """
    turned, counts = np.empty(ix.turn.shape[0], np.float32), np.zeros(7, np.int64)
    counts[3] = cycles()
    _multiply(ix.turn, v, turned)
    length, deviation = _lengths(ix, turned)
    if routed.size > 0:
        probe = routed
    else:
        probe = _rank_lists(ix, v, np.float32(reach) * np.sqrt(deviation), min(nprobe, ix.list_scale.size), ranked)
    base = _scores(ix, v, probe)
    first, last = ix.start[probe], np.empty(probe.size, np.int64)
    for z in range(probe.size):
        last[z] = ix.start[probe[z] + 1]
    if cold != IN_MEMORY:
        _ask_disk(ix, first, last, among, sparse, cold)
    counts[0], counts[1] = (last - first).sum(), probe.size
    counts[4] = cycles()
    asked = ask(turned, ix.word_block, ix.word_weight, np.float32(slack) * np.sqrt(length))
    coded = Coded(ix.codes, ix.scale, ix.bias, np.empty(0, np.float32), np.float32(0))
    value, at = scan(coded, Ranges(first, last, base), asked, ix.rows, among, rescore, sparse, LEAST)
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
    _multiply(ix.turn, v, turned)
    deviation = _lengths(ix, turned)[1]
    return _rank_lists(ix, v, np.float32(reach) * np.sqrt(deviation), min(nprobe, ix.list_scale.size), ranked)


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


@kernel
def _multiply(matrix: NDArray[Any], v: Floats, out: Floats) -> None:
    for i in range(matrix.shape[0]):
        s = np.float32(0)
        for j in range(v.size):
            s += bfloat16_to_float(matrix[i, j]) * v[j]
        out[i] = s


@kernel
def _rank_lists(ix: Arrays, v: Floats, deviation: Number, nprobe: int, ranked: int) -> Integers:
    """The lists to scan, most promising first."""
    count, turned = ix.list_scale.size, np.empty(ix.list_turn.shape[0], np.float32)
    _multiply(ix.list_turn, v, turned)
    if count <= ranked:
        first, last = np.zeros(1, np.int64), np.full(1, count, np.int64)
    else:
        first, last = _near_parents(ix, v, ranked)
    asked = ask(turned, ix.list_word_block, ix.list_word_weight, np.float32(0))
    ranges = Ranges(first, last, np.zeros(first.size, np.float32))
    coded = Coded(ix.list_codes, ix.list_scale, ix.list_bias, ix.list_spread, np.float32(deviation))
    value, at = largest(coded, ranges, asked, ix.rows, nprobe)
    return at[np.argsort(-value)]


@kernel
def _scores(ix: Arrays, v: Floats, probe: Integers) -> Floats:
    """The exact score of the centroid of each of these lists."""
    base = np.empty(probe.size, np.float32)
    for z in range(probe.size):
        s, i, ahead = np.float32(0), probe[z], probe[min(z + 3, probe.size - 1)]
        for line in range(0, v.size, 64):
            prefetch(uint64(ix.list_small.ctypes.data) + uint64(ahead * v.size + line))
        for j in range(v.size):
            s += np.float32(ix.list_small[i, j]) * v[j]
        base[z] = s * ix.list_unit[i]
    return base


@kernel
def _near_parents(ix: Arrays, v: Floats, wanted: int) -> tuple[Integers, Integers]:
    """Ranges of the lists of the nearest parents, in any order: as few as hold as many as wanted."""
    near = np.empty(ix.edges.size - 1, np.float32)
    _multiply(ix.parents, v, near)
    if ix.bias.size > 0:
        for p in range(near.size):
            square = np.float32(0)
            for j in range(v.size):
                x = bfloat16_to_float(ix.parents[p, j])
                square += x * x
            near[p] -= np.float32(0.5) * square
    order, low, high, seen = np.arange(near.size), 0, near.size - 1, 0
    while low < high:  # Hoare's selection, nearest first, by how many lists there are
        pivot = near[order[(low + high) >> 1]]
        i, j = low, high
        while i <= j:
            while near[order[i]] > pivot:
                i += 1
            while near[order[j]] < pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        nearer = 0
        for z in range(low, j + 1):
            nearer += ix.edges[order[z] + 1] - ix.edges[order[z]]
        if seen + nearer >= wanted:
            high = j
            continue
        seen, low = seen + nearer, j + 1
        if low < i:  # the one between, which is the pivot
            seen += ix.edges[order[low] + 1] - ix.edges[order[low]]
            if seen >= wanted:
                break
            low = i
    taken = order[: low + 1]
    return ix.edges[taken], ix.edges[taken + 1]
