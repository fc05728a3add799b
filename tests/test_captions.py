"""Real captions from the web survive every way in, byte for byte: quotes, commas, tabs, backslashes, any language."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parts import make_part, stored, vectors
from test_tutorial import CREATE

import clipql

FILE = Path(__file__).parent / "data" / "captions" / "web_10000.parquet"
READ = "SELECT hex(url), hex(caption) FROM laion ORDER BY id"


@pytest.fixture(scope="module")
def captions() -> pa.Table:
    """9,886 rows of url and caption."""
    found = pq.read_table(FILE).rename_columns(["url", "caption"])
    assert found.num_rows == 9_886
    return found


def as_hex(captions: pa.Table) -> list[tuple[str, ...]]:
    columns = (captions.column(c).to_pylist() for c in ("url", "caption"))
    return [tuple(text.encode().hex().upper() for text in row) for row in zip(*columns, strict=True)]


def test_the_captions_are_as_awkward_as_they_should_be(captions: pa.Table) -> None:
    texts = captions.column("caption").to_pylist()
    for character in "\",\\'\t":
        assert any(character in t for t in texts), character
    assert any(not t.isascii() for t in texts)


def test_all_captions_survive_ingest(db: clipql.Database, tmp_path: Path, captions: pa.Table) -> None:
    part = make_part(tmp_path / "laion", rows=captions.num_rows, dimension=4, metadata_columns=captions)
    db.ingest(tmp_path / "laion")
    assert db.sql(READ).rows == as_hex(captions)
    assert db.sql("SELECT url, caption FROM laion ORDER BY id").rows == list(
        zip(*(captions.column(c).to_pylist() for c in ("url", "caption")), strict=True)
    )
    assert part.image is not None
    assert np.array_equal(stored(db, "laion"), part.image.astype(np.float32))


@pytest.fixture
def frame(captions: pa.Table) -> pd.DataFrame:
    """The captions as the tutorial's script writes them."""
    data = captions.to_pandas()
    data["NSFW"], data["similarity"] = "UNLIKELY", 0.5
    image, text = vectors(len(data), 4, 1), vectors(len(data), 4, 2)
    data["image_embedding"], data["text_embedding"] = image.tolist(), text.tolist()
    return data


def test_all_captions_survive_csv(db: clipql.Database, tmp_path: Path, captions: pa.Table, frame: pd.DataFrame) -> None:
    for number, piece in enumerate((frame.iloc[:5000], frame.iloc[5000:])):
        piece.to_csv(tmp_path / f"{number}.csv", header=False)
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/*.csv'")
    assert db.sql(READ).rows == as_hex(captions)
    assert np.array_equal(stored(db, "laion", order="id"), np.array(frame.image_embedding.tolist(), np.float32))


def test_all_captions_survive_insert_select_parameters_and_optimize(
    db: clipql.Database, captions: pa.Table, frame: pd.DataFrame
) -> None:
    db.sql(CREATE)
    texts = {c: captions.column(c).to_pylist() for c in ("url", "caption")}
    db.sql(
        "INSERT INTO laion SELECT number, {url:Array(String)}[number + 1], {caption:Array(String)}[number + 1], "
        "'', 0.5, [number, 1], [1, number] FROM numbers(9886)",
        **texts,
    )
    assert db.sql(READ).rows == as_hex(captions)
    db.sql("CREATE TABLE copy AS laion")
    db.sql("INSERT INTO copy SELECT * FROM laion ORDER BY id")
    db.sql("INSERT INTO copy SELECT id + 10000, * EXCEPT(id) FROM laion")
    db.sql("DELETE FROM copy WHERE id >= 10000")
    db.sql("OPTIMIZE TABLE copy FINAL")
    assert db.sql(READ.replace("laion", "copy")).rows == as_hex(captions)
    assert np.array_equal(stored(db, "copy", order="id")[:, 0], np.arange(9886))
    assert len(frame) == 9886


@pytest.mark.parametrize("format", ["JSONEachRow", "TabSeparated", "CSV", "Values"])
def test_captions_survive_a_format_and_back(db: clipql.Database, captions: pa.Table, format: str) -> None:
    few = captions.slice(0, 2000)
    db.sql(CREATE)
    db.sql(
        "INSERT INTO laion SELECT number, {url:Array(String)}[number + 1], {caption:Array(String)}[number + 1], "
        "'', 0.5, [number, 1], [1, number] FROM numbers(2000)",
        **{c: few.column(c).to_pylist() for c in ("url", "caption")},
    )
    text = db.sql(f"SELECT * FROM laion ORDER BY id FORMAT {format}").text
    db.sql("TRUNCATE TABLE laion")
    for statement in (
        f"INSERT INTO laion FORMAT {format} {text}" if format != "Values" else f"INSERT INTO laion VALUES {text}",
    ):
        db.execute(statement)
    assert db.sql(READ).rows == as_hex(few)
