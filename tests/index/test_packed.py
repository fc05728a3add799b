"""The arrays of an index reach the loops as they are."""

from __future__ import annotations

import numpy as np
import pytest
from numba import literal_unroll
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.ivf.arrays import Arrays
from clipql.index.ivf.packed import KINDS, pack, unpacked
from clipql.index.ivf.rescore import Table
from clipql.storage.vectors.bits import kernel

OF_TWO = {"codes", "list_codes", "list_small", "parents", "turn", "list_turn"}
NAMES = (*Arrays._fields, *Table._fields)


def made() -> tuple[Arrays, Table]:
    """Each array with numbers and a length of its own."""
    found = [
        np.arange(2 * (at + 1)).reshape((2, at + 1) if name in OF_TWO else -1).astype(kind) + np.array(at).astype(kind)
        for at, (name, kind) in enumerate(zip(NAMES, KINDS, strict=True))
    ]
    return Arrays(*found[: len(Arrays._fields)]), Table(*found[len(Arrays._fields) :])


@kernel
def sums(told: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """The sum of each array, and its numbers."""
    arrays, table = unpacked(told)
    at = 0
    for array in literal_unroll(arrays):
        out[at, 0], out[at, 1] = array.astype(np.float64).sum(), array.size
        at += 1
    for array in literal_unroll(table):
        out[at, 0], out[at, 1] = array.astype(np.float64).sum(), array.size
        at += 1


def test_each_array_is_in_its_place_with_its_numbers() -> None:
    arrays, table = made()
    out = np.zeros((len(KINDS), 2))
    sums(pack(arrays, table), out)
    expected = [[array.astype(np.float64).sum(), array.size] for array in (*arrays, *table)]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_another_kind_is_refused_by_its_name(name: str) -> None:
    arrays, table = made()
    if name in Arrays._fields:
        arrays = arrays._replace(**{name: getattr(arrays, name).astype(np.complex128)})
    else:
        table = table._replace(**{name: getattr(table, name).astype(np.complex128)})
    with pytest.raises(VectorIndexError, match=f"^{name} of the index holds complex128"):
        pack(arrays, table)
