"""Connected components of pairs of numbers, by union-find: what near duplicates are grouped by.

Galler and Fischer, "An improved equivalence algorithm", 1964; the path halving of Tarjan and van Leeuwen, 1984.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel

Numbers = NDArray[np.int64]


class Union:
    """Things 0 to n - 1, united pair by pair; 8 bytes each, whatever the pairs."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def add(self, left: Numbers, right: Numbers) -> None:
        """Unite the two of each pair. int64 (m,) each."""
        _unite(self._parent, left, right)

    def components(self) -> Numbers:
        """The smallest of those that each hangs together with, int64 (n,)."""
        _flatten(self._parent)
        return self._parent


def components(n: int, left: Numbers, right: Numbers) -> Numbers:
    """The same for all pairs at once."""
    union = Union(n)
    union.add(left, right)
    return union.components()


@kernel
def _root(parent: Numbers, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def _unite(parent: Numbers, left: Numbers, right: Numbers) -> None:
    for k in range(left.size):
        a, b = _root(parent, left[k]), _root(parent, right[k])
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@kernel
def _flatten(parent: Numbers) -> None:
    for i in range(parent.size):
        parent[i] = parent[parent[i]]  # of a smaller one, which is flat already
