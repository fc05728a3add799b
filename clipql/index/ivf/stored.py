"""Where the stored vectors of a column are, as the loops take it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.ivf.rescore import Table
from clipql.storage.vectors import direct


def stored_blocks(vectors: Vectors, rows: int) -> Sequence[tuple[int, NDArray[np.floating]]]:
    """First rows and blocks of the stored vectors, which must be kept alive as long as their addresses are used."""
    found = vectors.blocks(0, rows)
    for row, block in found:
        if block.dtype not in (np.float16, np.float32) or (block.shape[1] > 1 and block.strides[1] != block.itemsize):
            raise VectorIndexError(
                f"the block at row {row} is {block.dtype} with strides {block.strides}; "
                "rows must be float16 or float32, each in one piece"
            )
    return found


def table_of(blocks: Sequence[tuple[int, NDArray[np.floating]]], files: direct.Files) -> Table:
    there = len(files.descriptor) == len(blocks)
    return Table(
        np.array([row for row, _ in blocks], np.int64),
        np.array([b.ctypes.data for _, b in blocks], np.uint64),
        np.array([b.strides[0] for _, b in blocks], np.int64),
        np.array([b.dtype == np.float16 for _, b in blocks], np.bool_),
        files.descriptor if there else np.full(len(blocks), -1, np.int64),
        files.offset if there else np.zeros(len(blocks), np.int64),
    )
