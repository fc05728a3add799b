"""What is done to a network's graph before its matrices become bytes changes nothing that it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from clipql.encode import int8, smoothing

WIDTH, OUT = 64, 32


def network(opset: int, *, loud: float = 1.0) -> onnx.ModelProto:
    """A normalisation before two matrices, spelt as exports of that opset do; four channels are `loud`."""
    random = np.random.default_rng(0)
    gain = random.uniform(0.5, 1.5, WIDTH)
    gain[:4] *= loud
    constants = {
        "gain": gain,
        "bias": random.normal(0, 0.1, WIDTH),
        "one": random.normal(0, 0.1, (WIDTH, OUT)),
        "other": random.normal(0, 0.1, (WIDTH, OUT)),
    }
    constants["one"][:4] /= loud  # what is loud is not what counts
    constants["other"][:4] /= loud
    if opset >= 17:
        nodes = [helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["even"], axis=-1)]
    else:
        constants |= {"least": 1e-5, "two": 2.0}
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("Pow", ["centred", "two"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
            helper.make_node("Add", ["variance", "least"], ["safe"]),
            helper.make_node("Sqrt", ["safe"], ["deviation"]),
            helper.make_node("Div", ["centred", "deviation"], ["normal"]),
            helper.make_node("Mul", ["normal", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], ["even"]),
        ]
    nodes += [
        helper.make_node("MatMul", ["even", "one"], ["a"]),
        helper.make_node("MatMul", ["even", "other"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m", OUT])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray, names: Sequence[str] = ("y",)) -> list[np.ndarray]:
    with_all = onnx.ModelProto.FromString(model.SerializeToString())
    with_all.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name != "y")
    return onnxruntime.InferenceSession(with_all.SerializeToString()).run(list(names), {"x": x})


def smoothed(model: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    def largest(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = run(model, x, names)
        return {name: np.abs(each).max((0, 1)) for name, each in zip(names, found, strict=True)}

    return smoothing.smoothed(model, largest)


def rows(seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(0, 1, (6, 5, WIDTH)) * 10 ** random.uniform(-2, 2, (6, 5, 1))).astype(np.float32)


@pytest.mark.parametrize("opset", [14, 17, 18])
def test_the_edits_leave_what_a_network_computes(opset: int) -> None:
    if opset == 18:
        model = network(17)
        model.opset_import[0].version = 18
    else:
        model = network(opset)
    [expected] = run(model, rows())
    even = smoothed(model, rows(2))
    assert "even" in {node.input[0] for node in even.graph.node if node.op_type == "MatMul"}
    assert not {"gain", "bias", "one", "other"} & {each.name for each in even.graph.initializer}, "nothing was moved"
    for edited in (even, smoothing.by_rows(model), smoothing.by_rows(even)):
        onnx.checker.check_model(edited)
        np.testing.assert_allclose(run(edited, rows())[0], expected, rtol=1e-4, atol=1e-5)


def test_a_normalisation_that_others_read_too_is_left_alone() -> None:
    model = network(17)
    model.graph.output.append(helper.make_tensor_value_info("even", TensorProto.FLOAT, ["n", "m", WIDTH]))
    assert smoothed(model, rows()) == model


def test_loud_channels_cost_less_after_each_edit(tmp_path: Path) -> None:
    model, x = network(17, loud=40.0), rows()
    [expected] = run(model, x)

    def error(edited: onnx.ModelProto) -> float:
        onnx.save(edited, tmp_path / "even.onnx")
        quantize_dynamic(  # in seven bits, so that no processor cuts a sum
            tmp_path / "even.onnx",
            tmp_path / "small.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return float(np.linalg.norm(run(onnx.load(tmp_path / "small.onnx"), x)[0] - expected))

    plain, even = error(model), error(smoothed(model, x))
    assert even < plain / 4
    assert error(smoothing.by_rows(smoothed(model, x))) < even


def test_a_row_has_the_same_product_whatever_is_beside_it(tmp_path: Path) -> None:
    onnx.save(network(17), tmp_path / "network.onnx")
    x = rows()
    (tmp_path / "small.onnx").write_bytes(int8.make(tmp_path / "network.onnx", [{"x": x}], rows=True))
    model = onnx.load(tmp_path / "small.onnx")
    together, alone = run(model, x)[0][:1], run(model, x[:1])[0]
    assert np.abs(together - alone).max() < 0.02 * np.abs(together).max()


def test_matrices_take_a_quarter_of_the_room(tmp_path: Path) -> None:
    onnx.save(network(17), tmp_path / "network.onnx")
    made = onnx.load_from_string(int8.make(tmp_path / "network.onnx", [{"x": rows()}]))
    sizes = [len(each.raw_data) for each in made.graph.initializer if list(each.dims) == [WIDTH, OUT]]
    assert sizes == [WIDTH * OUT] * 2


@pytest.mark.parametrize("narrow", [False, True])
def test_narrow_weights_leave_room_for_the_sum_of_two_products(tmp_path: Path, narrow: bool) -> None:
    onnx.save(network(17), tmp_path / "network.onnx")
    x = rows()
    made = onnx.load_from_string(int8.make(tmp_path / "network.onnx", [{"x": x}], narrow=narrow))
    weights = [numpy_helper.to_array(each) for each in made.graph.initializer if list(each.dims) == [WIDTH, OUT]]
    assert [weight.dtype.name for weight in weights] == ["int8"] * 2
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert (2 * 255 * largest < 1 << 15) == narrow
    if narrow:  # so it computes the same on every processor
        [expected] = run(network(17), x)
        assert np.linalg.norm(run(made, x)[0] - expected) < 0.05 * np.linalg.norm(expected)
