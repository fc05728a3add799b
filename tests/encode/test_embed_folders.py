"""Pictures in folders are found by what they are, and every other file is named with the reason."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from embedding import Colours, all_rows, make_tar, picture
from numpy.typing import NDArray
from PIL import Image

from clipql.encode import pictures
from clipql.encode.base import EncodedPictures, Picture
from clipql.encode.embed import EmbedReport, embed_captions, embed_pictures
from clipql.encode.prepare import OPENAI
from clipql.errors import EncodeError, PictureError

RED = (255, 0, 0)
# by content: the endings say nothing, or nothing true
FOUND = {
    "a.jp2": picture(RED, (64, 64), "JPEG2000"),
    "b.ppm": picture(RED, format="PPM"),
    "c.ico": picture(RED, (32, 32), "ICO"),
    "d.mpo": picture(RED, format="JPEG"),
    "e": picture(RED, format="TIFF"),
    "f.2024": picture(RED, format="WEBP"),
    "g.html": picture(RED, format="GIF"),
    "h.avif": picture(RED, (64, 64), "AVIF"),
    "i.PNG": picture(RED),
}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
JXL = b"\xff\x0a" + bytes(40)


class Decoding(Colours):
    """Reads pictures as clipql's encoders do."""

    def encode_pictures(self, given: Sequence[Picture]) -> EncodedPictures:
        rows: list[NDArray[np.float32]] = []
        errors: list[str | None] = []
        sizes: list[tuple[int, int]] = []
        for each in given:
            try:
                found = pictures.read(each, OPENAI)
            except PictureError as error:
                rows.append(np.zeros(self.dimension, np.float32))
                errors.append(str(error))
                sizes.append((0, 0))
                continue
            rows.append(self._vectors([tuple(found.rgb[112, 112])], [b""])[0])
            errors.append(None)
            sizes.append(found.size)
        return EncodedPictures(np.stack(rows), tuple(errors), tuple(sizes))


def embed(out: Path, *sources: Path | str) -> EmbedReport:
    return embed_pictures(sources, out, encoder=Decoding())


def unused(out: Path) -> list[str]:
    path = out / "unused.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_found_by_their_content(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if packed:
        make_tar(folder / "all.tar", FOUND)
    else:
        for name, data in FOUND.items():
            (folder / name).write_bytes(data)
    report = embed(tmp_path / "out", folder)
    rows = all_rows(tmp_path / "out")
    assert [row["image_path"].rpartition("#" if packed else "/")[2] for row in rows] == list(FOUND)
    assert [row["error"] for row in rows] == [""] * len(FOUND)
    assert (report.errors, report.unused) == (0, 0)


def test_what_is_no_picture_is_named_with_the_reason_and_what_lies_beside_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in {
        ".DS_Store": b"x",
        "Makefile": b"BM this is no bitmap",
        "P1.md": b"P1 is no pixmap",
        "a.png": picture(RED),
        "a.txt": b"red",
        "a.json": b"{}",
        "b": picture(RED),
        "b.txt": b"red, too",
        "c.txt": b"of nothing",
        "page.html": b"<!doctype html>",
        "zero": b"",
    }.items():
        (folder / name).write_bytes(data)
    (folder / "lost").symlink_to("nowhere")
    report = embed(tmp_path / "out", folder)
    assert [(r["image_path"], r["caption"]) for r in all_rows(tmp_path / "out")] == [
        (f"{folder}/a.png", "red"),
        (f"{folder}/b", "red, too"),
    ]
    told = dict(line.removeprefix(f"{folder}/").split(": ", 1) for line in unused(tmp_path / "out"))
    assert list(told) == [".DS_Store", "Makefile", "P1.md", "c.txt", "lost", "page.html", "zero"]
    assert told["c.txt"] == "no picture has its name"
    assert told["lost"] == "neither a file nor a folder"
    assert told["page.html"] == "is a web page"
    assert told["zero"] == "is empty"
    assert (report.rows, report.unused) == (2, 7)


def test_a_glob_takes_what_is_a_picture_and_names_the_rest(tmp_path: Path) -> None:
    for name, data in {"x": picture(RED), "x.txt": b"red", "x.md": b"notes"}.items():
        (tmp_path / name).write_bytes(data)
    report = embed(tmp_path / "out", str(tmp_path / "x*"))
    assert [r["caption"] for r in all_rows(tmp_path / "out")] == ["red"]
    assert unused(tmp_path / "out") == [f"{tmp_path}/x.md: is no picture of a format known here"]
    assert report.unused == 1


def test_a_folder_of_other_files_says_what_there_is_instead(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("notes")
    with pytest.raises(EncodeError, match=r"nothing to embed in .*; 1 files there make no row: .*a\.md: is no picture"):
        embed(tmp_path / "out", tmp_path)


def test_captions_of_a_folder_name_the_files_that_hold_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red")
    (tmp_path / "a.png").write_bytes(picture(RED))
    report = embed_captions(tmp_path, tmp_path / "out", encoder=Colours())
    assert (report.rows, report.unused) == (1, 1)
    assert unused(tmp_path / "out") == [f"{tmp_path}/a.png: neither a text file nor a Parquet file by its name"]


def test_a_picture_that_an_extra_would_read_is_a_row_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_heif", lambda: None)
    pictures._formats.cache_clear()
    try:
        for name, data in {"a.heic": HEIC, "b": HEIC, "c.jxl": JXL, "d": JXL}.items():
            (tmp_path / name).write_bytes(data)
        embed(tmp_path / "out", tmp_path)
        errors = [r["error"] for r in all_rows(tmp_path / "out")]
    finally:
        pictures._formats.cache_clear()
    heic, jxl = "is a HEIC picture, which pillow-heif reads: pip install 'clipql[heif]'", "is a JPEG XL picture"
    assert [e.removeprefix(f"{tmp_path}/") for e in errors[:2]] == [f"a.heic {heic}", f"b {heic}"]
    assert all(jxl in e for e in errors[2:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_and_turned_once(orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    upright = np.zeros((64, 128, 3), np.uint8)
    upright[:, :32], upright[:, 96:], upright[:16] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    made = heif.from_pillow(Image.fromarray(np.ascontiguousarray(stored)))
    made.save(sink, quality=-1, chroma=444, exif=exif.tobytes())
    png = io.BytesIO()
    Image.fromarray(upright).save(png, "PNG")
    found, expected = pictures.read(sink.getvalue(), OPENAI), pictures.read(png.getvalue(), OPENAI)
    assert found.size == expected.size == (128, 64)
    assert np.abs(found.rgb.astype(int) - expected.rgb.astype(int)).mean() < 3
