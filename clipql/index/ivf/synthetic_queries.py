"""Queries for a column that has no captions: its own rows, mixed with what sets other rows apart.

A text query has little in common with the pictures it finds: in CLIP's space, once the mean of either kind is taken
away, the cosine of a picture and its caption is 0.4 to 0.6. An index that was fitted to and measured on stored rows
alone would promise text queries a recall that it does not give. So each stored row lends its place to a query that
keeps it only in part: x + NOISE (a - b) / √2, with a and b rows drawn by chance, whose difference varies as rows do.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.ivf.geometry import Floats, Space, Workers, unit_rows
from clipql.index.ivf.learn import spread
from clipql.storage.vectors.metrics import Metric

NOISE = 2.0  # a cosine of 0.45 with the row, means taken away
POOL = 4096  # rows that differences are made of


class Queries(Protocol):
    """Query vectors by the number of a row that answers them: a column of captions, or a `SyntheticQueries`."""

    def take(self, rows: NDArray[np.integer]) -> Floats:
        """float32 (n, d): the queries of these rows, the same each time."""


class SyntheticQueries:
    """Queries made of the rows of a column."""

    def __init__(self, vectors: Vectors, space: Space, seed: int, workers: Workers) -> None:
        """space: rows that it keeps apart lend nothing to queries."""
        self._vectors, self._unit, self._seed = vectors, space.metric is Metric.COSINE, seed
        pool = vectors.take(spread(vectors.rows, POOL, (seed, 11)))
        good = space.rows(pool, workers)[1]
        self._pool = self._unit_rows(pool[good] if good.any() else pool)

    def take(self, rows: NDArray[np.integer]) -> Floats:
        """float32 (n, d): the queries of these rows, the same each time."""
        return self.made_of(rows, self._vectors.take(rows))

    def made_of(self, rows: NDArray[np.integer], stored: NDArray[np.floating]) -> Floats:
        """The same where the stored rows (n, d) are at hand, and need not be read again."""
        rows = np.asarray(rows, np.int64)
        mixed = (rows.astype(np.uint64) + np.uint64(self._seed)) * np.uint64(0x9E3779B97F4A7C15)
        a, b = ((mixed >> np.uint64(s)).astype(np.int64) % len(self._pool) for s in (20, 41))
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.float32(NOISE / 2**0.5) * (self._pool[a] - self._pool[b])
            return np.asarray(self._unit_rows(np.asarray(stored, np.float32)) + apart, np.float32)

    def _unit_rows(self, x: Floats) -> Floats:
        if self._unit:
            return unit_rows(x)
        return np.where(np.isfinite(x).all(1, keepdims=True), x, np.float32(0))
