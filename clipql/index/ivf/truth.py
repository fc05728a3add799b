"""Exact neighbours of a few queries, gathered while a build passes over the rows anyway.

These are what recall is measured against. The queries are rows of the table itself and captions of rows. The row that
a query came from is gathered apart from the others: as one of the ten it would say little of the other nine where it
is easily found, and be hidden by them where it is not, as for a caption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import TIED
from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.storage.vectors.bits import kernel

NEIGHBOURS = 10
GATHERED = 40  # by float32 scores, of which exact distances choose
Distances = Callable[[Floats, NDArray[np.int64]], NDArray[np.float64]]


class Truth:
    """The 40 nearest rows of each query so far but its own, `rows`, with their scores, `score`. `add` takes the rows in
    order.
    """

    def __init__(
        self, space: Space, queries: Floats, own: NDArray[np.int64], kind: NDArray[np.int64], workers: Workers
    ) -> None:
        """queries: (q, d) as a search would get them. own: (q,), the row each came from.

        kind: (q,), ascending: 0 for a stored row, 1 for a caption.
        """
        self.queries, self.own, self.kind = queries, own, kind
        self._turned = np.stack([space.query(q) for q in queries]) if len(queries) else np.empty((0, 1), np.float32)
        self._biased, self._workers = space.biased, workers
        self.score = np.full((len(queries), GATHERED), -np.inf, np.float32)
        self.rows = np.full((len(queries), GATHERED), -1, np.int64)

    def add(self, first: int, y: Floats, good: NDArray[np.bool_]) -> None:
        if not len(self.queries):
            return
        score = self._turned @ y.T
        bias = np.einsum("ij,ij->i", y, y) * np.float32(-0.5 if self._biased else 0)
        bias[~good] = -np.inf
        self._workers.each(
            len(score), lambda a, b: _best(score[a:b], bias, first, self.own[a:b], self.score[a:b], self.rows[a:b])
        )


@dataclass(frozen=True)
class Neighbours:
    """The 10 nearest rows of a query, by exact distances. others: those but its own. own: whether its own is of them.

    distances: float64, of the others; own_distance: of its own.
    """

    row: int
    own: bool
    others: NDArray[np.int64]
    distances: NDArray[np.float64]
    own_distance: float

    def found(self, rows: NDArray[np.integer], distances: NDArray[np.float64]) -> tuple[int, bool]:
        """How many of the others are among the rows of an answer, and whether its own is. A row at the same distance
        counts as the one that it ties with.
        """
        given, others = rows.tolist(), self.others.tolist()
        own, missing = self.row in given, [i for i, row in enumerate(others) if row not in given]
        if own and not missing:
            return len(others), True
        spare = distances[[row not in others and row != self.row for row in given]]
        hits = len(others) - len(missing)
        for at in missing:
            tied = np.flatnonzero(np.abs(spare - self.distances[at]) <= TIED * abs(self.distances[at]))
            if len(tied):
                hits, spare = hits + 1, np.delete(spare, tied[0])
        return hits, own or bool((np.abs(spare - self.own_distance) <= TIED * abs(self.own_distance)).any())


def settled(
    truth: Truth, which: int, apart: NDArray[np.int64], distances: Distances, *, descending: bool
) -> Neighbours:
    """The neighbours of a query of the truth once all rows were added. apart: rows that are in no list, which the truth
    does not hold. distances: exact ones of rows, (n,), to a query. descending: the largest is the nearest.
    """
    own = int(truth.own[which])
    rows = truth.rows[which]
    rows = np.unique(np.concatenate([rows[rows >= 0], apart, [own]]))
    values = distances(truth.queries[which], rows)
    own_distance = float(values[np.searchsorted(rows, own)])
    order = np.lexsort((rows, -values if descending else values))[:NEIGHBOURS]
    rows, values = rows[order], values[order]
    others = rows != own
    return Neighbours(own, not others.all(), rows[others], values[others], own_distance)


@kernel
def _best(
    score: Floats, bias: Floats, first: int, own: NDArray[np.int64], best: Floats, rows: NDArray[np.int64]
) -> None:
    last = best.shape[1] - 1
    for i in range(score.shape[0]):
        for j in range(score.shape[1]):
            s = score[i, j] + bias[j]
            if s > best[i, last] and first + j != own[i]:
                z = last
                while z > 0 and s > best[i, z - 1]:
                    best[i, z], rows[i, z] = best[i, z - 1], rows[i, z - 1]
                    z -= 1
                best[i, z], rows[i, z] = s, first + j
