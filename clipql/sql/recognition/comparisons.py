"""Where a SELECT compares: each comparison by its tokens, in a condition, in brackets, under OR or NOT, or as a value.

What must stay true: what is given is one comparison and nothing besides; where that is not certain, nothing is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipql.syntax.lexer import Token, matching
from clipql.syntax.scopes import Scope

SIGNS = {"<", "<=", ">", ">=", "=", "==", "!=", "<>"}
# what ends an operand of a comparison, as it binds less tightly
_ENDS = {
    *("AND", "OR", "NOT", "XOR", "CASE", "WHEN", "THEN", "ELSE", "END", "AS", "ASC", "DESC", "NULLS", "DISTINCT"),
    *("ON", "USING", "IN", "GLOBAL", "LIKE", "ILIKE", "REGEXP", "IS", "BETWEEN", "SELECT", "WITH", "WHERE", "PREWHERE"),
    *("HAVING", "QUALIFY", "BY", "FILTER", "OVER", "WINDOW", "ALL", "ANY"),
}
_SYMBOLS = {",", "->", "?", ":", ";", "(", "[", "{", ")", "]", "}"}
_CLAUSES = ("WITH", "SELECT", "PREWHERE", "WHERE", "GROUP", "HAVING", "QUALIFY", "ORDER", "LIMIT 2")


def comparisons(scope: Scope, inner: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The places of comparisons, [first, last) tokens, in the order of the text. inner: SELECTs, which are left out."""
    tokens = scope.tokens
    for clause in _CLAUSES:
        span = scope.clauses.get(clause)
        if span is None:
            continue
        opened = _openers(tokens, span.first, span.last)
        for at in range(span.first, span.last):
            between = tokens[at].kind == "word" and tokens[at].upper == "BETWEEN" and tokens[at - 1].upper != "NOT"
            if not (between or tokens[at].text in SIGNS) or any(a <= at < b for a, b in inner):
                continue
            joined = _right(tokens, at, span.last) if between else at
            if joined is None or (between and (joined >= span.last or tokens[joined].upper != "AND")):
                continue
            first, last = _left(tokens, at, span.first, opened), _right(tokens, joined, span.last)
            if first is not None and last is not None and first < at < last - 1:
                yield first, last


def _openers(tokens: Sequence[Token], first: int, last: int) -> dict[int, int]:
    """Where each closing bracket was opened."""
    return {matching(tokens, i): i for i in range(first, last) if tokens[i].text in ("(", "[", "{")}


def _ends(token: Token) -> bool:
    return (token.kind == "word" and token.upper in _ENDS) or token.text in _SYMBOLS


def _left(tokens: Sequence[Token], at: int, first: int, opened: dict[int, int]) -> int | None:
    """Where the left operand begins; None where that is another comparison's."""
    while at > first:
        before = at - 1
        if before in opened:
            at = opened[before]
            continue
        if tokens[before].text in SIGNS:
            return None
        if _ends(tokens[before]):
            break
        at = before
    return None if at > first and _is_between(tokens, at - 1, first, opened) else at


def _is_between(tokens: Sequence[Token], at: int, first: int, opened: dict[int, int]) -> bool:
    """Whether what stands before an operand is BETWEEN, or its AND."""
    if tokens[at].upper == "BETWEEN":
        return True
    at -= tokens[at].upper == "AND"
    while at >= first and tokens[at].upper not in ("AND", "OR", "WHERE", "(", ","):
        if tokens[at].upper == "BETWEEN":
            return True
        at = opened.get(at, at) - 1
    return False


def _right(tokens: Sequence[Token], at: int, last: int) -> int | None:
    """Where the right operand ends; None where another comparison follows."""
    at += 1
    while at < last:
        token = tokens[at]
        if token.text in ("(", "[", "{"):
            at = matching(tokens, at) + 1
            continue
        if token.text in SIGNS:
            return None
        if _ends(token):
            break
        at += 1
    following = tokens[at].upper if at < last else ""
    return None if following in ("BETWEEN", "IN", "LIKE", "ILIKE", "IS", "GLOBAL") else at
