"""A stand-in for a GPU: numpy behind the interface of a device, with a memory that may be short.

What runs on it is the code that runs on a GPU; only its arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.storage.vectors.device import DeviceFull


class NumpyDevice:
    """most: numbers of the largest product that there is memory for; None for any. asked: products that were made."""

    name = "numpy"

    def __init__(self, most: int | None = None) -> None:
        self.most, self.asked, self.refused, self.kinds = most, 0, 0, set[str]()
        self._inside = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self._inside += 1
        try:
            with np.errstate(all="ignore"):
                yield
        finally:
            self._inside -= 1

    def sent(self, x: NDArray[Any]) -> Any:
        assert self._inside, "work is done where errors are translated"
        self.kinds.add(str(x.dtype))
        return np.array(x)

    def fetched(self, x: Any) -> NDArray[Any]:
        assert self._inside
        return np.array(x)

    def wide(self, x: Any) -> Any:
        return x.astype(np.float32)

    def products(self, a: Any, b: Any) -> Any:
        """Added up one after the other, as no BLAS does it: the error that the margin must hold for."""
        assert a.dtype == b.dtype == np.float32
        if self.most is not None and len(a) * len(b) > self.most:
            self.refused += 1
            raise DeviceFull("numpy has too little memory")
        self.asked += len(a) * len(b)
        out = np.zeros((len(a), len(b)), np.float32)
        for j in range(a.shape[1]):
            out += a[:, j : j + 1] * b[:, j]
        return out

    def lengths(self, x: Any) -> Any:
        return np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        scores = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32)
        # of equal ones the last, as a device may
        places = scores.argmax(axis=1)[:, None] if k == 1 else np.argsort(scores, axis=1)[:, ::-1][:, :k]
        return np.take_along_axis(scores, places, axis=1), places

    def at_least(self, scores: Any, limit: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.nonzero(scores >= np.float32(limit))
        return rows, columns

    def side_by_side(self, one: Any, other: Any) -> Any:
        return np.concatenate([one, other], axis=1)

    def picked(self, x: Any, places: Any) -> Any:
        return np.take_along_axis(x, places, axis=1)

    def zeros(self, shape: tuple[int, int]) -> Any:
        return np.zeros(shape)

    def add_up(self, sums: Any, lists: Any, x: Any) -> None:
        np.add.at(sums, lists, x.astype(np.float64))

    def not_below_zero(self, x: Any) -> Any:
        return np.maximum(x, 0)
