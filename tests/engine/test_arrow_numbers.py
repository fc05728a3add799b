"""Arrow's numbers as numpy's are those that pyarrow itself gives, wherever a column begins and whatever is NULL."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clipql.engine.arrow import numpy_numbers

KINDS = [
    *(pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
]  # fmt: skip


def values(kind: pa.DataType, *, nulls: bool) -> pa.Array:
    rows = 37
    numbers = np.arange(rows) % 2 == 0 if kind == pa.bool_() else np.arange(rows).astype(kind.to_pandas_dtype())
    return pa.array(numbers, kind, mask=np.arange(rows) % 5 == 3 if nulls else None)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_numbers_are_those_of_pyarrow_from_any_row_on_and_in_any_pieces(kind: pa.DataType) -> None:
    whole = values(kind, nulls=False)
    for first in (0, 1, 7, 8, 9, 36, 37):
        for rows in (0, 1, 8, 37):
            piece = whole.slice(first, rows)
            found, expected = numpy_numbers(piece), piece.to_numpy(zero_copy_only=False)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)
    for pieces in ([], [whole], [whole.slice(3, 9), whole.slice(0, 0), whole.slice(20)]):
        column = pa.chunked_array(pieces, kind)
        assert np.array_equal(numpy_numbers(column), column.to_numpy())
        assert numpy_numbers(column).dtype == column.to_numpy().dtype


@pytest.mark.parametrize("kind", [k for k in KINDS if k != pa.bool_()], ids=str)
def test_null_is_nan_as_pyarrow_has_it_or_the_number_asked_for(kind: pa.DataType) -> None:
    column = values(kind, nulls=True)
    piece = column.slice(2, 20)
    if kind != pa.float16():
        assert np.array_equal(numpy_numbers(piece), piece.to_numpy(zero_copy_only=False), equal_nan=True)
    filled = numpy_numbers(piece, null=0)
    assert filled.dtype == np.dtype(kind.to_pandas_dtype())
    assert filled.tolist() == [0 if v is None else v for v in piece.to_pylist()]


def test_null_among_truth_values_is_what_was_asked_for() -> None:
    column = values(pa.bool_(), nulls=True)
    assert numpy_numbers(column, null=0).tolist() == [bool(v) for v in column.to_pylist()]
