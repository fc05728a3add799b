"""One array as an index sees a column: for what lies in memory or in a single file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayRows:
    """The rows of a float16 or float32 (n, d) array, which may be mapped. Satisfies `Vectors`."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._array)

    @property
    def dimension(self) -> int:
        """Numbers in each vector."""
        return int(self._array.shape[1])

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[Any]]]:
        """Rows [first, last) as one block."""
        return [(first, self._array[first:last])]

    def take(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 (n, d) copies of these rows, in the order given."""
        return np.asarray(self._array[np.asarray(rows, np.int64)], np.float32)
