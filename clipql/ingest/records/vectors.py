"""A column of lists as vectors: an array of rows, and what is wrong with the rows that have none.

What must stay true: a row that is kept has a vector of the column's length whose numbers are finite float32s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipql.engine.arrow import numpy_numbers
from clipql.storage.vectors import kernels
from clipql.storage.vectors.segments import BLOCK_BYTES, LONGEST

_ALIKE = 0.9  # of the lists of a column that are taken for vectors
_KINDS = "float16, float32, float64 or integers of 8 or 16 bits"


@dataclass(frozen=True)
class Vectors:
    """values: (n, d) float16 or float32, of all rows. bad: (n,), where a row has no usable vector; None: nowhere."""

    values: NDArray[Any]
    bad: NDArray[np.bool_] | None


def absent(column: pa.Array) -> NDArray[np.bool_]:
    """Which rows of a batch are said to have no vector, bool (n,): those of NULL, and of a list without numbers."""
    missing = numpy_numbers(column.is_null())
    if not pa.types.is_fixed_size_list(column.type):
        missing = missing | (np.diff(numpy_numbers(column.offsets)) == 0)
    found: NDArray[np.bool_] = missing
    return found


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def holds_floats(kind: pa.DataType) -> bool:
    """Whether values of a type are lists of floats."""
    return is_list(kind) and bool(pa.types.is_floating(kind.value_type))


def refusal(kind: pa.DataType) -> str:
    """Why a column of a type cannot hold vectors, in words that follow its name; empty where it can."""
    if not is_list(kind):
        return f"is {kind}; expected a list of numbers a row"
    inner = kind.value_type
    small = pa.types.is_integer(inner) and inner.bit_width <= 16
    if not (pa.types.is_floating(inner) or small):
        return f"holds lists of {inner}; expected {_KINDS}"
    return ""


def dimension_of(column: pa.Array) -> int | None:
    """How many numbers most of the vectors of a column have; None where it has none."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    lengths = numpy_numbers(pc.drop_null(pc.list_value_length(column)))
    lengths = lengths[lengths > 0]
    return int(np.bincount(lengths).argmax()) if len(lengths) and lengths.max() <= LONGEST else None


def have_one_length(column: pa.Array) -> bool:
    """Whether the lists that are there are as long as each other, but for a few, and have more than one number."""
    lengths = numpy_numbers(pc.drop_null(pc.list_value_length(column)))
    found = dimension_of(column) or 0
    return found > 1 and bool(np.mean(lengths == found) >= _ALIKE)


def vectors_of(column: pa.Array, dimension: int) -> Vectors:
    """The vectors of a batch."""
    rows = len(column)
    missing = numpy_numbers(column.is_null()) if column.null_count else np.zeros(rows, np.bool_)
    if pa.types.is_fixed_size_list(column.type):
        if column.type.list_size != dimension:
            return Vectors(np.zeros((rows, dimension), np.float32), np.ones(rows, np.bool_))
        values = _numbers(column.values.slice(column.offset * dimension, rows * dimension)).reshape(rows, dimension)
    else:
        offsets = numpy_numbers(column.offsets).astype(np.int64, copy=False)
        missing |= np.diff(offsets) != dimension
        if missing.any():
            values = _gathered(column.values, offsets, missing, dimension)
        else:
            values = _numbers(column.values.slice(offsets[0], rows * dimension)).reshape(rows, dimension)
    bad = _not_finite(values, missing)
    return Vectors(values, bad if bad.any() else None)


def what_is_wrong(column: pa.Array, row: int, dimension: int) -> str:
    """Why a row of a batch has no usable vector, in words that follow the row's name."""
    if not column[row].is_valid:
        return "has no vector (NULL)"
    numbers = column[row].values
    if len(numbers) != dimension:
        return f"has a vector of {len(numbers):,} numbers; expected {dimension:,}"
    if numbers.null_count:
        return f"has NULL at position {pc.index(numbers.is_null(), True).as_py()} of its vector"
    narrow = _numbers(numbers)
    at = int(np.flatnonzero(~np.isfinite(narrow))[0])
    given = numbers[at].as_py()
    more = ", which float32 does not hold" if np.isfinite(given) else ""
    return f"has {given} at position {at} of its vector{more}"


def _numbers(values: pa.Array) -> NDArray[Any]:
    """Numbers as float16 where they are, and else as float32; NULL is NaN."""
    kind = values.type
    if values.null_count and pa.types.is_float16(kind):
        values = pc.cast(values, pa.float32())
    found = numpy_numbers(values)
    with np.errstate(over="ignore"):
        numbers: NDArray[Any] = found if found.dtype == np.float16 else found.astype(np.float32, copy=False)
    return numbers


def _gathered(values: pa.Array, offsets: NDArray[np.int64], missing: NDArray[np.bool_], dimension: int) -> NDArray[Any]:
    """The vectors of the rows that have one of the right length, zeros in the place of the others'."""
    first, last = int(offsets[0]), int(offsets[-1])
    numbers = _numbers(values.slice(first, last - first))
    out = np.zeros((len(missing), dimension), numbers.dtype)
    kept = np.flatnonzero(~missing)
    out[kept] = numbers[(offsets[kept] - first)[:, None] + np.arange(dimension)]
    return out


def _not_finite(values: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    step = max(1, BLOCK_BYTES // max(1, values.shape[1] * values.itemsize))
    bad = missing.copy()
    for first in range(0, len(values), step):
        block = values[first : first + step]
        if kernels.check(block)[0] >= 0:
            bad[first : first + step] |= ~np.isfinite(block).all(axis=1)
    return bad
