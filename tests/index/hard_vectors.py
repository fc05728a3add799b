"""Vectors that are hard to tell apart, as a column of segments, and the keys that float64 sorts them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.storage import files
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import metrics, segments
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

DIMENSION = 24
KINDS = ("random", "float16", "tied", "nearly tied", "of all lengths", "far from 0", "tiny", "with zeros")


def vectors(kind: str, seed: int, n: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIMENSION)).astype(np.float32)
    if kind == "tied":  # more of the same than are held beyond the k-th, and some that come twice
        x[::3] = np.random.default_rng(9).standard_normal(DIMENSION)
        x[1::30] = x[2::30]
    elif kind == "nearly tied":  # products of float32 tell many of them apart in the wrong order
        x = np.random.default_rng(9).standard_normal(DIMENSION) + 3e-7 * x
    elif kind == "of all lengths":
        x = x * 10.0 ** rng.integers(-5, 6, (n, 1))
    elif kind == "far from 0":
        x = x + 100
    elif kind == "tiny":
        x = x * 1e-22
    elif kind == "with zeros":
        x[rng.integers(0, n, n // 10)] = 0
    return x.astype(np.float16 if kind == "float16" else np.float32).astype(np.float32)


def stored(folder: Path, rows: NDArray[Any], dtype: str = "float32") -> ColumnStore:
    """A column of two segments."""
    made, cut = [], len(rows) // 3
    for first, part in ((0, rows[:cut]), (cut, rows[cut:])):
        path = folder / f"{first:012}-1-0.npy"
        path.unlink(missing_ok=True)
        with files.new_file(path) as file:
            writer = segments.SegmentWriter(file, path, first, rows.shape[1], dtype)
            writer.append(part, "the test", 0)
            made.append(writer.finish())
    return ColumnStore(folder, VectorColumn("v", folder.name, rows.shape[1], None, tuple(made)))


def keys_of(metric: Metric, x: NDArray[Any], query: NDArray[Any]) -> NDArray[np.float64]:
    """What rows are sorted by, in float64."""
    found = metrics.distances(metric, x, query)
    return np.where(np.isnan(found), np.inf, -found if metric.larger_is_nearer else found)
