"""Lance data sets as sources: every row with its own vector, a fragment whole or not at all, and none twice.

They run where Lance's library is there, but for the last.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import clipql
from clipql.errors import IngestError

ROWS, DIMENSION = 500, 8
VECTORS = np.random.default_rng(3).standard_normal((ROWS, DIMENSION)).astype(np.float16)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("lance") / "db") as opened:
        yield opened


@pytest.fixture
def lance() -> Any:
    return pytest.importorskip("lance")


def some(first: int, last: int, number: pa.DataType | None = None) -> pa.Table:
    vectors = pa.array(VECTORS[first:last].reshape(-1)).cast(number or pa.float16())
    captions = [f"caption {i}" for i in range(first, last)]
    return pa.table({"caption": captions, "emb": pa.FixedSizeListArray.from_arrays(vectors, DIMENSION)})


def found(db: clipql.Database, table: str) -> tuple[list[str], Any]:
    rows = db.sql(f"SELECT caption, emb FROM {table} ORDER BY id").rows
    return [r[0] for r in rows], np.array([r[1] for r in rows], np.float16)


@pytest.mark.parametrize("number", [pa.float16(), pa.float32()], ids=str)
def test_fragments_are_taken_and_those_that_come_later_alone_after_them(
    db: clipql.Database, lance: Any, tmp_path: Path, number: pa.DataType
) -> None:
    place, table = tmp_path / "photos.lance", f"later_{number}"
    lance.write_dataset(some(0, 300, number), place, max_rows_per_file=100)
    report = db.ingest(place, table=table)
    assert (report.rows, report.parts_taken, report.unit) == (300, 3, "fragment")
    lance.write_dataset(some(300, ROWS, number), place, mode="append")
    lance.dataset(place).delete("caption = 'caption 310' OR caption = 'caption 7'")
    again = db.ingest(tmp_path, table=table)  # the folder that it lies in
    assert (again.rows, again.parts_taken, again.parts_skipped) == (199, 1, 3)
    kept = [i for i in range(ROWS) if i != 310]  # what was taken before it was deleted stays
    captions, vectors = found(db, table)
    assert captions == [f"caption {i}" for i in kept]
    assert np.array_equal(vectors, VECTORS[kept])


def test_a_row_without_a_usable_vector_is_named_by_its_fragment(
    db: clipql.Database, lance: Any, tmp_path: Path
) -> None:
    place, kind = tmp_path / "bad.lance", pa.list_(pa.float16(), DIMENSION)
    lance.write_dataset(some(0, 100), place)
    bad = pa.array([[1.0] * DIMENSION, [np.nan] * DIMENSION, None], kind)
    lance.write_dataset(some(100, 103).set_column(1, "emb", bad), place, mode="append")
    with pytest.raises(IngestError, match=r"bad.lance: row 1 of fragment 1 has nan at position 0 of its vector"):
        db.ingest(place, table="bad")
    assert db.ingest(place, table="bad", skip_bad=True).rows_left_out == 2
    assert db.sql("SELECT count() FROM bad").rows == [(101,)]


def test_a_damaged_data_set_is_named(db: clipql.Database, lance: Any, tmp_path: Path) -> None:
    place = tmp_path / "torn.lance"
    lance.write_dataset(some(0, 100), place)
    [data] = (place / "data").iterdir()
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(IngestError, match=r"torn.lance"):
        db.ingest(place, table="torn")
    assert db.sql("EXISTS TABLE torn").rows == [(0,)]


def test_the_library_that_is_missing_is_named(
    db: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.lance" / "_versions").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(IngestError, match=r"x.lance is a Lance data set, which .*pip install 'clipql\[lance\]'"):
        db.ingest(tmp_path / "x.lance", table="x")
