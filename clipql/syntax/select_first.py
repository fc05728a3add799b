"""`FROM t SELECT a` and `FROM t` alone, in the order of words that everything else reads: `SELECT a FROM t`."""

from __future__ import annotations

from collections.abc import Sequence

from clipql.syntax.lexer import Token, matching
from clipql.syntax.operands import Operands
from clipql.syntax.reading import read

_STATEMENTS = {"SELECT", "WITH", "FROM", "INSERT", "CREATE", "REPLACE", "EXPLAIN"}
# after FROM, where that is the name of a column
_AFTER_NAME = {"AS", "AND", "OR", "IN", "NOT", "IS", "LIKE", "ILIKE", "BETWEEN", "DIV", "MOD"}
_SET_OPERATORS = {"UNION", "INTERSECT", "EXCEPT"}
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
        if edit is None or edit == sql:
            return sql
        sql = edit
    return sql


def _query(sql: str, tokens: Sequence[Token], first: int, last: int) -> str | None:
    """The text with one SELECT of this query, or within it, put in order; None where all are."""
    selected = united = False
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
        if _unites(tokens, at):
            selected, united = False, True
        elif token.upper == "SELECT" and not named:
            selected = True
        elif token.upper == "FROM" and not named and not selected and _begins(tokens, first, at, last, united):
            return _turned(sql, tokens, at, last)
        at += 1
    return None


def _begins(tokens: Sequence[Token], first: int, at: int, last: int, united: bool) -> bool:
    """Whether this FROM begins a query, and is not a part of a function's arguments or of INSERT … FROM INFILE."""
    if at + 1 >= last or tokens[at + 1].upper == "INFILE" or tokens[at + 1].kind == "string":
        return False
    following = tokens[at + 1]
    odd = following.upper in _AFTER_NAME or (following.kind == "symbol" and following.text not in "({")
    if odd and first:
        return False
    words = [t.upper for t in tokens[max(at - 2, 0) : at]]
    if words[-1:] == ["DISTINCT"] and words[0] in ("IS", "NOT"):
        return False
    return at == first or first == 0 or tokens[first].upper == "WITH" or united


def _sampled(tokens: Sequence[Token], at: int) -> bool:
    """Whether `SAMPLE 1 / 10` ends here."""
    ratio = at - 3 if tokens[at - 2].text == "/" else at - 1
    return tokens[ratio - 1].upper == "SAMPLE"


def _unites(tokens: Sequence[Token], at: int) -> bool:
    """Whether UNION, INTERSECT or EXCEPT stands between two SELECTs here, and is no name nor a star's."""
    if at < 1 or tokens[at].upper not in _SET_OPERATORS or tokens[at - 1].upper in ("AS", ".", ",", "(", "SELECT"):
        return False
    following = [t.upper for t in tokens[at + 1 : at + 3]]
    if tokens[at].upper == "EXCEPT" and following[:1] == ["("]:
        return following[1:] in (["SELECT"], ["WITH"], ["FROM"], ["("])
    return following[:1] in (["ALL"], ["DISTINCT"], ["SELECT"], ["WITH"], ["FROM"], ["("])


def _turned(sql: str, tokens: Sequence[Token], at: int, last: int) -> str:
    select, end, place, operands = None, None, at, Operands()
    while place < last:
        token = tokens[place]
        ends = _unites(tokens, place) or (token.text == ";" and token.kind == "symbol")
        keyword = tokens[place - 1].text != "." and not operands.expected
        named = place + 1 < last and tokens[place + 1].upper == "SELECT"
        if select is None and token.upper == "SELECT" and keyword and not named:
            select = place
            operands.clause()
            place += 1
            continue
        if select is not None and (ends or (token.upper in _AFTER_SELECT and keyword)):
            end = place
            break
        if ends:
            break
        place = operands.step(tokens, place) if place > at else place + 1
    if operands.unsure:
        return sql
    begin = tokens[at].start
    if select is None:
        return f"{sql[:begin]}SELECT * {sql[begin:]}"
    body = sql[begin : tokens[select - 1].end]
    if end is not None and tokens[end].upper == "OFFSET" and _sampled(tokens, select):
        body += " OFFSET 0"  # or what follows would be the offset of SAMPLE
    stop = tokens[(end if end is not None else last) - 1].end
    return f"{sql[:begin]}{sql[tokens[select].start : stop]} {body} {sql[stop:]}"
