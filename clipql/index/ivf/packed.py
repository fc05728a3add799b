"""The arrays of an index in one: where each lies and what shape it has.

To hand 27 arrays over to a compiled loop takes 15 µs of a search of 180, and one takes 7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, uint64
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.ivf.arrays import Arrays, Integers
from clipql.index.ivf.rescore import Table
from clipql.storage.vectors.bits import kernel, pointer

PARTS = 3  # numbers that stand for an array: its address and at most two sizes
# what each array holds, as `unpacked` takes it: those of Arrays, then those of Table
KINDS = (
    "int64", "uint32", "uint64", "float32", "float32", "uint64", "float32", "float32", "int8", "float32", "float32",
    "uint16", "int64", "uint16", "int32", "float32", "uint16", "int32", "float32", "float32", "float32", "int64",
    "uint64", "int64", "bool", "int64", "int64",
)  # fmt: skip


def pack(arrays: Arrays, table: Table) -> Integers:
    """int64 (27, 3). Both must be kept as long as it is used. Raises VectorIndexError for an array of another kind."""
    told, names = np.zeros((len(KINDS), PARTS), np.int64), (*arrays._fields, *table._fields)
    parts: list[NDArray[Any]] = [*arrays, *table]
    for at, (array, kind, name) in enumerate(zip(parts, KINDS, names, strict=True)):
        if array.dtype != kind or not array.flags.c_contiguous:
            raise VectorIndexError(
                f"{name} of the index holds {array.dtype} with strides {array.strides}; expected {kind} in one piece: "
                "build the index anew"
            )
        told[at, 0], told[at, 1 : 1 + array.ndim] = array.ctypes.data, array.shape
    return told


@kernel
def unpacked(told: Integers) -> tuple[Arrays, Table]:
    """What was packed."""
    arrays = Arrays(
        carray(pointer(uint64(told[0, 0])), told[0, 1], np.int64),
        carray(pointer(uint64(told[1, 0])), told[1, 1], np.uint32),
        carray(pointer(uint64(told[2, 0])), (told[2, 1], told[2, 2]), np.uint64),
        carray(pointer(uint64(told[3, 0])), told[3, 1], np.float32),
        carray(pointer(uint64(told[4, 0])), told[4, 1], np.float32),
        carray(pointer(uint64(told[5, 0])), (told[5, 1], told[5, 2]), np.uint64),
        carray(pointer(uint64(told[6, 0])), told[6, 1], np.float32),
        carray(pointer(uint64(told[7, 0])), told[7, 1], np.float32),
        carray(pointer(uint64(told[8, 0])), (told[8, 1], told[8, 2]), np.int8),
        carray(pointer(uint64(told[9, 0])), told[9, 1], np.float32),
        carray(pointer(uint64(told[10, 0])), told[10, 1], np.float32),
        carray(pointer(uint64(told[11, 0])), (told[11, 1], told[11, 2]), np.uint16),
        carray(pointer(uint64(told[12, 0])), told[12, 1], np.int64),
        carray(pointer(uint64(told[13, 0])), (told[13, 1], told[13, 2]), np.uint16),
        carray(pointer(uint64(told[14, 0])), told[14, 1], np.int32),
        carray(pointer(uint64(told[15, 0])), told[15, 1], np.float32),
        carray(pointer(uint64(told[16, 0])), (told[16, 1], told[16, 2]), np.uint16),
        carray(pointer(uint64(told[17, 0])), told[17, 1], np.int32),
        carray(pointer(uint64(told[18, 0])), told[18, 1], np.float32),
        carray(pointer(uint64(told[19, 0])), told[19, 1], np.float32),
        carray(pointer(uint64(told[20, 0])), told[20, 1], np.float32),
    )
    table = Table(
        carray(pointer(uint64(told[21, 0])), told[21, 1], np.int64),
        carray(pointer(uint64(told[22, 0])), told[22, 1], np.uint64),
        carray(pointer(uint64(told[23, 0])), told[23, 1], np.int64),
        carray(pointer(uint64(told[24, 0])), told[24, 1], np.bool_),
        carray(pointer(uint64(told[25, 0])), told[25, 1], np.int64),
        carray(pointer(uint64(told[26, 0])), told[26, 1], np.int64),
    )
    return arrays, table
