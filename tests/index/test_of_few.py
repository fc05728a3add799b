"""The nearest of a few rows to many queries are those that float64 finds, whatever the vectors; numpy is the judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipql.index import of_few
from clipql.index.batch import nearest_each
from clipql.index.of_few import FewRows
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore
from tests.index.hard_vectors import KINDS, keys_of, stored, vectors

ROWS, QUERIES = 333, 120  # neither is a multiple of what is looked at together


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", list(Metric))
def test_they_are_those_of_float64_or_it_says_that_it_cannot_tell(
    tmp_path: Path, metric: Metric, kind: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_few, "_AT_ONCE", 50)
    x, queries = vectors(kind, 1, ROWS), vectors(kind, 2, QUERIES)
    queries[0] = x[5]
    store = stored(tmp_path, x, "float16" if kind == "float16" else "float32")
    among = np.random.default_rng(3).random(ROWS) < 0.6
    asked = queries.astype(np.float16) if kind == "float16" else queries

    rows, distances, told = FewRows(store, metric, among).nearest(asked, k)

    theirs, expected = nearest_each(store, metric, queries, k, among)
    assert rows[told].tolist() == theirs[told].tolist()
    np.testing.assert_allclose(distances[told], expected[told], rtol=1e-12, atol=1e-15)
    allowed = np.flatnonzero(among)
    for query, own in zip(queries[told], rows[told], strict=True):
        every = keys_of(metric, x, query)
        best = allowed[np.lexsort((allowed, every[allowed]))][:k]
        np.testing.assert_allclose(every[own], every[best], rtol=1e-9, atol=1e-14)
    if kind in ("random", "float16"):
        assert told.all()


def test_a_query_of_zeros_or_of_what_float32_does_not_hold_is_left(tmp_path: Path) -> None:
    store = stored(tmp_path, vectors("random", 1, ROWS))
    queries = vectors("random", 2, 4)
    queries[0], queries[1], queries[2, 3] = 0, 1e-30, 1e30

    for metric in Metric:
        _, _, told = FewRows(store, metric).nearest(queries, 2)
        assert told.tolist() == [metric in (Metric.L2, Metric.L2_SQUARED)] * 2 + [False, True], metric


def test_rows_that_are_larger_than_products_in_float32_allow_are_left(tmp_path: Path) -> None:
    x = vectors("random", 1, ROWS)
    x[7] *= 1e12

    _, _, told = FewRows(stored(tmp_path, x), Metric.L2).nearest(vectors("random", 2, 4), 2)

    assert not told.any()


def test_a_run_of_rows_is_given_as_it_is_mapped_and_other_rows_as_copies(tmp_path: Path) -> None:
    x = vectors("float16", 1, 90)
    store: ColumnStore = stored(tmp_path, x, "float16")  # its segments end at 30 and 90
    for rows, mapped in (
        (np.arange(30), True), (np.arange(31, 90), True), (np.arange(20, 40), False), (np.array([5, 4, 7, 6]), False),
        (np.array([3, 4, 4, 6]), False), (np.array([0, 89]), False), (np.array([8]), True),
    ):  # fmt: skip
        found = store.stored(rows)
        assert found.dtype == np.float16
        assert found.tolist() == x[rows].tolist()
        assert found.flags.writeable is not mapped
    assert len(store.stored(np.arange(0))) == 0
    for beyond in ([-1, 0], [89, 90], [200]):
        with pytest.raises(IndexError):
            store.stored(np.array(beyond))
