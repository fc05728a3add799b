"""K-means in two levels, and the assignment of every row to its list.

Owns where the lists are. Level one: `parents`. Level two: each parent's own lists, kept together, so that a parent's
lists are a range. A row is compared with the parents and then with the lists of its few nearest parents only, which is
what lets 400 million rows be assigned. Nothing here holds more than one chunk of rows, or one parent's, in memory.

Centroids are rounded to int8 with one scale each *before* rows are assigned and encoded: the rounded centroid is the
centroid, so the rounding costs no accuracy, and a list takes d + 4 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.geometry import Floats, Workers
from clipql.storage.vectors.bits import kernel

Integers = NDArray[np.int64]
COARSE_ROUNDS, FINE_ROUNDS = 8, 7
PARENTS_TRIED = 4
_CHUNK = 32_768
SCORES = 16_384  # rows scored at once against all parents


@dataclass(frozen=True)
class Lists:
    """Two levels of centroids in the centred space.

    parents: float32 (p, d). edges: int64 (p + 1,), the lists of parent i are [edges[i], edges[i + 1]).
    small: int8 (l, d) and scale: float32 (l,): centroid i is small[i] * scale[i].
    """

    parents: Floats
    edges: Integers
    small: NDArray[np.int8]
    scale: Floats

    @property
    def count(self) -> int:
        return len(self.small)

    def centroids(self, first: int = 0, last: int | None = None) -> Floats:
        return self.small[first:last].astype(np.float32) * self.scale[first:last, None]


def parents_for(lists: int) -> int:
    """How many parents make the comparisons of a row fewest: as many as lists it is compared with below them."""
    return max(1, round(math.sqrt(PARENTS_TRIED * lists)))


def to_small(centroids: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Round each centroid to int8 with a scale of its own; of those that are then the same one is left, so that rows
    which are equal are not dealt to several by chance.
    """
    top = np.abs(centroids).max(1)
    scale = np.where(top > 0, top / 127, 1).astype(np.float32)
    small = np.rint(centroids / scale[:, None]).astype(np.int8)
    both = np.concatenate([small, scale[:, None].view(np.int8)], axis=1)
    first = np.sort(np.unique(both, axis=0, return_index=True)[1])
    return small[first], scale[first]


def nearest(y: Floats, centroids: Floats, workers: Workers) -> NDArray[np.int32]:
    """The L2-nearest centroid of each row, int32 (n,)."""
    half = (centroids * centroids).sum(1) * np.float32(0.5)
    out = np.empty(len(y), np.int32)
    for a in range(0, len(y), _CHUNK):
        score, part = y[a : a + _CHUNK] @ centroids.T, out[a : a + _CHUNK]
        if score.size < 100_000:
            _best(score, half, part)
        else:
            workers.each(len(part), lambda i, j, s=score, p=part: _best(s[i:j], half, p[i:j]))  # type: ignore[misc]
    return out


def kmeans(y: Floats, k: int, rounds: int, rng: np.random.Generator, workers: Workers) -> Floats:
    """Lloyd's algorithm from k distinct rows; an emptied centroid restarts at a row drawn by chance."""
    k = min(k, len(y))
    centroids = y[np.sort(rng.choice(len(y), k, replace=False))].copy()
    for _ in range(rounds if k > 1 else 1):
        owner = nearest(y, centroids, workers) if k > 1 else np.zeros(len(y), np.int32)
        sums, counts = np.zeros((k, y.shape[1]), np.float64), np.zeros(k, np.int64)
        _add_up(y, owner, sums, counts)
        centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = y[rng.integers(0, len(y), len(empty))]
    return centroids


class Assigner:
    """Finds the list of each row; holds float32 centroids of one parent at a time."""

    def __init__(self, lists: Lists, workers: Workers) -> None:
        self._lists, self._workers = lists, workers
        self._half_parents = (lists.parents * lists.parents).sum(1) * np.float32(0.5)
        self._half = np.empty(lists.count, np.float32)
        workers.each(lists.count, lambda a, b: _halves(lists.small[a:b], lists.scale[a:b], self._half[a:b]))
        self._tried = min(PARENTS_TRIED, len(lists.parents))

    def __call__(self, y: Floats) -> NDArray[np.int32]:
        """int32 (n,): the list of each row of a chunk."""
        lists, n, tried = self._lists, len(y), self._tried
        near = np.empty((n, tried), np.int32)
        for first in range(0, n, SCORES):
            score, part = y[first : first + SCORES] @ lists.parents.T, near[first : first + SCORES]
            self._workers.each(len(part), lambda a, b, s=score, p=part: _few_best(s[a:b], self._half_parents, p[a:b]))  # type: ignore[misc]
        pairs = near.ravel()
        order = np.argsort(pairs, kind="stable")
        edge = np.searchsorted(pairs[order], np.arange(len(lists.parents) + 1)).tolist()
        rows = order // tried
        best, owner = np.full(n, -np.inf, np.float32), np.zeros(n, np.int32)
        for parent in range(len(lists.parents)):
            a, b = edge[parent], edge[parent + 1]
            first, last = int(lists.edges[parent]), int(lists.edges[parent + 1])
            if a < b:
                score = y[rows[a:b]] @ lists.small[first:last].astype(np.float32).T
                _improve(score, lists.scale[first:last], self._half[first:last], rows[a:b], first, best, owner)
        return owner


@kernel
def _best(score: Floats, half: Floats, out: NDArray[np.int32]) -> None:
    for i in range(score.shape[0]):
        top, at = np.float32(-np.inf), 0
        for j in range(score.shape[1]):
            s = score[i, j] - half[j]
            if s > top:
                top, at = s, j
        out[i] = at


@kernel
def _few_best(score: Floats, half: Floats, out: NDArray[np.int32]) -> None:
    m = out.shape[1]
    top = np.empty(m, np.float32)
    for i in range(score.shape[0]):
        top[:] = -np.inf
        out[i] = 0
        for j in range(score.shape[1]):
            s = score[i, j] - half[j]
            if s > top[m - 1]:
                z = m - 1
                while z > 0 and s > top[z - 1]:
                    top[z], out[i, z] = top[z - 1], out[i, z - 1]
                    z -= 1
                top[z], out[i, z] = s, j


@kernel
def _halves(small: NDArray[np.int8], scale: Floats, out: Floats) -> None:
    """Half the squared length of each centroid."""
    for i in range(small.shape[0]):
        total = np.float32(0)
        for j in range(small.shape[1]):
            total += np.float32(small[i, j]) * np.float32(small[i, j])
        out[i] = np.float32(0.5) * total * scale[i] * scale[i]


@kernel
def _improve(
    score: Floats, scale: Floats, half: Floats, rows: Integers, first: int, best: Floats, owner: NDArray[np.int32]
) -> None:
    for i in range(score.shape[0]):
        row = rows[i]
        for j in range(score.shape[1]):
            s = score[i, j] * scale[j] - half[j]
            if s > best[row]:
                best[row], owner[row] = s, first + j


@kernel
def _add_up(y: Floats, owner: NDArray[np.int32], sums: NDArray[np.float64], counts: Integers) -> None:
    for i in range(y.shape[0]):
        c = owner[i]
        counts[c] += 1
        for j in range(y.shape[1]):
            sums[c, j] += y[i, j]
