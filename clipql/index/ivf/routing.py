"""Learning from captions where in a list a text query finds its nearest rows.

Lists are ranked by how well a query fits them. Their centroid is the wrong thing to compare with: what counts is the
list's best row for this query, and captions of one topic agree on which side of the list that is. Every stored row
brings a caption, a query whose answer is known to be near, so it is measured: captions of one parent's rows ask each
of its lists, and the rows that win (softly: by a softmax over the list's rows) are averaged. Lists are ranked by that
average, `Pull.to`. Rows are still coded against the centroid itself.

It halves the codes that text queries read, leaves image queries as they were, and takes no space, since a list's code
merely stands for another point (docs/ivf.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.geometry import Floats, Number, Workers
from clipql.index.ivf.train import Lists
from clipql.vectors.bits import kernel

CAPTIONS_PER_PARENT = 96
SOFTNESS = 0.4  # temperature of the softmax, in deviations of a row's score within its list
MOST_ROWS = 8_000_000  # rows asked in a larger table; each is read at random


@dataclass(frozen=True)
class Pull:
    """to: float32 (l, d), the point each list is ranked by. lift: float32 (l,), winners' bias above the mean."""

    to: Floats
    lift: Floats


def no_pull(lists: Lists) -> Pull:
    """Ranking by the centroids themselves, where there are no captions."""
    return Pull(lists.centroids(), np.zeros(lists.count, np.float32))


def learn_pull(
    lists: Lists,
    owner: NDArray[np.int32],
    rows_of: Callable[[NDArray[np.int64]], Floats],
    captions_of: Callable[[NDArray[np.int64]], Floats],
    biased: bool,
    rng: np.random.Generator,
    workers: Workers,
    tick: Callable[[int, int], None],
) -> Pull:
    """Ask every list. owner: int32 (rows,), -1 for none. rows_of and captions_of give y and v of row numbers."""
    pull = no_pull(lists)
    order = np.argsort(owner, kind="stable")
    edge = np.searchsorted(owner[order], lists.edges)
    share = min(1.0, MOST_ROWS / max(1, len(owner)))

    for parent in range(len(lists.edges) - 1):
        rows = order[edge[parent] : edge[parent + 1]]
        rows = np.sort(rows if share == 1 else rows[rng.random(len(rows)) < share])
        tick(parent + 1, len(lists.edges) - 1)
        if len(rows) < 2:
            continue
        a, b = int(lists.edges[parent]), int(lists.edges[parent + 1])
        asked = np.sort(rng.choice(len(rows), min(len(rows), CAPTIONS_PER_PARENT), replace=False))
        captions = captions_of(rows[asked])
        _pull(rows_of(rows), owner[rows] - a, captions, asked, biased, pull.to[a:b], pull.lift[a:b], workers)
    return pull


def _pull(
    rows: Floats,
    owner: NDArray[np.int32],
    captions: Floats,
    asked: NDArray[np.int64],
    biased: bool,
    to: Floats,
    lift: Floats,
    workers: Workers,
) -> None:
    """Move the points `to` (k, d) of one parent's lists. asked: (q,), which of the rows each caption belongs to."""
    order = np.argsort(owner, kind="stable")
    edge = np.searchsorted(owner[order], np.arange(len(to) + 1))
    y = rows[order]
    bias = np.einsum("ij,ij->i", y, y) * np.float32(-0.5 if biased else 0)
    score = captions @ y.T + bias
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    weight = np.zeros(len(rows), np.float32)

    def some(a: int, b: int) -> None:
        _share(score, edge[a : b + 1], place[asked], np.float32(SOFTNESS), weight)
        _average(y, bias, weight, edge[a : b + 1], to[a:b], lift[a:b])

    workers.each(len(to), some)


@kernel
def _share(score: Floats, edge: NDArray[np.int64], own: NDArray[np.int64], softness: Number, weight: Floats) -> None:
    """Add each caption's softmax over each list's rows to their weights; a caption's own row has no part in it."""
    part = np.empty(score.shape[1], np.float32)
    for z in range(edge.size - 1):
        a, b = edge[z], edge[z + 1]
        if b - a < 2:
            continue
        spread = np.float32(0)
        for q in range(score.shape[0]):
            mean, square = np.float32(0), np.float32(0)
            for i in range(a, b):
                mean += score[q, i]
            mean /= np.float32(b - a)
            for i in range(a, b):
                square += (score[q, i] - mean) * (score[q, i] - mean)
            spread += square / np.float32(b - a)
        heat = softness * np.sqrt(spread / np.float32(score.shape[0]))
        for q in range(score.shape[0]):
            top, total = np.float32(-np.inf), np.float32(0)
            for i in range(a, b):
                if i != own[q]:
                    top = max(top, score[q, i])
            for i in range(a, b):
                below = (score[q, i] - top) / heat if heat > 0 else np.float32(0)
                part[i] = np.exp(below) if i != own[q] and below > -8 else np.float32(0)
                total += part[i]
            for i in range(a, b):
                weight[i] += part[i] / total


@kernel
def _average(y: Floats, bias: Floats, weight: Floats, edge: NDArray[np.int64], to: Floats, lift: Floats) -> None:
    for z in range(edge.size - 1):
        a, b = edge[z], edge[z + 1]
        total = weight[a:b].sum()
        if b - a < 2 or total <= 0:
            continue
        to[z] = 0
        for i in range(a, b):
            share = weight[i] / total
            lift[z] += share * bias[i] - bias[i] / np.float32(b - a)
            for j in range(y.shape[1]):
                to[z, j] += share * y[i, j]
