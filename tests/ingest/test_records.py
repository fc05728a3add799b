"""Files whose rows hold their vectors: every form and type, each row group whole or not at all, and none twice."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from parts import state

import clipql
from clipql.errors import IngestError
from clipql.ingest.pipeline import IngestReport
from clipql.ingest.records import rows as records_rows
from clipql.ingest.records import taking
from clipql.tables import writer

ROWS, DIMENSION = 50, 6
_names = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """One database for all tests of the module, each with a table of its own."""
    with clipql.connect(tmp_path_factory.mktemp("records") / "db") as db:
        yield db


@pytest.fixture
def table(shared: clipql.Database) -> Iterator[str]:
    """A name for a table, which goes after the test, as what is compared before and after a test is all there is."""
    name = f"t{next(_names)}"
    yield name
    shared.sql(f"DROP TABLE IF EXISTS {name}")


def matrix(rows: int = ROWS, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(dtype)


def lists(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else list(v) for v in values], kind)


def rows_of(values: Any, kind: pa.DataType | None = None, name: str = "emb", **more: Any) -> pa.Table:
    """Rows with a caption, a nullable width and a vector each."""
    n = len(values)
    columns = {
        "caption": [f'row {i}, "quoted"\t{"é" * (i % 3)}' for i in range(n)],
        "width": pa.array([None if i % 7 == 0 else i for i in range(n)], pa.int64()),
        name: lists(values, kind or pa.list_(pa.float32())),
    }
    return pa.table(columns | more)


def stored(db: clipql.Database, table: str, column: str = "emb") -> Any:
    found = db.sql(f"SELECT {column} FROM {table} ORDER BY _row").rows
    return np.array([r[0] for r in found], np.float32)


def check(db: clipql.Database, table: str, given: pa.Table, vectors: Any, column: str = "emb") -> None:
    """All rows, in the order of the file, each with its own vector."""
    names = [n for n in given.column_names if n != column]
    found = db.sql(f"SELECT {', '.join(names)} FROM {table} ORDER BY _row").rows
    assert found == [tuple(r[n] for n in names) for r in given.to_pylist()]
    assert np.array_equal(stored(db, table, column), np.asarray(vectors).astype(np.float32))


# forms and types


FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


@pytest.mark.parametrize("number", list(FLOATS))
@pytest.mark.parametrize(
    "shape", [pa.list_, pa.large_list, lambda k: pa.list_(k, DIMENSION)], ids=["list", "large list", "fixed size"]
)
def test_vectors_of_every_kind_of_list_are_taken_from_parquet(
    shared: clipql.Database, table: str, tmp_path: Path, shape: Callable[[pa.DataType], pa.DataType], number: str
) -> None:
    values = matrix(dtype=number)
    given = rows_of(values, shape(FLOATS[number]))
    pq.write_table(given, tmp_path / "a.parquet", row_group_size=20)
    report = shared.ingest(tmp_path / "a.parquet", table=table)
    assert (report.rows, report.parts_taken, report.unit) == (ROWS, 3, "row group")
    check(shared, table, given, values)
    kinds = {s.dtype for c in shared.registry.find(None, table).columns for s in c.segments}
    assert kinds == ({"float16"} if number == "float16" else {"float32"})


def write_jsonl(given: pa.Table, path: Path) -> None:
    lines = [json.dumps(r) for r in given.to_pylist()]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_csv(given: pa.Table, path: Path) -> None:
    texts = [json.dumps(v) for v in given.column("emb").to_pylist()]
    flat = given.set_column(given.column_names.index("emb"), "emb", pa.array(texts))
    pa.csv.write_csv(flat, path, pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))


def write_ipc(given: pa.Table, path: Path, stream: bool = False) -> None:
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opener(str(path), given.schema) as sink:
        sink.write_table(given, max_chunksize=20)


WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "a.parquet": pq.write_table,
    "a.arrow": write_ipc,
    "b.arrow": lambda given, path: write_ipc(given, path, stream=True),
    "a.feather": lambda given, path: pa.feather.write_feather(given, str(path), compression="zstd", chunksize=20),
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_csv,
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_form_of_file_gives_the_same_rows(shared: clipql.Database, table: str, tmp_path: Path, name: str) -> None:
    values = matrix(dtype=np.float16).astype(np.float32)
    given = rows_of(values)
    WRITERS[name](given, tmp_path / name)
    report = shared.ingest(tmp_path / name, table=table)
    assert report.rows == ROWS
    check(shared, table, given, values)
    again = shared.ingest(tmp_path, table=table)
    assert (again.rows, again.parts_taken) == (0, 0)
    assert again.parts_skipped == report.parts_taken


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_npy_beside_a_file_has_the_vectors_of_its_rows(
    shared: clipql.Database, table: str, tmp_path: Path, name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_rows, "_BLOCK", 1)
    values = matrix(300, dtype=dtype)
    given = rows_of(values)
    WRITERS[name](given.drop_columns("emb") if name != "a.csv" else given, tmp_path / name)
    if name == "a.csv":
        pa.csv.write_csv(given.drop_columns("emb"), tmp_path / name)
    np.save(tmp_path / "other.npy", values)
    shared.ingest([tmp_path / name, tmp_path / "other.npy"], table=table, vector_column="emb")
    check(shared, table, given, values)


def test_a_folder_pairs_files_with_the_npy_of_their_stem_in_natural_order(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    values = [matrix(4, seed=n) for n in range(3)]
    for n, number in enumerate((1, 2, 10)):
        pq.write_table(rows_of(values[n]).drop_columns("emb"), tmp_path / f"part-{number}.parquet", row_group_size=3)
        np.save(tmp_path / f"part-{number}.npy", values[n])
    shared.ingest(tmp_path, table=table)
    assert np.array_equal(stored(shared, table, "vector"), np.concatenate(values))


def test_several_vector_columns_of_any_names_are_taken_with_other_lists_as_they_are(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    one, two = matrix(), matrix(seed=1)[:, :3]
    boxes = [[0.5] * (i % 3) for i in range(ROWS)]
    given = rows_of(one, name="clip ViT-B/32", two=lists(two, pa.list_(pa.float64(), 3)), boxes=pa.array(boxes))
    pq.write_table(given, tmp_path / "a.parquet")
    shared.ingest(tmp_path / "a.parquet", table=table, model="a model")
    known = shared.registry.find(None, table)
    assert [(c.name, c.dimension, c.model) for c in known.columns] == [
        ("clip ViT-B/32", DIMENSION, "a model"), ("two", 3, "a model"),
    ]  # fmt: skip
    assert np.array_equal(stored(shared, table, "`clip ViT-B/32`"), one)
    assert np.array_equal(stored(shared, table, "two"), two.astype(np.float64).astype(np.float32))
    assert [r[0] for r in shared.sql(f"SELECT boxes FROM {table} ORDER BY _row").rows] == boxes
    assert [r[0] for r in shared.sql(f"DESCRIBE TABLE {table}").rows] == [
        "id", "caption", "width", "clip ViT-B/32", "two", "boxes",
    ]  # fmt: skip
    nearest = shared.sql(f"SELECT id FROM {table} ORDER BY L2Distance(two, {{q:Array(Float32)}}) LIMIT 1", q=two[9])
    assert nearest.rows == [(9,)]


def test_files_go_into_a_table_that_is_there_and_ids_go_on(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    shared.sql(
        f"CREATE TABLE {table} (id UInt32, caption String, width Nullable(Int64), emb Array(Float32), "
        "kind String DEFAULT 'none') ENGINE = MergeTree ORDER BY id"
    )
    shared.sql(f"INSERT INTO {table} VALUES (41, 'first', NULL, [1, 2, 3, 4, 5, 6], 'x')")
    pq.write_table(rows_of(matrix(3)), tmp_path / "a.parquet")
    shared.ingest(tmp_path / "a.parquet", table=table)
    assert shared.sql(f"SELECT id, kind FROM {table} ORDER BY _row").rows == [
        (41, "x"), (42, "none"), (43, "none"), (44, "none"),
    ]  # fmt: skip


def test_big_files_are_staged_and_committed_by_row_groups(
    shared: clipql.Database, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DIRECT_ROWS", 100)
    monkeypatch.setattr(taking, "AT_ONCE", 450)
    monkeypatch.setattr(records_rows, "_BLOCK", 1)
    monkeypatch.setattr(records_rows, "_METADATA_ROWS", 128)
    values = matrix(2000)
    given = rows_of(values)
    pq.write_table(given, tmp_path / "a.parquet", row_group_size=200)
    seen: list[Any] = []
    report = shared.ingest(tmp_path / "a.parquet", table=table, progress=seen.append)
    check(shared, table, given, values)
    assert report.parts_taken == 10
    assert [(p.first, p.rows, p.fingerprint[-4:]) for p in shared.registry.find(None, table).parts] == [
        (400 * i, 400, f":{2 * i}-{2 * i + 1}") for i in range(5)
    ]
    assert (seen[-1].rows_done, seen[-1].rows_total, seen[-1].finished) == (2000, 2000, True)


def test_a_run_that_fails_is_gone_on_with_at_its_row_group(
    shared: clipql.Database, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "AT_ONCE", 20)
    values = matrix()
    given = rows_of(values)
    broken = [None if i == 33 else v for i, v in enumerate(values)]
    pq.write_table(rows_of(broken), tmp_path / "a.parquet", row_group_size=10)
    with pytest.raises(IngestError, match=r"a\.parquet: row 3 of row group 3 has no vector \(NULL\) in emb"):
        shared.ingest(tmp_path / "a.parquet", table=table)
    assert shared.sql(f"SELECT count() FROM {table}").rows == [(20,)]
    report = shared.ingest(tmp_path / "a.parquet", table=table, skip_bad=True)
    assert (report.rows, report.rows_left_out, report.rows_skipped, report.parts_skipped) == (29, 1, 20, 2)
    kept = [i for i in range(ROWS) if i != 33]
    check(shared, table, given.take(kept), values[kept])


# what is refused


NAN = float("nan")
OF_LISTS = ("short", "empty")  # a list of fixed size has no other length
BAD: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "null": (lambda v: v.__setitem__(7, None), r"row 7 of row group 0 has no vector \(NULL\) in emb"),
    "short": (lambda v: v.__setitem__(7, v[7][:5]), r"row 7 of row group 0 has a vector of 5 numbers; expected 6 in"),
    "empty": (lambda v: v.__setitem__(7, []), r"row 7 of row group 0 has a vector of 0 numbers; expected 6 in emb"),
    "nan": (lambda v: v[7].__setitem__(2, NAN), r"row 7 of row group 0 has nan at position 2 of its vector in emb"),
    "inf": (lambda v: v[7].__setitem__(2, -np.inf), r"row 7 of row group 0 has -inf at position 2 of its vector"),
    "null number": (lambda v: v[7].__setitem__(2, None), r"row 7 of row group 0 has NULL at position 2 of its vector"),
    "too large": (lambda v: v[7].__setitem__(2, 1e300), r"has 1e\+300 at position 2 of its vector, which float32 does"),
}


@pytest.mark.parametrize(
    ("case", "fixed"), [(case, fixed) for case in BAD for fixed in (False, True) if not fixed or case not in OF_LISTS]
)
def test_a_row_without_a_usable_vector_is_named_or_left_out_and_counted(
    shared: clipql.Database, table: str, tmp_path: Path, case: str, fixed: bool
) -> None:
    spoil, message = BAD[case]
    values = matrix().astype(np.float64)
    listed = [list(v) for v in values]
    spoil(listed)
    kind = pa.list_(pa.float64(), DIMENSION) if fixed else pa.list_(pa.float64())
    pq.write_table(rows_of(listed, kind), tmp_path / "a.parquet")
    before = state(shared)
    with pytest.raises(IngestError, match=message + r".*--skip-bad-rows"):
        shared.ingest(tmp_path / "a.parquet", table=table)
    assert state(shared) == before
    report: IngestReport = shared.ingest(tmp_path / "a.parquet", table=table, skip_bad=True)
    assert (report.rows, report.rows_left_out, len(report.left_out)) == (ROWS - 1, 1, 1)
    kept = [i for i in range(ROWS) if i != 7]
    check(shared, table, rows_of(values).take(kept), values[kept])


REFUSED: dict[str, tuple[pa.Table, dict[str, Any], str]] = {
    "no vectors": (pa.table({"a": [1]}), {}, r"has no column of vectors.*its columns are a \(int64\)"),
    "not a list": (pa.table({"a": ["x"]}), {"vector_column": "a"}, r"column a is string; expected a list of numbers"),
    "lists of texts": (pa.table({"a": [["x"]]}), {"vector_column": "a"}, r"column a holds lists of string"),
    "no such column": (rows_of(matrix(2)), {"vector_column": "v"}, r"has no column v; its columns are caption \(str"),
    "a name of ours": (rows_of(matrix(2), _row=pa.array([1, 2])), {}, r"has a column _row, a name that clipql uses"),
    "link": (rows_of(matrix(2)), {"link": True}, r"link is for LAION parts"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_taken_is_refused_before_anything_is_made(
    shared: clipql.Database, table: str, tmp_path: Path, case: str
) -> None:
    given, options, message = REFUSED[case]
    pq.write_table(given, tmp_path / "a.parquet")
    before = state(shared)
    with pytest.raises(IngestError, match=message):
        shared.ingest(tmp_path / "a.parquet", table=table, **options)
    assert state(shared) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 and no more", "is not a whole Parquet file"),
        ("a.arrow", b"ARROW1 and no more", "is not a whole file of Arrow"),
        ("a.feather", b"FEA1....", "Feather of version 1"),
        ("a.json", b'[{"emb": [1, 2]}]', "is one JSON array; expected an object a line"),
        ("a.jsonl", b'{"emb": [1, 2]}\n{"emb": \n', "a.jsonl"),
        ("a.csv", b'caption,emb\na,"[1, 2]"\nb,"[1 2 3]"\n', r"row 0 and those after it cannot be read .*\[0\.5, -1"),
        ("a.npy", b"", "has no file of rows beside it"),
        ("a.csv", b"", "is not a whole file of CSV"),
        ("deep.jsonl", b'{"v": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "JSON is nested more than 100 values deep"),
        (
            "deep.jsonl",
            b'{"s": "\\"' + b"[" * 200 + b'", "v": ' + b'{"a": ' * 101,
            "JSON is nested more than 100 values",
        ),
    ],
)
def test_a_damaged_file_is_named(
    shared: clipql.Database, table: str, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IngestError, match=message):
        shared.ingest(tmp_path / name, table=table, vector_column="emb")


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_places_in_an_arrow_file_that_lie_beyond_its_data_are_not_followed(
    shared: clipql.Database, table: str, tmp_path: Path, new: Any
) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), pa.array(["canary" * 55]))
    rows = pa.table({"text": texts, "plain": ["seven..", "words.."], "emb": pa.array([[1.0, 2.0], [3.0, 4.0]])})
    content = pa.BufferOutputStream()
    with new(content, rows.schema) as writing:
        writing.write(rows)
    whole = content.getvalue().to_pybytes()
    for offsets in (np.array([0, 330], np.int32), np.array([0, 7, 14], np.int32)):
        before, there, behind = whole.rpartition(offsets.tobytes())
        assert there
        far = offsets.copy()
        far[-1] = 2**31 - 1
        (tmp_path / "far.arrow").write_bytes(before + far.tobytes() + behind)
        with pytest.raises(IngestError, match=r"far\.arrow.*(larger than|out of bounds)"):
            shared.ingest(tmp_path / "far.arrow", table=table, vector_column="emb")


def test_files_without_a_row_are_refused_where_nothing_says_the_dimension(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    pq.write_table(rows_of(matrix())[:0], tmp_path / "a.parquet")
    before = state(shared)
    with pytest.raises(IngestError, match="no file of these has a row, so how many numbers a vector of emb has"):
        shared.ingest(tmp_path, table=table, vector_column="emb")
    assert state(shared) == before
    pq.write_table(rows_of(matrix()), tmp_path / "b.parquet")
    assert shared.ingest(tmp_path, table=table, vector_column="emb").rows == ROWS


def test_all_files_are_compared_with_the_table_before_the_first_is_taken(
    shared: clipql.Database, table: str, tmp_path: Path
) -> None:
    pq.write_table(rows_of(matrix()), tmp_path / "a.parquet")
    pq.write_table(rows_of(matrix()[:, :4]), tmp_path / "b.parquet")
    before = state(shared)
    with pytest.raises(IngestError, match=r"b\.parquet has vectors of 4 numbers; emb of .* holds 6"):
        shared.ingest(tmp_path, table=table)
    assert state(shared) == before


def test_vectors_and_rows_of_different_number_are_refused(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    given = rows_of(matrix()).drop_columns("emb")
    before = state(shared)
    for name, rows, message in (
        ("a.parquet", ROWS - 1, "has 49 vectors and .* has 50 rows"),
        ("a.csv", ROWS - 1, "has more rows than the 49 vectors of"),
        ("a.csv", ROWS + 1, "has 51 vectors and .* has 50 rows"),
    ):
        (pq.write_table if name == "a.parquet" else pa.csv.write_csv)(given, tmp_path / name)
        np.save(tmp_path / "v.npy", matrix(rows))
        with pytest.raises(IngestError, match=message):
            shared.ingest([tmp_path / name, tmp_path / "v.npy"], table=table)
        assert state(shared) == before


def test_vectors_of_another_model_are_refused(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    pq.write_table(rows_of(matrix()), tmp_path / "a.parquet")
    shared.ingest(tmp_path, table=table, model="one")
    pq.write_table(rows_of(matrix(seed=1)), tmp_path / "b.parquet")
    with pytest.raises(IngestError, match="was filled by one, and --model says two"):
        shared.ingest(tmp_path, table=table, model="two")
