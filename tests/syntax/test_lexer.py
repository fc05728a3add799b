from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipql.syntax.lexer import split_statements, tokenize

PIECES = [
    "SELECT", " ", "'a;b'", '"x y"', "`q``r`", "-- c\n", "/* ; */", ";", "(", ")", "[1, -2.5e3]", "[a, 1]", "1e5",
    ".5", "0x1F", "a.b", "::", "->", "$$ ; $$", "é", "_row", "'it''s'", r"'\';'", "{p:Array(Float32)}", "\n",
    "#!x\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_tokens_and_the_gaps_between_them_give_the_text_back(text: str) -> None:
    at, rebuilt = 0, ""
    for token in tokenize(text):
        assert text[token.start : token.end] == token.text
        assert token.start >= at
        rebuilt += text[at : token.start] + token.text
        at = token.end
    assert rebuilt + text[at:] == text


@given(st.text(max_size=60))
def test_any_text_at_all_is_tokenized(text: str) -> None:
    tokens = tokenize(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(tokens))
    assert sum(len(t.text) for t in tokens) <= len(text)


def test_a_query_vector_is_one_token() -> None:
    text = "[" + ",".join(["-0.0123456789", "1e-5", " 7 "] * 200) + "]"
    assert [t.kind for t in tokenize(f"L2Distance(v, {text})")] == [
        "word",
        "symbol",
        "word",
        "symbol",
        "vector",
        "symbol",
    ]


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';' ; -- ; \n SELECT `;`;", ["SELECT ';'", "-- ; \n SELECT `;`"]),
        (" ; ;; ", []),
        ("INSERT INTO t FORMAT CSV\n1;2\n3;4\n", ["INSERT INTO t FORMAT CSV\n1;2\n3;4"]),
        ("SET a = 1; INSERT INTO t FORMAT TSV\na;b\n", ["SET a = 1", "INSERT INTO t FORMAT TSV\na;b"]),
        ("INSERT INTO t VALUES (1, ';'); SELECT 2", ["INSERT INTO t VALUES (1, ';')", "SELECT 2"]),
        ("INSERT INTO t SELECT 1 FORMAT Null; SELECT 2", ["INSERT INTO t SELECT 1 FORMAT Null", "SELECT 2"]),
        ("SELECT $$ a; b $$; SELECT 1", ["SELECT $$ a; b $$", "SELECT 1"]),
    ],
)
def test_a_script_is_split_at_its_semicolons_and_nowhere_else(text: str, statements: list[str]) -> None:
    assert split_statements(text) == statements
