"""A column's vectors as one run of rows, whatever segments they lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged
from clipql.storage import files
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import chosen, kernels, metrics, segments
from clipql.storage.vectors import store as stores
from clipql.storage.vectors.store import ColumnStore

SIZES = (1, 4, 7, 1, 12)
DTYPES = ("float16", "float32", "float16", "float32", "float16")


@pytest.fixture(scope="module")
def column(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VectorColumn, NDArray[np.float32]]:
    """A column of five segments, half of them float16, and all its vectors."""
    folder, found, arrays, first = tmp_path_factory.mktemp("column"), [], [], 0
    for size, dtype in zip(SIZES, DTYPES, strict=True):
        array = np.random.default_rng(first).standard_normal((size, 5)).astype(dtype)
        path = folder / f"{first:012d}-1-0.npy"
        with files.new_file(path) as file:
            writer = segments.SegmentWriter(file, path, first, 5, dtype)
            writer.append(array, "the test", 0)
            found.append(writer.finish())
        arrays.append(array.astype(np.float32))
        first += size
    return folder, VectorColumn("v", "column-0", 5, None, tuple(found)), np.concatenate(arrays)


Column = tuple[Path, VectorColumn, NDArray[np.float32]]


def test_a_store_has_the_rows_of_all_its_segments(column: Column) -> None:
    folder, described, vectors = column
    found = ColumnStore(folder, described)
    assert (found.rows, found.dimension) == (25, 5)
    assert found.largest >= np.linalg.norm(vectors, axis=1).max()
    assert [found.vector_bytes(i) for i in range(25)] == [v.tobytes() for v in vectors]


@given(st.lists(st.integers(0, 24)))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_take_gives_copies_of_any_rows_in_the_order_given(column: Column, rows: list[int]) -> None:
    folder, described, vectors = column
    found = ColumnStore(folder, described).take(np.array(rows, np.uint64))
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors[rows].reshape(-1, 5))


@given(st.integers(0, 25), st.none() | st.integers(0, 40))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_blocks_cover_a_run_of_rows_in_order_without_gaps(column: Column, first: int, last: int | None) -> None:
    folder, described, vectors = column
    blocks = ColumnStore(folder, described).blocks(first, last)
    at = first
    for start, block in blocks:
        assert start == at
        assert len(block)
        at += len(block)
    parts = [b.astype(np.float32) for _, b in blocks]
    joined = np.concatenate(parts) if parts else np.empty((0, 5), np.float32)
    assert np.array_equal(joined, vectors[first:last])


@pytest.mark.parametrize("rows", [[25], [-1], [0, 100]])
def test_a_row_that_is_not_there_is_an_error(column: Column, rows: list[int]) -> None:
    store = ColumnStore(*column[:2])
    with pytest.raises(IndexError, match="of 25"):
        store.take(np.array(rows))
    with pytest.raises(IndexError, match="of 25"):
        store.vector_bytes(rows[-1])


def test_a_new_store_shares_the_mappings_of_the_old_one(column: Column) -> None:
    old = ColumnStore(*column[:2])
    new = ColumnStore(*column[:2], old)
    pairs: list[tuple[Any, Any]] = [(a[1], b[1]) for a, b in zip(old.blocks(), new.blocks(), strict=True)]
    assert all(np.shares_memory(a, b) for a, b in pairs)


def test_a_store_with_a_missing_run_of_rows_is_damaged(column: Column) -> None:
    folder, described, _ = column
    gap = VectorColumn("v", "column-0", 5, None, (*described.segments[:1], *described.segments[2:]))
    with pytest.raises(DatabaseDamaged, match=f"{folder} lacks rows 1 to 4"):
        ColumnStore(folder, gap)


def test_an_empty_column_has_no_rows_and_an_empty_vector_for_ddl(tmp_path: Path) -> None:
    store = ColumnStore(tmp_path, VectorColumn("v", "column-0"))
    assert (store.rows, store.dimension, store.blocks(), store.vector_bytes(0)) == (0, 0, [], b"")
    assert store.take(np.array([], np.uint64)).shape == (0, 0)


@pytest.mark.parametrize("metric", list(metrics.Metric))
@pytest.mark.parametrize("dimension", [1, 3, 16, 17, 512, 770])
def test_equal_vectors_have_equal_distances_whatever_they_are_computed_with(
    metric: metrics.Metric, dimension: int
) -> None:
    rng = np.random.default_rng(dimension)
    row, query = rng.standard_normal((2, dimension)).astype(np.float32)
    alone = metrics.distances(metric, row[None], query)[0]
    for n in (2, 3, 7, 50, 333):
        others = rng.standard_normal((n, dimension)).astype(np.float32)
        others[n // 2 :] = row
        assert set(metrics.distances(metric, others, query)[n // 2 :].tolist()) == {alone}


def test_many_rows_are_widened_as_few_are(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, described, vectors = column
    rows = np.random.default_rng(0).integers(0, 25, 200)
    monkeypatch.setattr(stores, "_MANY", 1)
    assert np.array_equal(ColumnStore(folder, described).take(rows), vectors[rows])


def test_every_float16_is_widened_to_the_same_number() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    wanted = every.astype(np.float32)
    np.testing.assert_array_equal(kernels.as_float32(every), wanted)
    np.testing.assert_array_equal(kernels.as_float32(every[:, ::2]), wanted[:, ::2])
    np.testing.assert_array_equal(kernels.rows_as_float32(every, np.array([7, 0, 7])), wanted[[7, 0, 7]])
    np.testing.assert_array_equal(kernels.rows_as_float32(wanted, np.array([7, 0])), wanted[[7, 0]])


@given(st.lists(st.floats() | st.floats(width=32)))
def test_distances_are_rounded_to_float32_where_that_holds_them(numbers: list[float]) -> None:
    values, smallest = np.array(numbers), float(np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        held = (np.abs(values) >= smallest) & (np.abs(values) <= kernels.LARGEST_FLOAT)
        expected = np.where(held, values.astype(np.float32).astype(np.float64), values)
    found = chosen.as_float32(values, smallest, kernels.LARGEST_FLOAT)
    np.testing.assert_array_equal(found, expected)
    assert (np.signbit(found) == np.signbit(expected)).all()
