"""A vector that comes as text is read as Python reads each of its numbers, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipql.sql.recognition.vector_text import numbers_of

ODD = ["1e22", "1e23", "-1e-22", "1e-23", "9007199254740992", "9007199254740993", "9007199254740992.5", "0.1", "-0",
       "1e400", "-1e-400", "1e9999999999", ".5", "5.", "+7", " 1 ", "\t2\n", "1_000", "nan", "-inf", "00012", "1e+05",
       "0.000000000000000000000001", "123456789012345678901234567890", "4.35", "2.2250738585072011e-308", "١",
       "4.9406564584124654e-324", "1.7976931348623157e308", "8.5e-3", "0e0", "0e400", "1E5"]  # fmt: skip
WRONG = ["1,,2", "1,", ",1", "1 2", "e5", "1e", "1e+", "--1", ".", "-", "0x10", "1.2.3", "1;2", "1f", "1\x002"]


def expected(text: str) -> list[str]:
    """By `float`, as text that tells every bit and NaN."""
    return [float(number).hex() for number in text.split(",")]


@pytest.mark.parametrize("number", ODD)
def test_odd_numbers_are_read_as_by_float(number: str) -> None:
    for text in (number, f"1.25,{number},-3"):
        assert [x.hex() for x in numbers_of(text).tolist()] == expected(text)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        numbers_of(text)


def test_nothing_is_no_number() -> None:
    assert numbers_of(" ").tolist() == []


number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map("{:.6g}".format),
    st.floats(-1, 1).map("{:.9f}".format),
    st.from_regex(r"\A[+-]?\d{0,18}\.?\d{1,18}([eE][+-]?\d{1,3})?\Z"),
)


@given(st.lists(number, min_size=1, max_size=8))
def test_any_numbers_are_read_as_by_float(numbers: list[str]) -> None:
    text = ",".join(numbers)
    assert [x.hex() for x in numbers_of(text).tolist()] == expected(text)


def test_vectors_as_they_are_printed_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(5).standard_normal(512).astype(np.float32)
    for text in (",".join(f"{v:.6g}" for v in x.tolist()), ",".join(f"{v:.9g}" for v in x.tolist())):
        with monkeypatch.context() as patch:
            patch.setattr("builtins.float", None)
            found = numbers_of(text)
        assert found.tolist() == [float(number) for number in text.split(",")]
