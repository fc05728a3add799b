"""A run that was cut off goes on: whole parts are kept, no row is lost or doubled, and nothing else is gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from embedding import Colours, all_rows, make_tar, picture, shade, tree, vectors
from numpy.typing import NDArray

from clipql.encode.base import EncodedPictures, Picture
from clipql.encode.embed import EmbedProgress, embed_captions, embed_pictures
from clipql.errors import EncodeError, ModelError, ModelMismatch
from clipql.storage import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirteen pictures with captions, one of them broken, of which six lie in a tar."""
    made = tmp_path / "pictures"
    made.mkdir()
    for i in range(7):
        (made / f"{i}.png").write_bytes(shade(i) if i != 3 else b"broken")
        (made / f"{i}.txt").write_text(f"picture {i}")
    make_tar(made / "x.tar", {f"{i}.{e}": shade(i) if e == "png" else b"red" for i in range(6) for e in ("png", "txt")})
    return made


class Interrupted(Colours):
    """Raises an error once so many pictures have been encoded."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self._left, self._error = after, error

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        if self._left <= 0:
            raise self._error
        self._left -= len(pictures)
        return super().encode_pictures(pictures)


def test_killed_before_any_durable_step_a_second_run_ends_with_the_same_files(folder: Path, tmp_path: Path) -> None:
    embed_pictures(folder, tmp_path / "whole", encoder=Colours(), part_rows=5, batch=2)
    expected = tree(tmp_path / "whole")
    assert [n for n in expected if n.startswith("metadata")] == [f"metadata/metadata_{i}.parquet" for i in range(3)]
    script = Path(__file__).with_name("embed_crashes.py")
    killed = tmp_path / "killed"
    command = [sys.executable, str(script), str(folder), str(killed)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 30
    for step in range(steps):
        embed_pictures(folder, killed / str(step), encoder=Colours(), part_rows=5, batch=2)
        assert tree(killed / str(step)) == expected, step


def test_a_finished_run_encodes_nothing_again(folder: Path, tmp_path: Path) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=5)
    before = tree(tmp_path / "out")
    encoder = Colours()
    report = embed_pictures(folder, tmp_path / "out", encoder=encoder, part_rows=5)
    assert (report.rows, report.rows_before, report.parts, report.errors) == (0, 13, 3, 0)
    assert (encoder.pictures, encoder.texts) == (0, 0)
    assert tree(tmp_path / "out") == before


def test_a_second_run_encodes_only_what_is_not_in_whole_parts(folder: Path, tmp_path: Path) -> None:
    broken = Interrupted(12, ModelError("the model broke"))
    with pytest.raises(ModelError, match="the model broke"):
        embed_pictures(folder, tmp_path / "out", encoder=broken, part_rows=5, batch=2)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    done = len(json.loads((tmp_path / "out" / "embed.json").read_text())["parts"]) * 5
    encoder = Colours()
    report = embed_pictures(folder, tmp_path / "out", encoder=encoder, part_rows=5, batch=2)
    assert (report.rows, report.rows_before, encoder.pictures) == (13 - done, done, 13 - done)
    embed_pictures(folder, tmp_path / "whole", encoder=Colours(), part_rows=5, batch=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_ctrl_c_keeps_what_is_encoded_as_a_shorter_part(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(700):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(shade(i))
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(tmp_path / "in", tmp_path / "out", encoder=Interrupted(600, KeyboardInterrupt()))
    kept = len(all_rows(tmp_path / "out"))
    assert 0 < kept <= 600
    report = embed_pictures(tmp_path / "in", tmp_path / "out", encoder=Colours())
    assert (report.rows_before, report.rows, report.parts) == (kept, 700 - kept, 2)
    names = [Path(r["image_path"]).name for r in all_rows(tmp_path / "out")]
    assert names == [f"{i:03}.png" for i in range(700)]
    images = np.concatenate([vectors(tmp_path / "out", number=n) for n in (0, 1)])
    assert np.array_equal(images, Colours().encode_pictures([shade(i) for i in range(700)]).vectors.astype(np.float16))


def test_pictures_added_at_the_end_go_into_new_parts(folder: Path, tmp_path: Path) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=5)
    (folder / "z.png").write_bytes(shade(99))
    (tmp_path / "more.png").write_bytes(shade(100))
    report = embed_pictures([folder, tmp_path / "more.png"], tmp_path / "out", encoder=Colours(), part_rows=5)
    assert (report.rows_before, report.rows, report.parts) == (13, 2, 4)
    assert [Path(r["image_path"]).name for r in all_rows(tmp_path / "out")[13:]] == ["z.png", "more.png"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_sources_that_changed_before_the_end_of_a_part_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=5)
    before = tree(tmp_path / "out")
    if change == "added":
        (folder / "2a.png").write_bytes(shade(2))
    elif change == "removed":
        (folder / "x.tar").unlink()
    else:
        (folder / "2.png").rename(folder / "2a.png")
    part = {"added": 0, "removed": 1, "renamed": 0}[change]
    with pytest.raises(EncodeError, match=f"the sources have changed since part {part} of .*out was made"):
        embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=5)
    assert tree(tmp_path / "out") == before


def test_another_model_other_options_or_other_sources_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_pictures(folder, out, encoder=Colours("model/one"), part_rows=5)
    before = tree(out)
    with pytest.raises(ModelMismatch, match=r"made by model/one .* is to use model/two"):
        embed_pictures(folder, out, encoder=Colours("model/two"), part_rows=5)
    with pytest.raises(EncodeError, match="begun with part rows 5, and this run has 6"):
        embed_pictures(folder, out, encoder=Colours("model/one"), part_rows=6)
    with pytest.raises(EncodeError, match="begun with captions auto, and this run has no"):
        embed_pictures(folder, out, encoder=Colours("model/one"), part_rows=5, captions="no")
    with pytest.raises(EncodeError, match=r"made from .*pictures, and this run is to read .*x\.tar"):
        embed_pictures(folder / "x.tar", out, encoder=Colours("model/one"), part_rows=5)
    (tmp_path / "c.txt").write_text("red")
    with pytest.raises(EncodeError, match="made from pictures, not from captions"):
        embed_captions(tmp_path / "c.txt", out, encoder=Colours("model/one"), part_rows=5)
    assert tree(out) == before


def test_a_folder_of_other_parts_or_a_missing_part_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "laion" / "metadata").mkdir(parents=True)
    (tmp_path / "laion" / "metadata" / "metadata_0.parquet").write_bytes(b"")
    with pytest.raises(EncodeError, match="clipql embed did not make"):
        embed_pictures(folder, tmp_path / "laion", encoder=Colours())
    embed_pictures(folder, tmp_path / "out", encoder=Colours())
    (tmp_path / "out" / "metadata" / "metadata_0.parquet").unlink()
    with pytest.raises(EncodeError, match=r"metadata_0\.parquet is gone"):
        embed_pictures(folder, tmp_path / "out", encoder=Colours())


def test_a_second_run_at_the_same_time_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lock = files.FolderLock(tmp_path / "out")
    try:
        with pytest.raises(EncodeError, match="another run writes to"):
            embed_pictures(folder, tmp_path / "out", encoder=Colours())
    finally:
        lock.release()


def test_captions_go_on_too(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("".join(f"red {i}\n" for i in range(20)))

    class Breaks(Colours):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if "red 12" in texts:
                raise ModelError("broke")
            return super().encode_texts(texts)

    with pytest.raises(ModelError):
        embed_captions(tmp_path / "c.txt", tmp_path / "out", encoder=Breaks(), part_rows=4, batch=3)
    report = embed_captions(tmp_path / "c.txt", tmp_path / "out", encoder=Colours(), part_rows=4, batch=3)
    assert (report.rows_before, report.rows, report.parts) == (12, 8, 5)
    assert [r["caption"] for r in all_rows(tmp_path / "out")] == [f"red {i}" for i in range(20)]


def test_a_caption_that_the_encoder_refuses_is_a_row_with_its_error(tmp_path: Path) -> None:
    class Picky(Colours):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if "b" in texts:
                raise EncodeError("b is no word")
            return super().encode_texts(texts)

    (tmp_path / "c.txt").write_text("a\nb\nc\n")
    embed_captions(tmp_path / "c.txt", tmp_path / "out", encoder=Picky())
    assert [r["error"] for r in all_rows(tmp_path / "out")] == ["", "b is no word", ""]
    assert [bool(v.any()) for v in vectors(tmp_path / "out", "text_emb")] == [True, False, True]


def test_progress_counts_rows_errors_and_parts_and_learns_the_total(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(picture((i, 0, 0)) if i else b"bad")
    told: list[EmbedProgress] = []
    embed_pictures(tmp_path / "in", tmp_path / "out", encoder=Colours(), part_rows=3, batch=2, progress=told.append)
    assert [p.rows for p in told if not p.part_finished] == [2, 4, 5]
    assert [(p.part, p.part_rows, p.errors) for p in told if p.part_finished] == [(0, 3, 1), (1, 2, 1)]
    assert {p.rows_total for p in told} <= {None, 5}
