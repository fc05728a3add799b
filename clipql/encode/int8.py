"""A network with its matrices in 8 bits: made once, run by ONNX Runtime as any other.

Weights have a scale for each output, which costs nothing and is nearer than one for a whole matrix; what they are
multiplied with gets its scale as it comes. Nothing else imports onnx, which is in the extra clipql[optimize].
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clipql.encode.onnx import simplified
from clipql.errors import ModelError


def check() -> None:
    """Raises ModelError where what makes a form is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"to optimize a model needs onnx, and {error.name} is not installed: pip install 'clipql[optimize]'"
        ) from error


def make(network: Path) -> bytes:
    """The file of a network with its matrices in 8 bits. Raises ModelError."""
    check()
    with tempfile.TemporaryDirectory(prefix="clipql-optimize-") as place, _quietly():
        plain, small = Path(place) / "plain.onnx", Path(place) / "small.onnx"
        # constants are folded first: weights kept as float16 or transposed are matrices only then
        simplified(network, plain)
        try:
            from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

            quantize_dynamic(
                plain, small, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
            )
            return small.read_bytes()
        except Exception as error:  # those of onnx and its quantiser have no base class but this
            raise ModelError(f"{network} cannot be brought to int8: {error}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the advice that the quantiser gives to whoever reads the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
