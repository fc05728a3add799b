"""Every member of a tar is a row, belongs to one, or is named with the reason."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from embedding import Colours, all_rows, make_tar, picture, shade, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from clipql.cli.commands.embed import summary
from clipql.encode.embed import EmbedReport, embed_pictures

RED, GREEN, BLUE = picture((255, 0, 0)), picture((0, 255, 0)), picture((0, 0, 255))


def embed(out: Path, *sources: Path, part_rows: int = 1_000_000) -> EmbedReport:
    return embed_pictures(sources, out, encoder=Colours(), part_rows=part_rows)


def told(out: Path, *names: str) -> list[tuple[object, ...]]:
    return [tuple(row[n] for n in names) for row in all_rows(out)]


def unused(out: Path) -> list[str]:
    path = out / "unused.txt"
    return path.read_bytes().decode("utf-8", "surrogateescape").splitlines() if path.exists() else []


def colours(out: Path) -> list[tuple[int, ...]]:
    """Which of red, green and blue the vectors say each picture is."""
    return [tuple(int(x > 0.5) for x in row[:3]) for row in vectors(out).astype(float)]


def listed_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar in which names may come twice."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_pictures_with_dots_in_their_names_are_a_row_each_with_their_own_captions(tmp_path: Path) -> None:
    members = {
        "Screenshot 2024.01.01.jpg": picture((255, 0, 0), format="JPEG"),
        "Screenshot 2024.01.01.txt": b"red",
        "Screenshot 2024.01.02.json": b'{"caption": "green"}',
        "Screenshot 2024.01.02.png": GREEN,
        "Screenshot 2024.01.03.png": BLUE,
        "v1.2/cat.final.png": RED,
        "v1.2/cat.final.txt": b"a red cat",
    }
    tar = make_tar(tmp_path / "t.tar", members)
    report = embed(tmp_path / "out", tar)
    assert told(tmp_path / "out", "image_path", "caption", "error") == [
        (f"{tar}#Screenshot 2024.01.01.jpg", "red", ""),
        (f"{tar}#Screenshot 2024.01.02.png", "green", ""),
        (f"{tar}#Screenshot 2024.01.03.png", "", ""),
        (f"{tar}#v1.2/cat.final.png", "a red cat", ""),
    ]
    assert (report.unused, unused(tmp_path / "out")) == (0, [])


def test_further_pictures_of_a_webdataset_sample_are_rows_with_its_caption(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "t.tar", {"1.jpg": RED, "1.seg.png": GREEN, "1.txt": b"both", "2.jpg": BLUE})
    embed(tmp_path / "out", tar)
    assert told(tmp_path / "out", "image_path", "caption") == [
        (f"{tar}#1.jpg", "both"),
        (f"{tar}#1.seg.png", "both"),
        (f"{tar}#2.jpg", ""),
    ]


def test_a_second_member_of_one_name_is_a_second_row(tmp_path: Path) -> None:
    members = [
        ("a.png", RED),
        ("a.txt", b"red"),
        ("a.png", GREEN),
        ("a.txt", b"green"),
        ("b.png", BLUE),
        ("b.gif", RED),
    ]
    embed(tmp_path / "out", listed_tar(tmp_path / "t.tar", members))
    assert colours(tmp_path / "out") == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]
    assert told(tmp_path / "out", "caption") == [("red",), ("green",), ("",), ("",)]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_tars_that_were_joined_are_read_to_the_last(tmp_path: Path, ending: str) -> None:
    tars = [
        make_tar(tmp_path / f"{n}.{ending}", {f"{n}.png": data, "same.png": data})
        for n, data in enumerate((RED, GREEN, BLUE))
    ]
    joined = tmp_path / f"joined.{ending}"
    joined.write_bytes(b"".join(tar.read_bytes() for tar in tars))
    report = embed(tmp_path / "out", joined)
    assert colours(tmp_path / "out") == [c for c in ((1, 0, 0), (0, 1, 0), (0, 0, 1)) for _ in range(2)]
    assert (report.rows, report.errors, report.unused) == (6, 0, 0)


def test_what_follows_a_tar_and_is_none_is_said_and_costs_no_row(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "t.tar", {"a.png": RED})
    tar.write_bytes(tar.read_bytes() + b"x" * 700)
    embed(tmp_path / "out", tar)
    assert [bool(e) for (e,) in told(tmp_path / "out", "error")] == [False, True]


@pytest.mark.parametrize("packed", ["", "z"])
def test_hard_links_are_the_pictures_that_they_link_to(tmp_path: Path, packed: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(RED)
    (folder / "b.png").hardlink_to(folder / "a.png")
    (folder / "b.txt").write_text("linked")
    (folder / "c.png").write_bytes(GREEN)
    (folder / "d.png").symlink_to("c.png")
    tar = tmp_path / f"t.tar{'.gz' if packed else ''}"
    names = ["a.png", "b.png", "b.txt", "c.png", "d.png"]
    subprocess.run(["tar", f"-c{packed}f", tar, "-C", folder, *names], check=True)
    with tarfile.open(tar) as made:
        assert [m.islnk() for m in made] == [False, True, False, False, False]
    report = embed(tmp_path / "out", tar)
    assert told(tmp_path / "out", "image_path", "caption", "error") == [
        (f"{tar}#a.png", "", ""),
        (f"{tar}#b.png", "linked", ""),
        (f"{tar}#c.png", "", ""),
    ]
    assert colours(tmp_path / "out") == [(1, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert unused(tmp_path / "out") == [f"{tar}#d.png: a symbolic link"]
    assert report.unused == 1


def test_a_hard_link_to_nothing_is_a_row_with_its_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.LNKTYPE, "gone.png"
        tar.addfile(info)
    embed(tmp_path / "out", tmp_path / "t.tar")
    assert told(tmp_path / "out", "error") == [
        (f"{tmp_path / 't.tar'}#b.png: it is a hard link to gone.png, which is not before it in the tar",)
    ]


def test_members_that_make_no_row_are_named_and_the_closing_line_adds_up(tmp_path: Path) -> None:
    members = {
        "README": b"about",
        "._a.png": b"of a Mac",
        "a.png": RED,
        "b.png": b"broken",
        "c.json": b"{}",
        "d.mp4": b"film",
    }
    tar = make_tar(tmp_path / "t.tar", members)
    report = embed(tmp_path / "out", tar)
    assert unused(tmp_path / "out") == [
        f"{tar}#README: is no picture of a format known here",
        f"{tar}#._a.png: its name begins with a dot",
        f"{tar}#d.mp4: is no picture of a format known here",
        f"{tar}#c.json: no picture has its name",
    ]
    assert report.rows + report.unused == len(members)
    assert summary(report, "image").startswith("2 images in 1 part, 1 error, 1 embedded, 4 skipped of 6 there, ")
    again = embed(tmp_path / "out", tar)
    assert summary(again, "image").startswith(
        "2 images in 1 part, 2 of them there already, 1 error, 1 embedded, 4 skipped of 6 there, "
    )


NAMES = st.sampled_from(["a", "a.b", "a.c", "a.b.c", "x/a", "x.y/a.b", ".a", "b"])
ENDINGS = st.sampled_from([".png", ".jpg", ".seg.png", ".md", "", ".bin"])


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.tuples(NAMES, ENDINGS), min_size=1, max_size=12), cut=st.integers(1, 12))
def test_rows_errors_and_skipped_are_all_the_members_of_any_tar(
    names: list[tuple[str, str]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("t")
    kinds = {".md": b"text", ".bin": b"\0" * 999}
    members = [
        ("0.png", RED),
        *((name + ending, kinds.get(ending, shade(i))) for i, (name, ending) in enumerate(names)),
    ]
    tar = listed_tar(tmp_path / "t.tar", members)
    report = embed(tmp_path / "out", tar, part_rows=cut)
    assert report.rows + report.unused == len(members)
    shown = [n for n, _ in members if not n.split("/")[-1].startswith(".")]
    pictures = [f"{tar}#{n}" for n in shown if not n.endswith((".md", ".bin"))]
    assert sorted(row["image_path"] for row in all_rows(tmp_path / "out")) == sorted(pictures)
    again = embed(tmp_path / "out", tar, part_rows=cut)
    assert (again.rows, again.rows_before, again.unused) == (0, report.rows, report.unused)


def test_a_name_with_thousands_of_dotted_members_needs_no_memory_for_all(tmp_path: Path) -> None:
    numbers = list(range(500))
    random.Random(1).shuffle(numbers)
    members = {f"clip.{n:05}.{e}": shade(n) if e == "png" else b"%d" % n for n in numbers for e in ("png", "txt")}
    report = embed(tmp_path / "out", make_tar(tmp_path / "t.tar", members), part_rows=77)
    assert report.rows == 500
    assert told(tmp_path / "out", "caption") == [(str(n),) for n in numbers]
    for part in (0, 3):
        expected = Colours().encode_pictures([shade(n) for n in numbers[part * 77 : part * 77 + 77]]).vectors
        assert np.array_equal(vectors(tmp_path / "out", number=part), expected.astype(np.float16))
