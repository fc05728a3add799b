"""LAION parts in: every layout and type, each part whole or not at all, and none twice."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import some
from parts import FOLDERS, LAION_FOLDERS, SIDE_BY_SIDE, Part, make_part, state, stored, vector_files

import clipql
from clipql.errors import ClipqlError, IngestError
from clipql.ingest import pipeline
from clipql.storage.vectors.segments import SegmentWriter
from clipql.tables import writer

PLAIN = "SELECT url, caption, NSFW, similarity FROM laion ORDER BY id"


def plain_rows(*parts: Part) -> list[tuple[Any, ...]]:
    columns = ["url", "caption", "NSFW", "similarity"]
    return [tuple(row[c] for c in columns) for p in parts for row in p.metadata.to_pylist()]


def check_vectors(db: clipql.Database, *parts: Part) -> None:
    for column, of in (("image_embedding", "image"), ("text_embedding", "text")):
        expected = np.concatenate([getattr(p, of) for p in parts]).astype(np.float32)
        assert np.array_equal(stored(db, "laion", column, "id"), expected)


# what is taken


@pytest.mark.parametrize("layout", [FOLDERS, LAION_FOLDERS, SIDE_BY_SIDE])
def test_every_layout_is_taken_whole(db: clipql.Database, tmp_path: Path, layout: tuple[str, str, str]) -> None:
    parts = [make_part(tmp_path / "laion", rows=7, number=n, layout=layout) for n in (0, 1, 12)]
    report = db.ingest(tmp_path / "laion")
    assert (report.rows, report.parts_taken, report.parts_skipped) == (21, 3, 0)
    assert db.sql(PLAIN).rows == plain_rows(*parts)
    assert db.sql("SELECT id FROM laion ORDER BY _row").rows == [(i,) for i in range(21)]
    check_vectors(db, *parts)


@pytest.mark.parametrize("which", ["metadata_path", "image_path", "text_path"])
@pytest.mark.parametrize("layout", [FOLDERS, LAION_FOLDERS, SIDE_BY_SIDE])
def test_any_file_of_a_part_stands_for_the_part(
    db: clipql.Database, tmp_path: Path, which: str, layout: tuple[str, str, str]
) -> None:
    parts = [make_part(tmp_path / "laion", rows=3, number=n, layout=layout) for n in (0, 1)]
    assert db.ingest(getattr(parts[1], which)).rows == 3
    check_vectors(db, parts[1])


def test_parts_are_taken_in_the_order_of_their_numbers_and_by_number(db: clipql.Database, tmp_path: Path) -> None:
    parts = {n: make_part(tmp_path / "laion", rows=2, number=n) for n in (0, 1, 2, 3, 10)}
    assert db.ingest(tmp_path / "laion", parts="0-1, 3").parts_taken == 3
    assert db.sql(PLAIN).rows == plain_rows(parts[0], parts[1], parts[3])
    report = db.ingest(tmp_path / "laion")
    assert (report.parts_taken, report.parts_skipped) == (2, 3)
    check_vectors(db, *(parts[n] for n in (0, 1, 3, 2, 10)))


def test_several_sources_make_one_table(db: clipql.Database, tmp_path: Path) -> None:
    parts = [make_part(tmp_path / str(n), rows=2, number=n) for n in (0, 1)]
    assert db.ingest([tmp_path / "0", tmp_path / "1"]).rows == 4
    check_vectors(db, *parts)


@pytest.mark.parametrize("present", ["image", "text"])
def test_a_part_may_have_only_image_or_only_text_vectors(db: clipql.Database, tmp_path: Path, present: str) -> None:
    part = make_part(tmp_path / "laion", rows=5, image=present == "image", text=present == "text")
    db.ingest(tmp_path / "laion")
    assert db.sql("DESCRIBE TABLE laion").rows[-1][0] == f"{present}_embedding"
    assert np.array_equal(stored(db, "laion", f"{present}_embedding"), getattr(part, present).astype(np.float32))


def test_linked_parts_copy_nothing_and_answer_the_same(db: clipql.Database, tmp_path: Path) -> None:
    parts = [make_part(tmp_path / "laion", rows=9, number=n) for n in (0, 1)]
    db.ingest(tmp_path / "laion", link=True)
    check_vectors(db, *parts)
    assert vector_files(db.path) == []
    db.sql("DROP TABLE laion")
    assert parts[0].image_path.exists()


def test_a_linked_file_that_went_away_is_named_when_the_database_is_opened(tmp_path: Path) -> None:
    part = make_part(tmp_path / "laion", rows=3)
    with clipql.connect(tmp_path / "db") as db:
        db.ingest(tmp_path / "laion", link=True)
    part.text_path.rename(tmp_path / "away.npy")
    with pytest.raises(clipql.errors.DatabaseDamaged, match=rf"{part.text_path}.*put the linked file back"):
        clipql.connect(tmp_path / "db")
    (tmp_path / "away.npy").rename(part.text_path)
    with clipql.connect(tmp_path / "db") as db:
        check_vectors(db, part)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_vectors_of_every_float_type_are_taken(db: clipql.Database, tmp_path: Path, dtype: str) -> None:
    part = make_part(tmp_path / "laion", rows=4, dtype=dtype)
    db.ingest(tmp_path / "laion")
    check_vectors(db, part)


def test_a_big_part_goes_in_by_blocks_and_staged(
    db: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DIRECT_ROWS", 100)
    monkeypatch.setattr(pipeline, "BATCH_ROWS", 64)
    part = make_part(tmp_path / "laion", rows=1000, dimension=4)
    seen: list[pipeline.IngestProgress] = []
    db.ingest(tmp_path / "laion", progress=seen.append)
    check_vectors(db, part)
    assert db.sql(PLAIN).rows == plain_rows(part)
    assert (seen[-1].rows_done, seen[-1].rows_total, seen[-1].finished) == (1000, 1000, True)
    assert seen[-1].part == "metadata_0.parquet"
    assert [p.rows_done for p in seen] == sorted(p.rows_done for p in seen)


def test_a_path_with_wildcards_and_quotes_is_just_a_path(db: clipql.Database, tmp_path: Path) -> None:
    folder = tmp_path / "it's {0..3} * [a] ? 100% \\ é"
    part = make_part(folder, rows=3)
    db.ingest(folder)
    check_vectors(db, part)


def test_the_model_is_remembered_with_the_columns(db: clipql.Database, tmp_path: Path) -> None:
    make_part(tmp_path / "laion", rows=3)
    db.ingest(tmp_path / "laion", model="ViT-B/32")
    table = db.registry.find(None, "laion")
    assert table is not None
    assert [c.model for c in table.columns] == ["ViT-B/32", "ViT-B/32"]


# metadata


DAY, MOMENT = dt.date(2021, 9, 1), dt.datetime(2021, 9, 1, 12, 30, 15, 123456)  # noqa: DTZ001  a naive column
UTC = dt.UTC
KINDS: dict[str, tuple[pa.DataType, list[Any], str]] = {
    "text": (pa.string(), ["a", "", None], "Nullable(String)"),
    "large_text": (pa.large_string(), ["a\0b", "\\", None], "Nullable(String)"),
    "bytes": (pa.binary(), [b"\xff\xfe", b"", None], "Nullable(String)"),
    "i8": (pa.int8(), [-128, 127, None], "Nullable(Int8)"),
    "i16": (pa.int16(), [-(2**15), 2**15 - 1, None], "Nullable(Int16)"),
    "i32": (pa.int32(), [-(2**31), 2**31 - 1, None], "Nullable(Int32)"),
    "i64": (pa.int64(), [-(2**63), 2**63 - 1, None], "Nullable(Int64)"),
    "u8": (pa.uint8(), [0, 255, None], "Nullable(UInt8)"),
    "u16": (pa.uint16(), [0, 2**16 - 1, None], "Nullable(UInt16)"),
    "u32": (pa.uint32(), [0, 2**32 - 1, None], "Nullable(UInt32)"),
    "u64": (pa.uint64(), [0, 2**64 - 1, None], "Nullable(UInt64)"),
    "f32": (pa.float32(), [0.5, -1.0, None], "Nullable(Float32)"),
    "f64": (pa.float64(), [0.1, 1e300, None], "Nullable(Float64)"),
    "flag": (pa.bool_(), [True, False, None], "Nullable(Bool)"),
    "day": (pa.date32(), [DAY, dt.date(1950, 1, 1), None], "Nullable(Date32)"),
    "moment": (pa.timestamp("us"), [MOMENT, MOMENT, None], "Nullable(DateTime64(6, 'UTC'))"),
    "moment_ms": (
        pa.timestamp("ms"),
        [MOMENT.replace(microsecond=123000), MOMENT.replace(microsecond=0), None],
        "Nullable(DateTime64(3, 'UTC'))",
    ),
    "words": (pa.list_(pa.string()), [["a", "é"], [], ["", None]], "Array(Nullable(String))"),
    "numbers": (pa.list_(pa.int64()), [[1, 2], [], [3]], "Array(Nullable(Int64))"),
    "kind": (pa.dictionary(pa.int32(), pa.string()), ["UNLIKELY", "NSFW", None], "Nullable(String)"),
    "price": (pa.decimal128(10, 2), [Decimal("1.50"), Decimal("-0.01"), None], "Nullable(Decimal(10, 2))"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_metadata_column_keeps_its_type_and_its_values(db: clipql.Database, tmp_path: Path, kind: str) -> None:
    arrow, values, expected = KINDS[kind]
    metadata = pa.table({"x": pa.array(values, arrow), "n": pa.array([0, 1, 2])})
    make_part(tmp_path / "laion", rows=3, dimension=4, metadata_columns=metadata)
    db.ingest(tmp_path / "laion")
    types = {name: kind for name, kind, *_ in db.sql("DESCRIBE TABLE laion").rows}
    assert types["x"].replace("LowCardinality(Nullable(String))", "Nullable(String)") == expected
    found = [x for (x,) in db.sql("SELECT x FROM laion ORDER BY n").rows]
    if kind == "bytes":
        found = [None if h is None else bytes.fromhex(h) for (h,) in db.sql("SELECT hex(x) FROM laion ORDER BY n").rows]
    if kind == "day":
        found = [None if d is None else dt.date.fromisoformat(str(d)[:10]) for d in found]
    if kind.startswith("moment"):
        found = [None if m is None else m.replace(tzinfo=None) for m in found]
    assert found == values


def test_a_timestamp_with_a_time_zone_is_the_same_moment(db: clipql.Database, tmp_path: Path) -> None:
    values = pa.array([MOMENT.replace(tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    make_part(tmp_path / "laion", rows=1, metadata_columns={"t": values})
    db.ingest(tmp_path / "laion")
    assert db.sql("SELECT toUnixTimestamp64Micro(assumeNotNull(t)) FROM laion").rows == [
        (int(MOMENT.replace(tzinfo=UTC).timestamp() * 1e6),)
    ]


def test_structs_and_maps_are_kept_or_refused_but_never_dropped(db: clipql.Database, tmp_path: Path) -> None:
    struct = pa.array([{"w": 640, "h": 480}], pa.struct([("w", pa.int32()), ("h", pa.int32())]))
    pairs = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))
    make_part(tmp_path / "laion", rows=1, metadata_columns={"size": struct, "tags": pairs})
    db.ingest(tmp_path / "laion")
    assert db.sql("SELECT size.w, size.h, tags['a'] FROM laion").rows == [(640, 480, 1)]


@pytest.mark.parametrize("name", ["a b", "it's", "back`tick", "é", "SELECT", "a.b", "a\\b", 'q"q', "_x"])
def test_a_metadata_column_may_have_any_name(db: clipql.Database, tmp_path: Path, name: str) -> None:
    make_part(tmp_path / "laion", rows=2, metadata_columns={name: ["x", "y"], "url": ["a", "b"]})
    db.ingest(tmp_path / "laion")
    result = db.sql("SELECT * FROM laion ORDER BY id")
    assert result.columns == ("id", name, "url", "image_embedding", "text_embedding")
    assert [row[1] for row in result.rows] == ["x", "y"]


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "none"])
def test_parquet_of_any_codec_and_row_group_size_is_taken(db: clipql.Database, tmp_path: Path, codec: str) -> None:
    part = make_part(tmp_path / "laion", rows=100, dimension=4)
    pq.write_table(part.metadata, part.metadata_path, compression=codec, row_group_size=7)
    db.ingest(tmp_path / "laion")
    assert db.sql(PLAIN).rows == plain_rows(part)


def test_metadata_without_columns_but_rows_gets_ids(db: clipql.Database, tmp_path: Path) -> None:
    part = make_part(tmp_path / "laion", rows=3, metadata_columns={"url": ["a", "b", "c"]})
    db.ingest(tmp_path / "laion")
    assert db.sql("SELECT id, url FROM laion ORDER BY id").rows == [(0, "a"), (1, "b"), (2, "c")]
    check_vectors(db, part)


# ids


def test_an_own_id_is_kept(db: clipql.Database, tmp_path: Path) -> None:
    ids = [7, 3, 2**63 + 1]
    part = make_part(
        tmp_path / "laion", rows=3, metadata_columns={"id": pa.array(ids, pa.uint64()), "url": ["a", "b", "c"]}
    )
    db.ingest(tmp_path / "laion")
    assert db.sql("SELECT id, url FROM laion ORDER BY _row").rows == [(7, "a"), (3, "b"), (2**63 + 1, "c")]
    assert np.array_equal(stored(db, "laion"), part.image.astype(np.float32))  # type: ignore[union-attr]


def test_ids_stay_unique_after_inserts_and_deletes(db: clipql.Database, tmp_path: Path) -> None:
    for n in range(3):
        make_part(tmp_path / "laion", rows=4, number=n)
    db.ingest(tmp_path / "laion", parts="0")
    db.sql(
        "INSERT INTO laion (id, url, image_embedding, text_embedding) "
        "SELECT 1000, 'own', image_embedding, text_embedding FROM laion WHERE id = 1"
    )
    db.ingest(tmp_path / "laion", parts="1")
    db.sql("DELETE FROM laion WHERE id >= 2")
    db.ingest(tmp_path / "laion", parts="2")
    ids = [i for (i,) in db.sql("SELECT id FROM laion ORDER BY _row").rows]
    assert len(ids) == len(set(ids)) == 6
    assert ids[:2] == [0, 1]


def test_the_users_own_table_is_filled(db: clipql.Database, tmp_path: Path) -> None:
    db.sql(
        "CREATE TABLE laion (`id` Int64, `url` String, `caption` String, `NSFW` LowCardinality(String), "
        "`similarity` Float32, `added` DateTime DEFAULT '2024-01-01 00:00:00', "
        "`image_embedding` Array(Float32), `text_embedding` Array(Float32)) ENGINE = MergeTree ORDER BY id"
    )
    part = make_part(tmp_path / "laion", rows=4)
    db.ingest(tmp_path / "laion")
    assert [r[:3] for r in db.sql(PLAIN).rows] == [r[:3] for r in plain_rows(part)]
    assert db.sql("SELECT DISTINCT toString(added) FROM laion").rows == [("2024-01-01 00:00:00",)]
    check_vectors(db, part)


# idempotent and resumed


def test_a_part_that_is_there_is_skipped_wherever_it_lies_now(db: clipql.Database, tmp_path: Path) -> None:
    part = make_part(tmp_path / "laion", rows=4)
    db.ingest(tmp_path / "laion")
    before = state(db)
    assert db.ingest(tmp_path / "laion").parts_skipped == 1
    (tmp_path / "laion").rename(tmp_path / "moved")
    report = db.ingest(tmp_path / "moved")
    assert (report.rows, report.parts_taken, report.parts_skipped) == (0, 0, 1)
    assert state(db) == before
    assert part.number == 0


def test_a_part_with_the_same_metadata_and_other_vectors_is_another_part(db: clipql.Database, tmp_path: Path) -> None:
    make_part(tmp_path / "one", rows=4, seed=1)
    make_part(tmp_path / "two", rows=4, seed=2)
    db.ingest(tmp_path / "one")
    assert db.ingest(tmp_path / "two").parts_taken == 1
    assert db.sql("SELECT count(), uniqExact(id) FROM laion").rows == [(8, 8)]


def test_a_run_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    parts = [make_part(tmp_path / "laion", rows=4, number=n) for n in range(4)]
    count = 0

    def cut(progress: pipeline.IngestProgress) -> None:
        nonlocal count
        count += progress.finished
        if count == 2:
            raise KeyboardInterrupt

    with clipql.connect(tmp_path / "db") as db, pytest.raises(KeyboardInterrupt):
        db.ingest(tmp_path / "laion", progress=cut)
    with clipql.connect(tmp_path / "db") as db:
        assert db.sql("SELECT count() FROM laion").rows == [(8,)]
        report = db.ingest(tmp_path / "laion")
        assert (report.parts_taken, report.parts_skipped) == (2, 2)
        check_vectors(db, *parts)


def test_truncating_the_table_forgets_its_parts(db: clipql.Database, tmp_path: Path) -> None:
    part = make_part(tmp_path / "laion", rows=4)
    db.ingest(tmp_path / "laion")
    db.sql("TRUNCATE TABLE laion")
    assert db.ingest(tmp_path / "laion").parts_taken == 1
    check_vectors(db, part)


# what is refused


def rewritten(part: Part, **columns: Any) -> None:
    table = part.metadata
    for name, values in columns.items():
        if values is None:
            table = table.drop_columns([name])
        elif name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        else:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, part.metadata_path)


def with_value(array: Any, row: int, position: int, value: float) -> Any:
    changed = array.copy()
    changed[row, position] = value
    return changed


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xaa" * 196
    path.write_bytes(data)


BAD: dict[str, tuple[Any, list[str]]] = {
    "fewer image vectors": (
        lambda p: np.save(p.image_path, p.image[:-1]),
        ["img_emb_1.npy has 19 vectors", "metadata_1.parquet has 20 rows", "fetch the shorter one again"],
    ),
    "fewer text vectors": (
        lambda p: np.save(p.text_path, p.text[:3]),
        ["text_emb_1.npy has 3 vectors", "metadata_1.parquet has 20 rows"],
    ),
    "fewer rows": (
        lambda p: pq.write_table(p.metadata.slice(0, 19), p.metadata_path),
        ["has 20 vectors", "metadata_1.parquet has 19 rows"],
    ),
    "vectors of another length": (
        lambda p: np.save(p.image_path, p.image[:, :15]),
        ["img_emb_1.npy has vectors of 15 numbers", "image_embedding of default.laion holds 16"],
    ),
    "objects": (
        lambda p: np.save(p.text_path, p.text.astype(object)),
        ["text_emb_1.npy holds Python objects, which are never loaded"],
    ),
    "integers": (
        lambda p: np.save(p.text_path, p.text.astype(np.int32)),
        ["text_emb_1.npy holds int32; expected float16, float32, float64", 'save it with .astype("float32")'],
    ),
    "one dimension": (
        lambda p: np.save(p.text_path, p.text.ravel()),
        ["text_emb_1.npy has shape (320,); expected (rows, dimension)"],
    ),
    "nan": (
        lambda p: np.save(p.image_path, with_value(p.image, 17, 3, np.nan)),
        ["img_emb_1.npy: row 17 holds nan at position 3; vectors must be finite"],
    ),
    "infinity": (
        lambda p: np.save(p.text_path, with_value(p.text, 19, 15, np.inf)),
        ["text_emb_1.npy: row 19 holds inf at position 15"],
    ),
    "truncated npy": (
        lambda p: cut(p.image_path, 300),
        ["img_emb_1.npy is cut short: its header announces 20 vectors of 16 float16 numbers, 768 bytes in all"],
    ),
    "empty npy": (lambda p: cut(p.image_path, 0), ["img_emb_1.npy is not a .npy file of vectors"]),
    "truncated parquet": (
        lambda p: cut(p.metadata_path, 500),
        ["metadata_1.parquet is not a whole Parquet file", "fetch it again"],
    ),
    "empty parquet": (lambda p: cut(p.metadata_path, 0), ["metadata_1.parquet is not a whole Parquet file"]),
    "damaged parquet": (lambda p: damage(p.metadata_path), ["metadata_1.parquet", "fetch it again"]),
    "missing column": (
        lambda p: rewritten(p, caption=None),
        ["metadata_1.parquet has no column caption, which default.laion has"],
    ),
    "foreign column": (
        lambda p: rewritten(p, extra=[1] * 20),
        [
            "metadata_1.parquet has a column extra that default.laion lacks",
            "ALTER TABLE default.laion ADD COLUMN `extra`",
        ],
    ),
    "another type": (
        lambda p: rewritten(p, caption=list(range(20))),
        ["metadata_1.parquet: column caption is Nullable(Int64); in default.laion it is Nullable(String)"],
    ),
    "text for a number": (
        lambda p: rewritten(p, similarity=["0.3"] * 20),
        ["metadata_1.parquet: column similarity is Nullable(String); in default.laion it is Nullable(Float64)"],
    ),
    "a reserved name": (
        lambda p: rewritten(p, _row=[1] * 20),
        ["metadata_1.parquet has a column _row, a name that clipql uses"],
    ),
    "a vector's name": (
        lambda p: rewritten(p, image_embedding=[1] * 20),
        ["metadata_1.parquet has a column image_embedding, a name that clipql uses"],
    ),
    "no metadata": (lambda p: p.metadata_path.unlink(), ["part 1: there is no metadata_1.parquet for", "fetch it too"]),
    "no text vectors": (
        lambda p: p.text_path.unlink(),
        ["part 1", "has no vectors for text_embedding, which each row of default.laion needs"],
    ),
    "two images": (
        lambda p: shutil.copy(p.image_path, p.folder / "img_emb_1.npy"),
        ["part 1 has two files for its image_embedding"],
    ),
}


IN_A_NEW_TABLE = [
    "fewer image vectors",
    "vectors of another length",
    "nan",
    "truncated parquet",
    "damaged parquet",
    "another type",
]


@pytest.mark.parametrize(
    ("kind", "there"), some([*((kind, True) for kind in BAD), *((kind, False) for kind in IN_A_NEW_TABLE)], 2)
)
def test_bad_input_is_named_and_the_database_is_exactly_as_before(
    db: clipql.Database, tmp_path: Path, kind: str, there: bool
) -> None:
    make_part(tmp_path / "laion", rows=20, number=0)
    part = make_part(tmp_path / "laion", rows=20, number=1)
    if there:
        db.ingest(tmp_path / "laion", parts="0")
    else:
        db.sql("SELECT 1")
    before = state(db)
    spoil, messages = BAD[kind]
    spoil(part)
    parts = None if there or kind not in ("nan", "infinity", "damaged parquet") else "1"
    with pytest.raises(IngestError) as caught:
        db.ingest(tmp_path / "laion", parts=parts)
    for message in messages:
        assert message in str(caught.value)
    assert state(db) == before
    again = make_part(tmp_path / "laion", rows=20, number=1)
    (tmp_path / "laion" / "img_emb_1.npy").unlink(missing_ok=True)
    assert db.ingest(tmp_path / "laion").parts_taken == 2 - there
    assert db.sql("SELECT count() FROM laion").rows == [(40,)]
    assert np.array_equal(stored(db, "laion")[20:], again.image.astype(np.float32))  # type: ignore[union-attr]


def test_the_parts_before_a_bad_one_stay(db: clipql.Database, tmp_path: Path) -> None:
    first = make_part(tmp_path / "laion", rows=4, number=0)
    second = make_part(tmp_path / "laion", rows=4, number=1)
    assert second.image is not None
    np.save(second.image_path, with_value(second.image, 2, 2, np.nan))
    with pytest.raises(IngestError, match=r"img_emb_1\.npy: row 2 holds nan"):
        db.ingest(tmp_path / "laion")
    check_vectors(db, first)
    assert vector_files(db.path) == sorted(vector_files(db.path))
    assert len(vector_files(db.path)) == 2


@pytest.mark.parametrize("parts", ["", "x", "3-1", "1,,2", "-1", "0-"])
def test_parts_that_make_no_sense_say_what_is_expected(db: clipql.Database, tmp_path: Path, parts: str) -> None:
    make_part(tmp_path / "laion", rows=2)
    with pytest.raises(IngestError, match=r"expected numbers and ranges such as 0-9,12"):
        db.ingest(tmp_path / "laion", parts=parts)


def test_a_source_without_parts_says_what_is_expected(db: clipql.Database, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IngestError, match=r"no parts in .*empty: expected metadata_N\.parquet with img_emb_N\.npy"):
        db.ingest(tmp_path / "empty")
    with pytest.raises(IngestError, match=f"there is no {tmp_path}/nothing"):
        db.ingest(tmp_path / "nothing")
    make_part(tmp_path / "laion", rows=2)
    with pytest.raises(IngestError, match="no parts with the numbers 5, 6"):
        db.ingest(tmp_path / "laion", parts="5-6")
    with pytest.raises(IngestError, match="is not named like a file of a part"):
        db.ingest(db.path / "lock")


def test_a_table_without_vector_columns_is_not_filled(db: clipql.Database, tmp_path: Path) -> None:
    make_part(tmp_path / "laion", rows=2)
    db.sql("CREATE TABLE laion (url String) ENGINE = MergeTree ORDER BY url")
    with pytest.raises(IngestError, match="is a table without vector columns"):
        db.ingest(tmp_path / "laion")


def test_float64_vectors_cannot_be_linked_and_nothing_is_made(db: clipql.Database, tmp_path: Path) -> None:
    make_part(tmp_path / "laion", rows=2, dtype=np.float64)
    before = state(db)
    with pytest.raises(IngestError, match="holds float64, which cannot be linked; ingest it without --link"):
        db.ingest(tmp_path / "laion", link=True)
    assert state(db) == before


def test_no_error_of_ingest_is_a_stranger(db: clipql.Database, tmp_path: Path) -> None:
    part = make_part(tmp_path / "laion", rows=2)
    part.metadata_path.unlink()
    part.metadata_path.mkdir()
    with pytest.raises(ClipqlError):
        db.ingest(tmp_path / "laion")


# names of columns


def named(*names: str) -> pa.Table:
    """Metadata of five rows with columns of these names."""
    return pa.Table.from_arrays([pa.array([f"{i} {n}" for i in range(5)]) for n in range(len(names))], list(names))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("url", ""), "column 2 of 2 has no name: give it one, or leave it out"),
        (("", "url", ""), "column 1 of 3 has no name: give it one, or leave it out"),
        (("url", "caption", "url"), "has two columns of one name, 1 and 3 of 3: url; rename one, or leave it out"),
    ],
)
def test_a_column_that_no_table_can_have_is_named(
    db: clipql.Database, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    part, before = make_part(tmp_path / "laion", rows=5, metadata_columns=named(*names)), state(db)
    with pytest.raises(IngestError) as raised:
        db.ingest(tmp_path / "laion")
    assert str(raised.value) == f"{part.metadata_path}{' ' if message[:3] == 'has' else ': '}{message}"
    assert state(db) == before


def test_columns_of_any_other_name_are_taken_in_and_answered(db: clipql.Database, tmp_path: Path) -> None:
    names = ("a b", "x.y", "a`b", '"q"', "a\\b", "größe", "a\nb", "URL", "url", "_part", "select", "x" * 500)
    make_part(tmp_path / "laion", rows=5, metadata_columns=named(*names))
    db.ingest(tmp_path / "laion")
    found = db.sql("SELECT * EXCEPT (id, image_embedding, text_embedding) FROM laion ORDER BY id")
    assert found.columns == names
    assert found.rows == [tuple(f"{i} {n}" for n in range(len(names))) for i in range(5)]


def test_the_index_of_pandas_is_a_column_as_any_other(db: clipql.Database, tmp_path: Path) -> None:
    frame = pd.DataFrame({"url": list("abcde"), "caption": list("vwxyz")}, index=[3, 1, 4, 1, 5])
    first = make_part(tmp_path / "laion", rows=5)
    frame.to_parquet(first.metadata_path)
    db.ingest(tmp_path / "laion")
    sql = "SELECT url, caption, __index_level_0__ FROM laion ORDER BY id"
    assert db.sql(sql).rows == list(zip(frame.url, frame.caption, frame.index, strict=True))
    # a table that has no such column
    for folder, index in (("without", False), ("with", True)):
        part = make_part(tmp_path / folder, rows=5, number=1)
        frame.to_parquet(part.metadata_path, index=index)
    db.ingest(tmp_path / "without", table="other")
    with pytest.raises(IngestError) as raised:
        db.ingest(tmp_path / "with", table="other")
    assert str(raised.value) == (
        f"{part.metadata_path} has a column __index_level_0__ that default.other lacks, and no column is dropped "
        "silently: add it with ALTER TABLE default.other ADD COLUMN `__index_level_0__` Nullable(Int64), or write the "
        "file without pandas' index, by to_parquet(…, index=False)"
    )


def test_lists_that_are_one_nested_to_clickhouse_are_refused_by_row_where_they_differ(
    db: clipql.Database, tmp_path: Path
) -> None:
    names, whole = ["a.b", "a.c"], [[1], [2, 3], None, [], [4]]
    table = pa.Table.from_arrays([pa.array(whole), pa.array(whole)], names)
    make_part(tmp_path / "same", rows=5, metadata_columns=table)
    db.ingest(tmp_path / "same", table="same")
    assert db.sql("SELECT `a.b`, `a.c` FROM same ORDER BY id").rows == [(v or [], v or []) for v in whole]
    table = pa.Table.from_arrays([pa.array(whole), pa.array([[1], [2], [], [], [4]])], names)
    part, before = make_part(tmp_path / "other", rows=5, metadata_columns=table), state(db)
    with pytest.raises(IngestError) as raised:
        db.ingest(tmp_path / "other")
    assert str(raised.value) == (
        f"{part.metadata_path}: row 1 has 2 values in a.b and 1 in a.c, which are one Nested to ClickHouse, so must be "
        "as many; rename one, such as a_c"
    )
    assert state(db) == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
@pytest.mark.parametrize("kind", ["part", "records"])
def test_threads_that_write_vectors_give_way_to_others(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, writing, own = SegmentWriter.append, set[int](), os.getpriority(os.PRIO_PROCESS, 0)

    def noted(self: SegmentWriter, *given: Any) -> None:
        writing.add(os.getpriority(os.PRIO_PROCESS, 0))
        append(self, *given)

    monkeypatch.setattr(SegmentWriter, "append", noted)
    make_part(tmp_path / "part")
    rows = pa.table({"id": [1, 2], "v": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))})
    pq.write_table(rows, tmp_path / "rows.parquet")
    with clipql.connect(tmp_path / "t.db") as db:
        db.ingest(tmp_path / ("part" if kind == "part" else "rows.parquet"), table="t")
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert min(writing) > own
