"""A network with its matrices in 8 bits: made once, run by ONNX Runtime as any other.

Weights have a scale for each output, which costs nothing and is nearer than one for a whole matrix; what they are
multiplied with gets its scale as it comes. Nothing else imports onnx, but for `smoothing.py`; it is in the extra
clipql[optimize].

Where a processor cuts sums of two products to 16 bits, weights have seven bits: 2 x 255 x 64 fits, 2 x 255 x 127 does
not, and a sum that is cut is further off than a weight that is rounded.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipql.encode.onnx import inner_values, simplified
from clipql.errors import ModelError

if TYPE_CHECKING:
    from onnx import ModelProto

# The inputs of a network by name, for each of some batches
Samples = Sequence[Mapping[str, NDArray[Any]]]


def check() -> None:
    """Raises ModelError where what makes a form is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"to optimize a model needs onnx, and {error.name} is not installed: pip install 'clipql[optimize]'"
        ) from error


def make(network: Path, samples: Samples, *, rows: bool = False, narrow: bool = False) -> bytes:
    """The file of a network with its matrices in 8 bits.

    samples: inputs of the kind that it will get. rows: with a scale for each row of what meets a matrix, which is
    nearer and slower than one for a batch. narrow: weights in seven bits, for a processor whose sums saturate. Raises
    ModelError.
    """
    check()
    import onnx

    with tempfile.TemporaryDirectory(prefix="clipql-optimize-") as folder, _quietly():
        place = Path(folder)
        # constants are folded first: weights kept as float16 or transposed are matrices only then
        simplified(network, place / "plain.onnx")
        try:
            model = _prepared(onnx.load(place / "plain.onnx"), samples, place, rows=rows)
            onnx.save(model, place / "even.onnx")
            del model
            return _quantized(place / "even.onnx", place / "small.onnx", narrow=narrow)
        except ModelError:
            raise
        except Exception as error:  # those of onnx and its quantiser have no base class but this
            raise ModelError(f"{network} cannot be brought to int8: {error}") from error


def _prepared(model: ModelProto, samples: Samples, place: Path, *, rows: bool) -> ModelProto:
    import onnx
    from onnx import helper

    from clipql.encode import smoothing

    def run(model: ModelProto, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        onnx.save(model, place / "open.onnx")
        del model.graph.output[-len(names) :]
        return inner_values(place / "open.onnx", names, samples)

    even = smoothing.smoothed(model, run)
    return smoothing.by_rows(even) if rows else even


def _quantized(network: Path, out: Path, *, narrow: bool) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    quantize_dynamic(
        network,
        out,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=narrow,
        op_types_to_quantize=["MatMul"],
    )
    return out.read_bytes()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice that the quantiser gives to whoever reads the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
