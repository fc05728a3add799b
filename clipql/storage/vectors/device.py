"""What is asked of a device that multiplies matrices, such as a GPU, and by how much its products may be off.

What must stay true: a device finds candidates, and what they are is decided on the processor; products are of float32
with all its digits, so that their error is bounded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DeviceError


class DeviceFull(DeviceError):
    """The device has no memory for what was asked: ask for less at once, or go on without it."""


class Device(Protocol):
    """Arrays on a device, and what is done with them besides `+ - * /`, comparisons, `x[places]`, `.any()` and
    `.shape`, which they have themselves. All of it is done within `working`.
    """

    @property
    def name(self) -> str:
        """How the device is called: 'cuda:0 (NVIDIA H200)'."""

    def working(self) -> AbstractContextManager[None]:
        """What products and errors need. Raises DeviceFull where memory is short, DeviceError for other failures."""

    def sent(self, x: NDArray[Any]) -> Any:
        """A copy on the device, of the numbers' own type."""

    def fetched(self, x: Any) -> NDArray[Any]:
        """A copy in this process's memory."""

    def wide(self, x: Any) -> Any:
        """The numbers as float32."""

    def products(self, a: Any, b: Any) -> Any:
        """float32 (n, m) of (n, d) and (m, d): each row with each, added up in float32 or wider, in any order."""

    def lengths(self, x: Any) -> Any:
        """Euclidean lengths of the rows, float64 (n,), added up in float64."""

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        """The k largest of each row, or all that it has, and their places, in no order; NaN counts as -infinity. Of the
        scores nothing is left. Where k is 1, the first of equal ones.
        """

    def at_least(self, scores: Any, limit: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the scores that are at least so large, row by row."""

    def side_by_side(self, one: Any, other: Any) -> Any:
        """The columns of both."""

    def picked(self, x: Any, places: Any) -> Any:
        """(n, k) of x (n, m): of each row the numbers at these places (n, k)."""

    def zeros(self, shape: tuple[int, int]) -> Any:
        """float64."""

    def add_up(self, sums: Any, lists: Any, x: Any) -> None:
        """Add each row of x to the row of sums, float64, that `lists` names for it."""

    def not_below_zero(self, x: Any) -> Any:
        """The numbers, or 0 where they are less; NaN stays."""


def rounding(dimension: int) -> float:
    """What a score of float32 may be off, relative to the lengths of the two rows that it is made of.

    A sum of n products is off by γ(n) = n u / (1 - n u) of the sum of their sizes at most, u = 2⁻²⁴, in whatever order
    (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1); that sum is at most the product of the lengths.
    Eight more are of the few steps before and after: scaling both rows to length 1, lengths taken off, the limit.
    """
    nu = (dimension + 8) * 2.0**-24
    return nu / (1 - nu)
