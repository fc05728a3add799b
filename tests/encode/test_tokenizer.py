from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipql.encode import tokenize
from clipql.encode.tokenizer import openai
from clipql.errors import EncodeError

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "openai_clip" / "clip_tokens.json").read_text())["cases"]
START, END = 49406, 49407


@pytest.mark.parametrize(("text", "ids"), [(text, ids) for text, ids, _ in CASES], ids=range(len(CASES)))
def test_texts_become_the_tokens_that_others_published(text: str, ids: list[int]) -> None:
    assert tokenize([text]).tolist() == [ids + [0] * (77 - len(ids))]


def test_tokens_are_int64_in_rows_of_77_in_the_order_of_the_texts() -> None:
    found = tokenize(["a dog", "a cat"])
    assert (found.dtype, found.shape) == (np.int64, (2, 77))
    assert found[:, :5].tolist() == [[START, 320, 1929, END, 0], [START, 320, 2368, END, 0]]
    assert tokenize([]).shape == (0, 77)


def test_a_long_text_is_cut_and_keeps_its_end_token() -> None:
    [found] = tokenize(["dog " * 200]).tolist()
    assert found == [START, *[1929] * 75, END]


@pytest.mark.parametrize(
    ("text", "count", "first"),
    [
        ("x" * 100_000, 77, None),
        ("\0" * 100_000, 77, 188),
        ("😀" * 100_000, 77, None),
        ("a b " * 25_000, 77, 320),
        (" " * 100_000 + "cat", 3, 2368),
        ("\n\t" * 50_000, 2, END),
    ],
    ids=["one word", "NULs", "emoji", "words", "spaces before a word", "nothing but spaces"],
)
def test_a_text_of_100_000_characters_is_read_as_far_as_the_context_goes(
    text: str, count: int, first: int | None
) -> None:
    [found] = openai()([text])
    assert (len(found), found[0], found[-1]) == (count, START, END)
    assert first in (None, found[1])


def test_where_a_long_text_is_cut_does_not_change_its_tokens() -> None:
    text = " ".join(pq.read_table(DATA / "captions" / "web_10000.parquet").column("TEXT").to_pylist()[:500])
    assert len(text) > openai()._most_characters
    assert openai()([text]) == openai()([text[:3000]])


def test_lone_surrogates_are_read_as_the_replacement_character() -> None:
    assert openai()(["a \ud800cat\udfff"]) == openai()(["a \ufffdcat\ufffd"])


def test_many_texts_are_as_each_alone() -> None:
    texts = pq.read_table(DATA / "captions" / "web_10000.parquet").column("TEXT").to_pylist()[:300]
    assert openai()(texts) == [openai()([text])[0] for text in texts]


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(EncodeError, match=r"a text is None, of type NoneType; expected a str"):
        tokenize(["a", None])  # type: ignore[list-item]
