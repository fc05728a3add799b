"""Statements that nobody would write: planned and passed through, they give the same, or an error of clipql's both."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import test_oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_oracle import cases, parameters

import clipql
from clipql.syntax.lexer import Token, tokenize
from tests.cases import examples

table = test_oracle.table  # its fixture
STATEMENTS = [s for _, s in cases() if "rand" not in s.lower()]
WORDS = sorted({s[t.start : t.end] for s in STATEMENTS for t in tokenize(s)})
KINDS: dict[str, list[str]] = {}
EXTRA = ["", "'", "`", '"', "\\", "--", "/*", "*/", ";", "NULL", "nan", "[]", "{", "{q", "\x00", "é", "𝒳", "1e999", "-"]


def kind_of(text: str, token: Token) -> str:
    """What else may stand in a token's place: numbers for numbers, functions for functions, and so on."""
    word = text[token.start : token.end]
    if token.kind != "word":
        return f"{token.kind} {word if token.kind == 'symbol' and word in '(){}[]' else ''}"
    return "function" if text[token.end : token.end + 1] == "(" else "keyword" if word.isupper() else "name"


for _statement in STATEMENTS:
    for _token in tokenize(_statement):
        KINDS.setdefault(kind_of(_statement, _token), []).append(_statement[_token.start : _token.end])


def mutated(seed: int) -> str:
    """A statement of the fixture with one to three of its tokens changed, mostly for others of their kind."""
    luck = random.Random(seed)
    text = luck.choice(STATEMENTS)
    tokens = tokenize(text)
    ends = [*(t.start for t in tokens[1:]), len(text)]
    pieces = [text[t.start : end] for t, end in zip(tokens, ends, strict=True)]  # with the space that follows
    for _ in range(luck.randint(1, 3)):
        at, how = luck.randrange(len(tokens)), luck.randrange(12)
        if how < 8:
            pieces[at] = luck.choice(KINDS[kind_of(text, tokens[at])]) + " "
        elif how == 8:
            pieces[at] = luck.choice(EXTRA)
        elif how == 9:
            pieces[at] += f" {luck.choice(WORDS + EXTRA)} "
        elif how == 10:
            other = luck.randrange(len(tokens))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            pieces[at] = ""
    return "".join(pieces)


def soup(words: list[str]) -> str:
    """Tokens in any order, after what makes it a query."""
    return "SELECT " + " ".join(words)


def outcome(db: clipql.Database, statement: str, plan: int) -> list[tuple[Any, ...]] | str:
    """Its rows, or that it was refused. Any other exception passes."""
    db.sql(f"SET vector_plan = {plan}")
    try:
        return db.sql(statement, **parameters()).rows
    except clipql.ClipqlError as error:
        return "TIMEOUT_EXCEEDED" if "TIMEOUT_EXCEEDED" in str(error) else "refused"
    finally:
        db.sql("SET vector_plan = 1")


@pytest.fixture(scope="module")
def db(table: clipql.Database) -> clipql.Database:
    table.sql("SET max_threads = 1, max_execution_time = 2, max_rows_to_read = 100000, max_result_rows = 20000")
    return table


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=2e-5, abs_tol=2e-5)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


def agree(db: clipql.Database, statement: str) -> None:
    planned, passed = outcome(db, statement, 1), outcome(db, statement, 0)
    if "TIMEOUT_EXCEEDED" in (planned, passed):
        return
    if isinstance(planned, str) or isinstance(passed, str):
        assert planned == passed, statement
        return
    assert len(planned) == len(passed), statement
    if not alike(planned, passed):  # rows that tie come in any order, and any of them may be cut off by LIMIT
        ties = any(word in statement for word in ("dup_embedding", "zero_embedding", "LIMIT"))
        assert ties or alike(sorted(map(repr, planned)), sorted(map(repr, passed))), statement


@settings(max_examples=examples(120), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_a_statement_with_tokens_changed_gives_what_clickhouse_gives(db: clipql.Database, seed: int) -> None:
    agree(db, mutated(seed))


@settings(max_examples=examples(60), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS + EXTRA), max_size=14))
def test_a_soup_of_tokens_is_refused_or_gives_what_clickhouse_gives(db: clipql.Database, words: list[str]) -> None:
    agree(db, soup(words))


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS + EXTRA), max_size=20).map(" ".join))
def test_any_text_is_split_into_tokens_that_lie_in_it_in_order(text: str) -> None:
    try:
        tokens = tokenize(text)
    except clipql.ClipqlError:
        return
    assert all(0 <= t.start < t.end <= len(text) for t in tokens)
    assert all(a.end <= b.start for a, b in itertools.pairwise(tokens))
