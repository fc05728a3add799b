"""A model run by PyTorch: what damaged weights and devices that are not there lead to.

Runs only where PyTorch and transformers are installed (the extra `torch`), as test_graph_parity.py does, and on a GPU
too where there is one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipql.encode import open_encoder, tokenizer
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import read_folder
from clipql.encode.prepare import OPENAI
from clipql.encode.torch_clip import TorchTowers
from clipql.errors import ModelError

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: the extra clipql[torch]")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: clipql[torch]")
weights: Any = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: clipql[torch]")

TEXTS = ["a dog", "a cat with a hat", "", "two dogs on a beach at sunset"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "max_position_embeddings": 20, "eos_token_id": 49407},
        vision_config={**tower, "image_size": 48, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.openai().save(folder / "tokenizer.json")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": 48, "crop_size": 48, "image_mean": OPENAI.mean, "image_std": OPENAI.std, "resample": 3})
    )
    return folder


def on_cpu(folder: Path) -> ClipEncoder:
    found = read_folder(folder, safetensors=True)
    return ClipEncoder(found, TorchTowers(found, device="cpu"))


def without_vision(file: Path) -> None:
    kept = {name: value for name, value in weights.load_file(file).items() if "vision" not in name}
    weights.save_file(kept, file, {"format": "pt"})


def of_another_width(file: Path) -> None:
    weights.save_file(weights.load_file(file) | {"text_projection.weight": torch.zeros(24, 16)}, file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def a_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            without_vision,
            r"model\.safetensors lacks vision_model\.\S+, vision_model\.\S+, vision_model\.\S+ and 36 more",
        ),
        (of_another_width, r"text_projection\.weight has the shape \(24, 16\), but config\.json asks for \(24, 32\)"),
        (cut_short, r"model\.safetensors cannot be loaded by PyTorch for cpu: .*; if the file is damaged, fetch the"),
        (a_pointer, r"model\.safetensors cannot be loaded by PyTorch for cpu: .*; if the file is damaged, fetch the"),
    ],
)
def test_weights_that_are_not_whole_are_an_error_and_never_made_up(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    damage(other / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        on_cpu(other).encode_texts(["a dog"])


def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(folder: Path) -> None:
    for device in ("cuda:99", "gpu"):
        with pytest.raises(
            ModelError, match=rf"there is no device '{device}'; PyTorch \S+ sees cpu.*: name one of them"
        ):
            open_encoder(folder, device=device).encode_texts(["a dog"])


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    on_cpu(folder).encode_texts(["a dog"])
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_a_gpu_gives_the_vectors_of_the_cpu_to_many_threads(folder: Path) -> None:
    expected = on_cpu(folder).encode_texts(TEXTS)
    encoder = open_encoder(folder, device="cuda", precision="float32")
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda i: encoder.encode_texts(TEXTS[i:]), range(60)))
    assert max(np.abs(part - expected[i:]).max() for i, part in enumerate(parts)) < 1e-5
