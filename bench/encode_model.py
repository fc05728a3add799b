"""A model of CLIP's shape with random weights, in the files of an ONNX export: speed needs no training.

The graphs are put together with onnx.helper, operation by operation as an export of the `transformers` library has
them. They answer as a CLIP does in all but meaning: the text tower is causal and read off the end token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clipql.encode import tokenizer
from clipql.encode.prepare import OPENAI


@dataclass(frozen=True)
class Tower:
    """Sizes of a transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of ViT-B/32."""

    text: Tower = Tower(512, 12, 8)
    vision: Tower = Tower(768, 12, 12)
    dimension: int = 512
    context: int = 77
    vocabulary: int = 49408
    picture: int = 224
    patch: int = 32


class _Graph:
    """A graph in the making: every operation returns its output's name."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, *shape: int, scale: float | None = None) -> str:
        values = self._rng.standard_normal(shape, np.float32) * np.float32(scale or shape[0] ** -0.5)
        return self.constant(values, np.float32)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.random(inputs, outputs)), self.random(outputs, scale=0.02))

    def norm(self, x: str, width: int) -> str:
        ones, zeros = self.constant(np.ones(width), np.float32), self.constant(np.zeros(width), np.float32)
        return self.add("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-5)

    def heads(self, x: str, tower: Tower, order: list[int]) -> str:
        split = self.constant([0, 0, tower.heads, tower.width // tower.heads])
        return self.add("Transpose", self.add("Reshape", self.linear(x, tower.width, tower.width), split), perm=order)

    def block(self, x: str, tower: Tower, mask: str | None) -> str:
        inner = self.norm(x, tower.width)
        query, value = (self.heads(inner, tower, [0, 2, 1, 3]) for _ in range(2))
        key = self.heads(inner, tower, [0, 2, 3, 1])
        scale = self.constant((tower.width / tower.heads) ** -0.5, np.float32)
        scores = self.add("MatMul", self.add("Mul", query, scale), key)
        weights = self.add("Softmax", self.add("Add", scores, mask) if mask else scores, axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", mixed, self.constant([0, 0, tower.width]))
        x = self.add("Add", x, self.linear(joined, tower.width, tower.width))
        hidden = self.linear(self.norm(x, tower.width), tower.width, 4 * tower.width)
        gate = self.add("Sigmoid", self.add("Mul", hidden, self.constant(1.702, np.float32)))
        return self.add("Add", x, self.linear(self.add("Mul", hidden, gate), 4 * tower.width, tower.width))

    def save(self, file: Path, source: onnx.ValueInfoProto, result: str, output: str, dimension: int) -> None:
        self.nodes.append(helper.make_node("Identity", [result], [output]))
        found = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", dimension])
        graph = helper.make_graph(self.nodes, file.stem, [source], [found], self.weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def _text(file: Path, shape: Shape, seed: int) -> None:
    graph, width = _Graph(seed), shape.text.width
    length = graph.add("Slice", graph.add("Shape", "input_ids"), *(graph.constant([n]) for n in (1, 2)))
    zero = graph.constant([0])
    positions = graph.add("Slice", graph.random(shape.context, width, scale=0.01), zero, length, zero)
    x = graph.add("Add", graph.add("Gather", graph.random(shape.vocabulary, width, scale=0.02), "input_ids"), positions)
    above: NDArray[np.float32] = np.triu(np.full((shape.context, shape.context), -1e9, np.float32), 1)
    both = graph.add("Concat", length, length, axis=0)
    mask = graph.add("Slice", graph.constant(above, np.float32), graph.constant([0, 0]), both, graph.constant([0, 1]))
    for _ in range(shape.text.layers):
        x = graph.block(x, shape.text, mask)
    end = graph.add("ArgMax", "input_ids", axis=1, keepdims=1)
    at_end = graph.add("GatherND", graph.norm(x, width), end, batch_dims=1)
    found = graph.add("MatMul", at_end, graph.random(width, shape.dimension))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    graph.save(file, ids, found, "text_embeds", shape.dimension)


def _vision(file: Path, shape: Shape, seed: int) -> None:
    graph, width, size = _Graph(seed), shape.vision.width, shape.picture
    kernel = graph.random(width, 3, shape.patch, shape.patch, scale=(3 * shape.patch**2) ** -0.5)
    patches = graph.add("Conv", "pixel_values", kernel, strides=[shape.patch, shape.patch])
    patches = graph.add("Transpose", graph.add("Reshape", patches, graph.constant([0, width, -1])), perm=[0, 2, 1])
    count = graph.add("Slice", graph.add("Shape", "pixel_values"), *(graph.constant([n]) for n in (0, 1)))
    first = graph.add("Expand", graph.random(1, 1, width), graph.add("Concat", count, graph.constant([1, 1]), axis=0))
    x = graph.add("Concat", first, patches, axis=1)
    x = graph.add("Add", x, graph.random((size // shape.patch) ** 2 + 1, width, scale=0.02))
    x = graph.norm(x, width)
    for _ in range(shape.vision.layers):
        x = graph.block(x, shape.vision, None)
    pooled = graph.norm(graph.add("Gather", x, graph.constant(0), axis=1), width)
    found = graph.add("MatMul", pooled, graph.random(width, shape.dimension))
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])
    graph.save(file, pixels, found, "image_embeds", shape.dimension)


def write(folder: Path, shape: Shape = Shape(), *, name: str = "random/clip", seed: int = 0) -> Path:
    """Write a whole model's folder, with CLIP's own tokenizer, and return it."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    config = {
        "_name_or_path": name,
        "model_type": "clip",
        "projection_dim": shape.dimension,
        "text_config": {"max_position_embeddings": shape.context, "vocab_size": shape.vocabulary},
        "vision_config": {"image_size": shape.picture, "patch_size": shape.patch},
    }
    preprocessor = {
        "size": {"shortest_edge": shape.picture},
        "crop_size": {"height": shape.picture, "width": shape.picture},
        "image_mean": list(OPENAI.mean),
        "image_std": list(OPENAI.std),
        "resample": OPENAI.resample,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tokenizer.openai().save(folder / "tokenizer.json")
    _text(folder / "onnx" / "text_model.onnx", shape, seed)
    _vision(folder / "onnx" / "vision_model.onnx", shape, seed + 1)
    return folder
