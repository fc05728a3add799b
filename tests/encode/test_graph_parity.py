"""Our vectors against those of the `transformers` library, for a ViT-B/32 with random weights.

Runs only where PyTorch and transformers are installed (the extra `torch`), which the tests' own environment does not
have: `pip install torch transformers onnx onnxscript` beside it. It writes 1.2 GB and takes a minute or two.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipql.encode import preprocess, tokenizer
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import read_folder
from clipql.encode.onnx import OnnxTowers
from clipql.encode.prepare import OPENAI
from clipql.encode.torch_clip import TorchTowers

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: the extra clipql[torch]")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: clipql[torch]")

DATA = Path(__file__).parents[1] / "data"
TEXTS = [text for text, _, _ in json.loads((DATA / "openai_clip" / "clip_tokens.json").read_text())["cases"]]
PICTURES = [DATA / "preprocess" / "franz-kafka.jpg", DATA / "openai_clip" / "CLIP.png"]


class _Features(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, given: Any) -> Any:
        name = "input_ids" if self.method == "get_text_features" else "pixel_values"
        found = getattr(self.model, self.method)(**{name: given})
        return found if torch.is_tensor(found) else found.pooler_output


@pytest.fixture(scope="module")
def library() -> Any:
    torch.manual_seed(0)
    # The end token's real id: the default of old configurations, 2, is read differently
    return transformers.CLIPModel(transformers.CLIPConfig(text_config={"eos_token_id": 49407})).eval()


@pytest.fixture(scope="module")
def folder(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit-b-32")
    (folder / "onnx").mkdir()
    library.save_pretrained(folder)
    tokenizer.openai().save(folder / "tokenizer.json")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": 224, "crop_size": 224, "image_mean": OPENAI.mean, "image_std": OPENAI.std, "resample": 3})
    )
    for tower, method, given, names in (
        ("text", "get_text_features", torch.from_numpy(ids(TEXTS[:2])), ("input_ids", "text_embeds")),
        ("vision", "get_image_features", torch.zeros(2, 3, 224, 224), ("pixel_values", "image_embeds")),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of what it traces
            torch.onnx.export(
                _Features(library, method).eval(),
                (given,),
                str(folder / "onnx" / f"{tower}_model.onnx"),
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_axes={names[0]: {0: "batch", **({1: "length"} if tower == "text" else {})}},
                opset_version=17,
                dynamo=False,
            )
    return folder


def ids(texts: list[str]) -> np.ndarray:
    return tokenizer.pad(tokenizer.openai()(texts), 77, 49407)


def of(library: Any, method: str, given: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found = _Features(library, method)(torch.from_numpy(given)).numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def expected(library: Any) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.stack([preprocess(path) for path in PICTURES])
    return of(library, "get_text_features", ids(TEXTS)), of(library, "get_image_features", pixels)


def cosines(encoder: ClipEncoder, library: Any) -> tuple[float, float]:
    texts, pictures = expected(library)
    return (
        float((encoder.encode_texts(TEXTS) * texts).sum(1).min()),
        float((encoder.encode_pictures(PICTURES).vectors * pictures).sum(1).min()),
    )


def test_the_exported_model_gives_the_vectors_of_the_library(folder: Path, library: Any) -> None:
    found = read_folder(folder)
    assert (found.dimension, found.context, found.end) == (512, 77, 49407)
    assert min(cosines(ClipEncoder(found, OnnxTowers(found)), library)) > 0.9999


@pytest.mark.parametrize(("precision", "bar"), [("float32", 0.9999), ("bfloat16", 0.99)])
def test_safetensors_by_torch_give_the_vectors_of_the_library(
    folder: Path, library: Any, precision: str, bar: float
) -> None:
    found = read_folder(folder, safetensors=True)
    assert min(cosines(ClipEncoder(found, TorchTowers(found, device="cpu", precision=precision)), library)) > bar


def test_the_librarys_own_tokenizer_gives_the_same_tokens(folder: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert [theirs(text)["input_ids"] for text in TEXTS] == tokenizer.openai()(TEXTS)
