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
    rows = _spread(np.arange(before.rows, index.rows_covered), store.there)
    asked = {"image": store.take(rows)}
    if captions:
        asked["text"] = captions.take(_spread(rows, captions.there))
    metric = Metric(before.metric)
    return any(
        _recall(index, store, metric, queries) < before.recall[kind] - FALL
        for kind, queries in asked.items()
        if kind in before.recall and len(queries)
    )


def _spread(rows: NDArray[np.int64], there: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Some of these rows, from all over those that have a vector."""
    rows = rows if there is None else rows[there[rows]]
    return rows[np.linspace(0, len(rows) - 1, ASKED).astype(np.int64)] if len(rows) else rows


def _recall(index: Index, store: ColumnStore, metric: Metric, queries: NDArray[np.float32]) -> float:
    among = np.zeros(store.rows, np.bool_)
    among[: index.rows_covered] = True
    if store.there is not None:
        among &= store.there
    _, exact = nearest_each(store, metric, queries, _K, among)
    sign = -1.0 if metric.larger_is_nearer else 1.0
    found = []
    for query, distances in zip(queries, exact, strict=True):
        limit = sign * distances[-1]
        near = sign * index.search(query, _K).distances
        found.append(np.mean(near <= limit + 1e-6 * abs(limit)))
    return float(np.mean(found))
