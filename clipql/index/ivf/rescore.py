"""Exact scores of candidate rows, read from where the column's blocks lie in memory, or from the disk.

Rescoring goes from the most promising row down and stops where even its slack could not lift the next row above the
k-th found. Scores are float32 and only rank; the distances that are answered are computed again in float64. Rows whose
score is within rounding of the k-th's all come back, so that who needs those that tie with it has them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, uint64
from numpy.typing import NDArray

from clipql.index.ivf.geometry import Floats, Number
from clipql.storage.vectors import direct
from clipql.storage.vectors.bits import half_to_float, kernel, pointer, prefetch, will_need

Integers = NDArray[np.int64]
DOT, COSINE, L2 = 0, 1, 2
AHEAD = 8  # a row is fetched from memory while so many before it are compared
SPARE = 8  # rows kept beyond k, so that float32 rounding loses none
ROUNDING = np.float32(1e-5)  # of a score, relative to the largest numbers that it is made of
WAVE = 64  # rows that are read from the disk at once, before it is known whether the next can still win


class Table(NamedTuple):
    """Where stored vectors are: first row, address, bytes to the next row and float16 or not, for each block; and the
    file and place of its first row for direct reads, -1 where there are none.
    """

    first: Integers
    address: NDArray[np.uint64]
    stride: Integers
    half: NDArray[np.bool_]
    descriptor: Integers
    offset: Integers


@kernel
def _address(table: Table, row: int) -> tuple[np.uint64, bool]:
    b = table.first.size - 1
    while table.first[b] > row:
        b -= 1
    return table.address[b] + uint64((row - table.first[b]) * table.stride[b]), table.half[b]


@kernel
def _read(
    table: Table,
    rows: Integers,
    first: int,
    last: int,
    size: int,
    context: np.uint64,
    room: NDArray[np.uint8],
    address: NDArray[np.uint64],
) -> None:
    """Read rows [first, last) of `rows` from the disk, at most `size` bytes each, and write where they are now."""
    descriptor, offset = np.empty(last - first, np.int64), np.empty(last - first, np.int64)
    for i in range(first, last):
        b = table.first.size - 1
        while table.first[b] > rows[i]:
            b -= 1
        descriptor[i - first] = table.descriptor[b]
        offset[i - first] = table.offset[b] + (rows[i] - table.first[b]) * table.stride[b]
    direct.read(context, descriptor, offset, size, room, first, address[first:last])


@kernel
def rescore_rows(
    table: Table,
    metric: int,
    query: Floats,
    v: Floats,
    unit: Number,
    mean: Floats,
    rows: Integers,
    could_be: Floats,
    k: int,
    cold: bool,
    context: np.uint64,
) -> tuple[Integers, NDArray[np.float64], int, Floats]:
    """The best k + SPARE of rows by their stored vectors and those within rounding of the k-th, their exact distances
    (see `distances`), how many rows were read, and float32 (3,): the k-th score less its rounding, what the last of
    `rows` could score if it was read (-inf if not), and what the least promising of the best k could.

    query (d,) is as given; v: float32 (d,), unit and mean: see `geometry`. could_be: what each row could score at most,
    in descending order. cold: have rows read from the disk side by side. context: by which they are read directly.
    """
    n, keep = rows.size, min(rows.size, k + SPARE)
    where, is_half, size = np.empty(n, np.uint64), np.empty(n, np.bool_), 0
    for i in range(n):
        where[i], is_half[i] = _address(table, rows[i])
        size = max(size, v.size * (2 if is_half[i] else 4))
    directly = cold and context != uint64(direct.NOWHERE)
    room, ready = direct.room(n if directly else 0, size), 0 if directly else n
    if cold and not directly:
        for i in range(n):
            will_need(where[i], uint64(v.size * (2 if is_half[i] else 4)))
    for i in range(min(AHEAD, ready)):
        _fetch(where[i], v.size * (2 if is_half[i] else 4))
    score, least, done = np.empty(n, np.float32), np.float32(-np.inf), 0
    best = np.full(k, -np.inf, np.float32)
    norm, shift = np.float32(0), np.float32(0)
    for j in range(v.size):
        norm += v[j] * v[j]
        shift += mean[j] * v[j]
    for i in range(n):
        if k <= 256 and could_be[i] < least:
            break
        if i == ready:
            ready = min(n, i + WAVE)
            _read(table, rows, i, ready, size, context, room, where)
        if i + AHEAD < ready:
            _fetch(where[i + AHEAD], v.size * (2 if is_half[i + AHEAD] else 4))
        score[i] = _score(where[i], is_half[i], metric, v, unit, mean, shift)
        done += 1
        if k <= 256 and score[i] > least:
            z = k - 1
            while z > 0 and score[i] > best[z - 1]:
                best[z] = best[z - 1]
                z -= 1
            best[z] = score[i]
            least = best[k - 1]
    order = np.argsort(-score[:done])
    keep, edge = min(keep, done), np.full(3, -np.inf, np.float32)
    if done >= k > 0:
        kth = score[order[k - 1]]
        edge[0] = kth - ROUNDING * max(abs(kth), abs(shift), norm if metric == L2 else np.float32(0))
        while keep < done and score[order[keep]] >= edge[0]:
            keep += 1
        edge[1] = could_be[n - 1] if done == n else np.float32(-np.inf)
        edge[2] = could_be[order[:k]].min()
    order = order[:keep]
    exact = np.empty(keep, np.float64)
    for i in range(keep):
        exact[i] = _distance(where[order[i]], is_half[order[i]], metric, query)
    edge[0] += np.float32(0) * np.float32(room[0])  # what is read into it is used up to here
    return rows[order], exact, done, edge


@kernel
def hides_ties(
    distances: NDArray[np.float64], k: int, larger_is_nearer: bool, edge: Floats, tied: float, alike: float
) -> bool:
    """Whether rows that were not compared may tie with the k-th of these: they could score as much, and either another
    differs from it by no more than `tied`, or it is itself the least promising that was compared, but for `alike`.

    edge: as `rescore_rows` tells it. tied, alike: relative.
    """
    kth_score, unseen, least_promising = edge[0], edge[1], edge[2]
    if distances.size < k or not unseen >= kth_score:
        return False
    ordered = np.sort(-distances) if larger_is_nearer else np.sort(distances)
    kth, same = ordered[k - 1], 0
    for i in range(ordered.size):
        same += abs(ordered[i] - kth) <= tied * abs(kth)
    return same > 1 or least_promising <= unseen + np.float32(alike) * abs(unseen)


@kernel
def _fetch(address: np.uint64, size: int) -> None:
    """Have a row fetched from memory."""
    for line in range(0, size, 64):
        prefetch(address + uint64(line))


@kernel
def _score(address: np.uint64, half: bool, metric: int, v: Floats, unit: Number, mean: Floats, shift: Number) -> Number:
    """y.v + bias of a stored row, from the row itself (see `geometry`)."""
    d = v.size
    s, square = np.float32(0), np.float32(0)
    if half:
        short = carray(pointer(address), d, np.uint16)
        if metric == DOT:
            for j in range(d):
                s += half_to_float(short[j]) * unit * v[j]
        elif metric == COSINE:
            for j in range(d):
                x = half_to_float(short[j])
                s += x * v[j]
                square += x * x
        else:
            for j in range(d):
                x = half_to_float(short[j]) * unit - mean[j]
                s += x * v[j]
                square += x * x
    else:
        full = carray(pointer(address), d, np.float32)
        if metric == DOT:
            for j in range(d):
                s += full[j] * unit * v[j]
        elif metric == COSINE:
            for j in range(d):
                s += full[j] * v[j]
                square += full[j] * full[j]
            if not (square >= np.float32(1e-30) and square <= np.float32(1e30)):
                return _direction(full, v) - shift
        else:
            for j in range(d):
                x = full[j] * unit - mean[j]
                s += x * v[j]
                square += x * x
    if metric == DOT:
        return s - shift
    if metric == COSINE:
        return s / np.sqrt(square) - shift if square > 0 else np.float32(-np.inf)
    return s - np.float32(0.5) * square


@kernel
def _direction(x: Floats, v: Floats) -> Number:
    """The product of v and a row scaled to length 1, for a row so long or short that float32 loses its squares."""
    s, square = 0.0, 0.0
    for j in range(v.size):
        s += np.float64(x[j]) * np.float64(v[j])
        square += np.float64(x[j]) * np.float64(x[j])
    return np.float32(s / np.sqrt(square)) if square > 0 else np.float32(-np.inf)


@kernel
def ask(table: Table, rows: Integers, width: int) -> None:
    """Have rows of `width` numbers read from the disk side by side; nothing is waited for."""
    for i in range(rows.size):
        address, half = _address(table, rows[i])
        will_need(address, uint64(width * (2 if half else 4)))


@kernel
def distances(table: Table, metric: int, query: Floats, rows: Integers) -> NDArray[np.float64]:
    """dotProduct, cosineDistance or squared L2 of stored rows, in float64; NaN where a cosine has a zero vector."""
    out = np.empty(rows.size, np.float64)
    for i in range(rows.size):
        address, half = _address(table, rows[i])
        out[i] = _distance(address, half, metric, query)
    return out


@kernel
def _distance(address: np.uint64, half: bool, metric: int, query: Floats) -> float:
    short = carray(pointer(address), query.size, np.uint16)
    full = carray(pointer(address), query.size, np.float32)
    dot, xx, qq, far = 0.0, 0.0, 0.0, 0.0
    if metric == L2:
        for j in range(query.size):
            apart = (np.float64(half_to_float(short[j])) if half else np.float64(full[j])) - np.float64(query[j])
            far += apart * apart
        return far
    for j in range(query.size):
        x, q = np.float64(half_to_float(short[j])) if half else np.float64(full[j]), np.float64(query[j])
        dot += x * q
        xx += x * x
        qq += q * q
    if metric == DOT:
        return dot
    return 1.0 - dot / (np.sqrt(xx) * np.sqrt(qq)) if xx > 0 and qq > 0 else np.nan
