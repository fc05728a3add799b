"""The largest estimates of many codes are those of each code by itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipql.index.ivf.codescan import LEAST, SAMPLED, Asked, Coded, Ranges, largest, scan

CODES = 20_000
NO_ROWS, ALL = np.empty(0, np.uint32), np.empty(0, np.bool_)


def asked_for(seed: int) -> Asked:
    random = np.random.default_rng(seed)
    planes = random.integers(0, 2**64, (1, 4, 8), np.uint64)
    return Asked(planes, random.random((1, 8), np.float32), np.float32(3))


def coded_as(seed: int, scale: NDArray[np.float32]) -> Coded:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, (CODES, 8), np.uint64)
    bias, spread = random.standard_normal((2, CODES), np.float32)
    return Coded(codes, scale, bias, spread, np.float32(0.3))


def estimates(coded: Coded, asked: Asked) -> NDArray[np.float64]:
    """Each estimate, from the bits."""
    ones = np.unpackbits((coded.codes[:, None] & asked.planes[0]).view(np.uint8).reshape(CODES, 4, 8, 8), axis=3)
    level = np.array([1, 2, 4, -8])
    dots = ((ones.sum(3) * level[:, None]).sum(1) * asked.weights[0].astype(np.float64)).sum(1)
    return np.asarray(coded.scale * (dots - asked.total) + coded.bias + coded.reach * coded.spread)


@pytest.mark.parametrize("wanted", [1, 10, 100, 300, 1_000, 5_000, 19_999])
@pytest.mark.parametrize("ranges", [1, 7, 1_250])
def test_the_largest_are_found_whatever_part_of_all_is_wanted(wanted: int, ranges: int) -> None:
    random = np.random.default_rng(wanted)
    coded, asked = coded_as(wanted, random.random(CODES, np.float32)), asked_for(ranges)
    edges = np.linspace(0, CODES, ranges + 1).astype(np.int64)
    order = random.permutation(ranges)
    within = Ranges(edges[:-1][order], edges[1:][order], np.zeros(ranges, np.float32))
    value, at = largest(coded, within, asked, NO_ROWS, wanted)
    expected = estimates(coded, asked)
    np.testing.assert_allclose(value, expected[at], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(np.sort(value), np.sort(expected)[-wanted:], rtol=1e-3, atol=1e-2)
    assert len(set(at.tolist())) == wanted


@pytest.mark.parametrize("first", range(SAMPLED))
def test_codes_whose_sample_is_unlike_the_rest_are_found_as_well(first: int) -> None:
    scale = np.full(CODES, 0.001, np.float32)
    scale[first::SAMPLED] = 10  # one in so many is far larger, which may be just those that are looked at first
    coded, asked = coded_as(first, scale), asked_for(first)
    within = Ranges(np.zeros(1, np.int64), np.full(1, CODES, np.int64), np.zeros(1, np.float32))
    for wanted in (10, 250):
        value, at = largest(coded, within, asked, NO_ROWS, wanted)
        plain, plain_at = scan(coded, within, asked, NO_ROWS, ALL, wanted, False, LEAST)
        assert sorted(at) == sorted(plain_at)
        assert sorted(value) == sorted(plain)
