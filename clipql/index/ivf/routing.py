"""Learning from captions where in a list a text query finds its nearest rows.

Lists are ranked by how well a query fits them. Their centroid is the wrong thing to compare with: what counts is the
list's best row for this query, and captions of one topic agree on which side of the list that is. Every stored row
brings a caption, a query whose answer is known to be near, so it is measured: captions of one parent's rows ask each
of its lists, and the rows that win (softly: by a softmax over the list's rows) are averaged. Lists are ranked by that
average, `to`. Rows are still coded against the centroid itself.

It halves the codes that text queries read, leaves image queries as they were, and takes no space, since a list's code
merely stands for another point (docs/ivf.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.ivf.buckets import Buckets
from clipql.index.ivf.geometry import Floats, Number, Space, Workers
from clipql.index.ivf.learn import BUCKET_BYTES, by_group, drawn, row_kind
from clipql.index.ivf.train import Integers, Lists
from clipql.storage.vectors.bits import kernel

CAPTIONS_PER_PARENT = 96
SOFTNESS = 0.4  # temperature of the softmax, in deviations of a row's score within its list
MOST_ROWS = 8_000_000  # rows that are asked about, in larger tables a share of all


class Followed:
    """Rows of the pass, dealt to the parents of their lists, so that each parent's captions can be asked later.

    folder is for scratch files. sizes: as `Buckets` takes them.
    """

    def __init__(self, vectors: Vectors, lists: Lists, folder: Path, seed: int, sizes: list[int] | None = None) -> None:
        self._lists, self._seed = lists, seed
        self._share = min(1.0, MOST_ROWS / vectors.rows)
        self._kind = np.dtype([("row", "<u4"), ("list", "<i4"), ("x", row_kind(vectors), (vectors.dimension,))])
        parents = len(lists.parents)
        count = buckets_for(vectors, lists)
        self._limit = np.linspace(0, parents, count + 1).astype(np.int64)
        self.buckets = Buckets(folder, "followed", count, self._kind, sizes)

    def add(self, first: int, block: NDArray[np.floating], owner: NDArray[np.integer]) -> None:
        """Rows of the pass, as they are stored, and the list of each, -1 for none."""
        chosen = drawn(len(block), self._share, (self._seed, 8, first))
        chosen = chosen[owner[chosen] >= 0]
        records = np.empty(len(chosen), self._kind)
        records["row"], records["list"], records["x"] = first + chosen, owner[chosen], block[chosen]
        parent = np.searchsorted(self._lists.edges, records["list"], side="right") - 1
        self.buckets.add(np.searchsorted(self._limit, parent, side="right") - 1, records)

    def pull(
        self,
        space: Space,
        captions_of: Callable[[Integers, NDArray[Any]], Floats],
        to: Floats,
        lift: Floats,
        workers: Workers,
        tick: Callable[[int, int], None],
    ) -> None:
        """Move `to` (l, d) and `lift` (l,). captions_of gives the query vectors of row numbers and the rows
        themselves, as they are stored.
        """
        edges, parents = self._lists.edges, len(self._lists.parents)
        for number in range(len(self.buckets)):
            records = self.buckets.read(number)
            parent_of = np.searchsorted(edges, records["list"], side="right") - 1
            for parent, mine in by_group(records, parent_of, int(self._limit[number]), int(self._limit[number + 1])):
                tick(parent + 1, parents)
                if len(mine) > 1:
                    self._pull(parent, mine, space, captions_of, to, lift, workers)

    def _pull(
        self,
        parent: int,
        records: NDArray[Any],
        space: Space,
        captions_of: Callable[[Integers, NDArray[Any]], Floats],
        to: Floats,
        lift: Floats,
        workers: Workers,
    ) -> None:
        a, b = int(self._lists.edges[parent]), int(self._lists.edges[parent + 1])
        rng = np.random.default_rng((self._seed, 9, parent))
        asked = np.sort(rng.choice(len(records), min(len(records), CAPTIONS_PER_PARENT), replace=False))
        y, _ = space.rows(records["x"], workers)
        captions = captions_of(records["row"][asked].astype(np.int64), records["x"][asked])
        pull(y, records["list"] - a, captions, asked, space.biased, to[a:b], lift[a:b], workers)


def buckets_for(vectors: Vectors, lists: Lists) -> int:
    """How many buckets the followed rows of a column go to."""
    size = min(vectors.rows, MOST_ROWS) * vectors.dimension * np.dtype(row_kind(vectors)).itemsize
    return int(max(1, min(len(lists.parents), -(-size // BUCKET_BYTES))))


def pull(
    rows: Floats,
    owner: NDArray[np.int32],
    captions: Floats,
    asked: NDArray[np.int64],
    biased: bool,
    to: Floats,
    lift: Floats,
    workers: Workers,
) -> None:
    """Move the points `to` (k, d) of one parent's lists to where captions find their nearest rows, and `lift` (k,) by
    the winners' bias above the mean.

    rows: (n, d), y of the parent's rows. owner: (n,), the list of each. captions: (q, d), v of some rows' captions.
    asked: (q,), which of the rows each caption belongs to.
    """
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
