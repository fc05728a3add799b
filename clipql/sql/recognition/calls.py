"""The distance calls of a SELECT: which tables it reads, which names it gives, and where it computes distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipql.brief import Brief
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.scopes import Scope

FindTable = Callable[[str | None, str], Table | None]
_OUTER = {"LEFT", "RIGHT", "FULL", "OUTER", "ANTI", "SEMI", "ASOF", "PASTE", "ARRAY"}


@dataclass(frozen=True, repr=False)
class Call(Brief):
    """A distance function applied to a vector column and an expression: places are in tokens and in the text.

    same: the number of the first call that computes the same; forms refer to calls by that number.
    """

    metric: Metric
    column: str
    qualifier: str
    argument: str
    first: int
    last: int
    start: int
    end: int
    clause: str
    same: int = 0


@dataclass(frozen=True)
class Source:
    """A table with vector columns in FROM, and the name by which the SELECT calls it."""

    table: Table
    qualifier: str


def find_sources(scope: Scope, find: FindTable) -> tuple[list[Source], bool]:
    """The tables with vector columns in FROM, and whether FROM holds anything besides one table.

    What is joined in brackets is not looked at.
    """
    read = scope.sources
    found = [
        Source(table, entry.called)
        for entry in read.entries
        if entry.kind == "table"
        and not entry.bracketed
        and not (entry.database is None and entry.name in scope.names)
        and (table := find(entry.database, entry.name))
    ]
    return found, not read.alone or read.entries[0].kind != "table" or read.entries[0].modified


def has_outer_join(scope: Scope) -> bool:
    """Whether FROM joins so that a row may be there without its partner, and so without a row number."""
    return bool(scope.sources.words & _OUTER)


def find_calls(scope: Scope, sources: list[Source], joined: bool, aliases: frozenset[str]) -> tuple[Call, ...]:
    """The distances to a vector column that a SELECT itself, not one inside it, computes."""
    if not any(metric_named(call.name) for call in scope.calls):
        return ()
    found: list[Call] = []
    for clause in ("WITH", "SELECT", "PREWHERE", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT"):
        span = scope.clauses.get(clause)
        at = span.first if span else 0
        while span and at < span.last:
            token, tokens = scope.tokens[at], scope.tokens
            opens = at + 1 < span.last and tokens[at + 1].text == "("
            following = tokens[at + 1].upper if at + 1 < len(tokens) else ""
            if token.kind == "symbol" and token.text == "(" and following in ("SELECT", "WITH"):
                at = matching(tokens, at) + 1
                continue
            metric = metric_named(token.text) if token.kind == "word" and opens else None
            if metric:
                close = matching(tokens, at + 1)
                closed = close < len(tokens) and tokens[close].text == ")"
                call = _call(scope, metric, at, close, clause, sources, joined, aliases) if closed else None
                if call:
                    found.append(call)
                    at = close + 1
                    continue
            at += 1
    first: dict[tuple[Metric, str, str], int] = {}
    return tuple(
        dataclasses.replace(c, same=first.setdefault((c.metric, c.column, c.argument), i)) for i, c in enumerate(found)
    )


def _call(
    scope: Scope,
    metric: Metric,
    at: int,
    close: int,
    clause: str,
    sources: list[Source],
    joined: bool,
    aliases: frozenset[str],
) -> Call | None:
    arguments = split_list(scope.tokens, at + 2, close)
    if len(arguments) != 2 or any(scope.tokens[first].upper in ("SELECT", "WITH") for first, _ in arguments):
        return None  # a query without brackets is no argument
    for column, other in (arguments, arguments[::-1]):
        known = column_named(scope.tokens, *column, sources, joined, aliases)
        if known and not column_named(scope.tokens, *other, sources, joined, aliases):
            return Call(
                metric=metric,
                column=known[0],
                qualifier=known[1],
                argument=scope.text_of(*other),
                first=at,
                last=close + 1,
                start=scope.tokens[at].start,
                end=scope.tokens[close].end,
                clause=clause,
            )
    return None


def column_named(
    tokens: Sequence[Token], first: int, last: int, sources: list[Source], joined: bool, aliases: frozenset[str]
) -> tuple[str, str] | None:
    """The vector column that these tokens name, with its table's qualifier."""
    names = [tokens[i].name for i in range(first, last, 2)]
    if not all(names) or any(tokens[i].text != "." for i in range(first + 1, last, 2)) or (last - first) % 2 == 0:
        return None
    name = names[-1] or ""
    if len(names) == 1:
        owners = [s for s in sources if s.table.column(name)]
        # an alias hides a column in ClickHouse; in a join, another table may have a column of this name
        if name in aliases or len(owners) != 1 or joined:
            return None
        return name, owners[0].qualifier
    for source in sources:
        spelled = (source.qualifier,), (source.table.name,), (source.table.database, source.table.name)
        allowed = spelled if source.qualifier == source.table.name else spelled[:1]
        if tuple(names[:-1]) in allowed and source.table.column(name):
            return name, source.qualifier
    return None


def find_pairs(scope: Scope, find: FindTable) -> list[tuple[tuple[Table, VectorColumn], tuple[Table, VectorColumn]]]:
    """The pairs of vector columns that a SELECT computes distances between, with their tables."""
    sources, _joined = find_sources(scope, find)
    found = []
    for call in scope.calls if sources else ():
        if not metric_named(call.name):
            continue
        columns = [column_named(scope.tokens, *a, sources, False, frozenset()) for a in call.arguments]
        pair = [
            (source.table, column)
            for known in columns
            if known
            for source in sources
            if source.qualifier == known[1] and (column := source.table.column(known[0]))
        ]
        if len(pair) == 2:
            found.append((pair[0], pair[1]))
    return found
