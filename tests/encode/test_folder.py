from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import models
import onnx
import pytest

from clipql.encode.folder import PictureShape, canonical, read_folder
from clipql.encode.prepare import OPENAI
from clipql.errors import ModelError

PICTURE = Path(__file__).parents[1] / "data" / "preprocess" / "franz-kafka.jpg"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny(tmp_path_factory.mktemp("models") / "made")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_lengths_and_files_come_from_the_folder(folder: Path) -> None:
    found = read_folder(folder)
    assert (found.model, found.dimension, found.context, found.vocabulary) == ("random/tiny", 24, 20, 49408)
    assert found.text == folder / "onnx" / "text_model.onnx"
    assert found.vision == folder / "onnx" / "vision_model.onnx"
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.pictures == dataclasses.replace(OPENAI, resize=48, crop=(48, 48))
    assert (found.causal, found.end, found.pad, found.precision) == (True, None, 0, "fp32")


def test_a_model_goes_by_the_name_given_then_its_own_then_its_folder(folder: Path, tmp_path: Path) -> None:
    assert read_folder(folder, "ViT-B/32").model == "openai/clip-vit-base-patch32"
    models.change(folder, "config.json", _name_or_path="Xenova/clip-vit-base-patch32")
    assert read_folder(folder).model == "openai/clip-vit-base-patch32"
    models.change(folder, "config.json", _name_or_path="/home/someone/export/")
    assert read_folder(folder).model == "model"
    cached = tmp_path / "models--someone--their-clip" / "snapshots" / "0123abcd"
    shutil.copytree(folder, cached)
    assert read_folder(cached).model == "someone/their-clip"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("Xenova/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("open_clip:ViT-B-32/openai", "openai/clip-vit-base-patch32"),
        ("Xenova/clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("sentence-transformers/clip-ViT-B-32-multilingual-v1", "openai/clip-vit-base-patch32"),
        ("someone/else", "someone/else"),
    ],
)
def test_names_of_one_model_have_one_canonical_name(name: str, expected: str) -> None:
    assert canonical(name) == expected


def test_files_may_lie_flat_and_precisions_are_chosen(folder: Path) -> None:
    for tower in ("text", "vision"):
        shutil.copy(folder / "onnx" / f"{tower}_model.onnx", folder / "onnx" / f"{tower}_model_quantized.onnx")
        (folder / "onnx" / f"{tower}_model.onnx").rename(folder / f"{tower}_model.onnx")
    assert read_folder(folder).text == folder / "text_model.onnx"
    assert read_folder(folder, precision="int8").text == folder / "onnx" / "text_model_quantized.onnx"
    assert read_folder(folder, precision="quantized").precision == "quantized"
    with pytest.raises(ModelError, match=r"expected text_model_fp16\.onnx and the vision_model beside it in precision"):
        read_folder(folder, precision="fp16")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "config.json is missing; a model's folder has config.json, preprocessor_config.json, "),
        ("preprocessor_config.json", "preprocessor_config.json is missing; a model's folder has "),
        ("tokenizer.json", "tokenizer.json is missing, and so is vocab.json: one of them is needed"),
        ("onnx/text_model.onnx", "text_model.onnx is missing, though vision_model.onnx is there"),
        ("onnx", "model holds no ONNX file; expected text_model.onnx or "),
    ],
)
def test_a_missing_file_is_named(folder: Path, gone: str, message: str) -> None:
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ModelError) as caught:
        read_folder(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"projection_dim": "512"}, "projection_dim is '512'; expected a whole number above 0"),
        ("config.json", {"text_config": 7}, "text_config is 7; expected an object"),
        ("config.json", {"text_config": {"max_position_embeddings": 2}}, "a context of 2 tokens; expected at least 3"),
        (
            "config.json",
            {"vision_config": {"image_size": 64}},
            "pictures come out as (48, 48), but config.json's vision",
        ),
        (
            "config.json",
            {"projection_dim": None, "text_config": {"projection_dim": 24}, "vision_config": {"projection_dim": 32}},
            "projection_dim differs between the towers: text_config 24, vision_config 32",
        ),
        ("preprocessor_config.json", {"crop_size": 96}, "crop_size 96 is larger than size 48"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean is [0.5]; expected three numbers"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, "image_std is [1, 0, 1]; expected numbers above 0"),
        ("preprocessor_config.json", {"resample": 9}, "resample is 9; expected Pillow's number of a filter, 0 to 5"),
    ],
)
def test_values_that_make_no_sense_are_shown(folder: Path, file: str, values: dict[str, object], message: str) -> None:
    models.change(folder, file, **values)
    with pytest.raises(ModelError) as caught:
        read_folder(folder)
    assert message in str(caught.value)


def test_a_file_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON: .*; fetch the model anew"):
        read_folder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json holds a JSON list; expected an object"):
        read_folder(folder)


def test_pictures_that_are_squeezed_and_not_cropped(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
        )
    )
    models.change(folder, "preprocessor_config.json", do_center_crop=False)
    half = (0.5, 0.5, 0.5)
    assert read_folder(folder).pictures == PictureShape(resize=(48, 48), crop=(48, 48), mean=half, std=half, resample=2)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    models.change(folder, "config.json", text_config={"max_position_embeddings": 20, "vocab_size": 30_000})
    with pytest.raises(ModelError, match=r"has 49,408 tokens, but the text tower of random/tiny knows 30,000"):
        models.encoder(folder).encode_texts(["a"])
    models.change(
        folder,
        "config.json",
        text_config={"max_position_embeddings": 20, "vocab_size": 49408, "eos_token_id": 3},
    )
    with pytest.raises(ModelError, match=r"ends a text with token 49407, but the text tower of random/tiny expects 3"):
        models.encoder(folder).encode_texts(["a"])


def test_a_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is no tokenizer: "):
        models.encoder(folder).encode_texts(["a"])


def test_vocab_and_merges_do_as_well_as_tokenizer_json(folder: Path) -> None:
    expected = models.encoder(folder).encode_texts(["a photo of a cat", "你好"])
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(ModelError, match=r"merges\.txt is missing"):
        read_folder(folder)
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert (models.encoder(folder).encode_texts(["a photo of a cat", "你好"]) == expected).all()


def test_a_context_longer_than_the_network_takes_is_refused_at_once(folder: Path) -> None:
    models.change(folder, "config.json", text_config={"max_position_embeddings": 21, "vocab_size": 49408})
    with pytest.raises(ModelError, match=r"text_model\.onnx cannot take 21 tokens of ids below 49,408"):
        models.encoder(folder).encode_texts(["a"])


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_vectors_of_another_length_than_the_config_says_are_refused(folder: Path, tower: str) -> None:
    models.change(folder, "config.json", projection_dim=32)
    encoder = models.encoder(folder)
    with pytest.raises(ModelError, match=rf"{tower}_model\.onnx gives vectors of 24 numbers, but config\.json says 32"):
        encoder.encode_texts(["a"]) if tower == "text" else encoder.encode_pictures([PICTURE])


def test_networks_that_are_broken_or_of_another_kind_are_named(folder: Path) -> None:
    text = folder / "onnx" / "text_model.onnx"
    shutil.copy(folder / "onnx" / "vision_model.onnx", text)
    with pytest.raises(ModelError, match=r"takes pixel_values; expected some of input_ids, attention_mask"):
        models.encoder(folder).encode_texts(["a"])
    text.write_bytes(b"not a network")
    with pytest.raises(ModelError, match=r"text_model\.onnx cannot be loaded: "):
        models.encoder(folder).encode_texts(["a"])


def test_an_output_of_another_name_is_taken_if_it_is_the_only_one_of_two_dimensions(folder: Path) -> None:
    expected = models.encoder(folder).encode_pictures([PICTURE]).vectors
    file = folder / "onnx" / "vision_model.onnx"
    network = onnx.load(file)
    network.graph.output[0].name = network.graph.node[-1].output[0] = "features"
    onnx.save(network, file)
    assert (models.encoder(folder).encode_pictures([PICTURE]).vectors == expected).all()
    network.graph.node.append(onnx.helper.make_node("Identity", ["features"], ["more"]))
    network.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 24]))
    onnx.save(network, file)
    with pytest.raises(ModelError, match=r"expected image_embeds, or one output of two dimensions"):
        models.encoder(folder).encode_pictures([PICTURE])
