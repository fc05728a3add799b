"""Ranking the lists of a model once, for indexes that were built with it and lie elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Route
from clipql.index.folder import META
from clipql.index.ivf.arrays import Arrays, prepared
from clipql.index.ivf.geometry import Floats
from clipql.index.ivf.knobs import DEFAULT_RECALL, Curves
from clipql.index.ivf.model import LEARNED, RANKING, identity_of, opened, space_of
from clipql.index.ivf.opened import ranked_lists
from clipql.storage.vectors.metrics import Metric

# the centroids themselves are for rows
_READ = tuple(name for name in (*LEARNED, *RANKING) if name not in ("list_small", "list_unit"))
FILES = (META, *(f"{name}.npy" for name in _READ))
# times the lists that recall asks for: a shard looks into five times as many for 200 rows, or where a filter leaves few
SPARE_LISTS = 6


class Router:
    """Ranks the lists of a model for indexes that lie elsewhere. Any number of threads may use it at once."""

    def __init__(self, folder: Path) -> None:
        """folder: has `FILES` of a model. Raises as `open_model` does."""
        meta, found = opened(folder, _READ)
        self.model, self.metric = identity_of(meta), Metric(meta["metric"])
        self._space, self._curves = space_of(meta, found["mean"]), Curves.from_meta(meta)
        lists = len(found["list_scale"])
        nothing: dict[str, NDArray[Any]] = {
            "start": np.zeros(lists + 1, np.int64),
            "rows": np.empty(0, np.uint32),
            "codes": np.empty((0, len(found["word_block"])), np.uint64),
            "scale": np.empty(0, np.float32),
            "list_small": np.empty((0, found["mean"].size), np.int8),
            "list_unit": np.empty(0, np.float32),
            "bias": np.zeros(int(self._space.biased), np.float32),
        }
        for array in nothing.values():
            array.setflags(write=False)  # as what is mapped, or the kernels are compiled once more
        self._arrays = prepared(Arrays(**{n: {**nothing, **found}[n] for n in Arrays._fields}))

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self._space.mean.size)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return len(self._arrays.list_scale)

    def route(self, query: Floats, recall: float = DEFAULT_RECALL, nprobe: int | None = None) -> Route:
        """The lists to look into for a (d,) query, those first that promise most: as many as a search of this recall
        needs, or `nprobe`, and some more.
        """
        q = np.ascontiguousarray(query, np.float32)
        wanted = nprobe or self._curves.pick(q, recall, self.lists).nprobe
        count = min(self.lists, SPARE_LISTS * wanted)
        return Route(self.model, q, ranked_lists(self._arrays, self._space.query(q), count))
