"""Compile every kernel once, so that no query waits for it: run by `make setup`, and by anyone after an installation.

Numba keeps what it compiled beside the source, or in the user's cache folder where that cannot be written.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from clipql.index import ivf
from clipql.index.rows import ArrayRows
from clipql.storage.vectors import chosen, kernels, row_numbers, rowwise
from clipql.storage.vectors.metrics import Metric


def warm() -> None:
    """Compile the kernels of the scan and of the ivf index."""
    kernels.warm()
    chosen.warm()
    rowwise.warm()
    row_numbers.warm()
    rng = np.random.default_rng(0)
    x, captions = rng.standard_normal((2, 2_000, 64)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        for metric in (Metric.COSINE, Metric.L2, Metric.DOT):
            for queries in (None, ArrayRows(captions)):
                index = ivf.build(ArrayRows(x), metric, Path(folder) / "ivf", queries=queries)
                index.search(captions[0].astype(np.float32), 3, among=np.ones(2_000, np.bool_))
                index.search(captions[0].astype(np.float32), 3)
                index.within(captions[0].astype(np.float32), 1e-3)


if __name__ == "__main__":
    warm()
