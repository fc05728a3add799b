"""Exact neighbours of a few queries, gathered while a build passes over the rows anyway.

These are what recall is measured against. The queries are rows of the table itself and captions of rows; the row a
query came from is left out of its neighbours, as it would be for a query nobody has stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.storage.vectors.bits import kernel

NEIGHBOURS = 10


class Truth:
    """The 10 nearest rows of each query so far, `rows`, with their scores, `score`. `add` takes the rows in order."""

    def __init__(
        self, space: Space, queries: Floats, own: NDArray[np.int64], kind: NDArray[np.int64], workers: Workers
    ) -> None:
        """queries: (q, d) as a search would get them. own: (q,), the row each came from.

        kind: (q,), ascending: 0 for a stored row, 1 for a caption.
        """
        self.queries, self.own, self.kind = queries, own, kind
        self._turned = np.stack([space.query(q) for q in queries]) if len(queries) else np.empty((0, 1), np.float32)
        self._biased, self._workers = space.biased, workers
        self.score = np.full((len(queries), NEIGHBOURS), -np.inf, np.float32)
        self.rows = np.full((len(queries), NEIGHBOURS), -1, np.int64)

    def add(self, first: int, y: Floats, good: NDArray[np.bool_]) -> None:
        if not len(self.queries):
            return
        score = self._turned @ y.T
        bias = np.einsum("ij,ij->i", y, y) * np.float32(-0.5 if self._biased else 0)
        bias[~good] = -np.inf
        self._workers.each(
            len(score), lambda a, b: _best(score[a:b], bias, first, self.own[a:b], self.score[a:b], self.rows[a:b])
        )


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
