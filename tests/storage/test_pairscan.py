"""Pairs of rows whose products reach a limit, beside numpy's products."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipql.storage.vectors import pairscan
from clipql.storage.vectors.pairscan import BEGIN, TALL, WIDE, Columns, Rows

NOTHING = np.empty((0, 0), np.float32)
Numbers = NDArray[np.float32]


def whole(n: int, k: int, seed: int) -> Numbers:
    """Whole numbers, whose products float32 adds up without rounding, in any order."""
    return np.random.default_rng(seed).integers(-8, 9, (n, k)).astype(np.float32)


def found(rows: Rows, columns: Columns, limit: float, room: int) -> set[tuple[int, int]]:
    """All pairs, by as many calls as it takes with room for so many."""
    state, pairs = BEGIN, []
    i, j = np.full((2, room), -1, np.int64)
    while state.block < len(rows.first):
        state = pairscan.scan(rows, columns, np.float32(limit), state, i, j)
        pairs += zip(i[: state.found].tolist(), j[: state.found].tolist(), strict=True)
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@pytest.mark.parametrize("room", [TALL * WIDE, 150, 100_000])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (6, 16, 16), (7, 17, 3), (1_100, 33, 20), (513, 5, 67)])
def test_the_pairs_are_those_whose_products_reach_the_limit(n: int, m: int, k: int, room: int) -> None:
    x, y = whole(n, k, 1), whole(m, k, 2)
    products = x @ y.T
    for limit in (products.max() + 1, products.max(), np.median(products), products.min()):
        rows, columns = Rows(pairscan.padded(x), NOTHING), Columns(pairscan.side_by_side(y), NOTHING)
        wanted = set(zip(*(places.tolist() for places in np.nonzero(products >= limit)), strict=True))
        assert found(rows, columns, float(limit), room) == wanted


def test_a_pair_whose_short_forms_reach_the_limit_must_reach_it_with_the_longer_ones() -> None:
    x, y = whole(700, 2 * WIDE, 3), whole(40, 2 * WIDE, 4)
    rows = Rows(pairscan.padded(5 * np.ascontiguousarray(x[:, :5])), x)
    columns = Columns(pairscan.side_by_side(np.ascontiguousarray(y[:, :5])), y)
    both = (x[:, :5] @ y[:, :5].T >= 20) & (x @ y.T >= 100)
    wanted = set(zip(*(places.tolist() for places in np.nonzero(both)), strict=True))
    assert 10 < len(wanted) < both.size / 5
    assert found(rows, columns, 100, 200) == wanted


def test_numbers_that_are_none_reach_no_limit() -> None:
    x, y = whole(20, 4, 5), whole(20, 4, 6)
    x[3], y[5, 1] = np.nan, np.nan
    rows, columns = Rows(pairscan.padded(x), NOTHING), Columns(pairscan.side_by_side(y), NOTHING)
    every = found(rows, columns, -np.inf, 1_000)
    assert every == {(i, j) for i in range(20) for j in range(20) if i != 3 and j != 5}
