"""Errors in the conditions of a search, told in the words of whoever typed them.

A condition runs inside a statement that the server makes. What must stay true: a message quotes nothing of that
statement but the condition, and a place in it is counted in the condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clipql.errors import QueryError
from clipql.serve.error_position import SYNTAX_ERROR

_END = r"(?= \(ClickHouse \d+|\Z)"
# what ClickHouse adds about the whole statement, and about how it is carried out
_ABOUT_THE_STATEMENT = re.compile(rf"(?:[.:]? In (?:scope|query) |:? [Ww]hile executing ).*?{_END}", re.DOTALL)
_PLACE = re.compile(r"failed at position (\d+)")
_TOKEN = re.compile(r"\w+|\S")
_EXPECTED = re.compile(r"Expected one of: (.*?)\.?\s*\Z", re.DOTALL)
_FEW, _LONGEST = 6, 200


@contextmanager
def in_conditions(statement: str, conditions: Sequence[str]) -> Iterator[None]:
    """Run the statement made of these conditions in here. Raises QueryError about the conditions alone."""
    try:
        yield
    except QueryError as error:
        told = _syntax(error, statement, conditions) if error.code == SYNTAX_ERROR else None
        told = told or _ABOUT_THE_STATEMENT.sub("", str(error))
        raise type(error)(told, code=error.code, name=error.name) from error


def _syntax(error: QueryError, statement: str, conditions: Sequence[str]) -> str | None:
    """The message of a syntax error, or None where it is in no condition."""
    place = _PLACE.search(str(error))
    if place is None or not conditions or "Max query size" in str(error):
        return None
    at = int(place[1]) - 1
    starts = _starts(statement, conditions)
    which = max((n for n, start in enumerate(starts) if start <= at), default=0)
    condition = conditions[which]
    inside = condition.encode()[: at - starts[which]].decode(errors="ignore") if at >= starts[which] else ""
    found = _TOKEN.search(condition, len(inside))
    if found is None:
        return f"Syntax error: something is missing at the end of the condition {_cut(condition.strip())}"
    expected = _EXPECTED.search(str(error))
    names = [n for n in expected[1].split(", ") if not n.startswith("token")] if expected else []
    hint = f". Expected one of: {', '.join(names)}" if 0 < len(names) <= _FEW else ""
    rest = _cut(condition[found.start() :].strip())
    return f"Syntax error: failed at position {found.start() + 1} ({found[0]}): {rest}{hint}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _starts(statement: str, conditions: Sequence[str]) -> list[int]:
    """Where each condition begins, in bytes, as `where_sql` writes them."""
    starts, behind = [], statement.index(" WHERE ")
    for condition in conditions:
        behind = statement.index(f"({condition}\n)", behind) + 1
        starts.append(len(statement[:behind].encode()))
        behind += len(condition)
    return starts
