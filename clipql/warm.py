"""Compile every kernel once, so that no query waits for it: run by `make setup`, and by anyone after an installation.

Numba keeps what it compiled beside the source, or in the user's cache folder where that cannot be written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index import ivf
from clipql.vectors import kernels
from clipql.vectors.metrics import Metric


class _Rows:
    """A few vectors in memory, as an index sees a column."""

    def __init__(self, x: NDArray[Any]) -> None:
        self._x = x

    @property
    def rows(self) -> int:
        return len(self._x)

    @property
    def dimension(self) -> int:
        return int(self._x.shape[1])

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[Any]]]:
        return [(first, self._x[first:last])]

    def take(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        return self._x[np.asarray(rows, np.int64)].astype(np.float32)


def warm() -> None:
    """Compile the kernels of the scan and of the ivf index."""
    kernels.warm()
    rng = np.random.default_rng(0)
    x, captions = rng.standard_normal((2, 2_000, 64)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        for metric in (Metric.COSINE, Metric.L2, Metric.DOT):
            for queries in (None, _Rows(captions)):
                index = ivf.build(_Rows(x), metric, Path(folder) / "ivf", queries=queries)
                index.search(captions[0].astype(np.float32), 3, among=np.ones(2_000, np.bool_))
                index.search(captions[0].astype(np.float32), 3)


if __name__ == "__main__":
    warm()
