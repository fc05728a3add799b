"""Whether an index that rows were added to still finds what it found when it was built."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Index
from clipql.index.batch import nearest_each
from clipql.storage.catalog import IndexEntry
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

ASKED = 32  # queries of each kind
FALL = 0.05  # of recall, from which on lists are learnt anew
_K = 10


def falls(index: Index, store: ColumnStore, captions: ColumnStore | None, before: IndexEntry) -> bool:
    """Whether the recall of 10 for queries near the rows that came since is worse than was measured at the build.

    before: the index as it was. The queries are some of these rows, and their captions.
    """
    rows = np.linspace(before.rows, index.rows_covered - 1, ASKED).astype(np.int64)
    asked = {"image": store.take(rows), **({"text": captions.take(rows)} if captions else {})}
    metric = Metric(before.metric)
    return any(
        _recall(index, store, metric, queries) < before.recall[kind] - FALL
        for kind, queries in asked.items()
        if kind in before.recall
    )


def _recall(index: Index, store: ColumnStore, metric: Metric, queries: NDArray[np.float32]) -> float:
    among = np.zeros(store.rows, np.bool_)
    among[: index.rows_covered] = True
    _, exact = nearest_each(store, metric, queries, _K, among)
    sign = -1.0 if metric.larger_is_nearer else 1.0
    found = []
    for query, distances in zip(queries, exact, strict=True):
        limit = sign * distances[-1]
        near = sign * index.search(query, _K).distances
        found.append(np.mean(near <= limit + 1e-6 * abs(limit)))
    return float(np.mean(found))
