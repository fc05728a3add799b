"""The names that a SELECT gives to expressions, and the calls in it: told from its tokens, by their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.operands import Operands


class FunctionCall(NamedTuple):
    """A word that brackets follow: its name, its place, that of the closing bracket, and the arguments between.

    IN and its like are among them. closed: whether the bracket is closed.
    """

    name: str
    at: int
    close: int
    closed: bool
    arguments: tuple[tuple[int, int], ...]


def calls_in(tokens: Sequence[Token], first: int, last: int) -> Iterator[FunctionCall]:
    """The calls in a run of tokens, those in the arguments of others too, in the order of the text."""
    for at in range(first, last - 1):
        if tokens[at].kind == "word" and tokens[at + 1].text == "(":
            close = matching(tokens, at + 1)
            arguments = tuple(split_list(tokens, at + 2, close))
            yield FunctionCall(tokens[at].text, at, close, tokens[close].text == ")", arguments)


def given_names(tokens: Sequence[Token], items: Iterable[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Names that items of SELECT and WITH give to their expressions, with the places of the expressions."""
    found: dict[str, tuple[int, int]] = {}
    for first, last in items:
        name = tokens[last - 1].name
        if last - first < 2 or not name:
            continue
        if last - first >= 3 and tokens[last - 2].upper == "AS":
            found[name] = (first, last - 2)
            continue
        at, operands = first, Operands()
        while at < last:
            at = operands.step(tokens, at)
        if operands.named or tokens[last - 2].upper == "INTERVAL":
            found[name] = (first, last - 1)
    return found


def lambda_arguments(tokens: Sequence[Token], first: int, last: int) -> frozenset[str]:
    """Names that stand for the arguments of lambdas in a run of tokens."""
    found: set[str] = set()
    for i in range(first, last - 1):
        if tokens[i + 1].text != "->":
            continue
        at = i
        if tokens[i].text == ")":
            at -= 1
            while at > first and tokens[at].text != "(":
                found.add(tokens[at].name or "")
                at -= 1
        else:
            found.add(tokens[i].name or "")
    return frozenset(found - {""})


def inner_names(
    tokens: Sequence[Token], first: int, last: int, items: Iterable[tuple[int, int]], source: tuple[int, int]
) -> frozenset[str]:
    """Names given inside an expression, as in `length(w AS v)`, and used elsewhere in the SELECT.

    items: of SELECT and WITH, whose own names these are not. source: FROM, whose aliases are none.
    """
    given = {b - 1 for a, b in items if b - a > 2 and tokens[b - 2].upper == "AS"}
    names: dict[str, int] = {}
    for i in range(first, last - 1):
        name = tokens[i + 1].name
        if tokens[i].upper == "AS" and name and i + 1 not in given and not source[0] <= i < source[1]:
            names[name] = i + 1
    return frozenset(
        name
        for i in range(first, last)
        if (name := tokens[i].name) in names
        and name
        and names[name] != i
        and not (i + 1 < len(tokens) and tokens[i + 1].text == "(")  # a type or a function
    )
