"""Instructions that Numba has no words for do what numpy does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipql.storage.vectors.bits import as_bfloat16, bfloat16_to_float, kernel


@kernel
def _widened(short: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(short.size):
        out[i] = bfloat16_to_float(short[i])


def test_bfloat16_is_the_nearest_number_of_eight_bits() -> None:
    numbers = np.random.default_rng(1).standard_normal(10_000, np.float32) * np.float32(10) ** np.arange(
        -20, 20, 0.004, np.float32
    )
    out = np.empty_like(numbers)
    _widened(as_bfloat16(numbers), out)
    fraction, exponent = np.frexp(numbers.astype(np.float64))
    np.testing.assert_array_equal(out, np.ldexp(np.round(fraction * 256) / 256, exponent))
