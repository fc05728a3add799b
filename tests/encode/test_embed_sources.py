"""What `clipql embed` reads: every kind of source gives its rows in order, and no damage stops a run."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding import Colours, all_rows, make_tar, part_rows, picture, shade, vectors

from clipql.encode.embed import EmbedReport, embed_captions, embed_pictures
from clipql.encode.embed import rows as rows_module
from clipql.encode.embed.rows import Ahead, Row
from clipql.errors import EncodeError

RED, GREEN = picture((255, 0, 0)), picture((0, 255, 0))


def embed(out: Path, *sources: Path | str, **options: Any) -> EmbedReport:
    return embed_pictures(sources, out, encoder=Colours(), **options)


def told(out: Path, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[n] for n in names) for row in all_rows(out)]


# folders


def test_a_folder_becomes_a_part_with_captions_sizes_and_similarities(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.png").write_bytes(RED)
    (folder / "b.txt").write_text("  a red square\n", encoding="utf-8")
    (folder / "a.jpg").write_bytes(picture((0, 255, 0), (7, 5), "JPEG"))
    (folder / "sub" / "c.webp").write_bytes(picture((0, 0, 255), format="WEBP"))
    (folder / "sub" / "c.json").write_text('{"caption": "blau", "url": "https://example.org/c", "likes": 3}')
    (folder / ".hidden.png").write_bytes(RED)
    (folder / "notes.md").write_text("no picture")
    report = embed(tmp_path / "out", folder)
    assert (report.rows, report.errors, report.parts) == (3, 0, 1)
    assert told(tmp_path / "out", "image_path", "caption", "width", "height", "url", "likes", "error") == [
        (str(folder / "a.jpg"), "", 7, 5, None, None, ""),
        (str(folder / "b.png"), "a red square", 6, 4, None, None, ""),
        (str(folder / "sub" / "c.webp"), "blau", 6, 4, "https://example.org/c", 3, ""),
    ]
    images, texts = vectors(tmp_path / "out"), vectors(tmp_path / "out", "text_emb")
    assert (images.dtype, images.shape, texts.dtype, texts.shape) == (np.float16, (3, 8), np.float16, (3, 8))
    assert np.allclose(np.linalg.norm(images.astype(np.float32), axis=1), 1, atol=1e-3)
    assert np.array_equal(texts, Colours().encode_texts(["", "a red square", "blau"]).astype(np.float16))
    similarity = [row["similarity"] for row in part_rows(tmp_path / "out")]
    assert similarity[0] is None
    cosines = (images.astype(np.float32) * texts.astype(np.float32)).sum(1)
    assert np.allclose(similarity[1:], cosines[1:], atol=1e-3)


def test_globs_single_pictures_and_folders_keep_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    for name in ("x1.png", "x2.png", "one.png"):
        (tmp_path / name).write_bytes(RED)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.png").write_bytes(GREEN)
    embed(tmp_path / "out", tmp_path / "one.png", tmp_path / "more", str(tmp_path / "x*"))
    names = [Path(p).name for (p,) in told(tmp_path / "out", "image_path")]
    assert names == ["one.png", "m.png", "x1.png", "x2.png"]


def test_the_output_within_a_source_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    out = tmp_path / "out"
    assert embed(out, tmp_path).rows == 1
    (out / "z.png").write_bytes(RED)
    assert embed(out, tmp_path).rows == 0


def test_a_source_that_is_not_there_or_is_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="there is no"):
        embed(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncodeError, match=r"there is nothing to embed in .*empty"):
        embed(tmp_path / "out", tmp_path / "empty")


def test_a_bad_picture_or_sidecar_is_a_row_with_its_error(tmp_path: Path) -> None:
    for name, data in {"a.png": b"GIF89a", "b.png": RED, "c.png": RED, "d.png": b""}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b.json").write_text("{not json")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9 red")
    report = embed(tmp_path / "out", tmp_path)
    errors = told(tmp_path / "out", "error", "caption")
    assert [bool(e) for e, _ in errors] == [True, True, False, True]
    assert "b.json is not JSON" in errors[1][0]
    assert errors[2][1] == "caf\ufffd red"
    assert (report.rows, report.errors, len(report.examples)) == (4, 3, 3)
    for kind in ("img_emb", "text_emb"):
        assert [bool(v.any()) for v in vectors(tmp_path / "out", kind)] == [False, False, True, False]


def test_json_keys_become_columns_with_their_types_and_never_take_ours(tmp_path: Path) -> None:
    told_by: list[Mapping[str, Any]] = [
        {"caption": "one", "n": 1, "x": 1, "flag": True, "deep": {"a": [1]}, "mixed": 1, "width": 99, "none": None},
        {"caption": "two", "n": 2**40, "x": 0.5, "flag": None, "mixed": "b", "URL": "http://b", "odd": "\ud800"},
    ]
    for name, content in zip("ab", told_by, strict=True):
        (tmp_path / f"{name}.png").write_bytes(RED)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    embed(tmp_path / "out", tmp_path)
    schema = pq.read_schema(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    names = ("n", "x", "flag", "deep", "mixed", "source_width", "none", "url", "odd")
    assert [str(schema.field(n).type) for n in names] == [
        *("int64", "double", "bool", "string", "string", "int64", "string", "string", "string")
    ]
    assert told(tmp_path / "out", *names) == [
        (1, 1.0, True, '{"a": [1]}', "1", 99, None, None, None),
        (2**40, 0.5, None, None, "b", None, None, "http://b", "?"),
    ]


def test_later_parts_keep_the_columns_of_the_first_and_the_report_names_what_that_leaves_out(tmp_path: Path) -> None:
    for name, content in {"a": {"n": 1}, "b": {"n": "many", "more": 1}, "c": {"n": "3"}}.items():
        (tmp_path / f"{name}.png").write_bytes(RED)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    report = embed(tmp_path / "out", tmp_path, part_rows=1)
    assert told(tmp_path / "out", "n") == [(1,), (None,), (3,)]
    assert report.left_out == ("more", "n where it is no int64")


# captions beside pictures


def test_text_vectors_begin_with_the_first_caption_and_rows_before_it_get_those_of_no_words(tmp_path: Path) -> None:
    for i in range(600):
        (tmp_path / f"{i:03}.png").write_bytes(shade(i) if i != 5 else b"bad")
    (tmp_path / "550.txt").write_text("green")
    embed(tmp_path / "out", tmp_path)
    texts, expected = vectors(tmp_path / "out", "text_emb"), Colours().encode_texts(["", "green"]).astype(np.float16)
    assert not texts[5].any()
    assert np.array_equal(texts[[0, 300, 549, 599]], expected[[0, 0, 0, 0]])
    assert np.array_equal(texts[550], expected[1])


@pytest.mark.parametrize(("captions", "there"), [("auto", False), ("yes", True), ("no", False)])
def test_pictures_without_captions_have_no_text_vectors_unless_asked_for(
    tmp_path: Path, captions: str, there: bool
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    embed(tmp_path / "out", tmp_path, captions=captions)
    assert (tmp_path / "out" / "text_emb").exists() == there
    assert told(tmp_path / "out", "caption", "similarity") == [("", None)]


# tars


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
def test_a_webdataset_tar_gives_a_row_a_sample(tmp_path: Path, name: str) -> None:
    members = {
        "README": b"not a sample",
        "a/1.jpg": picture((255, 0, 0), format="JPEG"),
        "a/1.txt": b"red",
        "a/1.json": b'{"caption": "another", "url": "http://1", "w": 2}',
        "a/2.json": b'{"TEXT": "green"}',
        "a/2.seg.png": GREEN,
        "a/3.txt": b"no picture",
        "a/4.png": b"broken",
    }
    tar = make_tar(tmp_path / name, members)
    report = embed(tmp_path / "out", tar)
    assert told(tmp_path / "out", "image_path", "caption", "url", "w") == [
        (f"{tar}#a/1.jpg", "red", "http://1", 2),
        (f"{tar}#a/2.seg.png", "green", None, None),
        (f"{tar}#a/3", "no picture", None, None),
        (f"{tar}#a/4.png", "", None, None),
    ]
    assert [bool(e) for (e,) in told(tmp_path / "out", "error")] == [False, False, True, True]
    assert report.errors == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_cut_anywhere_gives_its_readable_samples_and_a_row_that_says_so(tmp_path: Path, packed: bool) -> None:
    members = {f"{i:02}.{e}": shade(i) if e == "png" else b"%d" % i for i in range(6) for e in ("png", "txt")}
    whole = make_tar(tmp_path / ("w.tar.gz" if packed else "w.tar"), members).read_bytes()
    content = 6 * 2 * 1024  # a header and a block a member: what follows is padding
    cuts = random.Random(0).sample(range(1, len(whole) - 12 if packed else content), 25)
    for number, cut in enumerate(cuts if packed else [*cuts, 512, 1024, content]):
        broken, out = tmp_path / f"{number}.tar", tmp_path / f"out{number}"
        broken.write_bytes(whole[:cut])
        report = embed(out, broken, part_rows=4)
        *good, last = all_rows(out)
        assert "damaged or cut short" in last["error"], cut
        if not packed:
            assert len(good) in {cut // 2048, cut // 2048 + 1}
        assert [r["image_path"] for r in good] == [f"{broken}#{i:02}.png" for i in range(len(good))]
        assert all(not r["error"] for r in good[:-1])
        assert embed(out, broken, part_rows=4).rows_before == report.rows  # read again, it has the same rows


def test_a_damaged_header_within_a_tar_is_no_end_of_it(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "t.tar", {"a.png": RED, "b.png": RED})
    data = bytearray(tar.read_bytes())
    data[1024:1030] = b"\xff" * 6
    tar.write_bytes(data)
    embed(tmp_path / "out", tar)
    assert [bool(r["error"]) for r in all_rows(tmp_path / "out")] == [False, True]


def test_what_img2dataset_leaves_beside_a_tar_is_not_taken_for_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make_tar(folder / "00000.tar", {"000.jpg": RED, "000.txt": b"red"})
    pq.write_table(pa.table({"url": ["http://x"]}), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    assert embed(tmp_path / "out", folder).rows == 1


# Parquet


def test_pictures_in_parquet_as_hugging_face_writes_them_keep_all_other_columns(tmp_path: Path) -> None:
    time = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    table = pa.table(
        {
            "image": pa.array([{"bytes": RED, "path": "r.png"}, {"bytes": None, "path": "gone.png"}, None]),
            "caption": ["red", "gone", None],
            "label": pa.array([1, None, 3], pa.int8()),
            "price": pa.array([Decimal("1.50"), None, Decimal("2.25")], pa.decimal128(5, 2)),
            "taken": pa.array([1_700_000_000_123_456_789, None, 2], pa.int64()).cast(pa.timestamp("ns")),
            "seen": pa.array([time, None, time], pa.timestamp("us", "UTC")),
            "tags": pa.array([["a", "b"], [], None], pa.list_(pa.string())),
            "similarity": [0.5, 0.25, 0.125],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    embed(tmp_path / "out", tmp_path / "p.parquet")
    made = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    for name in ("label", "price", "taken", "seen", "tags"):
        assert made.column(name).combine_chunks().equals(table.column(name).combine_chunks()), name
    assert made.column("source_similarity").to_pylist() == [0.5, 0.25, 0.125]
    assert made.column("path").to_pylist() == ["r.png", "gone.png", None]
    assert made.column("image_path")[0].as_py() == f"{tmp_path / 'p.parquet'}#0"
    assert [bool(e) for e in made.column("error").to_pylist()] == [False, True, True]


def test_pictures_in_a_column_of_bytes_with_captions_in_a_column_by_name(tmp_path: Path) -> None:
    table = pa.table({"hash": [b"x", b"y"], "jpg": [RED, GREEN], "TEXT": ["red", "green"], "title": ["t", "u"]})
    pq.write_table(table, tmp_path / "p.parquet")
    embed(tmp_path / "a", tmp_path / "p.parquet")
    embed(tmp_path / "b", tmp_path / "p.parquet", caption_column="title")
    assert told(tmp_path / "a", "caption", "title", "hash") == [("red", "t", b"x"), ("green", "u", b"y")]
    assert told(tmp_path / "b", "caption", "TEXT") == [("t", "red"), ("u", "green")]
    with pytest.raises(EncodeError, match="no column nothing for the captions"):
        embed(tmp_path / "c", tmp_path / "p.parquet", caption_column="nothing")


def test_a_parquet_file_without_pictures_is_an_error_that_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "p.parquet")
    with pytest.raises(EncodeError, match=r"no column of pictures.*url \(string\)"):
        embed(tmp_path / "out", tmp_path / "p.parquet")


def test_a_damaged_row_group_is_rows_with_errors_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table({"image": [shade(i) for i in range(9)], "caption": [str(i) for i in range(9)]})
    pq.write_table(table, path, row_group_size=3, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.dictionary_page_offset or column.data_page_offset
    data[middle : middle + column.total_compressed_size] = b"\xa5" * column.total_compressed_size
    path.write_bytes(data)
    embed(tmp_path / "out", path)
    assert [bool(e) for (e,) in told(tmp_path / "out", "error")] == [False] * 3 + [True] * 3 + [False] * 3
    assert [c for (c,) in told(tmp_path / "out", "caption")] == ["0", "1", "2", "", "", "", "6", "7", "8"]


def test_rows_that_are_no_utf8_or_are_missing_keep_every_row_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table({"image": [shade(i) for i in range(4)], "caption": [f"caption {i}" for i in range(4)]})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"caption 2", b"capt\xffon 2"))
    embed(tmp_path / "out", path)
    assert told(tmp_path / "out", "caption", "error") == [
        *(("caption 0", ""), ("caption 1", ""), ("capt\ufffdon 2", ""), ("caption 3", ""))
    ]


def test_keys_that_no_file_of_ours_can_hold_are_shown_with_marks(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "t.tar", {"a.png": RED, "a.json": b'{"\\ud800": 1}'})
    embed(tmp_path / "out", tar)
    assert told(tmp_path / "out", "?") == [(1,)]


def test_a_folder_that_cannot_be_listed_is_a_row_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        (folder / name / "p.png").write_bytes(RED)
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    embed(tmp_path / "out", folder)
    assert told(tmp_path / "out", "image_path", "error") == [
        (str(folder / "a" / "p.png"), ""),
        (str(folder / "b"), f"{folder / 'b'} cannot be listed: Permission denied"),
        (str(folder / "c" / "p.png"), ""),
    ]


# captions alone


def test_captions_of_text_files_are_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfa red one\r\n\n" + "grün und green".encode() + b"\nlast, blue")
    report = embed_captions(tmp_path / "c.txt", tmp_path / "out", encoder=Colours())
    assert report.errors == 1
    assert told(tmp_path / "out", "caption") == [("a red one",), ("",), ("grün und green",), ("last, blue",)]
    assert all_rows(tmp_path / "out")[1]["error"] == f"{tmp_path / 'c.txt'} line 2 is blank"
    expected = Colours().encode_texts(["a red one", "", "grün und green", "last, blue"]).astype(np.float16)
    expected[1] = 0
    assert np.array_equal(vectors(tmp_path / "out", "text_emb"), expected)
    assert not (tmp_path / "out" / "img_emb").exists()


def test_a_line_without_end_is_an_error_row_and_what_follows_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"x" * (3 << 20) + b"\nred\n")
    embed_captions(tmp_path / "c.txt", tmp_path / "out", encoder=Colours())
    assert told(tmp_path / "out", "caption", "error") == [
        ("", f"{tmp_path / 'c.txt'} line 1 is longer than 1,048,576 bytes"),
        ("red", ""),
    ]


def test_captions_of_parquet_keep_the_other_columns(tmp_path: Path) -> None:
    table = pa.table({"URL": ["u1", "u2"], "TEXT": ["red", None], "similarity": [0.3, 0.2], "WIDTH": [5, 6]})
    pq.write_table(table, tmp_path / "laion.parquet")
    embed_captions(tmp_path / "laion.parquet", tmp_path / "out", encoder=Colours())
    assert told(tmp_path / "out", "caption", "url", "similarity", "WIDTH") == [
        ("red", "u1", 0.3, 5),
        ("", "u2", 0.2, 6),
    ]


# memory


def test_pictures_wait_within_a_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def rows() -> Any:
        nonlocal made
        for i in range(50):
            made += 1
            yield Row(str(i), b"x" * 1000)

    with Ahead(rows(), room=40, size=5000) as coming:
        taken = []
        for row in coming:
            taken.append(row.key)
            assert made <= len(taken) + 7
        assert taken == [str(i) for i in range(50)]
    assert rows_module.LARGEST == 64 << 20


def test_a_reader_that_fails_fails_where_its_rows_are_wanted() -> None:
    def rows() -> Any:
        yield Row("a")
        raise EncodeError("the disk went away")

    with Ahead(rows(), 4) as coming, pytest.raises(EncodeError, match="went away"):
        list(coming)
