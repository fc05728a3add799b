"""A vector column added to a table that has rows: each row gets its own vector, or nothing changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from parts import state

import clipql
from clipql.errors import IngestError, UnknownTable
from clipql.ingest.pipeline import IngestReport

ROWS, DIMENSION = 40, 5
_names = itertools.count()


def matrix(rows: int = ROWS, seed: int = 1, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(dtype)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("added") / "db") as db:
        yield db


@pytest.fixture
def table(shared: clipql.Database) -> str:
    """A table of 40 rows in two inserts, whose vectors are (id, 1)."""
    name = f"t{next(_names)}"
    shared.sql(f"CREATE TABLE {name} (id UInt64, url String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    for first in (0, 25):
        rows = ROWS - 25 if first else 25
        shared.sql(f"INSERT INTO {name} SELECT number, 'u' || number, [number, 1] FROM numbers({first}, {rows})")
    return name


def write(path: Path, values: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"siglip": list(values), **columns}), path, row_group_size=16)
    return path


def add(db: clipql.Database, table: str, *files: Path, **options: Any) -> IngestReport:
    found: IngestReport = db.ingest(list(files), table=table, add_column="siglip", **options)
    return found


def stored(db: clipql.Database, table: str) -> dict[int, list[float]]:
    return dict(db.sql(f"SELECT id, siglip FROM {table}").rows)


def test_vectors_in_row_order_fill_a_new_column_that_is_searched(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    values = matrix()
    files = [write(tmp_path / "a.parquet", values[:20]), write(tmp_path / "b.parquet", values[20:])]
    seen: list[Any] = []
    report = add(shared, table, *files, model="google/siglip", progress=seen.append)
    assert (report.rows, report.rows_left_out, report.parts_taken) == (ROWS, 0, 4)
    assert (seen[-1].rows_done, seen[-1].rows_total, seen[-1].finished) == (ROWS, ROWS, True)
    assert stored(shared, table) == {i: values[i].tolist() for i in range(ROWS)}
    column = shared.registry.find(None, table).column("siglip")
    assert (column.model, column.dimension, column.rows) == ("google/siglip", DIMENSION, ROWS)
    search = f"SELECT id FROM {table} ORDER BY cosineDistance(siglip, {{q:Array(Float32)}}) LIMIT 3"
    alone = shared.sql(f"{search} SETTINGS vector_plan = 0", q=values[7])
    assert shared.sql(search, q=values[7]).rows == alone.rows
    assert shared.sql(f"SELECT name FROM system.columns WHERE table = '{table}' AND name = 'siglip'").rows
    shared.sql(f"INSERT INTO {table} VALUES (99, 'u', [1, 2], [1, 2, 3, 4, 5])")
    assert stored(shared, table)[99] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("key", ["id", "url"])
def test_a_column_of_both_says_which_vector_is_whose(
    shared: clipql.Database, table: str, tmp_path: Path, key: str
) -> None:
    ids = np.random.default_rng(0).permutation(ROWS + 10)
    values = matrix(ROWS + 10, dtype=np.float16)
    shared.sql(f"DELETE FROM {table} WHERE id % 9 = 4")
    left = [i for i in range(ROWS) if i % 9 != 4]
    keys = ids if key == "id" else [f"u{i}" for i in ids]
    report = add(shared, table, write(tmp_path / "a.parquet", values, **{key: keys}), by=key)
    assert (report.rows, report.rows_left_out) == (len(left), ROWS + 10 - len(left))
    assert stored(shared, table) == {int(i): v.tolist() for i, v in zip(ids, values, strict=True) if i in left}
    assert shared.registry.find(None, table).column("siglip").segments[0].dtype == "float16"


def test_rows_that_were_deleted_take_no_vector_in_row_order(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    shared.sql(f"DELETE FROM {table} WHERE id IN (0, 3, 39)")
    left = [i for i in range(ROWS) if i not in (0, 3, 39)]
    values = matrix(len(left))
    add(shared, table, write(tmp_path / "a.parquet", values))
    assert stored(shared, table) == {i: v.tolist() for i, v in zip(left, values, strict=True)}
    shared.sql(f"OPTIMIZE TABLE {table} FINAL")
    assert stored(shared, table) == {i: v.tolist() for i, v in zip(left, values, strict=True)}


def test_a_column_that_alter_added_is_filled_in_its_place(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    shared.sql(f"ALTER TABLE {table} ADD COLUMN siglip Array(Float32) AFTER id, ADD COLUMN plain Array(Float32)")
    shared.sql(f"INSERT INTO {table} (id, url, v) VALUES ({ROWS}, 'later', [40, 1])")
    assert set(map(tuple, stored(shared, table).values())) == {()}
    shared.sql(f"ALTER TABLE {table} UPDATE plain = [1, 2] WHERE id = 3")
    values = matrix(ROWS + 1)
    path = write(tmp_path / "a.parquet", values, id=np.arange(ROWS + 1)[::-1])
    with pytest.raises(IngestError, match=rf"a\.parquet has vectors of {DIMENSION} numbers; the column of .* holds 2"):
        shared.ingest(path, table=table, add_column="plain", vector_column="siglip")
    add(shared, table, path, by="id", model="m")
    assert stored(shared, table) == {i: values[ROWS - i].tolist() for i in range(ROWS + 1)}
    assert [r[0] for r in shared.sql(f"DESCRIBE TABLE {table}").rows] == ["id", "siglip", "url", "v", "plain"]
    assert shared.sql(f"SELECT * FROM {table} WHERE id = 3").rows == [
        (3, values[ROWS - 3].tolist(), "u3", [3, 1], [1, 2])
    ]
    assert shared.registry.find(None, table).column("siglip").model == "m"
    found = shared.sql(
        f"SELECT id, url FROM {table} ORDER BY L2Distance(siglip, {{q:Array(Float32)}}) LIMIT 1", q=values[0]
    )
    assert (found.rows, found.stats.searches[0].kind) == ([(ROWS, "later")], "top-k")


def test_some_rows_get_their_vectors_now_and_others_later(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    values = matrix()
    first = write(tmp_path / "a.parquet", values[:10], id=np.arange(10) * 3)
    given = [v if i % 2 else None for i, v in enumerate(values[10:20])]
    later = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": np.arange(25, 35), "siglip": pa.array(given, pa.list_(pa.float32()))}), later)
    assert add(shared, table, first, by="id", model="m").rows == 10
    expected = {i: [] for i in range(ROWS)} | {3 * i: values[i].tolist() for i in range(10)}
    assert stored(shared, table) == expected
    with pytest.raises(IngestError, match=r"siglip of .* was filled by the model m, and --model says n: vectors of"):
        add(shared, table, later, by="id", model="n")
    assert add(shared, table, later, by="id").rows == 5
    expected |= {25 + i: values[10 + i].tolist() for i in range(1, 10, 2)}  # and 27 has another version of its own
    assert stored(shared, table) == expected
    near = shared.sql(f"SELECT id FROM {table} ORDER BY L2Distance(siglip, {{q:Array(Float32)}}) LIMIT 99", q=values[3])
    assert sorted(r[0] for r in near.rows) == sorted(i for i, v in expected.items() if v)
    assert shared.registry.find(None, table).column("siglip").model == "m"
    assert shared.check(deep=True).findings == ()


def test_a_npy_beside_keys_fills_a_column_too(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    ids, values = np.arange(ROWS)[::-1], matrix()
    pa.csv.write_csv(pa.table({"id": ids}), tmp_path / "ids.csv")
    np.save(tmp_path / "vectors.npy", values)
    add(shared, table, tmp_path / "ids.csv", tmp_path / "vectors.npy", by="id")
    assert stored(shared, table) == {int(i): v.tolist() for i, v in zip(ids, values, strict=True)}


def test_the_column_is_renamed_and_dropped_as_any_other(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", matrix())
    add(shared, table, path)
    shared.sql(f"ALTER TABLE {table} RENAME COLUMN siglip TO other")
    add(shared, table, path)
    assert shared.sql(f"SELECT count() FROM {table} WHERE other = siglip").rows == [(ROWS,)]
    shared.sql(f"ALTER TABLE {table} DROP COLUMN siglip")
    add(shared, table, path)
    assert [c.name for c in shared.registry.find(None, table).columns] == ["v", "other", "siglip"]


def test_a_check_of_the_database_finds_nothing(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    add(shared, table, write(tmp_path / "a.parquet", matrix()))
    assert shared.check(deep=True).findings == ()


NAN = float("nan")
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too few": ({"rows": 39}, {}, r"the files have 39 rows and default\.t\d+ has 40: without a column .*--by id"),
    "other keys": (
        {"rows": 39, "id": range(50, 89)},
        {"by": "id"},
        r"has none of the 39 values of id in the files, such as 50",
    ),
    "twice": (
        {"id": [*range(39), 38]},
        {"by": "id"},
        r"1 values of id are not there once in the files, such as 38, wh",
    ),
    "twice in the table": ({"v": range(40)}, {"by": "same"}, r"1 values of same are not there once in default"),
    "no key in the file": ({}, {"by": "id"}, r"a\.parquet has no column id; it has siglip"),
    "no key in the table": ({"key": range(40)}, {"by": "key"}, r"has no column key; it has id, url, same"),
    "keys of other types": ({"id": ["x"] * 40}, {"by": "id"}, r"id is string, in default\.t\d+ it is uint64"),
    "a bad vector": ({"bad": 17}, {}, r"row 1 of row group 1 has nan at position 2 of its vector in siglip: mend the"),
    "no such column": ({}, {"vector_column": "x"}, r"has no column x; its columns are siglip"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_would_leave_a_row_without_its_vector_changes_nothing(
    shared: clipql.Database, table: str, tmp_path: Path, case: str
) -> None:
    columns, options, message = REFUSED[case]
    columns = dict(columns)
    values = matrix(columns.pop("rows", ROWS))
    if "bad" in columns:
        values[columns.pop("bad"), 2] = NAN
    shared.sql(f"ALTER TABLE {table} ADD COLUMN same UInt8 DEFAULT 1")
    if options.get("by") == "same":
        columns = {"same": pa.array([1] * ROWS, pa.uint8())}
    path = write(tmp_path / "a.parquet", values, **{n: list(v) for n, v in columns.items()})
    before = state(shared)
    with pytest.raises(IngestError, match=message):
        add(shared, table, path, **options)
    assert state(shared) == before


def test_a_name_that_is_taken_and_a_table_that_is_not_there_are_named(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", matrix())
    for name in ("url", "v"):
        with pytest.raises(IngestError, match=rf"has a column {name}.*: name another, or drop that one first"):
            shared.ingest(path, table=table, add_column=name)
    with pytest.raises(UnknownTable, match="there is no table nothing to add a column to; there are: "):
        add(shared, "nothing", path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "id"}, r"by says which vector is whose in a new column: name that too \(add_column\)"),
        ({"add_column": "x", "link": True, "parts": "0"}, "link, parts are not for a new column"),
        ({"add_column": "x", "vector_column": ["a", "b"]}, "x is one column, and a, b are 2: name one at a time"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    shared: clipql.Database, table: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(IngestError, match=message):
        shared.ingest(write(tmp_path / "a.parquet", matrix()), table=table, **options)
