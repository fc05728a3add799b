"""Vectors in every form that people save them in: taken in without a digit lost, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import clipql
from clipql.errors import IngestError
from clipql.storage.vectors import segments
from tests.parts import make_part, stored

ml_dtypes = pytest.importorskip("ml_dtypes")
ROWS, DIMENSION = 300, 24
Saver = Callable[[Path, NDArray[Any]], None]


def numbers(dtype: Any) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind in "iu":
        known = np.iinfo(dtype)
        return rng.integers(known.min, known.max, (ROWS, DIMENSION), endpoint=True).astype(dtype)
    return rng.standard_normal((ROWS, DIMENSION)).astype(dtype)


def taken_in(db: clipql.Database, folder: Path, array: NDArray[Any], save: Any = np.save, ending: str = "npy") -> str:
    """The dtype that the vectors are stored in, once they came through SQL as they were."""
    part = make_part(folder, rows=ROWS, dimension=DIMENSION, text=False)
    part.image_path.unlink()
    with open(part.image_path.with_suffix(f".{ending}"), "wb") as file:
        save(file, array)
    db.ingest(folder)
    assert np.array_equal(stored(db, "laion"), array.astype(np.float64).astype(np.float32))
    return str(db.registry.catalog.tables[0].columns[0].segments[0].dtype)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("int8", "float16"),
        ("uint8", "float16"),
        ("int16", "float32"),
        ("uint16", "float32"),
        (">i2", "float32"),
        ("float16", "float16"),
        (">f2", "float16"),
        (">f4", "float32"),
        ("float64", "float32"),
        (">f8", "float32"),
        (ml_dtypes.bfloat16, "float16"),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_kind_and_order_come_in_as_they_are(
    db: clipql.Database, tmp_path: Path, dtype: Any, kept: str, order: str
) -> None:
    array = numbers(dtype)
    assert taken_in(db, tmp_path / "laion", np.array(array, order=order)) == kept  # type: ignore[call-overload]


def test_bfloat16_that_float16_does_not_hold_is_stored_as_float32(db: clipql.Database, tmp_path: Path) -> None:
    array = (numbers("float32") * np.float32(1e30)).astype(ml_dtypes.bfloat16)
    assert taken_in(db, tmp_path / "laion", array) == "float32"


def test_an_npz_of_one_array_is_a_file_of_vectors(db: clipql.Database, tmp_path: Path) -> None:
    assert taken_in(db, tmp_path / "laion", numbers("float32"), np.savez, "npz") == "float32"


def test_columns_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "COLUMN_BYTES", 700)
    array = numbers("float32")
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    blocks = list(segments.read_blocks(segments.read_header(tmp_path / "f.npy")))
    assert [first for first, _ in blocks] == list(range(0, ROWS, 7))
    assert np.array_equal(np.concatenate([b for _, b in blocks]), array)


def test_rows_of_zeros_among_others_come_in_and_are_found(db: clipql.Database, tmp_path: Path) -> None:
    array = numbers("float32")
    array[::3] = 0
    taken_in(db, tmp_path / "laion", array)
    asked = "SELECT id FROM laion ORDER BY {}(image_embedding, {{q:Array(Float32)}}) LIMIT 300"
    by_length = [i for (i,) in db.sql(asked.format("L2Distance"), q=np.zeros(DIMENSION)).rows]
    assert by_length[:100] == list(range(0, ROWS, 3))
    by_direction = [i for (i,) in db.sql(asked.format("cosineDistance"), q=array[1]).rows]
    assert by_direction[0] == 1
    assert by_direction[200:] == list(range(0, ROWS, 3))  # of no direction: NaN comes last


def test_nan_in_fortran_order_or_an_npz_is_told_by_its_row(db: clipql.Database, tmp_path: Path) -> None:
    array = numbers("float32")
    array[217, 5] = np.nan
    for name, save, ending in (("a", np.save, "npy"), ("b", np.savez, "npz")):
        with pytest.raises(IngestError, match=rf"img_emb_0\.{ending}: row 217 holds nan at position 5"):
            taken_in(db, tmp_path / name, np.asfortranarray(array), save, ending)


HALF = r'save it with \.astype\("float16"\)'
REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    "float8_e4m3": (
        numbers("float32").astype(ml_dtypes.float8_e4m3fn),
        np.save,
        "npy",
        r'save it with \.astype\("float16"\)',
    ),
    "float8_e5m2": (
        numbers("float32").astype(ml_dtypes.float8_e5m2),
        np.save,
        "npy",
        r'save it with \.astype\("float16"\)',
    ),
    "int64": (numbers("int64"), np.save, "npy", r'holds int64; .* save it with \.astype\("float32"\)'),
    "bool": (numbers("int8") > 0, np.save, "npy", r'holds bool; .* save it with \.astype\("float32"\)'),
    "one vector": (
        numbers("float32")[0],
        np.save,
        "npy",
        r"has shape \(24,\); .* reshape\(1, -1\)",
    ),
    "compressed": (numbers("float32"), np.savez_compressed, "npz", r"compressed array; save it with numpy\.save"),
    "two arrays": (
        numbers("float32"),
        lambda file, array: np.savez(file, a=array, b=array),
        "npz",
        r"holds 2 arrays \(a\.npy, b\.npy\); save the vectors alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_in_is_refused_with_what_to_do(db: clipql.Database, tmp_path: Path, name: str) -> None:
    array, save, ending, said = REFUSED[name]
    with pytest.raises(IngestError, match=rf"img_emb_0\.{ending} .*{said}"):
        taken_in(db, tmp_path / "laion", array, save, ending)
    assert db.sql("SHOW TABLES").rows == []


@pytest.mark.parametrize("size", [10, 200, 20_000])
def test_an_npz_cut_short_is_refused(db: clipql.Database, tmp_path: Path, size: int) -> None:
    def cut(file: Any, array: NDArray[Any]) -> None:
        np.savez(file, array)
        file.truncate(size)

    with pytest.raises(IngestError, match=r"img_emb_0\.npz is not a \.npy file of vectors"):
        taken_in(db, tmp_path / "laion", numbers("float32"), cut, "npz")


def test_other_forms_cannot_be_linked(db: clipql.Database, tmp_path: Path) -> None:
    for form, array in (("int8", numbers("int8")), ("float32 in Fortran order", np.asfortranarray(numbers("float32")))):
        part = make_part(tmp_path / form, rows=ROWS, dimension=DIMENSION, text=False)
        np.save(part.image_path, array)
        with pytest.raises(IngestError, match=f"holds {form}, which cannot be linked"):
            db.ingest(tmp_path / form, link=True)
