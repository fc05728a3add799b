"""The emoji collection that ships with clipql and the small model that was trained on it: they are what docs say."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipql.encode import models
from clipql.encode.base import Encoder
from clipql.encode.clip import open_encoder

EMOJI = Path(str(files("clipql.data"))) / "emoji"
MODEL = EMOJI / "model"
DOCS = Path(__file__).parents[1] / "docs" / "emoji.md"
METRICS: dict[str, Any] = json.loads((MODEL / "metrics.json").read_text(encoding="utf-8"))
# Other processors round differently, which may swap two neighbours here and there
CLOSE = 0.01

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pq.read_table(EMOJI / "emoji.parquet").to_pylist()


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    with tarfile.open(EMOJI / "emoji.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder("clipql/emoji")


@pytest.fixture(scope="module")
def pictures(encoder: Encoder, rows: list[dict[str, Any]], members: dict[str, bytes]) -> Vectors:
    found = encoder.encode_pictures([members[f"{row['key']}.png"] for row in rows])
    assert set(found.errors) == {None}
    return found.vectors


@pytest.fixture(scope="module")
def plain(rows: list[dict[str, Any]]) -> NDArray[np.int64]:
    """The rows in no other skin tone than the plain one."""
    return np.flatnonzero(["skin tone" not in row["name"] for row in rows])


def ranks(queries: Vectors, among: Vectors, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of `among` are nearer to each query than its own."""
    scores = queries @ among.T
    return (scores > scores[np.arange(len(own)), own][:, None]).sum(axis=1)


def test_the_pictures_their_captions_and_the_table_are_of_the_same_emoji(
    rows: list[dict[str, Any]], members: dict[str, bytes]
) -> None:
    assert len(rows) == METRICS["emoji"] == 2543
    assert list(members) == [f"{row['key']}.{suffix}" for row in rows for suffix in ("png", "txt")]
    assert [members[f"{row['key']}.txt"].decode() for row in rows] == [row["caption"] for row in rows]
    sizes = Counter(Image.open(io.BytesIO(members[f"{row['key']}.png"])).size for row in rows)
    assert sizes == {(64, 64): 2543}
    assert [row["name"] for row in rows if row["emoji"] == "🐱"] == ["cat face"]


def test_the_licences_are_beside_the_data() -> None:
    notice = (EMOJI / "NOTICE").read_text(encoding="utf-8")
    for name in ("LICENSE-noto-emoji.txt", "LICENSE-emoji-data.txt", "LICENSE-unicode.txt"):
        assert name in notice
        assert (EMOJI / name).stat().st_size > 1000


def test_the_model_is_found_by_its_name_and_by_its_folder() -> None:
    found = models.find("clipql/emoji")
    assert (found.path, found.model, found.dimension, found.context) == (MODEL, "clipql/emoji", 128, 48)
    assert found.pictures.crop == (64, 64)
    by_folder = open_encoder(MODEL)
    assert (by_folder.model, by_folder.dimension) == ("clipql/emoji", 128)


def test_the_model_is_of_a_few_megabytes() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 4_000_000


def test_cat_finds_cats(encoder: Encoder, pictures: Vectors, rows: list[dict[str, Any]]) -> None:
    [cat] = encoder.encode_texts(["cat"])
    best = [rows[i] for i in np.argsort(-(pictures @ cat))[:10]]
    assert all("cat" in row["name"].split() for row in best[:5])
    assert sum("cat" in row["keywords"] for row in best) >= 9  # tigers and leopards among them


def test_cat_with_heart_finds_the_cat_with_hearts_for_eyes(
    encoder: Encoder, pictures: Vectors, rows: list[dict[str, Any]]
) -> None:
    cat, heart = encoder.encode_texts(["cat", "heart"])
    assert "smiling cat with heart-eyes" in [rows[i]["name"] for i in np.argsort(-(pictures @ (cat + heart)))[:3]]


def test_a_face_without_a_smile_is_unhappy(encoder: Encoder, pictures: Vectors, rows: list[dict[str, Any]]) -> None:
    face, smile = encoder.encode_texts(["face", "smile"])
    best = [rows[i] for i in np.argsort(-(pictures @ (face - smile)))[:10]]
    assert not [row["name"] for row in best if {"smile", "smiling", "happy"} & set(row["keywords"])]
    assert sum("face" in row["keywords"] or "face" in row["name"] for row in best) >= 8


def test_what_no_caption_says_has_a_vector_all_the_same(encoder: Encoder) -> None:
    found = encoder.encode_texts(["zyzzyva", "Кошка", "🦄", "", "cat " * 200])
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def test_captions_and_pictures_find_each_other_as_often_as_metrics_say(
    encoder: Encoder, pictures: Vectors, rows: list[dict[str, Any]]
) -> None:
    own = np.arange(len(rows))
    captions = encoder.encode_texts([row["caption"] for row in rows])
    names = encoder.encode_texts([row["name"] for row in rows])
    asked = {
        "caption_to_picture": ranks(captions, pictures, own),
        "name_to_picture": ranks(names, pictures, own),
        "picture_to_caption": ranks(pictures, captions, own),
    }
    found = {f"{name}_recall_at_{k}": float((rank < k).mean()) for name, rank in asked.items() for k in (1, 10)}
    assert found == pytest.approx({name: METRICS[name] for name in found}, abs=CLOSE)


def test_keywords_held_out_of_training_find_their_emoji_as_often_as_metrics_say(
    encoder: Encoder, pictures: Vectors, rows: list[dict[str, Any]], plain: NDArray[np.int64]
) -> None:
    pairs = json.loads((MODEL / "held_out.json").read_text(encoding="utf-8"))
    at = {rows[int(i)]["key"]: place for place, i in enumerate(plain)}
    own = np.array([at[key] for key, _ in pairs])
    scores = encoder.encode_texts([word for _, word in pairs]) @ pictures[plain].T
    nearer = scores > scores[np.arange(len(own)), own][:, None]
    as_true = np.array([[word in rows[int(i)]["keywords"] for i in plain] for _, word in pairs])
    found = {
        "held_out_pairs": len(pairs),
        "held_out_among": len(plain),
        "held_out_keyword_finds_its_emoji_in_top_10": float((nearer.sum(axis=1) < 10).mean()),
        "the_same_not_counting_others_with_the_keyword": float(((nearer & ~as_true).sum(axis=1) < 10).mean()),
    }
    assert found == pytest.approx({name: METRICS[name] for name in found}, abs=CLOSE)


def test_the_docs_state_the_figures_that_metrics_hold() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, value in METRICS.items():
        if isinstance(value, float):
            assert f"{100 * value:.1f} %" in text, name
