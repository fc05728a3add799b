"""`INSERT INTO t SELECT … FROM input('a UInt8') FORMAT name`, whose data stand behind it or come apart.

https://clickhouse.com/docs/sql-reference/table-functions/input
"""

from __future__ import annotations

from dataclasses import dataclass

from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.syntax.statements import Insert


@dataclass(frozen=True)
class Input:
    """The places of `input(…)` and of FORMAT in a statement.

    start, end: of the call. structure: what stands in its brackets, a string literal; empty where nothing does.
    clause: where FORMAT begins. format: the name after it, which ends at `data`.
    """

    start: int
    end: int
    structure: str
    clause: int
    format: str
    data: int


def calls_input(sql: str) -> bool:
    """Whether a statement reads from input()."""
    if "input" not in sql.lower():
        return False
    tokens = read(sql).tokens
    return any(_is_call([t.upper for t in tokens[at : at + 3]]) for at in range(len(tokens) - 2))


def input_of(sql: str) -> Input | None:
    """The input of an INSERT … SELECT that names its FORMAT; None for any other statement. What stands behind the name
    may be anything."""
    if "input" not in sql.lower():
        return None
    statement, tokens = read(sql).kind, read(sql).tokens
    if not isinstance(statement, Insert) or statement.source != "SELECT":
        return None
    depth, call = 0, None
    for at, token in enumerate(tokens):
        if token.start < statement.body:
            continue
        if token.kind == "symbol":
            depth += (token.text == "(") - (token.text == ")")
        if call is None and _is_call([t.upper for t in tokens[at : at + 3]]):
            close = matching(tokens, at + 2)
            if close > at + 4 or (close == at + 4 and tokens[at + 3].kind != "string"):
                return None
            call = tokens[at + 1].start, tokens[close].end, sql[tokens[at + 2].end : tokens[close].start]
        elif call and depth == 0 and token.upper == "FORMAT" and at + 1 < len(tokens) and tokens[at + 1].name:
            name = tokens[at + 1]
            return Input(*call, token.start, name.name or "", name.end)
    return None


def _is_call(words: list[str]) -> bool:
    return len(words) == 3 and words[0] in ("FROM", "JOIN", ",") and words[1:] == ["INPUT", "("]
