"""The second pass of a build: encode every row and lay the codes out list by list, in bounded memory.

A row's final position is known before it is encoded (lists are counted first). Scattering 64-byte codes over a file
larger than memory would rewrite every page many times, so the file is cut into stretches of positions; codes arrive
in their stretch one after another, and then each stretch is put in order in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.folder import NewFolder
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Floats, Space, Workers
from clipql.index.ivf.train import Lists

CHUNK = 32_768
STRETCH = 4_000_000  # positions put in order at once: 300 MB of codes of 8 words


def chunks(vectors: Vectors, rows: int, size: int = CHUNK) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Stored rows [0, rows) in order, at most `size` at a time."""
    for first, block in vectors.blocks(0, rows):
        for a in range(0, min(len(block), rows - first), size):
            yield first + a, block[a : min(a + size, rows - first)]


@dataclass(frozen=True)
class Placed:
    """start: int64 (l + 1,). energy: float64 (l,), sum of |z|² of each list's residuals; square: the same of |y|²."""

    start: NDArray[np.int64]
    energy: NDArray[np.float64]
    square: NDArray[np.float64]


class _Stretches:
    """The final arrays, filled stretch by stretch in order of arrival, then sorted."""

    def __init__(self, folder: NewFolder, placed: int, words: int, biased: bool, stretch: int) -> None:
        self._arrays: dict[str, NDArray[Any]] = {
            "codes": folder.create("codes", (placed, words), np.uint64),
            "scale": folder.create("scale", (placed,), np.float32),
        }
        if biased:
            self._arrays["bias"] = folder.create("bias", (placed,), np.float32)
        else:
            folder.save("bias", np.empty(0, np.float32))
        self._position = folder.scratch("position", (placed,), np.uint32)
        self._stretch = stretch
        self._next = np.arange(0, placed, stretch)

    def add(self, position: NDArray[np.int64], **parts: NDArray[Any]) -> None:
        which = position // self._stretch
        for s in np.unique(which):
            rows = np.flatnonzero(which == s)
            a = int(self._next[s])
            b = a + len(rows)
            self._position[a:b] = position[rows]
            for name, array in self._arrays.items():
                array[a:b] = parts[name][rows]
            self._next[s] = b

    def sort(self) -> None:
        for first in range(0, len(self._position), self._stretch):
            part = slice(first, first + self._stretch)
            order = np.argsort(self._position[part])
            for array in self._arrays.values():
                array[part] = array[part][order]


def place(
    vectors: Vectors,
    space: Space,
    lists: Lists,
    owner: NDArray[np.int32],
    coder: Coder,
    folder: NewFolder,
    workers: Workers,
    seen: Callable[[int, Floats, NDArray[np.bool_]], None],
) -> Placed:
    """Write codes, scale, bias and rows.

    owner: int32 (rows,), -1 for a row in no list. seen(first, y, good) is called with each chunk.
    """
    rows = len(owner)
    size = np.bincount(owner[owner >= 0], minlength=lists.count)
    start = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    placed = int(start[-1])
    order = np.argsort(owner, kind="stable").astype(np.uint32)  # unplaced rows first
    by_list = folder.create("rows", (rows,), np.uint32)
    by_list[:placed], by_list[placed:] = order[rows - placed :], order[: rows - placed]
    position = np.empty(rows, np.uint32)
    position[by_list] = np.arange(rows, dtype=np.uint32)
    stretches = _Stretches(folder, placed, coder.words, space.biased, STRETCH)
    energy, square = np.zeros(lists.count), np.zeros(lists.count)
    centroids = lists.centroids() if lists.count * vectors.dimension < 100_000_000 else None
    for first, block in chunks(vectors, rows):
        y, good = space.rows(block, workers)
        seen(first, y, good)
        mine = np.flatnonzero(owner[first : first + len(y)] >= 0)
        y = y if len(mine) == len(y) else y[mine]
        which = owner[first + mine]
        centre = lists.small[which] * lists.scale[which, None] if centroids is None else centroids[which]
        norm = np.einsum("ij,ij->i", y, y)
        codes, scale, length = coder.encode(y - centre, workers)
        energy += np.bincount(which, length, lists.count)
        square += np.bincount(which, norm, lists.count)
        stretches.add(position[first + mine].astype(np.int64), codes=codes, scale=scale, bias=norm * np.float32(-0.5))
    stretches.sort()
    return Placed(start, energy, square)
