"""`clipql embed` with a real ONNX model: the vectors are the encoder's, whatever the source and the batches."""

from __future__ import annotations

import io
import tarfile
from html import unescape
from pathlib import Path

import models
import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding import all_rows, make_tar, part_rows, vectors
from PIL import Image

import clipql
from clipql.cli import entry as cli
from clipql.encode.clip import ClipEncoder
from clipql.encode.embed import embed_captions, embed_pictures
from clipql.encode.folder import read_folder
from clipql.encode.onnx import OnnxTowers

DATA = Path(__file__).parents[1] / "data"
EMOJI = Path(clipql.__file__).parent / "data" / "emoji" / "emoji.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny(tmp_path_factory.mktemp("models") / "tiny", name="random/tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return models.encoder(folder)


def test_pictures_of_a_tar_get_the_vectors_of_the_encoder_and_bad_ones_do_not_move_them(
    encoder: ClipEncoder, tmp_path: Path
) -> None:
    with tarfile.open(EMOJI) as tar:
        members = {m.name: f.read() for m in tar.getmembers()[:240] if (f := tar.extractfile(m)) is not None}
    sink = io.BytesIO()
    Image.new("CMYK", (40, 30), (10, 200, 30, 0)).save(sink, "JPEG")
    members |= {
        "w.png": b"",
        "x.jpg": sink.getvalue(),
        "x.txt": b"a colour",
        "y.svg.png": b"<svg/>",
        "z.gif": b"GIF89a",
    }
    path = make_tar(tmp_path / "t.tar", members)
    embed_pictures(path, tmp_path / "out", encoder=encoder, part_rows=50, batch=7)
    rows = all_rows(tmp_path / "out")
    parts = len(list((tmp_path / "out" / "img_emb").iterdir()))
    images, texts = (
        np.concatenate([vectors(tmp_path / "out", kind, n) for n in range(parts)]) for kind in ("img_emb", "text_emb")
    )
    names = [r["image_path"].rpartition("#")[2] for r in rows]
    assert names == [n for n in members if n.endswith(("png", "jpg", "gif"))]
    good = [not r["error"] for r in rows]
    assert [n for n, g in zip(names, good, strict=True) if not g] == ["w.png", "y.svg.png", "z.gif"]
    expected = encoder.encode_pictures([members[n] for n in names])
    assert [(r["width"], r["height"]) for r in rows] == list(expected.sizes)
    assert np.allclose(images.astype(np.float32), expected.vectors, atol=2e-3)
    captions = encoder.encode_texts([r["caption"] for r in rows]) * np.array(good)[:, None]
    assert np.allclose(texts.astype(np.float32), captions, atol=2e-3)
    told = [
        (r["similarity"], float(i @ t))
        for r, i, t in zip(rows, expected.vectors, captions, strict=True)
        if r["caption"]
    ]
    assert np.allclose(*zip(*told, strict=True), atol=1e-4)


def test_real_captions_get_the_vectors_of_the_encoder(encoder: ClipEncoder, tmp_path: Path) -> None:
    table = pq.read_table(DATA / "captions" / "web_10000.parquet").slice(0, 600)
    pq.write_table(table, tmp_path / "captions.parquet")
    embed_captions(tmp_path / "captions.parquet", tmp_path / "out", encoder=encoder, batch=100)
    rows = part_rows(tmp_path / "out")
    assert [r["url"] for r in rows] == table.column("URL").to_pylist()
    good = [i for i, row in enumerate(rows) if not row["error"]]
    assert [rows[i]["caption"] for i in good] == [
        " ".join(unescape(unescape(str(table.column("TEXT")[i]))).split()) for i in good
    ]
    expected = encoder.encode_texts([rows[i]["caption"] for i in good])
    assert np.allclose(vectors(tmp_path / "out", "text_emb")[good].astype(np.float32), expected, atol=2e-3)


def test_batches_are_those_that_the_model_is_fastest_with(folder: Path, tmp_path: Path) -> None:
    found = read_folder(folder)
    towers = OnnxTowers(found, threads=1)
    towers.picture_batch, towers.text_batch = 3, 400
    encoder, told = ClipEncoder(found, towers), list[int]()
    (tmp_path / "captions.txt").write_text("a dog\n" * 1000)
    embed_captions(tmp_path / "captions.txt", tmp_path / "out", encoder=encoder, progress=lambda p: told.append(p.rows))
    assert sorted({*told}) == [400, 800, 1000]
    told.clear()
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes((DATA / "preprocess" / "franz-kafka.jpg").read_bytes())
    embed_pictures(
        str(tmp_path / "*.jpg"), tmp_path / "out-pictures", encoder=encoder, progress=lambda p: told.append(p.rows)
    )
    assert sorted({*told}) == [3, 5]


def test_the_command_says_what_a_gpu_needs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "captions.txt").write_text("a dog\n")
    given = ["embed", "captions", str(tmp_path / "captions.txt"), str(out), "--model", str(folder), "--device", "cuda"]
    assert cli.main(given) == 1
    assert "model.safetensors is missing: the weights that PyTorch needs" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_with_a_folder_of_a_model_fills_a_table_that_remembers_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = DATA / "preprocess"
    out, db = str(tmp_path / "out"), str(tmp_path / "test.db")
    assert cli.main(["embed", "images", str(photos), out, "--model", str(folder), "--threads", "1"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("by random/tiny")
    assert cli.main(["--db", db, "ingest", out, "--table", "photos"]) == 0
    with clipql.connect(db) as opened:
        (table,) = opened.registry.catalog.tables
        assert {c.model for c in table.columns} == {"random/tiny"}
        assert opened.sql("SELECT count() FROM photos").rows == [(len(part_rows(tmp_path / "out")),)]
