"""ClickHouse's tutorials, word for word: LAION-400M's as it was and as it is, and LAION-5B's.

Sources: https://clickhouse.com/docs/getting-started/example-datasets/laion-400m-dataset and …/laion-5b-dataset
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from parts import state, vectors

import clipql
from clipql.errors import ClipqlError, QueryError, VectorError

CREATE = """CREATE TABLE laion
(
    `id` Int64,
    `url` String,
    `caption` String,
    `NSFW` String,
    `similarity` Float32,
    `image_embedding` Array(Float32),
    `text_embedding` Array(Float32)
)
ENGINE = MergeTree
ORDER BY id
SETTINGS index_granularity = 8192"""
NEAREST = "SELECT url, caption FROM laion ORDER BY L2Distance(image_embedding, {target:Array(Float32)}) LIMIT 30"
ROWS = 60


def frame(first: int, rows: int = ROWS, dtype: Any = np.float16) -> tuple[pd.DataFrame, NDArray[Any], NDArray[Any]]:
    """A part as the tutorial's script joins it."""
    image, text = vectors(rows, 8, 10 * first, dtype), vectors(rows, 8, 10 * first + 1, dtype)
    data = pd.DataFrame(
        {
            "url": [f'https://example.org/{i}.jpg?a=1,2&b="q"' for i in range(first, first + rows)],
            "caption": [f"a \"cat\", no. {i}\non a\tsofa \\ 'here' é" for i in range(first, first + rows)],
            "NSFW": ["UNLIKELY"] * rows,
            "similarity": [0.25 + i / 1024 for i in range(rows)],
        },
        index=range(first, first + rows),
    )
    data["image_embedding"] = [row.tolist() for row in image]
    data["text_embedding"] = [row.tolist() for row in text]
    return data, image, text


@pytest.fixture
def filled(db: clipql.Database, tmp_path: Path) -> tuple[clipql.Database, pd.DataFrame, NDArray[np.float32]]:
    """The tutorial's table, from two CSV files."""
    frames = [frame(0), frame(ROWS)]
    for number, (data, _, _) in enumerate(frames):
        data.to_csv(tmp_path / f"{number}.csv", header=False)
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/*.csv'")
    return db, pd.concat([f[0] for f in frames]), np.concatenate([f[1] for f in frames]).astype(np.float32)


Filled = tuple[clipql.Database, pd.DataFrame, NDArray[np.float32]]


def nearest(data: pd.DataFrame, image: NDArray[np.float32], target: NDArray[np.float32]) -> list[tuple[str, str]]:
    order = np.argsort(((image - target) ** 2).sum(axis=1), kind="stable")[:30]
    return list(data.iloc[order][["url", "caption"]].itertuples(index=False, name=None))


def test_every_row_of_the_csv_files_is_there(filled: Filled) -> None:
    db, data, image = filled
    rows = db.sql("SELECT id, url, caption, NSFW, similarity, image_embedding FROM laion ORDER BY id").rows
    expected = zip(data.index, data.url, data.caption, data.NSFW, data.similarity, image.tolist(), strict=True)
    assert rows == list(expected)
    assert db.sql("SELECT text_embedding FROM laion ORDER BY id").rows == [(v,) for v in data.text_embedding]


def test_a_query_with_a_target_answers_with_the_nearest(filled: Filled) -> None:
    db, data, image = filled
    target = vectors(1, 8, 999, np.float32)[0]
    assert db.sql(NEAREST, target=target).rows == nearest(data, image, target)
    assert db.sql(NEAREST, target=target.tolist()).rows == nearest(data, image, target)


def test_a_target_that_was_set_answers_the_same(filled: Filled) -> None:
    db, data, image = filled
    target = vectors(1, 8, 999, np.float32)[0]
    db.sql(f"SET param_target = {target.tolist()}")
    assert db.sql(NEAREST).rows == nearest(data, image, target)
    db.sql(f"SET param_target = '{image[5].tolist()}'")
    assert db.sql(NEAREST).rows == nearest(data, image, image[5])


def test_show_create_shows_the_tutorials_own_statement(db: clipql.Database) -> None:
    db.sql(CREATE)
    assert db.sql("SHOW CREATE TABLE laion").rows == [(CREATE.replace("TABLE laion", "TABLE default.laion"),)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "target"),
        ([0.5] * 7, "8 numbers|8.*7|7.*8"),
        ([], "8 numbers|equal sizes"),
        ([float("nan")] * 8, "finite"),
        (["a"] * 8, "got str .a. at position 0; expected numbers"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_with_the_reason(filled: Filled, target: Any, message: str) -> None:
    db, _, _ = filled
    with pytest.raises(ClipqlError, match=message):
        db.sql(NEAREST, **({} if target is None else {"target": target}))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_lists_of_numpy_2_scalars_are_taken_too(db: clipql.Database, tmp_path: Path, dtype: Any, rows: int) -> None:
    data, image, text = frame(0, rows, dtype)
    data["image_embedding"] = [list(row) for row in image]
    data["text_embedding"] = [list(row) for row in text]
    data.to_csv(tmp_path / "0.csv", header=False)
    assert f"[np.{np.dtype(dtype).name}(" in (tmp_path / "0.csv").read_text()
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/*.csv'")
    assert db.sql("SELECT image_embedding, text_embedding, caption FROM laion ORDER BY id").rows == [
        (i, t, c)
        for i, t, c in zip(
            image.astype(np.float32).tolist(), text.astype(np.float32).tolist(), data.caption, strict=True
        )
    ]


def test_a_csv_with_names_is_taken_by_its_format(db: clipql.Database, tmp_path: Path) -> None:
    data, image, _ = frame(0)
    data.to_csv(tmp_path / "0.csv", index_label="id")
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/0.csv' FORMAT CSVWithNames")
    assert db.sql("SELECT image_embedding FROM laion ORDER BY id").rows == [(v,) for v in image.tolist()]


def test_a_compressed_csv_is_taken(db: clipql.Database, tmp_path: Path) -> None:
    data, image, _ = frame(0)
    data.to_csv(tmp_path / "0.csv.gz", header=False)
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/0.csv.gz' COMPRESSION 'gzip' FORMAT CSV")
    assert db.sql("SELECT image_embedding FROM laion ORDER BY id").rows == [(v,) for v in image.tolist()]


def short_vector(line: str) -> str:
    at = line.index(", ", line.index("[") + 1)
    return line[: line.index("[") + 1] + line[at + 2 :]


BAD_LINES: list[tuple[Any, type[ClipqlError], str]] = [
    (short_vector, VectorError, "image_embedding of default.laion holds 8 numbers; row 30 of the insert has 7"),
    (
        lambda line: "[nan,".join(line.split("[0.", 1)) if "[0." in line else line.replace("[-0.", "[nan,", 1),
        VectorError,
        "nan|holds 8",
    ),
    (lambda line: "x" + line, QueryError, "ClickHouse"),
    (lambda line: line[:40], QueryError, "ClickHouse"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_LINES)
def test_a_bad_line_changes_nothing(
    db: clipql.Database, tmp_path: Path, spoil: Any, error: type[ClipqlError], message: str
) -> None:
    data, _, _ = frame(0)
    data["caption"] = "plain"
    data.to_csv(tmp_path / "0.csv", header=False)
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/0.csv'")
    before = state(db)
    lines = (tmp_path / "0.csv").read_text().splitlines(keepends=True)
    lines[30] = spoil(lines[30])
    (tmp_path / "0.csv").write_text("".join(lines))
    with pytest.raises(ClipqlError, match=message) as caught:
        db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/0.csv'")
    assert isinstance(caught.value, error)
    assert state(db) == before


def test_a_file_that_is_not_there_is_named(db: clipql.Database, tmp_path: Path) -> None:
    db.sql(CREATE)
    with pytest.raises(QueryError, match=f"no file matches {tmp_path}/nothing"):
        db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/nothing*.csv'")


def similarity_index(name: str, column: str, dimension: int) -> str:
    """As the present page on LAION-400M writes it."""
    return (
        f"ALTER TABLE laion ADD INDEX {name} {column} "
        f"TYPE vector_similarity('hnsw', 'cosineDistance', {dimension}, 'bf16', 64, 256)"
    )


def angles(image: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.floating]:
    wide, query = image.astype(np.float64), target.astype(np.float64)
    return 1 - wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)


def test_the_present_page_on_laion_400m_runs_as_it_is_written(db: clipql.Database, tmp_path: Path) -> None:
    data, image, text = frame(0, 1000)
    data.to_csv(tmp_path / "0.csv", header=False)
    db.sql(CREATE)
    db.sql(f"INSERT INTO laion FROM INFILE '{tmp_path}/*.csv'")
    target = vectors(1, 8, 999, np.float32)[0]
    for column, found in (("image_embedding", image), ("text_embedding", text)):
        search = f"SELECT url, caption FROM laion ORDER BY cosineDistance({column}, {{target:Array(Float32)}}) LIMIT 10"
        nearest = data.iloc[np.argsort(angles(found, target))]
        every = list(nearest[["url", "caption"]].itertuples(index=False, name=None))
        assert db.sql(search, target=target).rows == every[:10]
        index = column.replace("embedding", "index")
        db.sql(similarity_index(index, column, 8))
        db.sql(f"ALTER TABLE laion MATERIALIZE INDEX {index};")
        # the graph is made by several threads, and now and then loses a row or two
        by_index = [every.index(row) for row in db.sql(search, target=target).rows]
        assert by_index == sorted(set(by_index))
        assert len(by_index) == 10
        assert by_index[5] < 10
        plan = [line for (line,) in db.sql(f"EXPLAIN {search}", target=target).rows]
        assert any(f"index: {index} (hnsw, cosineDistance)" in line for line in plan)


LAION_5B = """CREATE TABLE laion_5b_100m
(
    id UInt32,
    image_path String,
    caption String,
    NSFW Nullable(String) default 'unknown',
    similarity Float32,
    LICENSE Nullable(String),
    url String,
    key String,
    status LowCardinality(String),
    width Int32,
    height Int32,
    original_width Int32,
    original_height Int32,
    exif Nullable(String),
    md5 String,
    vector Array(Float32) CODEC(NONE)
) ENGINE = MergeTree ORDER BY (id)"""
LAION_5B_SEARCH = """SELECT id, url 
FROM laion_5b_100m
ORDER BY cosineDistance( vector, (SELECT vector FROM laion_5b_100m WHERE id = 999) ) ASC
LIMIT 20
"""  # noqa: W291 (as it is on the page)


def laion_5b(path: Path, first: int, rows: int) -> NDArray[np.float32]:
    """A file of LAION-5B's form; its vectors."""
    ids, found = range(first, first + rows), vectors(rows, 8, first, np.float32)
    columns = {
        "id": pa.array(ids, pa.uint32()),
        **{n: [f"{n} {i}" for i in ids] for n in ("image_path", "caption")},
        "NSFW": ["UNLIKELY" if i % 2 else None for i in ids],
        "similarity": pa.array([0.25] * rows, pa.float32()),
        **{n: [f"{n} {i}" for i in ids] for n in ("LICENSE", "url", "key", "status")},
        **{n: pa.array(ids, pa.int32()) for n in ("width", "height", "original_width", "original_height")},
        **{n: [f"{n} {i}" for i in ids] for n in ("exif", "md5")},
        "vector": pa.array(found.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)
    return found


def test_the_page_on_laion_5b_runs_as_it_is_written(db: clipql.Database, tmp_path: Path) -> None:
    parts = [laion_5b(tmp_path / f"laion5b_100m_part_{n}_of_10.parquet", 600 * n - 600, 600) for n in (1, 2)]
    db.sql(LAION_5B)
    db.sql(f"INSERT INTO laion_5b_100m SELECT * FROM file('{tmp_path}/laion5b_100m_*.parquet');")
    image = np.concatenate(parts)
    expected = [(int(i), f"url {i}") for i in np.argsort(angles(image, image[999]))[:20]]
    assert db.sql(LAION_5B_SEARCH).rows == expected
    db.sql(
        "ALTER TABLE laion_5b_100m ADD INDEX vector_index vector "
        "TYPE vector_similarity('hnsw', 'cosineDistance', 8, 'bf16', 64, 512);"
    )
    db.sql("ALTER TABLE laion_5b_100m MATERIALIZE INDEX vector_index SETTINGS mutations_sync = 2;")
    assert db.sql(LAION_5B_SEARCH).rows == expected
    plan = [line for (line,) in db.sql(f"EXPLAIN {LAION_5B_SEARCH}").rows]
    assert "  index: vector_index (hnsw, cosineDistance)" in plan
    assert db.sql("SELECT count(NSFW), any(width), any(toTypeName(status)) FROM laion_5b_100m WHERE id = 7").rows == [
        (1, 7, "LowCardinality(String)")
    ]
    assert db.sql("SELECT vector FROM laion_5b_100m WHERE id = 605").rows == [(image[605].tolist(),)]
