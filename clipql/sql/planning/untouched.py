"""SELECTs that read vector columns and are left to ClickHouse: which they are and why, for EXPLAIN.

What must stay true: nothing here changes what is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipql.sql.joins.nearest_joins import read_join
from clipql.sql.recognition.calls import FindTable, Source, find_pairs, find_sources, has_outer_join
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.lexer import Token, matching
from clipql.syntax.scopes import Scope


@dataclass(frozen=True)
class Untouched:
    """A SELECT that reads vectors of these tables as it is. pairs: two columns are compared, row by row."""

    sources: tuple[Source, ...]
    why: str
    pairs: bool = False


def untouched(scope: Scope, find: FindTable) -> Untouched | None:
    """What a SELECT that is not planned reads of vector columns, or None where it reads none."""
    sources, _ = find_sources(scope, find)
    named = _names(scope)
    vectors = {c.name for s in sources for c in s.table.columns}
    starred = any(
        t.text == "*" and (scope.tokens[i - 1].text in (",", ".") or scope.tokens[i - 1].upper == "SELECT")
        for i, t in _own(scope)
    )
    if not vectors or not (starred or named & vectors):
        return None
    if find_pairs(scope, find):
        joined = read_join(scope, find)
        why = joined if isinstance(joined, str) else "it is a nearest-neighbour join"
        return Untouched(tuple(sources), f"both arguments of a distance are columns, and {why}", pairs=True)
    return Untouched(tuple(sources), _why(scope, sources, vectors))


def _why(scope: Scope, sources: list[Source], vectors: set[str]) -> str:
    if has_outer_join(scope):
        return "it has an outer join, or ARRAY JOIN"
    if len({s.qualifier for s in sources}) < len(sources):
        return "two tables have the same name"
    if any(t.upper == "ARRAYJOIN" for _, t in _own(scope)):
        return "it has arrayJoin"
    tokens = scope.tokens
    for i, token in _own(scope):
        if token.kind == "word" and i + 1 < len(tokens) and tokens[i + 1].text == "(" and metric_named(token.text):
            close = matching(tokens, i + 1)
            if any(tokens[j].name in vectors for j in range(i + 2, close)):
                return "a distance to a vector column has a shape, or stands beside names, not fully understood"
            return "no argument of its distance is plainly a vector column"
    return "it reads the vectors themselves, not a distance to a constant vector"


def _own(scope: Scope) -> list[tuple[int, Token]]:
    """The tokens of a SELECT that are not of a SELECT inside it."""
    found, at = list[tuple[int, Token]](), scope.whole.first
    while at < scope.whole.last:
        tokens = scope.tokens
        if at > scope.whole.first and tokens[at].text == "(" and tokens[at + 1].upper in ("SELECT", "WITH"):
            at = matching(tokens, at) + 1
            continue
        found.append((at, tokens[at]))
        at += 1
    return found


def _names(scope: Scope) -> set[str]:
    return {t.name for _, t in _own(scope) if t.name}
