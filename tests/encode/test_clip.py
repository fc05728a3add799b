from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest

from clipql.encode import clip, preprocess, tokenizer
from clipql.encode.base import Picture
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import read_folder
from clipql.encode.onnx import OnnxTowers
from clipql.errors import ModelError

DATA = Path(__file__).parents[1] / "data"
PHOTO, DIAGRAM = DATA / "preprocess" / "franz-kafka.jpg", DATA / "openai_clip" / "CLIP.png"
CAPTIONS = pq.read_table(DATA / "captions" / "web_10000.parquet").column("TEXT").to_pylist()[:400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return models.encoder(folder)


def alone(file: Path, name: str, value: np.ndarray) -> np.ndarray:
    """What the network says by itself, with nothing of ours around it."""
    [found] = onnxruntime.InferenceSession(file).run(None, {name: value})
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_cutting_texts_to_their_longest_gives_the_vectors_of_padding_to_the_context(
    folder: Path, encoder: ClipEncoder
) -> None:
    tokens = tokenizer.load(read_folder(folder))(CAPTIONS)
    expected = alone(folder / "onnx" / "text_model.onnx", "input_ids", tokenizer.pad(tokens, 20))
    found = encoder.encode_texts(CAPTIONS)
    assert (found.dtype, found.shape) == (np.float32, (400, 24))
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


def test_texts_are_cut_to_few_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    towers = OnnxTowers(read_folder(folder), threads=1)
    run = towers.text

    def text(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        shapes.append(ids.shape)
        return run(ids, mask)

    monkeypatch.setattr(towers, "text", text)
    monkeypatch.setattr(towers, "tokens", 40)
    ClipEncoder(read_folder(folder), towers).encode_texts(["dog " * 30, "a dog", "dog", "", "a dog", *["dog"] * 12])
    assert shapes == [(13, 3), (3, 4), (1, 20)]


def test_a_text_tower_that_is_not_causal_gets_full_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    models.change(other, "config.json", model_type="siglip", pad_token_id=1)
    towers = OnnxTowers(read_folder(other), threads=1)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(towers, "text", lambda ids, mask: seen.append(ids) or np.ones((len(ids), 24), np.float32))
    ClipEncoder(read_folder(other), towers).encode_texts(["a dog"])
    assert [ids.tolist() for ids in seen] == [[[49406, 320, 1929, 49407, *[1] * 16]]]


def test_pictures_give_the_vectors_of_the_network_alone(folder: Path, encoder: ClipEncoder) -> None:
    shape = read_folder(folder).pictures
    pixels = np.stack([preprocess(PHOTO, shape), preprocess(DIAGRAM, shape)])
    expected = alone(folder / "onnx" / "vision_model.onnx", "pixel_values", pixels)
    found = encoder.encode_pictures([PHOTO, DIAGRAM.read_bytes()])
    assert np.abs(found.vectors - expected).max() < 1e-5
    assert (found.errors, found.sizes) == ((None, None), ((450, 655), (2162, 762)))


def test_bad_pictures_are_entries_and_the_others_keep_their_places(encoder: ClipEncoder, tmp_path: Path) -> None:
    found = encoder.encode_pictures([b"", PHOTO, tmp_path / "none.png", PHOTO])
    [good] = encoder.encode_pictures([PHOTO]).vectors
    assert found.errors == (
        "a picture of 0 bytes is empty; expected a picture",
        None,
        f"{tmp_path / 'none.png'} cannot be read as a picture: No such file or directory",
        None,
    )
    assert found.sizes == ((0, 0), (450, 655), (0, 0), (450, 655))
    assert np.array_equal(found.vectors[[0, 2]], np.zeros((2, 24), np.float32))
    assert np.abs(found.vectors[[1, 3]] - good).max() < 1e-6


def test_nothing_gives_nothing(encoder: ClipEncoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 24)
    assert encoder.encode_pictures([]).vectors.shape == (0, 24)
    assert list(encoder.encode_stream([])) == []


def test_a_stream_of_pictures_comes_in_batches_and_is_not_read_far_ahead(encoder: ClipEncoder) -> None:
    taken = 0

    def pictures() -> Iterator[Picture]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield PHOTO

    stream = encoder.encode_stream(pictures(), batch=3)
    sizes = [len(next(stream).vectors) for _ in range(4)]
    stream.close()
    assert sizes == [3, 3, 3, 3]
    assert taken == 3 * (4 + 2)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("clipql-decode")]


def test_many_threads_share_an_encoder(folder: Path) -> None:
    encoder = models.encoder(folder)
    expected = models.encoder(folder).encode_texts(CAPTIONS)
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda i: encoder.encode_texts(CAPTIONS[i : i + 40]), range(0, 400, 40)))
        pictures = list(pool.map(lambda _: encoder.encode_pictures([PHOTO]).vectors, range(6)))
    assert np.abs(np.concatenate(parts) - expected).max() < 1e-5
    assert np.abs(np.concatenate(pictures) - pictures[0]).max() < 1e-6


def test_a_query_in_words_does_not_load_the_vision_tower(folder: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "onnx" / "vision_model.onnx").write_bytes(b"broken")
    encoder = models.encoder(other)
    assert encoder.encode_texts(["a dog"]).shape == (1, 24)
    with pytest.raises(ModelError, match=r"vision_model\.onnx cannot be loaded"):
        encoder.encode_pictures([PHOTO])


def test_a_graph_whose_names_are_no_text_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    import shutil

    import onnx

    odd = Path(shutil.copytree(folder, tmp_path / "odd"))
    file = odd / "onnx" / "vision_model.onnx"
    network = onnx.load(file)
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "of_any_number"
    file.write_bytes(network.SerializeToString().replace(b"of_any_number", b"\xfff_any_number"))
    with pytest.raises(ModelError, match=r"vision_model\.onnx has inputs or outputs whose names cannot be read"):
        models.encoder(odd).encode_pictures([PHOTO])


def test_graphs_made_for_one_batch_size_are_filled_up(tmp_path: Path, folder: Path, encoder: ClipEncoder) -> None:
    import shutil

    import onnx

    fixed = Path(shutil.copytree(folder, tmp_path / "fixed"))
    file = fixed / "onnx" / "vision_model.onnx"
    network = onnx.load(file)
    for each in (network.graph.input[0], network.graph.output[0]):
        each.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(network, file)
    expected = encoder.encode_pictures([PHOTO, DIAGRAM, PHOTO]).vectors
    assert np.abs(models.encoder(fixed).encode_pictures([PHOTO, DIAGRAM, PHOTO]).vectors - expected).max() < 1e-6


def test_a_vector_of_zeros_is_an_error_and_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers = OnnxTowers(read_folder(folder), threads=1)
    monkeypatch.setattr(towers, "text", lambda ids, mask: np.zeros((len(ids), 24), np.float32))
    with pytest.raises(ModelError, match=r"gave a vector of length 0\.0: its numbers overflow or are all zero"):
        ClipEncoder(read_folder(folder), towers).encode_texts(["a"])


def test_an_encoder_opens_by_folder(folder: Path) -> None:
    found = clip.open_encoder(folder, threads=1)
    assert (found.model, found.dimension) == ("random/tiny", 24)
    assert found.encode_texts(["a dog"]).shape == (1, 24)
    with pytest.raises(ModelError, match=r"threads is 0; expected 1 or more"):
        clip.open_encoder(folder, threads=0)


def test_importing_the_encoders_loads_no_library() -> None:
    code = (
        "import sys, clipql, clipql.encode; "
        "print([m for m in ('numpy', 'PIL', 'onnxruntime', 'tokenizers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
