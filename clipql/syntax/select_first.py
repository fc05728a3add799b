"""`FROM t SELECT a` and `FROM t` alone, in the order of words that everything else reads: `SELECT a FROM t`."""

from __future__ import annotations

from collections.abc import Sequence

from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read

_STATEMENTS = {"SELECT", "WITH", "FROM", "INSERT", "CREATE", "REPLACE", "EXPLAIN"}
_OPENING = {"FROM", "ALL", "SELECT", "DISTINCT"}
_AFTER_SELECT = {"PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "OFFSET", "FETCH",
                 "SETTINGS", "FORMAT", "INTO"}  # fmt: skip


def select_first(sql: str) -> str:
    """The statement with SELECT before FROM everywhere."""
    for _ in range(100):  # SELECTs within each other, and no statement has as many
        tokens = read(sql).tokens
        if not any(t.upper == "FROM" for t in tokens):
            return sql
        opening = next((t for t in tokens if t.text != "("), tokens[0])
        edit = _query(sql, tokens, 0, len(tokens)) if opening.upper in _STATEMENTS else None
        if edit is None:
            return sql
        sql = edit
    return sql


def _query(sql: str, tokens: Sequence[Token], first: int, last: int) -> str | None:
    """The text with one SELECT of this query, or within it, put in order; None where all are."""
    selected = False
    at = first
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            close = min(matching(tokens, at), last)
            edit = _query(sql, tokens, at + 1, close) if token.text == "(" else None
            if edit is not None:
                return edit
            at = close + 1
            continue
        named = at > first and tokens[at - 1].text == "."
        if token.upper in ("UNION", "INTERSECT") or (
            token.upper == "EXCEPT" and at + 1 < last and tokens[at + 1].upper in ("FROM", "ALL", "SELECT", "DISTINCT")
        ):
            selected = False
        elif token.upper == "SELECT" and not named:
            selected = True
        elif token.upper == "FROM" and not named and not selected and _begins(tokens, first, at, last):
            return _turned(sql, tokens, at, last)
        at += 1
    return None


def _begins(tokens: Sequence[Token], first: int, at: int, last: int) -> bool:
    """Whether this FROM begins a query, and is not a part of a function's arguments or of INSERT … FROM INFILE."""
    if at + 1 >= last or tokens[at + 1].upper == "INFILE" or tokens[at + 1].kind == "string":
        return False
    return at == first or first == 0 or tokens[first].upper == "WITH" or tokens[at - 1].upper in ("ALL", "DISTINCT")


def _turned(sql: str, tokens: Sequence[Token], at: int, last: int) -> str:
    select, end, depth = None, None, at
    while depth < last:
        token = tokens[depth]
        if token.kind == "symbol" and token.text in "([{":
            depth = matching(tokens, depth) + 1
            continue
        ends = token.upper in ("UNION", "INTERSECT") or token.text == ";"
        if select is None and token.upper == "SELECT":
            select = depth
        elif select is not None and (ends or token.upper in _AFTER_SELECT) and tokens[depth - 1].text not in (",", "."):
            end = depth
            break
        elif ends:
            break
        depth += 1
    begin = tokens[at].start
    if select is None:
        return f"{sql[:begin]}SELECT * {sql[begin:]}"
    body = sql[begin : tokens[select - 1].end]
    stop = tokens[(end if end is not None else last) - 1].end
    return f"{sql[:begin]}{sql[tokens[select].start : stop]} {body}{sql[stop:]}"
