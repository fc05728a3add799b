"""Structures in strings, such as null('a UInt8'), of which the syntax tree shows only the string.

ClickHouse evaluates the expressions in one, `a UInt8 DEFAULT file('…')`, as it reads it. What must stay true: a
structure from the network is a literal, and has names and types alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipql.serve import syntax_tree
from clipql.serve.allowed import words
from clipql.serve.spelling import denied
from clipql.syntax.lexer import Token, matching, split_list, string_value
from clipql.syntax.reading import read

# table functions whose first argument is one, and of these the one in which it may be a value too
TAKE = words("null generaterandom input values")
_MAY_BE_A_VALUE = "values"
_READING = ("FROM", "JOIN", ",", "TABLE", "DESCRIBE", "DESC")
_EXPRESSING = words("DEFAULT MATERIALIZED ALIAS EPHEMERAL TTL CODEC")


def check(node: syntax_tree.Node) -> None:
    """Raise QueryError for a call of such a table function with a structure that may not be."""
    given = node.children[0].children if node.children else []
    name = node.name
    if not given or (name.lower() == _MAY_BE_A_VALUE and (len(given) == 1 or not _is_string(given[0]))):
        return
    if given[0].kind != "Literal":
        raise denied(f"{name}() is run with a structure that is written as a string")
    if _is_string(given[0]):
        _check_text(name, given[0].name)


def check_parameter(tokens: Sequence[Token], at: int) -> None:
    """Raise QueryError where the structure of such a call is a parameter, whose value no tree shows. at: its name."""
    before = tokens[at - 1].upper if at else ""
    if tokens[at].name is None or (tokens[at].name or "").lower() not in TAKE or tokens[at + 1].text != "(":
        return
    if (tokens[at].name or "").lower() == _MAY_BE_A_VALUE and before not in _READING:
        return  # of an INSERT
    first, last = next(iter(split_list(tokens, at + 2, matching(tokens, at + 1))), (0, 0))
    if any(token.text == "{" for token in tokens[first:last]):
        raise denied(f"{tokens[at].name}() is run with a structure that is written as a string")


def _is_string(node: syntax_tree.Node) -> bool:
    return node.kind == "Literal" and node.name.startswith("'")


def _check_text(name: str, literal: str) -> None:
    value = string_value(literal)
    tokens = read(value.decode("utf-8", "surrogateescape")).tokens if value is not None else ()
    if value is None or any(token.kind == "error" for token in tokens):
        raise denied(f"the structure of {name}() is not understood")
    for before, token in zip(("", *(t.text for t in tokens)), tokens, strict=False):
        if token.upper in _EXPRESSING and before not in ("", ","):
            raise denied(f"the structure of {name}() has {token.upper}: it is names and types alone")
