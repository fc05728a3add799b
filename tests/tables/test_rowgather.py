"""Rows picked out of Arrow messages are those that pyarrow reads, and no message makes the loop read beyond it."""

from __future__ import annotations

import mmap
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from clipql.tables import row_loops, rowgather
from clipql.tables.rowwriter import PLACES

ROWS = 40


def block(first: int = 1_000, step: int = 1) -> pa.RecordBatch:
    """Forty rows of every kind of column, with NULL in some, whose numbers go up by a step."""
    numbers = [first + i * step for i in range(ROWS)]
    some = [i % 3 != 0 for i in range(ROWS)]

    def holed(values: list[object]) -> list[object]:
        return [v if there else None for v, there in zip(values, some, strict=True)]

    words = ["", "two words", "ünï", "'; DROP", "\0\t\n", "long " * 50]
    columns = {
        "_row": pa.array(numbers, pa.uint64()),
        "words": pa.array([words[i % len(words)] for i in range(ROWS)], pa.string()),
        "some words": pa.array(holed([words[i % len(words)] for i in range(ROWS)]), pa.string()),
        "bytes": pa.array([bytes([i, 255 - i]) * i for i in range(ROWS)], pa.binary()),
        "tags": pa.array([["a"] * (i % 4) for i in range(ROWS)], pa.list_(pa.string())),
        "place": pa.array([{"x": i, "y": str(i)} for i in range(ROWS)]),
        "kind": pa.array([str(i % 3) for i in range(ROWS)]).dictionary_encode(),
        "small": pa.array([i - 20 for i in range(ROWS)], pa.int8()),
        "some numbers": pa.array(holed([i * 1e9 for i in range(ROWS)]), pa.float64()),
        "truth": pa.array(holed([i % 5 == 0 for i in range(ROWS)]), pa.bool_()),
        "day": pa.array([date(2020, 1, 1 + i % 28) for i in range(ROWS)]),
        "time": pa.array([datetime(2020, 1, 1, i % 24, tzinfo=UTC) for i in range(ROWS)], pa.timestamp("ms", "UTC")),
        "money": pa.array([Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(20, 2)),
        "hash": pa.array([bytes([i]) * 16 for i in range(ROWS)], pa.binary(16)),
        "after": pa.array([f"row {n}" for n in numbers]),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def messages(*blocks: pa.RecordBatch) -> tuple[bytes, NDArray[np.uint64], NDArray[np.int64]]:
    """Their messages one after the other, where each begins, and its bytes."""
    whole = [b.serialize().to_pybytes() for b in blocks]
    sizes = np.array([len(w) for w in whole], np.int64)
    return b"".join(whole), np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64), sizes


def address(data: bytes) -> np.uint64:
    return np.uint64(np.frombuffer(data, np.uint8).ctypes.data)


@pytest.mark.parametrize("step", [1, 3])
def test_rows_are_those_that_pyarrow_reads(step: int) -> None:
    blocks = [block(0, step), block(ROWS * step, step)]
    data, starts, sizes = messages(*blocks)
    whole = pa.Table.from_batches(blocks)
    at = [*np.random.default_rng(1).permutation(2 * ROWS).tolist(), 5, 5]
    which = np.array([i // ROWS for i in at])
    rows = np.array([i * step for i in at], np.uint64)
    located, wrong = rowgather.locate(address(data) + starts[which], sizes[which], rows)
    assert wrong == len(rows)
    columns = rowgather.columns_of(whole.schema)
    assert set(whole.schema.names) - set(columns) == {"tags", "place", "kind"}
    for name, found in zip(columns, rowgather.taken(list(columns.values()), located), strict=True):
        assert found is not None
        found.validate(full=True)
        assert found.to_pylist() == whole.column(name).take(at).to_pylist(), name
        assert found.type == whole.schema.field(name).type


@pytest.mark.parametrize(("row", "step"), [(999, 1), (1_040, 1), (1_001, 3), (2**63, 1), (0, 3)])
def test_a_row_that_is_not_there_is_told_of(row: int, step: int) -> None:
    data, starts, sizes = messages(block(1_000, step))
    rows = np.array([1_000, row], np.uint64)
    _, wrong = rowgather.locate(address(data) + starts[[0, 0]], sizes[[0, 0]], rows)
    assert wrong == 1


def test_batches_are_found_by_the_rows_that_they_begin_with() -> None:
    random = np.random.default_rng(3)
    first = np.unique(random.integers(5, 2**40, 300)).astype(np.uint64)
    start = np.arange(len(first), dtype=np.uint64) * np.uint64(100)
    batches, checked = rowgather.Batches(first, start, start + np.uint64(90), 7_000), random.random(len(first)) < 0.5
    rows = np.concatenate([first, first + np.uint64(1), random.integers(first[0], 2**41, 300).astype(np.uint64)])
    numbers, messages, sizes, state = batches.of(rows, checked)
    expected = np.searchsorted(first, rows, side="right") - 1
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(messages, 7_000 + 100 * expected)
    assert set(sizes.tolist()) == {90}
    assert state == row_loops.SOME_UNCHECKED
    assert batches.of(rows[checked[expected]], checked)[3] == row_loops.ALL_CHECKED
    assert batches.of(np.array([first[0], first[0] - np.uint64(1)], np.uint64), checked)[3] == 1


def test_a_file_of_one_batch_has_nothing_compiled_anew() -> None:
    rowgather.warm()
    known = list(row_loops.batches.signatures)
    places = np.frombuffer(np.zeros(1, PLACES).tobytes(), PLACES)  # as they are read, which nobody may write to
    rowgather.Batches(places["first"], places["start"], places["end"], 0).of(np.zeros(1, np.uint64), np.ones(1, bool))
    assert row_loops.batches.signatures == known


def test_no_message_has_the_loop_read_beyond_it() -> None:
    """Each message ends where a page begins that nobody may read: a look behind it would end the process."""
    whole = block()
    columns = rowgather.columns_of(whole.schema)
    data = whole.serialize().to_pybytes()
    room = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
    guarded = mmap.mmap(-1, room + mmap.PAGESIZE)
    _forbid(guarded, room, mmap.PAGESIZE)
    start = room - len(data)
    first = np.frombuffer(guarded, np.uint8, len(data), start)
    random, refused, read = np.random.default_rng(7), 0, 0
    rows = np.arange(1_000, 1_000 + ROWS).astype(np.uint64)
    for number in range(4_000):
        damaged = bytearray(data)
        places = random.integers(0, len(data) if number % 2 else 1_200, random.integers(1, 4))
        for at in places.tolist():
            damaged[at] = int(random.choice([0, 1, 127, 128, 255, damaged[at] ^ (1 << int(random.integers(8)))]))
        guarded[start : start + len(data)] = bytes(damaged)
        size = np.full(ROWS, len(data) if number % 5 else int(random.integers(0, len(data))), np.int64)
        shift = np.uint64(len(data) - int(size[0]))  # a shorter one ends there, too
        guarded[start + int(shift) : start + len(data)] = bytes(damaged[: int(size[0])])
        located, wrong = rowgather.locate(np.full(ROWS, np.uint64(first.ctypes.data) + shift), size, rows)
        if wrong < ROWS:
            refused += 1
            continue
        found = rowgather.taken(list(columns.values()), located)
        read += sum(array is not None for array in found)
        refused += sum(array is None for array in found)
    assert refused > 500
    assert read > 500
    del first


def _forbid(mapped: mmap.mmap, at: int, size: int) -> None:
    """Take all rights from a part of a map."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    view = np.frombuffer(mapped, np.uint8)
    if libc.mprotect(ctypes.c_void_p(view.ctypes.data + at), ctypes.c_size_t(size), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
