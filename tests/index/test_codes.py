"""The random rotation of an index's codes keeps inner products, and spreads every vector evenly over the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from clipql.index.ivf.codes import BLOCK, plain_coder


@pytest.mark.parametrize("dimension", [3, 64, 500, 512, 513, 1536])
def test_a_rotation_keeps_inner_products_and_spreads_what_lies_in_few_numbers(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    coder = plain_coder(dimension, rng)
    wave = np.cos(np.arange(dimension) * 0.3)
    x = np.stack([np.eye(dimension)[0], np.eye(dimension)[-1], np.ones(dimension), wave, *rng.random((3, dimension))])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    turned, queries = x @ coder.rows.astype(float), x @ coder.query.T.astype(float)
    assert np.abs(turned @ queries.T - x @ x.T).max() < 1e-5
    share = (turned**2).reshape(len(x), -1, BLOCK).sum(2) * (turned.shape[1] / BLOCK)
    assert share.max() < 2.5
    assert share.min() > 0.3
    assert np.abs(turned).max() < 6.5 / np.sqrt(turned.shape[1])
