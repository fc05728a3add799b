"""Lists of numbers as the vectors of a column: what came as Arrow's lists becomes a matrix, or is refused by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import numpy_numbers
from clipql.errors import VectorError
from clipql.storage.catalog import Table


def as_matrix(
    table: Table, name: str, column: pa.Array, row: int, source: str = "the insert", dimension: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """A list column as float32 (n, d), and which rows have a vector, None for all, where the column is optional.

    row: the number of the first within the source, which an error names. dimension: of the vectors before these, where
    the column has none yet. Raises VectorError where a list is not as long as the column's vectors.
    """
    lengths = numpy_numbers(column.value_lengths())
    known = table.column(name)
    there = lengths > 0 if known and known.optional and not lengths.all() else None
    if there is not None:
        found, _ = as_matrix(table, name, column.filter(pa.array(there)), row, source, dimension)
        values = np.zeros((len(lengths), found.shape[1]), np.float32)
        values[there] = found
        return values, there
    expected = (known.dimension if known else None) or dimension or (int(lengths[0]) if len(lengths) else 0)
    wrong = np.flatnonzero(lengths != expected) if expected else np.arange(len(lengths))
    if len(wrong):
        raise VectorError(
            f"{name} of {table.full_name} holds {expected or 'at least 1'} numbers; row {row + int(wrong[0]):,} of "
            f"{source} has {int(lengths[wrong[0]])}"
        )
    if pa.types.is_union(column.type.value_type):  # [number, 1.5] is an Array(Variant(Float64, UInt64))
        raise VectorError(
            f"{name} of {table.full_name} is given numbers of several types: make it CAST(…, 'Array(Float32)')"
        )
    values = numpy_numbers(column.flatten()).astype(np.float32, copy=False)
    if not len(lengths):
        return np.empty((0, max(expected, 1)), np.float32), None
    return values.reshape(len(lengths), expected), None


def check_there(table: Table, name: str, there: NDArray[np.bool_], row: int, source: str = "the insert") -> None:
    """Raise VectorError where a row without a vector comes to a column that needs one in each."""
    known = table.column(name)
    if known and not known.optional and not there.all():
        raise VectorError(
            f"{name} of {table.full_name} needs a vector for each row, and row {row + int(np.argmin(there)):,} of "
            f"{source} has none: leave it out (WHERE notEmpty({name})), or add the column to the filled table by "
            "ALTER TABLE … ADD COLUMN, whose rows may come without"
        )
