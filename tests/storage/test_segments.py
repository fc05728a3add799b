"""Segment files: what is taken, what is refused with file and row, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, VectorError
from clipql.storage import files
from clipql.storage.catalog import Segment
from clipql.storage.vectors import segments


def saved(folder: Path, array: Any, name: str = "img_emb_0.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


def written(folder: Path, array: NDArray[Any], dtype: str, first: int = 0) -> Segment:
    path = folder / f"{first:012d}-1-0.npy"
    with files.new_file(path) as file:
        writer = segments.SegmentWriter(file, path, first, array.shape[1], dtype)
        writer.append(array, "the test", 0)
        return writer.finish()


def grid(rows: int, dimension: int, dtype: Any = np.float32) -> NDArray[Any]:
    return (np.arange(rows * dimension).reshape(rows, dimension) / 8).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_segment_is_a_plain_npy_file_with_the_same_numbers(tmp_path: Path, dtype: str) -> None:
    array = grid(5, 3, dtype)
    segment = written(tmp_path, array, dtype)
    found = np.load(tmp_path / segment.file, allow_pickle=False)
    assert found.dtype == dtype
    assert np.array_equal(found, array)
    assert (segment.rows, segment.dimension, segment.dtype, segment.offset) == (5, 3, dtype, 128)
    assert segment.largest >= np.linalg.norm(array.astype(np.float64), axis=1).max()
    assert np.array_equal(segments.map_segment(tmp_path, segment), array)
    segments.verify(tmp_path, segment)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 5)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_float16_is_chosen_exactly_where_it_loses_nothing(array: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore"):
        lossless = bool((array.astype(np.float16).astype(np.float32) == array).all())
    assert segments.fits_float16(array) == lossless


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (0.5, True),
        (-0.0, True),
        (65504, True),
        (65505, False),
        (2.0**-24, True),
        (2.0**-25, False),
        (0.1, False),
        (1e30, False),
    ],
)
def test_the_edges_of_float16_are_known(value: float, fits: bool) -> None:
    assert segments.fits_float16(np.array([[0.5, 1], [value, 1]], np.float32)) is fits


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_float_and_byte_order_and_npy_version_is_read(
    tmp_path: Path, dtype: str, version: tuple[int, int]
) -> None:
    array = grid(7, 3, dtype)
    path = tmp_path / "img_emb_0.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    found = segments.read_header(path)
    assert (found.rows, found.dimension, found.dtype) == (7, 3, np.dtype(dtype))
    assert found.stored_as_is == (dtype in ("<f2", "<f4"))
    blocks = [b.copy() for _, b in segments.read_blocks(found)]
    assert np.array_equal(np.concatenate(blocks), array.astype(np.float32))


def test_blocks_cover_a_large_file_without_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK_BYTES", 100)
    array = grid(50, 4)
    found = [
        (first, block.copy()) for first, block in segments.read_blocks(segments.read_header(saved(tmp_path, array)))
    ]
    assert [first for first, _ in found] == list(range(0, 50, 6))
    assert np.array_equal(np.concatenate([b for _, b in found]), array)


REFUSED: list[tuple[Any, str]] = [
    (np.array([[1, "x"]], object), "holds Python objects, which are never loaded; expected float16 or float32 numbers"),
    (np.arange(6).reshape(2, 3), "holds int64; expected float16, float32, float64, bfloat16 or integers of 8 or 16 b"),
    (np.ones((2, 3), np.complex64), "holds complex64; expected float16, float32, float64"),
    (np.ones((2, 3), np.longdouble), "holds float128; expected float16, float32, float64"),
    (np.array([["a"]]), "holds <U1; expected"),
    (np.ones(6, np.float32), "has shape (6,); expected (rows, dimension), one vector a row"),
    (np.ones((2, 3, 4), np.float32), "has shape (2, 3, 4); expected"),
    (np.ones((2, 0), np.float32), "has shape (2, 0); expected"),
    (np.float32(1), "has shape (); expected"),
]


@pytest.mark.parametrize(("array", "message"), REFUSED, ids=lambda v: v[:24] if isinstance(v, str) else "")
def test_an_array_that_is_no_run_of_vectors_is_refused_by_name(tmp_path: Path, array: Any, message: str) -> None:
    path = saved(tmp_path, array)
    with pytest.raises(VectorError) as caught:
        segments.read_header(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_fortran_order_of_one_row_or_one_column_is_the_same_as_c(tmp_path: Path) -> None:
    for name, array in (("a.npy", grid(1, 4)), ("b.npy", grid(4, 1))):
        path = tmp_path / name
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file,
                {"descr": "<f4", "fortran_order": True, "shape": array.shape},  # type: ignore[arg-type]
            )
            file.write(array.tobytes())
        found = np.concatenate([b for _, b in segments.read_blocks(segments.read_header(path))])
        assert np.array_equal(found, array)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "img_emb_0.npy"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(VectorError, match=r"is not a \.npy file of vectors"):
        segments.read_header(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"PK\x03\x04 an npz file", b"\x93NUMPY\x09\x00xx"]
)
def test_a_file_that_is_no_npy_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "img_emb_0.npy"
    path.write_bytes(content)
    with pytest.raises(VectorError, match=r"img_emb_0\.npy is not a \.npy file of vectors"):
        segments.read_header(path)


@pytest.mark.parametrize(
    "header", ["{'descr': '<f4'}", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", "[1]"]
)
def test_a_header_that_says_something_impossible_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "img_emb_0.npy"
    text = header.ljust(117).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(VectorError, match=r"img_emb_0\.npy"):
        segments.read_header(path)


@pytest.mark.parametrize(
    ("change", "state"), [(-1, "cut short"), (-40, "cut short"), (1, "too long"), (1000, "too long")]
)
def test_a_file_of_another_length_than_it_announces_is_refused_with_both(
    tmp_path: Path, change: int, state: str
) -> None:
    path = saved(tmp_path, grid(10, 4))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(VectorError) as caught:
        segments.read_header(path)
    assert str(caught.value) == (
        f"{path} is {state}: its header announces 10 vectors of 4 float32 numbers, 288 bytes in all, and it has "
        f"{288 + change:,}; fetch it again"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=f"{tmp_path}/no.npy: No such file"):
        segments.read_header(tmp_path / "no.npy")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "position"), [(0, 0), (3, 2), (9, 32), (6, 31)])
def test_nan_and_infinity_are_refused_with_row_and_position(
    tmp_path: Path, dtype: str, bad: float, row: int, position: int
) -> None:
    array = np.ones((10, 33), dtype)
    array[row, position] = bad
    array[row, min(position + 1, 32)] = bad
    source = segments.read_header(saved(tmp_path, array))
    with pytest.raises(VectorError) as caught:
        segments.segment_of(source, 0, str(source.path))
    assert str(caught.value) == f"{source.path}: row {row:,} holds {bad} at position {position}; vectors must be finite"


def test_a_float64_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    array = np.ones((3, 4))
    array[1, 2] = 1e300
    source = segments.read_header(saved(tmp_path, array))
    with pytest.raises(VectorError, match="row 1 holds inf at position 2"):
        segments.segment_of(source, 0, "given")


def test_vectors_with_large_finite_numbers_are_taken(tmp_path: Path) -> None:
    for dtype, largest in (("float16", 65504), ("float32", 3.4e38)):
        segment = written(tmp_path, np.full((2, 512), largest, dtype), dtype)
        assert np.isfinite(segment.largest) or dtype == "float32"


def damaged(folder: Path, path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "short":
        path.write_bytes(data[:-3])
    elif kind == "long":
        path.write_bytes(data + b"\0")
    elif kind == "other rows":
        np.save(path, grid(6, 3))
    elif kind == "other dimension":
        np.save(path, grid(5, 4))
    elif kind == "other dtype":
        np.save(path, grid(5, 3, np.float16))


@pytest.mark.parametrize("kind", ["missing", "empty", "short", "long", "other rows", "other dimension", "other dtype"])
def test_a_damaged_segment_is_reported_by_name(tmp_path: Path, kind: str) -> None:
    segment = written(tmp_path, grid(5, 3), "float32")
    damaged(tmp_path, tmp_path / segment.file, kind)
    with pytest.raises(DatabaseDamaged, match=segment.file):
        segments.map_segment(tmp_path, segment)


def test_a_segment_with_one_changed_bit_is_found_by_its_hash(tmp_path: Path) -> None:
    segment = written(tmp_path, grid(5, 3), "float32")
    path = tmp_path / segment.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatabaseDamaged, match=rf"{segment.file} has hash \w+, the manifest says {segment.hash}"):
        segments.verify(tmp_path, segment)


def test_a_linked_file_is_described_without_a_copy(tmp_path: Path) -> None:
    array = grid(5, 3, np.float16)
    path = saved(tmp_path, array)
    segment = segments.segment_of(segments.read_header(path), 7, str(path))
    assert (segment.file, segment.first, segment.end, segment.linked) == (str(path), 7, 12, True)
    assert np.array_equal(segments.map_segment(tmp_path / "elsewhere", segment), array)
    path.unlink()
    with pytest.raises(DatabaseDamaged, match="put the linked file back"):
        segments.map_segment(tmp_path, segment)


def test_an_array_without_rows_is_an_empty_segment(tmp_path: Path) -> None:
    segment = written(tmp_path, np.empty((0, 3), np.float32), "float32")
    assert segments.map_segment(tmp_path, segment).shape == (0, 3)
    assert segment == dataclasses.replace(segment, rows=0, largest=0.0)
    segments.verify(tmp_path, segment)


def test_a_mapped_segment_cannot_be_changed(tmp_path: Path) -> None:
    mapped = segments.map_segment(tmp_path, written(tmp_path, grid(5, 3), "float32"))
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0] = 1
