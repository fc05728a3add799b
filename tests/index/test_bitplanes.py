"""What eight codes at a time say is what their bits say, counted one by one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import uint64
from numpy.typing import NDArray

from clipql.index.ivf.bitplanes import code_dot, code_estimates
from clipql.storage.vectors.bits import first_bit, kernel

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
def _dots(
    codes: NDArray[np.uint64], planes: NDArray[np.uint64], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    for i in range(out.size):
        at = uint64(codes.ctypes.data) + uint64(64 * i)
        out[i] = code_dot(at, uint64(planes.ctypes.data), uint64(weights.ctypes.data))


@kernel
def _first(word: int) -> int:
    return first_bit(word)


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
    _dots(codes, planes, weights, out)
    np.testing.assert_allclose(out, dots, rtol=1e-4, atol=1e-3)
    assert _first(above) == np.flatnonzero(expected > floor)[0]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instructions of x86")
@pytest.mark.parametrize("features", ["", "+avx2"])
def test_they_say_it_by_the_instructions_of_older_processors_too(features: str, tmp_path: Path) -> None:
    given = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "what_their_bits_say"]
    done = subprocess.run(again, env={**os.environ, **given}, capture_output=True, text=True)
    assert "20 passed" in done.stdout, done.stdout + done.stderr
