"""The two small towers, and their export to the files that a real CLIP's folder has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from torch import Tensor, nn

DIMENSION = 128  # of the vectors
CONTEXT = 48  # tokens of a text at most; the longest caption, of 67, loses its last keywords
IMAGE = 64  # pixels, the edge of a picture
WIDTH, HEADS, LAYERS = 128, 4, 2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
NAME = "clipql/emoji"


class _Layer(nn.Module):
    """A transformer layer in which a token sees itself and those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inwards, self.outwards = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        split = self.inwards(self.before(tokens)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + mask).softmax(-1)
        tokens = tokens + self.outwards((weights @ value).transpose(1, 2).reshape(batch, length, WIDTH))
        hidden = self.wide(self.after(tokens))
        return tokens + self.narrow(hidden * torch.sigmoid(1.702 * hidden))


class TextTower(nn.Module):
    """input_ids int64 (batch, length) → float32 (batch, DIMENSION), read off the token with the highest id."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.01)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.last = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, DIMENSION, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        place = torch.arange(input_ids.shape[1])
        mask = (place[None, :] > place[:, None]).to(hidden.dtype) * -1e4
        for layer in self.layers:
            hidden = layer(hidden, mask)
        end = input_ids.argmax(dim=1)
        ended = hidden.gather(1, end[:, None, None].expand(-1, 1, WIDTH)).squeeze(1)
        return self.out(self.last(ended))


class _Block(nn.Module):
    """Halve the picture's edge, then refine it."""

    def __init__(self, before: int, after: int, refine: bool = True) -> None:
        super().__init__()
        self.halve = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
        self.refine = (
            nn.Sequential(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)) if refine else None
        )

    def forward(self, picture: Tensor) -> Tensor:
        picture = self.halve(picture)
        return picture if self.refine is None else torch.relu(picture + self.refine(picture))


class VisionTower(nn.Module):
    """pixel_values float32 (batch, 3, IMAGE, IMAGE) → float32 (batch, DIMENSION)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_Block(3, 24, False), _Block(24, 48), _Block(48, 96), _Block(96, 160))
        self.out = nn.Linear(160 * (IMAGE // 16) ** 2, DIMENSION)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.out(self.blocks(pixel_values).flatten(1))


def export(folder: Path, text: TextTower, vision: VisionTower, tokenizer: Tokenizer) -> None:
    """Write both towers, the tokenizer and the configuration as Hugging Face exports of CLIP have them."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    _graph(text, torch.ones(2, 5, dtype=torch.int64), folder / "onnx" / "text_model.onnx", "input_ids", "text_embeds")
    pixels = torch.zeros(2, 3, IMAGE, IMAGE)
    _graph(vision, pixels, folder / "onnx" / "vision_model.onnx", "pixel_values", "image_embeds")
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    start, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
    _json(
        folder / "config.json",
        {
            "_name_or_path": NAME,
            "model_type": "clip",
            "projection_dim": DIMENSION,
            "text_config": {
                "vocab_size": size,
                "max_position_embeddings": CONTEXT,
                "projection_dim": DIMENSION,
                "bos_token_id": start,
                "eos_token_id": end,
                "hidden_size": WIDTH,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
            },
            "vision_config": {"image_size": IMAGE, "projection_dim": DIMENSION},
        },
    )
    _json(
        folder / "preprocessor_config.json",
        {
            "do_resize": True,
            "size": {"shortest_edge": IMAGE},
            "do_center_crop": True,
            "crop_size": {"height": IMAGE, "width": IMAGE},
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": MEAN,
            "image_std": STD,
            "resample": 3,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": CONTEXT,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
        },
    )


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _graph(tower: nn.Module, example: Tensor, file: Path, taken: str, given: str) -> None:
    axes = {taken: {0: "batch_size"} | ({1: "sequence_length"} if taken == "input_ids" else {})}
    torch.onnx.export(
        tower.eval(),
        (example,),
        str(file),
        input_names=[taken],
        output_names=[given],
        dynamic_axes=axes | {given: {0: "batch_size"}},
        opset_version=17,
        dynamo=False,
    )
    graph = onnx.load(str(file))
    _halve(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(file))


def _halve(graph: onnx.ModelProto) -> None:
    """Keep large weights as float16, which the graph widens as it is loaded: half the bytes, the same arithmetic."""
    casts = []
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < 1024:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + "_float16"))
        casts.append(helper.make_node("Cast", [name + "_float16"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.graph.node.insert(0, cast)
