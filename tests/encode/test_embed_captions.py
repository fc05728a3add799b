"""Captions are the text that people wrote, whatever holds it; and names of files are kept byte for byte."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding import Colours, all_rows, make_tar, picture, vectors

import clipql
from clipql.encode.embed import captions as captions_module
from clipql.encode.embed import embed_captions, embed_pictures

RED = picture((255, 0, 0))


@pytest.fixture(autouse=True)
def _without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "_ftfy", lambda: None)


def embedded(tmp_path: Path, sidecars: dict[str, bytes], **options: Any) -> list[dict[str, Any]]:
    """The rows of a red picture with these files beside it."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    for ending, data in sidecars.items():
        (folder / f"a.{ending}").write_bytes(data)
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), **options)
    return all_rows(tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "caption", "kept"),
    [
        ("it&#39;s red", "it's red", None),
        ("it&amp;#39;s red", "it's red", None),
        ("  red \n\t and\u00a0blue ", "red and blue", None),
        (float("nan"), "", None),
        (float("inf"), "", None),
        (None, "", None),
        (True, "", None),
        (1984, "1984", None),
        (2.5, "2.5", None),
        (["", "red", "a square"], "red", '["", "red", "a square"]'),
        ([1, None], "", "[1, null]"),
        ({"en": "red"}, "", '{"en": "red"}'),
    ],
)
def test_a_value_of_json_becomes_clean_text_or_no_caption(
    tmp_path: Path, value: Any, caption: str, kept: str | None
) -> None:
    [row] = embedded(tmp_path, {"json": json.dumps({"caption": value}).encode()})
    assert (row["caption"], row.get("source_caption"), row["error"]) == (caption, kept, "")


@pytest.mark.parametrize("ending", ["txt", "caption"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_text_beside_a_picture_is_read_in_any_of_unicodes_encodings(
    tmp_path: Path, encoding: str, ending: str
) -> None:
    [row] = embedded(tmp_path, {ending: "ein rotes Stück\r\nPapier".encode(encoding)})
    assert (row["caption"], row["error"]) == ("ein rotes Stück Papier", "")


def test_a_text_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    [row] = embedded(tmp_path, {"txt": b"\x00\x01\x00\x00\x07\x00red"})
    where = tmp_path / "in" / "a.txt"
    assert row["error"] == f"{where} holds zero bytes and is neither UTF-8 nor UTF-16; expected text"


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE), ("utf-16-le", b"")]
)
def test_lines_of_utf_16_are_a_caption_each(tmp_path: Path, encoding: str, mark: bytes) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(mark + "a red one\n\ngr\u00fcn \u0a0a green\nlast &amp; blue".encode(encoding))
    report = embed_captions(path, tmp_path / "out", encoder=Colours())
    found = [row["caption"] for row in all_rows(tmp_path / "out")]
    assert found == ["a red one", "", "gr\u00fcn \u0a0a green", "last & blue"]
    assert report.errors == 1


def test_captions_with_entities_have_the_vectors_of_the_plain_text_from_every_source(tmp_path: Path) -> None:
    raw, plain = "it&#39;s  red", "it's red"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    (folder / "a.txt").write_text(raw)
    make_tar(folder / "b.tar", {"b.png": RED, "b.json": json.dumps({"TEXT": raw}).encode()})
    pq.write_table(pa.table({"image": [RED], "caption": [raw]}), folder / "c.parquet")
    embed_pictures(folder, tmp_path / "out", encoder=Colours())
    expected = Colours().encode_texts([plain] * 3).astype(np.float16)
    assert [row["caption"] for row in all_rows(tmp_path / "out")] == [plain] * 3
    assert np.array_equal(vectors(tmp_path / "out", "text_emb"), expected)
    (tmp_path / "c.txt").write_text(raw)
    embed_captions(tmp_path / "c.txt", tmp_path / "lines", encoder=Colours())
    assert np.array_equal(vectors(tmp_path / "lines", "text_emb"), expected[:1])


def test_a_list_of_captions_in_parquet_gives_its_first_and_is_kept(tmp_path: Path) -> None:
    table = pa.table({"image": [RED, RED, RED], "said": [["red", "square"], [], None]})
    pq.write_table(table, tmp_path / "p.parquet")
    embed_pictures(tmp_path / "p.parquet", tmp_path / "out", encoder=Colours(), caption_column="said")
    assert [(r["caption"], r["said"]) for r in all_rows(tmp_path / "out")] == [
        ("red", ["red", "square"]),
        ("", []),
        ("", None),
    ]


def test_ftfy_mends_captions_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "_ftfy", lambda: lambda text: text.replace("â€™", "'"))
    [row] = embedded(tmp_path, {"txt": "itâ€™s red".encode()})
    assert row["caption"] == "it's red"


def test_names_that_are_no_utf8_are_kept_byte_for_byte_into_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"a.png", b"caf\xe9.png", "ö.png".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(RED)
    (folder / "caf\udce9.txt").write_text("red")
    make_tar(folder / "z.tar", {"in \udcff.png": RED, "plain.png": RED})
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xe8.md")).write_bytes(b"")
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=3)
    inner = [b"z.tar#in \xff.png", b"z.tar#plain.png"]
    paths = [os.fsencode(folder) + b"/" + n for n in (*names[:2], *inner, names[2])]
    assert (tmp_path / "out" / "unused.txt").read_bytes() == os.fsencode(folder) + b"/bad\xe8.md: is empty\n"
    with clipql.connect(tmp_path / "test.db") as db:
        db.ingest(tmp_path / "out", table="t")
        found = db.sql("SELECT hex(image_path), caption FROM t ORDER BY id").rows
        assert [bytes.fromhex(path) for path, _ in found] == paths
        assert [caption for _, caption in found] == ["", "red", "", "", ""]
        shown = [path for (path,) in db.sql("SELECT image_path FROM t ORDER BY id").rows]
        assert [p if isinstance(p, bytes) else p.encode() for p in shown] == paths
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "a.png").write_bytes(RED)
    embed_pictures(tmp_path / "ok", tmp_path / "texts", encoder=Colours())
    schema = pq.read_schema(tmp_path / "texts" / "metadata" / "metadata_0.parquet")
    assert schema.field("image_path").type == pa.string()
