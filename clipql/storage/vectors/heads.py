"""Heads: what a vector becomes by linear layers, ReLU and scaling to length 1, for many rows at once.

What must stay true: a row's numbers are those of its vector alone, but for the rounding of float32, as products of
matrices are summed in an order that depends on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.storage.vectors.device import Device

Floats = NDArray[np.float32]


@dataclass(frozen=True, repr=False, eq=False)
class Layer(Brief):
    """`weights` (m, d) and `bias` (m,), float32, of a linear layer; without them what `function` names."""

    function: str
    weights: Floats | None = None
    bias: Floats | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Head(Brief):
    """Layers one after the other. width: the numbers that the last one gives; element: the one of them that is wanted,
    from 0; None for all. device: where products are made. name: the same for the same layers on the same device.
    """

    layers: tuple[Layer, ...]
    width: int
    element: int | None = None
    device: Device | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        digest = xxhash.xxh3_128()
        for layer in self.layers:
            shape = () if layer.weights is None else layer.weights.shape
            digest.update(f"{layer.function} {shape} ".encode())
            for numbers in (layer.weights, layer.bias):
                if numbers is not None:
                    digest.update(np.ascontiguousarray(numbers).tobytes())
        if self.device is not None:
            digest.update(self.device.name.encode())
        object.__setattr__(self, "name", f"head:{digest.hexdigest()}:{'' if self.element is None else self.element}")

    @property
    def items(self) -> int:
        """Numbers that are kept for a row."""
        return self.width if self.element is None else 1

    @property
    def missing(self) -> float:
        """What one number is of a row without a vector: ClickHouse's 0 where L2Normalize gives it, else NaN."""
        return 0.0 if self.layers[-1].function == "L2Normalize" else float("nan")

    @property
    def work(self) -> int:
        """Multiplications for a row."""
        return sum(layer.weights.size for layer in self.layers if layer.weights is not None)

    @property
    def one(self) -> tuple[Floats, np.float32] | None:
        """Where one product of the vector is all that is wanted: its weights (d,) and the bias."""
        weights, bias = self.layers[0].weights, self.layers[0].bias
        if len(self.layers) > 1 or self.items > 1 or weights is None or bias is None:
            return None
        return weights[self.element or 0], bias[self.element or 0]

    def on_device(self, element: int | None) -> bool:
        """Whether a device may help with this element of it: one product a row is made at memory speed."""
        return self.work > 0 and (len(self.layers) > 1 or (element is None and self.width > 1))

    def of(self, x: Floats, out: Floats | None = None) -> Floats:
        """(n, items) of the rows x, (n, d). out: float32 (n, items), overwritten and returned; None for a new array."""
        last = len(self.layers) - 1
        for at, (layer, weights, bias) in enumerate(self._steps()):
            if weights is not None and bias is not None:
                x = np.matmul(x, weights.T, out=out if at == last else None)
                if bias.any():
                    x += bias
            elif layer.function == "vectorRelu":
                x = np.maximum(x, np.float32(0))
            else:
                x = normalized(x)
        x = x if self.element is None or x.shape[1] == 1 else x[:, self.element : self.element + 1]
        if out is None or x is out:
            return x
        out[:] = x
        return out

    def by(self, device: Device, x: NDArray[Any]) -> Floats:
        """The same by a device, within rounding. x: as stored. Raises DeviceFull."""
        with device.working():
            there = device.wide(device.sent(x))
            for layer, weights, bias in self._steps():
                if weights is not None and bias is not None:
                    there = device.products(there, device.sent(weights))
                    there += device.sent(bias)
                elif layer.function == "vectorRelu":
                    there = device.not_below_zero(there)
                else:
                    there = device.wide(there / device.lengths(there)[:, None])
            if self.element is not None and there.shape[1] > 1:
                there = there[:, self.element : self.element + 1]
            return device.fetched(there)

    def _steps(self) -> Iterator[tuple[Layer, Floats | None, Floats | None]]:
        """Layers with their weights and bias: of the last one, those of the element that is wanted."""
        for at, layer in enumerate(self.layers):
            weights, bias = layer.weights, layer.bias
            if weights is not None and bias is not None and self.element is not None and at == len(self.layers) - 1:
                weights, bias = weights[self.element : self.element + 1], bias[self.element : self.element + 1]
            yield layer, weights, bias


def normalized(x: Floats) -> Floats:
    """Rows scaled to length 1; NaN where a row has none, as ClickHouse's L2Normalize has it."""
    lengths = np.sqrt(np.square(x, dtype=np.float64).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(x / lengths[:, None], np.float32)


def head(layers: Sequence[Layer], dimension: int, element: int | None = None, device: Device | None = None) -> Head:
    """A head of vectors of `dimension` numbers."""
    width = next((len(layer.weights) for layer in reversed(layers) if layer.weights is not None), dimension)
    return Head(tuple(layers), width, element, device)
