"""Lists are ranked by what each one's code says, whichever way codes are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipql.index.ivf import lookup
from clipql.index.ivf.codes import Words
from clipql.index.ivf.ranking import Lists, TurnedQuery, estimate, largest, largest_first

LISTS = 20_000
WAYS = ["planes"] + ["tables"] * lookup.at_hand()
NONE = np.empty(0, np.float32)


def turned(seed: int, words: int = 8) -> TurnedQuery:
    random = np.random.default_rng(seed)
    blocks = np.sort(random.integers(0, 3, words)).astype(np.int32)
    return TurnedQuery(random.standard_normal(192).astype(np.float32), blocks, random.random(words, np.float32))


def from_the_bits(codes: Words, query: TurnedQuery) -> NDArray[np.float64]:
    """What each code says of the query, from its bits and the query's numbers as they are."""
    n, words = codes.shape
    ones = np.unpackbits(codes.view(np.uint8).reshape(n, words, 8), axis=2, bitorder="little").reshape(n, words, 64)
    number = query.turned.reshape(-1, 64)[query.word_block] * query.word_weight[:, None].astype(np.float64)
    return np.asarray(2 * np.einsum("nwj,wj->n", ones, number) - number.sum())


def read(way: str, lists: Lists, *rest: Any) -> None:
    estimate(lists if way == "planes" else lists._replace(codes=lookup.tiled(lists.codes)), *rest)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ranges", [1, 7, 900, 5_000])
@pytest.mark.parametrize("parts", ["neither", "bias", "spread", "both"])
def test_an_estimate_is_what_the_bits_say_but_for_the_querys_rounding(way: str, ranges: int, parts: str) -> None:
    random, asked = np.random.default_rng(ranges), turned(ranges)
    codes = random.integers(0, 2**64, (LISTS, 8), np.uint64)
    scale, bias, spread = random.random((3, LISTS), np.float32)
    bias, spread = bias if parts in ("bias", "both") else NONE, spread if parts in ("spread", "both") else NONE
    cuts = np.unique([0, LISTS, *random.integers(0, LISTS, ranges - 1)]).astype(np.int64)
    order = random.permutation(len(cuts) - 1)[: max(1, len(cuts) // 2)]
    first, last = cuts[:-1][order], cuts[1:][order]
    value = np.full((last - first).sum() + 1, np.nan, np.float32)
    read(way, Lists(codes, scale, bias, spread, np.float32(0.3)), asked, first, last, value[:-1])
    at = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    said = from_the_bits(codes, asked)
    expected = scale[at] * said[at]
    expected += bias[at] if len(bias) else 0
    expected += np.float32(0.3) * spread[at] if len(spread) else 0
    off = np.abs(value[:-1] - expected)
    assert np.isnan(value[-1])  # nothing is written beyond
    assert off.mean() < (0.1 if way == "planes" else 0.01) * said.std()


@pytest.mark.parametrize("words", [1, 4, 9, 16])
def test_codes_of_other_lengths_are_read_as_well(words: int) -> None:
    random, asked = np.random.default_rng(words), turned(words, words)
    codes = random.integers(0, 2**64, (100, words), np.uint64)
    value, scale = np.empty(100, np.float32), np.ones(100, np.float32)
    whole = np.zeros(1, np.int64), np.full(1, 100, np.int64)
    estimate(Lists(codes, scale, NONE, NONE, np.float32(0)), asked, *whole, value)
    said = from_the_bits(codes, asked)
    assert np.abs(value - said).mean() < 0.1 * said.std()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-37, 1e-20, 1e15, 1e30])
def test_queries_of_any_size_are_told_what_the_bits_say(way: str, size: float) -> None:
    asked = turned(1)
    asked = asked._replace(turned=(asked.turned.astype(np.float64) * size).astype(np.float32))
    codes = np.random.default_rng(0).integers(0, 2**64, (100, 8), np.uint64)
    value, whole = np.empty(100, np.float32), (np.zeros(1, np.int64), np.full(1, 100, np.int64))
    read(way, Lists(codes, np.ones(100, np.float32), NONE, NONE, np.float32(0)), asked, *whole, value)
    said = from_the_bits(codes, asked)
    assert np.abs(value - said).mean() < 0.1 * said.std() + 1e-36  # below which float32 has few digits or none


@pytest.mark.parametrize("way", WAYS)
def test_a_query_of_zeros_is_told_nothing_by_codes(way: str) -> None:
    codes = np.random.default_rng(0).integers(0, 2**64, (100, 8), np.uint64)
    asked = turned(0)._replace(turned=np.zeros(192, np.float32))
    value, bias = np.empty(100, np.float32), np.arange(100, dtype=np.float32)
    whole = np.zeros(1, np.int64), np.full(1, 100, np.int64)
    read(way, Lists(codes, np.ones(100, np.float32), bias, NONE, np.float32(0)), asked, *whole, value)
    np.testing.assert_array_equal(value, bias)


@pytest.mark.parametrize("wanted", [1, 10, 100, 300, 1_000, 5_000, 19_999, 20_000, 30_000])
@pytest.mark.parametrize("shape", ["normal", "heavy tails", "a few far above", "half equal", "all equal", "huge"])
def test_the_largest_are_found_whatever_part_of_all_is_wanted(wanted: int, shape: str) -> None:
    random = np.random.default_rng(wanted)
    value = random.standard_normal(LISTS).astype(np.float32)
    if shape == "heavy tails":
        value = (value / random.standard_normal(LISTS)).astype(np.float32)
    elif shape == "a few far above":
        value[random.choice(LISTS, 5)] += 1e6
    elif shape == "half equal":
        value[::2] = 0.5
    elif shape == "all equal":
        value[:] = 3
    elif shape == "huge":
        value *= np.float32(3e37)
    cuts = np.linspace(0, 2 * LISTS, 9).astype(np.int64)  # every other range is ranked
    first, last = cuts[:-1:2][::-1].copy(), cuts[1::2][::-1].copy()
    found, at = largest(value, first, last, wanted)
    place = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    expected = np.sort(value)[::-1][:wanted]
    np.testing.assert_array_equal(np.sort(found)[::-1], expected)
    assert len(set(at.tolist())) == len(at)
    np.testing.assert_array_equal(value[np.argsort(place)][np.searchsorted(np.sort(place), at)], found)


def test_values_are_put_in_order_from_the_largest() -> None:
    value = np.array([0.5, -2, 3, -0.0, 0, 1e-40, -1e-40, np.inf, -np.inf, 3], np.float32)
    order = largest_first(value)
    assert value[order].tolist() == sorted(value.tolist(), reverse=True)
    assert sorted(order.tolist()) == list(range(len(value)))
