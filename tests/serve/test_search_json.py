"""The JSON of searches: what is asked is read as Python's own reader reads it, and what is answered says the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipql.errors import QueryError
from clipql.serve.json_response import JsonResponse
from clipql.serve.search_request import parsed, parsed_search

WHOLE = st.integers(-(2**63), 2**64 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
)
ODD = [
    b"", b"{", b"[1,]", b"[NaN]", b"[Infinity]", b"[1e400]", b'["\\ud800"]', b'["\\ud83d\\ude00"]', b"\xef\xbb\xbf[1]",
    b'["\xff"]', b"[1] [2]", b'{"a": 1, "a": 2}', b"[" * 5_000 + b"]" * 5_000, b"[01]", b"[1" + b"0" * 400 + b"]",
]  # fmt: skip


def outcome(read: Any, data: bytes) -> Any:
    """What reading gives, as text, or the error."""
    try:
        return json.dumps(read(data))
    except QueryError as error:
        return error.code, str(error)


@given(VALUES)
def test_a_request_is_read_as_python_reads_it(value: Any) -> None:
    for data in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert outcome(parsed_search, data) == outcome(parsed, data)


@pytest.mark.parametrize("data", ODD, ids=lambda d: repr(d[:12]))
def test_what_is_odd_or_no_json_is_taken_or_refused_alike(data: bytes) -> None:
    assert outcome(parsed_search, data) == outcome(parsed, data)


def test_a_whole_number_beyond_64_bits_is_refused_by_every_key_of_a_search() -> None:
    assert parsed_search(b"[340282366920938463463374607431768211456]") == [2.0**128]


@given(VALUES)
def test_a_reply_is_what_python_reads_again(value: Any) -> None:
    assert json.loads(JsonResponse(value).body) == value


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_of_a_vector_come_back_to_the_last_bit(numbers: list[float]) -> None:
    vector = np.array(numbers, np.float32)
    again = np.array(json.loads(JsonResponse({"vector": vector}).body)["vector"], np.float32)
    np.testing.assert_array_equal(again.view(np.uint32), vector.view(np.uint32))


def test_what_is_not_finite_is_null() -> None:
    reply = JsonResponse([float("nan"), float("inf"), np.array([1, np.nan], np.float32)])
    assert json.loads(reply.body) == [None, None, [1.0, None]]


@pytest.mark.parametrize("deep", [200, 300, 600])
def test_lists_within_lists_are_written_however_deep_they_are(deep: int) -> None:
    value: Any = 1
    for _ in range(deep):
        value = [value]
    body = JsonResponse({"rows": [value, "ü"], "vector": np.ones(2, np.float32)}).body
    assert json.loads(body) == {"rows": [value, "ü"], "vector": [1.0, 1.0]}
