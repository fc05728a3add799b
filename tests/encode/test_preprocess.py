from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from models import tiny
from PIL import Image

from clipql.encode import open_encoder, preprocess, read_folder
from clipql.encode.folder import PictureShape
from clipql.encode.prepare import OPENAI
from clipql.encode.service import Encoders
from clipql.errors import PictureError

DATA = Path(__file__).parents[1] / "data"
MEAN, STD = np.array(OPENAI.mean, np.float32), np.array(OPENAI.std, np.float32)


def plainly(image: Image.Image, edge: int = 224) -> np.ndarray:
    """What OpenAI's transform does, written out: resize the shorter edge, crop the middle, normalise."""
    width, height = image.size
    size = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - edge) / 2), round((size[1] - edge) / 2)
    pixels = np.asarray(image.crop((left, top, left + edge, top + edge)), np.float32) / np.float32(255)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


def test_a_photograph_comes_out_as_the_published_array() -> None:
    found = preprocess(DATA / "preprocess" / "franz-kafka.jpg")
    [expected] = np.load(DATA / "preprocess" / "expected_preprocessed_image.npy")
    assert (found.dtype, found.shape) == (np.float32, (3, 224, 224))
    assert np.abs(found - expected).max() <= 1e-5


def test_the_diagram_of_clip_is_resized_as_it_is_seen_on_white() -> None:
    path = DATA / "openai_clip" / "CLIP.png"
    seen = Image.open(path).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    assert np.abs(preprocess(path) - plainly(on_white)).max() <= 1e-5


@pytest.mark.parametrize(
    "size", [(224, 224), (500, 333), (333, 500), (225, 224), (10, 7), (1, 1), (640, 224), (97, 301)]
)
def test_pictures_of_any_size_are_resized_and_cropped_as_openai_does(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert np.abs(preprocess(buffer.getvalue()) - plainly(image)).max() <= 1e-5


def test_a_long_strip_does_not_become_millions_of_pixels() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60_000, 2), (255, 0, 0)).save(buffer, "PNG")
    red = ((np.array([1, 0, 0], np.float32) - MEAN) / STD)[:, None, None]
    assert np.abs(preprocess(buffer.getvalue()) - red).max() <= 1e-5


def test_a_model_that_squeezes_pictures_gets_all_of_them() -> None:
    halves = np.zeros((40, 400, 3), np.uint8)
    halves[:, 200:] = 255
    buffer = io.BytesIO()
    Image.fromarray(halves).save(buffer, "PNG")
    shape = PictureShape(resize=(16, 32), crop=(16, 32), mean=(0.5,) * 3, std=(0.5,) * 3, resample=2)
    found = preprocess(buffer.getvalue(), shape)
    assert found.shape == (3, 16, 32)
    assert np.array_equal(found[:, :, :15], np.full((3, 16, 15), -1, np.float32))
    assert np.array_equal(found[:, :, 17:], np.full((3, 16, 15), 1, np.float32))


def test_a_huge_jpeg_read_at_half_its_size_comes_out_nearly_the_same() -> None:
    photograph = Image.open(DATA / "preprocess" / "franz-kafka.jpg").resize((2400, 2000), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=92)
    found, expected = preprocess(buffer.getvalue()), plainly(Image.open(buffer))
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.9999
    assert np.abs(found - expected).mean() < 0.01  # of values between -1.8 and 2.1


class Somewhere:
    """A path by the protocol alone, as pathlib's, py.path's and those of other libraries are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_a_picture_is_taken_by_its_path_or_its_bytes_however_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), (200, 10, 90)).save(tmp_path / "cat.png")
    data = (tmp_path / "cat.png").read_bytes()
    expected = preprocess(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = open_encoder(tiny(tmp_path / "tiny"))
    known = encoder.encode_pictures([tmp_path / "cat.png"]).vectors
    encoders = Encoders()
    encoders.use(encoder)
    for given in ("cat.png", "~/cat.png", str(tmp_path / "cat.png"), Somewhere(tmp_path / "cat.png"), data,
                  bytearray(data), memoryview(data)):  # fmt: skip
        assert np.array_equal(preprocess(given), expected)
        assert np.array_equal(encoder.encode_pictures([given]).vectors, known)
        assert np.array_equal(encoders.picture(given), known[0])


@pytest.mark.parametrize("given", [None, 5, ["cat.png"], np.zeros((2, 2, 3))])
def test_what_is_no_picture_is_named_by_its_type(given: object) -> None:
    with pytest.raises(PictureError, match=f"a picture is of type {type(given).__name__}; expected its bytes, or its"):
        preprocess(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["nosuch.jpg", "", "a\0b", "~nobody-here/cat.jpg"])
def test_a_path_that_leads_to_no_picture_is_named(given: str) -> None:
    with pytest.raises(PictureError):
        preprocess(given)


def test_a_models_folder_is_taken_as_text_and_as_a_path(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "tiny")
    assert read_folder(str(folder)) == read_folder(folder) == read_folder(Somewhere(folder))
    assert open_encoder(Somewhere(folder)).model == open_encoder(str(folder)).model == open_encoder(folder).model
