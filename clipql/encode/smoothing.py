"""Edits of a network's graph that make it lose less in 8 bits: what it computes stays the same.

- `smoothed`: a few channels behind a normalisation are often ten times as large as the others, which leaves those few
  of 256 steps. What such a channel has more is moved into the weights that it meets (SmoothQuant, arXiv:2211.10438,
  with its alpha of 0.5), at no cost, since a normalisation multiplies every channel by a constant anyway.
- `by_rows`: each row is divided by its largest number before it meets the weights, and the product multiplied by it
  again, so that a row has all 256 steps whatever rows are beside it. That costs about a tenth of the time.

Only `int8.py` imports this: it needs onnx.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_LEAST = 1e-5
Array = NDArray[np.float32]
Run = Callable[[ModelProto, Sequence[str]], Mapping[str, Array]]


@dataclass(frozen=True)
class _Norm:
    """A normalised tensor: the constants that each channel is multiplied by and moved by last, with the nodes and
    positions that name them, and the matrices it meets."""

    output: str
    constants: tuple[tuple[NodeProto, int], ...]
    products: tuple[NodeProto, ...]


class _Graph:
    """Who makes and who takes what in a graph."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)
        self.constants = {each.name: each for each in self.graph.initializer if each.data_type == TensorProto.FLOAT}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.takers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.takers[name].append(node)
        self.outputs = {each.name for each in self.graph.output}

    def products(self) -> list[NodeProto]:
        """The nodes that multiply something by a constant matrix."""
        return [node for node in self.graph.node if node.op_type == "MatMul" and self._is_matrix(node.input[1])]

    def _is_matrix(self, name: str) -> bool:
        return name in self.constants and len(self.constants[name].dims) == 2

    def value(self, name: str) -> Array:
        return np.array(numpy_helper.to_array(self.constants[name]))

    def norms(self) -> list[_Norm]:
        """What is normalised and then meets matrices alone."""
        found = []
        for output, node in self.makers.items():
            takers = self.takers[output]
            constants = self._of_norm(node)
            if constants and takers and output not in self.outputs and all(
                each.op_type == "MatMul" and each.input[0] == output and self._is_matrix(each.input[1])
                for each in takers
            ):  # fmt: skip
                found.append(_Norm(output, constants, tuple(takers)))
        return found

    def _of_norm(self, node: NodeProto) -> tuple[tuple[NodeProto, int], ...]:
        if node.op_type == "LayerNormalization":
            places = tuple((node, position) for position in range(1, len(node.input)))
            return places if places and all(self._is_row(node.input[p]) for _, p in places) else ()
        if node.op_type != "Add":
            return ()
        for position in (0, 1):
            scaled = self.makers.get(node.input[1 - position])
            if not self._is_row(node.input[position]) or scaled is None or scaled.op_type != "Mul":
                continue
            if len(self.takers[scaled.output[0]]) != 1:
                continue
            for factor in (0, 1):
                if self._is_row(scaled.input[factor]):
                    return ((scaled, factor), (node, position))
        return ()

    def _is_row(self, name: str) -> bool:
        return name in self.constants and len(self.constants[name].dims) == 1

    def add(self, value: NDArray[Any], like: str) -> str:
        """A new constant, since an old one may be that of others too."""
        name = f"{like}_clipql_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def smoothed(model: ModelProto, run: Run) -> ModelProto:
    """The same network with large channels moved into the weights. run: the largest values of
    a network's inner tensors on samples, by channel."""
    made = _Graph(_copied(model))
    norms = made.norms()
    if not norms:
        return model
    largest = run(model, [norm.output for norm in norms])
    for norm in norms:
        weights = np.max([np.abs(made.value(each.input[1])).max(1) for each in norm.products], axis=0)
        factor = np.sqrt(np.maximum(largest[norm.output], _LEAST) / np.maximum(weights, _LEAST))
        factor = np.asarray(factor / np.exp(np.log(factor).mean()), np.float32)
        for node, position in norm.constants:
            old = node.input[position]
            node.input[position] = made.add(made.value(old) / factor, old)
        for node in norm.products:
            old = node.input[1]
            node.input[1] = made.add(made.value(old) * factor[:, None], old)
    return _without_unused(made.graph, model)


def by_rows(model: ModelProto) -> ModelProto:
    """The same network, in which each row is brought to a largest number of 1 before it meets a matrix."""
    made = _Graph(_copied(model))
    products = {node.output[0]: node for node in made.products()}
    least = made.add(np.array(1e-9, np.float32), "least")
    last = made.add(np.array([-1], np.int64), "last")
    largest: dict[str, tuple[str, str]] = {}
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        output = next(iter(node.output), "")
        if output not in products:
            nodes.append(node)
            continue
        given = node.input[0]
        if given not in largest:  # queries, keys and values come of the same rows
            names = [f"{given}_clipql_{what}" for what in ("size", "most", "scale", "even")]
            size, most, scale, even = names
            axes: dict[str, Any] = {} if made.opset >= 18 else {"axes": [-1]}
            nodes += [
                helper.make_node("Abs", [given], [size]),
                helper.make_node("ReduceMax", [size] if axes else [size, last], [most], keepdims=1, **axes),
                helper.make_node("Max", [most, least], [scale]),
                helper.make_node("Div", [given, scale], [even]),
            ]
            largest[given] = scale, even
        scale, even = largest[given]
        product = f"{output}_clipql_product"
        nodes.append(helper.make_node("MatMul", [even, node.input[1]], [product], name=node.name))
        nodes.append(helper.make_node("Mul", [product, scale], [output]))
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return _without_unused(made.graph, model)


def _copied(model: ModelProto) -> ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _without_unused(graph: onnx.GraphProto, model: ModelProto) -> ModelProto:
    """A model of a graph, without the constants that nothing takes any more."""
    taken = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    kept = [each for each in graph.initializer if each.name in taken]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ClearField("graph")
    made.graph.CopyFrom(graph)
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made
