"""The distance calls of a SELECT: which tables it reads, which names it gives, and where it computes distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipql.brief import Brief
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.lexer import Token, matching
from clipql.syntax.scopes import Scope, split_list

FindTable = Callable[[str | None, str], Table | None]
_JOINS = {"JOIN", ",", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "ANY", "ASOF", "SEMI", "ANTI", "ALL", "GLOBAL",
          "PASTE", "ARRAY", "OUTER"}  # fmt: skip


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


def text_of(scope: Scope, first: int, last: int) -> str:
    return scope.text[scope.tokens[first].start : scope.tokens[last - 1].end]


def find_sources(scope: Scope, find: FindTable) -> tuple[list[Source], bool]:
    """The tables with vector columns in FROM, and whether FROM holds anything besides one table."""
    span = scope.clauses.get("FROM")
    if not span:
        return [], False
    tokens, at, found, joined = scope.tokens, span.first, [], False
    expect = True
    while at < span.last:
        token = tokens[at]
        if token.kind == "symbol" and token.text == "(":
            joined, expect = True, False
            at = matching(tokens, at) + 1
            continue
        if token.upper in _JOINS and (token.kind == "symbol" or not expect):
            joined = True
            expect = token.upper in ("JOIN", ",")
        elif expect and token.name:
            database, name, at = _qualified(tokens, at, span.last)
            expect = False
            if at < span.last and tokens[at].text == "(":  # a table function
                joined = True
                continue
            table = None if database is None and name in scope.names else find(database, name)
            alias, at, odd = _alias_after(tokens, at, span.last)
            joined = joined or odd
            if table:
                found.append(Source(table, alias or name))
            continue
        at += 1
    return found, joined


def _qualified(tokens: Sequence[Token], at: int, last: int) -> tuple[str | None, str, int]:
    name = tokens[at].name or ""
    if at + 2 < last and tokens[at + 1].text == "." and tokens[at + 2].name:
        return name, tokens[at + 2].name or "", at + 3
    return None, name, at + 1


def _alias_after(tokens: Sequence[Token], at: int, last: int) -> tuple[str | None, int, bool]:
    """An alias after a table's name; the third value says that FINAL, SAMPLE or the like follows."""
    if at < last and tokens[at].upper == "AS":
        return tokens[at + 1].name, at + 2, False
    if at < last and tokens[at].upper in ("FINAL", "SAMPLE"):
        return None, at + 1, True
    if at < last and tokens[at].name and tokens[at].upper not in _JOINS | {"ON", "USING"}:
        return tokens[at].name, at + 1, False
    return None, at, False


def alias_spans(scope: Scope) -> dict[str, tuple[int, int]]:
    """Names that SELECT and WITH give to expressions, with the places of the expressions."""
    found: dict[str, tuple[int, int]] = {}
    tokens = scope.tokens
    for clause in ("WITH", "SELECT"):
        span = scope.clauses.get(clause)
        for first, last in split_list(tokens, span.first, span.last) if span else []:
            if last - first >= 3 and tokens[last - 2].upper == "AS" and tokens[last - 1].name:
                found[tokens[last - 1].name or ""] = (first, last - 2)
            elif last - first >= 2 and tokens[last - 1].name and _ends_expression(tokens[last - 2]):
                found[tokens[last - 1].name or ""] = (first, last - 1)
    return found


# words after which a name is no alias
_OPERATORS = {"AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "THEN", "ELSE", "WHEN", "AS", "DIV", "MOD",
              "DISTINCT", "ALL", "CASE", "EXCEPT", "REPLACE", "APPLY", "INTERVAL", "GLOBAL"}  # fmt: skip


def _ends_expression(token: Token) -> bool:
    """Whether an expression may end here, so that a name after it is its alias."""
    if token.kind == "word":
        return token.upper not in _OPERATORS
    return token.kind != "symbol" or token.text in ")]}"


def lambda_arguments(scope: Scope) -> frozenset[str]:
    """Names that stand for the arguments of lambdas somewhere in a SELECT."""
    tokens, found = scope.tokens, set[str]()
    for i in range(scope.whole.first, scope.whole.last - 1):
        if tokens[i + 1].text != "->":
            continue
        at = i
        if tokens[i].text == ")":
            at -= 1
            while at > scope.whole.first and tokens[at].text != "(":
                found.add(tokens[at].name or "")
                at -= 1
        else:
            found.add(tokens[i].name or "")
    return frozenset(found)


def inner_names(scope: Scope) -> frozenset[str]:
    """Names given inside an expression, as in `length(w AS v)`, and used elsewhere in the SELECT."""
    tokens = scope.tokens
    given = {tokens[b - 1].start for a, b in _items(scope) if b - a > 2 and tokens[b - 2].upper == "AS"}
    source = scope.clauses.get("FROM")
    names: dict[str, int] = {}
    for i in range(scope.whole.first, scope.whole.last - 1):
        name = tokens[i + 1].name
        in_from = source is not None and source.first <= i < source.last
        if tokens[i].upper == "AS" and name and tokens[i + 1].start not in given and not in_from:
            names[name] = i + 1
    used = {
        tokens[i].name
        for i in range(scope.whole.first, scope.whole.last)
        if tokens[i].name in names and names[tokens[i].name or ""] != i and not _is_type_or_function(tokens, i)
    }
    return frozenset(n for n in used if n)


def _is_type_or_function(tokens: Sequence[Token], at: int) -> bool:
    return at + 1 < len(tokens) and tokens[at + 1].text == "("


def _items(scope: Scope) -> list[tuple[int, int]]:
    spans = [scope.clauses.get(c) for c in ("WITH", "SELECT")]
    return [item for span in spans if span for item in split_list(scope.tokens, span.first, span.last)]


def has_outer_join(scope: Scope) -> bool:
    """Whether FROM joins so that a row may be there without its partner, and so without a row number."""
    return any(
        t.upper in ("LEFT", "RIGHT", "FULL", "OUTER", "ANTI", "SEMI", "ASOF", "PASTE", "ARRAY")
        for t in scope.within("FROM")
    )


def find_calls(scope: Scope, sources: list[Source], joined: bool, aliases: frozenset[str]) -> tuple[Call, ...]:
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
        known = _column(scope.tokens, *column, sources, joined, aliases)
        if known and not _column(scope.tokens, *other, sources, joined, aliases):
            return Call(
                metric=metric,
                column=known[0],
                qualifier=known[1],
                argument=text_of(scope, *other),
                first=at,
                last=close + 1,
                start=scope.tokens[at].start,
                end=scope.tokens[close].end,
                clause=clause,
            )
    return None


def _column(
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
    tokens = scope.tokens
    for at in range(scope.whole.first, scope.whole.last - 1) if sources else ():
        if tokens[at].kind != "word" or tokens[at + 1].text != "(" or not metric_named(tokens[at].text):
            continue
        arguments = split_list(tokens, at + 2, matching(tokens, at + 1))
        columns = [_column(tokens, *a, sources, False, frozenset()) for a in arguments]
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
