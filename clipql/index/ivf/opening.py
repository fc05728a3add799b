"""Opening what `build` wrote: mapped, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index.base import Vectors
from clipql.index.folder import read
from clipql.index.ivf.arrays import Arrays
from clipql.index.ivf.ranges import BOUNDS, SPAN, opened
from clipql.index.ivf.search import IvfIndex


def open_index(folder: str | Path, vectors: Vectors) -> IvfIndex:
    """Open what `build` wrote over the same vectors. DatabaseDamaged names a file that fails a check."""
    folder = Path(folder)
    meta = read(folder)
    missing = [name for name in Arrays._fields if f"{name}.npy" not in meta["files"]]
    if missing:
        raise DatabaseDamaged(f"{folder / missing[0]}.npy is not in the index; rebuild it")
    if vectors.dimension != meta["dimension"] or vectors.rows < meta["rows"]:
        raise VectorIndexError(
            f"the index in {folder} covers {meta['rows']} rows of {meta['dimension']} numbers; "
            f"the column has {vectors.rows} of {vectors.dimension}"
        )
    arrays = arrays_of(folder)
    bounds = [_mapped(folder, name) if f"{name}.npy" in meta["files"] else None for name in (BOUNDS, SPAN)]
    return IvfIndex(meta, arrays, vectors, opened(arrays, bounds[0], bounds[1], meta.get("longest_code")))


def arrays_of(folder: Path) -> Arrays:
    """The arrays of an index, mapped read-only. Plain views: Numba is slow to recognise a subclass of ndarray."""
    return Arrays(*(_mapped(folder, name) for name in Arrays._fields))


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
