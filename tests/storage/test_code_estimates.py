"""What eight codes at a time say is what their bits say, counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numba import uint64
from numpy.typing import NDArray

from clipql.storage.vectors.bits import as_bfloat16, bfloat16_to_float, code_estimates, first_bit, kernel

EIGHT = 8


@kernel
def _estimated(
    codes: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    weights: NDArray[np.float32],
    each: NDArray[np.float32],
    of_all: NDArray[np.float32],
    out: NDArray[np.float32],
) -> int:
    """each: (3, 8), scale, bias, spread; of_all: (4,), start, total, reach, floor."""
    e = uint64(each.ctypes.data)
    return code_estimates(
        uint64(codes.ctypes.data), uint64(planes.ctypes.data), uint64(weights.ctypes.data), e, e + uint64(32),
        e + uint64(64), of_all[0], of_all[1], of_all[2], of_all[3], uint64(out.ctypes.data),
    )  # fmt: skip


@kernel
def _first(word: int) -> int:
    return first_bit(word)


@kernel
def _widened(short: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(short.size):
        out[i] = bfloat16_to_float(short[i])


@pytest.mark.parametrize("seed", range(20))
def test_eight_codes_say_what_their_bits_say(seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, (EIGHT, 8), np.uint64)
    planes = random.integers(0, 2**64, (4, 8), np.uint64)
    weights, each = random.standard_normal(8, np.float32), random.standard_normal((3, EIGHT), np.float32)
    start, total, reach = random.standard_normal(3, np.float32)
    level = np.array([1, 2, 4, -8])
    ones = np.unpackbits((codes[:, None] & planes).view(np.uint8).reshape(EIGHT, 4, 8, 8), axis=3).sum(3)
    dots = ((ones * level[:, None]).sum(1) * weights.astype(np.float64)).sum(1)
    expected = start + each[0] * (dots - total) + each[1] + reach * each[2]
    floor = np.float32(np.sort(expected)[4:6].mean())  # three are above it
    out = np.empty(EIGHT, np.float32)
    above = _estimated(codes, planes, weights, each, np.array([start, total, reach, floor], np.float32), out)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
    assert [i for i in range(EIGHT) if (above >> i) & 1] == np.flatnonzero(expected > floor).tolist()
    assert _first(above) == np.flatnonzero(expected > floor)[0]


def test_bfloat16_is_the_nearest_number_of_eight_bits() -> None:
    numbers = np.random.default_rng(1).standard_normal(10_000, np.float32) * np.float32(10) ** np.arange(
        -20, 20, 0.004, np.float32
    )
    out = np.empty_like(numbers)
    _widened(as_bfloat16(numbers), out)
    fraction, exponent = np.frexp(numbers.astype(np.float64))
    np.testing.assert_array_equal(out, np.ldexp(np.round(fraction * 256) / 256, exponent))
