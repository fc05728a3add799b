"""What a SELECT asks of vector columns: which distances, ordered how, limited and filtered by what.

Recognition is by shape and from the text alone; it never guesses. Where a SELECT has a distance to a vector column but
its shape is not one that can be planned, `why_not` says so in a few words for EXPLAIN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clipql.catalog import Table
from clipql.engine import quote_name
from clipql.query.affine import Affine, Parser
from clipql.query.lexer import Token, matching
from clipql.query.scopes import Scope, split_list
from clipql.vectors.metrics import Metric, metric_named

FindTable = Callable[[str | None, str], Table | None]
_JOINS = {"JOIN", ",", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "ANY", "ASOF", "SEMI", "ANTI", "ALL", "GLOBAL",
          "PASTE", "ARRAY", "OUTER"}  # fmt: skip
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Call:
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
class Bound:
    """A condition on a distance: `form op value`, the value being a text without columns."""

    form: Affine
    op: str
    value: str
    text: str


@dataclass(frozen=True)
class Condition:
    """One of the conditions that WHERE and PREWHERE join by AND."""

    text: str
    start: int
    end: int
    calls: tuple[int, ...]
    bound: Bound | None


@dataclass(frozen=True)
class VectorSelect:
    """A SELECT over a table with vector columns that computes distances to one or more of them.

    order: the sum of distances it sorts by, and whether the largest comes first. limit: texts of LIMIT and OFFSET.
    aliases: the texts of the expressions it names. why_not: why it cannot be searched for its top rows, or None.
    """

    scope: Scope
    table: Table
    qualifier: str
    joined: bool
    calls: tuple[Call, ...]
    order: Affine | None
    descending: bool
    limit: str | None
    offset: str | None
    conditions: tuple[Condition, ...]
    aliases: Mapping[str, str]
    why_not: str | None

    @property
    def qualifier_sql(self) -> str:
        """What to write before a column of this table."""
        return quote_name(self.qualifier) + "."


@dataclass(frozen=True)
class _Source:
    table: Table
    qualifier: str


def recognise(scope: Scope, find: FindTable) -> VectorSelect | None:
    """The vector work in a SELECT, or None where it has none."""
    sources, joined = _sources(scope, find)
    if not sources:
        return None
    spans = _alias_spans(scope)
    calls = _calls(scope, sources, joined, frozenset(spans))
    if not calls or len({c.qualifier for c in calls}) > 1:
        return None
    source = next(s for s in sources if s.qualifier == calls[0].qualifier)
    places = {c.first: (c.same, c.last) for c in calls}
    parser = Parser(scope.tokens, places, lambda token: spans.get(token.name or ""))
    order, descending, odd_order = _order(scope, parser)
    limit, offset, odd_limit = _limit(scope)
    why_not = odd_order or odd_limit or _blocks_top(scope, joined)
    if not why_not and order is None:
        why_not = "it is not sorted by a distance"
    if not why_not and limit is None:
        why_not = "it has no LIMIT"
    return VectorSelect(
        scope=scope,
        table=source.table,
        qualifier=source.qualifier,
        joined=joined,
        calls=calls,
        order=order,
        descending=descending,
        limit=limit,
        offset=offset,
        conditions=_conditions(scope, calls, parser),
        aliases={n: _text(scope, *span) for n, span in spans.items()},
        why_not=why_not,
    )


def _text(scope: Scope, first: int, last: int) -> str:
    return scope.text[scope.tokens[first].start : scope.tokens[last - 1].end]


def _sources(scope: Scope, find: FindTable) -> tuple[list[_Source], bool]:
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
                found.append(_Source(table, alias or name))
            continue
        at += 1
    return found, joined


def _qualified(tokens: list[Token], at: int, last: int) -> tuple[str | None, str, int]:
    name = tokens[at].name or ""
    if at + 2 < last and tokens[at + 1].text == "." and tokens[at + 2].name:
        return name, tokens[at + 2].name or "", at + 3
    return None, name, at + 1


def _alias_after(tokens: list[Token], at: int, last: int) -> tuple[str | None, int, bool]:
    """An alias after a table's name; the third value says that FINAL, SAMPLE or the like follows."""
    if at < last and tokens[at].upper == "AS":
        return tokens[at + 1].name, at + 2, False
    if at < last and tokens[at].upper in ("FINAL", "SAMPLE"):
        return None, at + 1, True
    if at < last and tokens[at].name and tokens[at].upper not in _JOINS | {"ON", "USING"}:
        return tokens[at].name, at + 1, False
    return None, at, False


def _alias_spans(scope: Scope) -> dict[str, tuple[int, int]]:
    """Names that SELECT and WITH give to expressions, with the places of the expressions."""
    found: dict[str, tuple[int, int]] = {}
    tokens = scope.tokens
    for clause in ("WITH", "SELECT"):
        span = scope.clauses.get(clause)
        for first, last in split_list(tokens, span.first, span.last) if span else []:
            if last - first >= 3 and tokens[last - 2].upper == "AS" and tokens[last - 1].name:
                found[tokens[last - 1].name or ""] = (first, last - 2)
            elif last - first >= 2 and tokens[last - 1].name and tokens[last - 2].text == ")":
                found[tokens[last - 1].name or ""] = (first, last - 1)
    return found


def _calls(
    scope: Scope, sources: list[_Source], joined: bool, aliases: frozenset[str]
) -> tuple[Call, ...]:
    found: list[Call] = []
    for clause in ("WITH", "SELECT", "PREWHERE", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT"):
        span = scope.clauses.get(clause)
        at = span.first if span else 0
        while span and at < span.last:
            token, tokens = scope.tokens[at], scope.tokens
            opens = at + 1 < span.last and tokens[at + 1].text == "("
            if token.kind == "symbol" and token.text == "(" and tokens[at + 1].upper in ("SELECT", "WITH"):
                at = matching(tokens, at) + 1
                continue
            metric = metric_named(token.text) if token.kind == "word" and opens else None
            if metric:
                close = matching(tokens, at + 1)
                call = _call(scope, metric, at, close, clause, sources, joined, aliases)
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
    sources: list[_Source],
    joined: bool,
    aliases: frozenset[str],
) -> Call | None:
    arguments = split_list(scope.tokens, at + 2, close)
    if len(arguments) != 2:
        return None
    for column, other in (arguments, arguments[::-1]):
        known = _column(scope.tokens, *column, sources, joined, aliases)
        if known and not _column(scope.tokens, *other, sources, joined, aliases):
            return Call(
                metric=metric,
                column=known[0],
                qualifier=known[1],
                argument=_text(scope, *other),
                first=at,
                last=close + 1,
                start=scope.tokens[at].start,
                end=scope.tokens[close].end,
                clause=clause,
            )
    return None


def _column(
    tokens: list[Token], first: int, last: int, sources: list[_Source], joined: bool, aliases: frozenset[str]
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


def _order(scope: Scope, parser: Parser) -> tuple[Affine | None, bool, str | None]:
    span = scope.clauses.get("ORDER")
    if not span:
        return None, False, None
    tokens = scope.tokens
    items = split_list(tokens, span.first, span.last)
    if any(t.upper in ("FILL", "INTERPOLATE", "COLLATE", "NULLS") for t in scope.within("ORDER")):
        return None, False, "its ORDER BY has more than expressions and directions"
    first, last = items[0]
    descending = False
    if tokens[last - 1].upper in ("ASC", "ASCENDING", "DESC", "DESCENDING"):
        descending = tokens[last - 1].upper.startswith("DESC")
        last -= 1
    form = parser.parse(first, last)
    return (form, descending, None) if form and form.weights else (None, False, None)


def _limit(scope: Scope) -> tuple[str | None, str | None, str | None]:
    span = scope.clauses.get("LIMIT")
    if "LIMIT 2" in scope.clauses or "FETCH" in scope.clauses:
        return None, None, "it has LIMIT BY or FETCH"
    if not span:
        return None, None, None
    words = [t.upper for t in scope.within("LIMIT")]
    if "BY" in words or "TIES" in words or "-" in words:
        return None, None, "it has LIMIT BY, WITH TIES or a negative LIMIT"
    items = [_text(scope, *i) for i in split_list(scope.tokens, span.first, span.last)]
    if len(items) == 2:
        return items[1], items[0], None
    offset = scope.body("OFFSET")
    return items[0], offset.removesuffix("ROWS").removesuffix("ROW").strip() or None, None


def _blocks_top(scope: Scope, joined: bool) -> str | None:
    """Why the rows of the answer are not simply the first rows of the sorted table."""
    if joined:
        return "it reads more than one plain table"
    for clause in ("GROUP", "HAVING", "WINDOW", "QUALIFY"):
        if clause in scope.clauses:
            return f"it has {clause}"
    select = scope.within("SELECT")
    if select and select[0].upper == "DISTINCT":
        return "it has DISTINCT"
    if any(t.upper in ("OVER", "ARRAYJOIN") for t in select):
        return "it has a window function or arrayJoin"
    return None


def _conditions(scope: Scope, calls: tuple[Call, ...], parser: Parser) -> tuple[Condition, ...]:
    found: list[Condition] = []
    for clause in ("PREWHERE", "WHERE"):
        span = scope.clauses.get(clause)
        for first, last in _conjuncts(scope.tokens, span.first, span.last) if span else []:
            direct = [i for i, c in enumerate(calls) if first <= c.first < last]
            named = _named_calls(scope, first, last, parser, calls)
            found.append(
                Condition(
                    text=_text(scope, first, last),
                    start=scope.tokens[first].start,
                    end=scope.tokens[last - 1].end,
                    calls=tuple(sorted({*direct, *named})),
                    bound=_bound(scope, first, last, parser),
                )
            )
    return tuple(found)


def _named_calls(scope: Scope, first: int, last: int, parser: Parser, calls: tuple[Call, ...]) -> set[int]:
    """Calls that a condition reaches through the names of expressions."""
    spans = _alias_spans(scope)
    seen: set[str] = set()
    todo = [t.name for t in scope.tokens[first:last]]
    found: set[int] = set()
    while todo:
        name = todo.pop()
        if not name or name in seen or name not in spans:
            continue
        seen.add(name)
        a, b = spans[name]
        found |= {i for i, c in enumerate(calls) if a <= c.first < b}
        todo += [t.name for t in scope.tokens[a:b]]
    return found


def _conjuncts(tokens: list[Token], first: int, last: int) -> list[tuple[int, int]]:
    """The conditions that AND joins, as [first, last); one where OR, or a lambda, stands at the same level."""
    parts: list[tuple[int, int]] = []
    begin = at = first
    between = False
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            at = matching(tokens, at) + 1
            continue
        if token.upper in ("OR", "XOR", "->", "?", "NOT", "CASE"):
            if token.upper != "NOT" or not _not_of_operator(tokens, at, last):
                return [(first, last)]
        if token.upper == "BETWEEN":
            between = True
        elif token.upper == "AND":
            if between:
                between = False
            else:
                parts.append((begin, at))
                begin = at + 1
        at += 1
    return [*parts, (begin, last)] if begin < last else [(first, last)]


def _not_of_operator(tokens: list[Token], at: int, last: int) -> bool:
    following = tokens[at + 1].upper if at + 1 < last else ""
    return following in ("IN", "LIKE", "ILIKE", "BETWEEN", "NULL") or tokens[at - 1].upper == "IS"


def _bound(scope: Scope, first: int, last: int, parser: Parser) -> Bound | None:
    tokens, at = scope.tokens, first
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            at = matching(tokens, at) + 1
            continue
        if token.kind == "symbol" and token.text in _FLIPPED:
            left, right = parser.parse(first, at), parser.parse(at + 1, last)
            text = _text(scope, first, last)
            if left and left.weights and not (right and right.weights):
                return Bound(left, token.text, _text(scope, at + 1, last), text)
            if right and right.weights and not (left and left.weights):
                return Bound(right, _FLIPPED[token.text], _text(scope, first, at), text)
            return None
        at += 1
    return None
