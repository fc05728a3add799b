"""Nearest-neighbour joins: for each row of one table the n nearest rows of another, found as one batch.

    SELECT q.id, l.url FROM queries AS q CROSS JOIN laion AS l
    ORDER BY L2Distance(l.image_embedding, q.v) LIMIT 3 BY q.id

ClickHouse would compare every pair. Here the pairs are searched for, and ClickHouse joins just those. The vectors that
are searched by may also come with the statement (`given_vectors.py`). What must stay true: recognition is by shape; any
other join is left as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from clipql.brief import Brief
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql.joins.given_vectors import Given, described, typical
from clipql.sql.numbers.rowwise import item_names
from clipql.sql.recognition.calls import FindTable, Source, find_pairs, find_sources
from clipql.sql.recognition.clauses import conjuncts
from clipql.storage.catalog import Table
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.edits import Edit
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.scopes import Scope
from clipql.tables.registry import ROW, Registry

NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})
PAIRS = "clipql_pairs"  # how the statement calls them
_CLAUSES = {"WITH", "SELECT", "FROM", "WHERE", "ORDER", "LIMIT", "LIMIT 2", "OFFSET", "SETTINGS", "FORMAT"}
# what stands between two tables of which each row meets each, alone or with what always holds
_EACH, _ON = ((",",), ("CROSS", "JOIN")), (("JOIN",), ("INNER", "JOIN"))
_ALWAYS = (("1",), ("1", "=", "1"), ("TRUE",))


@dataclass(frozen=True, repr=False)
class Side(Brief):
    """One of the two tables: how the SELECT calls it, its vector column, and the conditions on it alone.

    given: its rows, where they are none of a table of ours; conditions are met by all of them once they are there.
    """

    table: Table
    qualifier: str
    column: str
    conditions: tuple[str, ...] = ()
    given: Given | None = None

    @property
    def named(self) -> str:
        """Its name, as messages show it."""
        return self.table.full_name if self.given is None else self.qualifier

    def source(self, registry: Registry) -> str:
        """What FROM reads its rows from."""
        return registry.physical(self.table) if self.given is None else self.given.source

    @property
    def filter(self) -> str | None:
        """Its conditions joined by AND."""
        return " AND ".join(f"({c})" for c in self.conditions) or None


@dataclass(frozen=True, repr=False)
class NearestJoin(Brief):
    """A SELECT that asks for the k rows of `near` nearest to each row of `each`.

    mixed: conditions that concern both, which pairs must meet too. calls: the places of the distance in the text.
    """

    scope: Scope
    each: Side
    near: Side
    metric: Metric
    k: int
    mixed: tuple[str, ...]
    calls: tuple[tuple[int, int], ...]
    why: str = "sorted by a distance of two columns, with LIMIT n BY"


def recognise_join(
    scope: Scope, registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> NearestJoin | None:
    """The nearest-neighbour join that a SELECT is, or None. params, tables: of the statement."""
    found = read_join(scope, registry.find)
    if isinstance(found, str):
        found = _read_given(scope, registry, params, tables)
    return found if isinstance(found, NearestJoin) else None


def read_join(scope: Scope, find: FindTable) -> NearestJoin | str:
    """The nearest-neighbour join of two tables that a SELECT is, or why it is none."""
    sources, _ = find_sources(scope, find)
    if len(sources) != 2 or not all_pairs(scope) or sources[0].qualifier == sources[1].qualifier:
        return "FROM is not two tables as `a, b`, `a CROSS JOIN b` or `a JOIN b ON 1 = 1`"
    if not find_pairs(scope, find):
        return _NOT_SORTED
    return _read(scope, sources)


def _read_given(
    scope: Scope, registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> NearestJoin | str:
    """The same, where one of the two is no table of ours."""
    sources, _ = find_sources(scope, registry.find)
    entries, span = scope.sources.entries, scope.clauses.get("FROM")
    others = [e for e in entries if e.called and all(e.called != s.qualifier for s in sources)]
    if len(sources) != 1 or len(entries) != 2 or len(others) != 1 or span is None or "BY" not in _words(scope, "LIMIT"):
        return "FROM is not a table and query vectors"
    if not all_pairs(scope, tables=False) or not all(e.plain for e in entries):
        return "FROM is not `a, b`, `a CROSS JOIN b` or `a JOIN b ON 1 = 1`"
    found = described(scope, others[0], registry, params, tables)
    if found is None:
        return "what it joins has no vectors, or columns of types that are not kept"
    table, given = found
    inner = (others[0].first, others[0].last)
    return _read(scope, [*sources, Source(table, others[0].called)], given, inner)


def _words(scope: Scope, clause: str) -> list[str]:
    return [t.upper for t in scope.within(clause)]


_NOT_SORTED = "it is not sorted by a distance of the two tables' columns alone"


def _read(
    scope: Scope, sources: list[Source], given: Given | None = None, inner: tuple[int, int] = (0, 0)
) -> NearestJoin | str:
    """given: the rows of the last source, where they are none of a table of ours. inner: its tokens, which FROM has."""
    odd = next(iter(set(scope.clauses) - _CLAUSES), None)
    if odd:
        return f"it has {odd}"
    if any(t.text == "*" for t in scope.within("SELECT")) or scope.within("SELECT")[0].upper == "DISTINCT":
        return "it has DISTINCT or *"
    own = (at for at in range(scope.whole.first, scope.whole.last) if not inner[0] <= at < inner[1])
    if any(scope.tokens[at].upper in ("OVER", "ARRAYJOIN") for at in own):
        return "it has a window function or arrayJoin"
    limit = _limit_by(scope)
    ordered = _order(scope, limit[2] if limit else frozenset())
    if ordered is None:
        return _NOT_SORTED
    if limit is None:
        return "it has no LIMIT n BY columns of one table, with n of at most 1,000"
    metric, first, last, descending = ordered
    columns = columns_of(scope, first, last, sources)
    if columns is None:
        return "the arguments of the distance are not a column of each table, with the tables' names before them"
    if descending != metric.larger_is_nearer:
        return "the farthest rows are asked for"
    k, owner, _ = limit
    sides = {qualifier: Side(source.table, qualifier, column) for qualifier, source, column in columns}
    if len(sides) != 2 or owner not in sides:
        return "LIMIT BY names neither of the two tables"
    if given and owner != sources[-1].qualifier:
        return "LIMIT BY does not name the query vectors"
    calls = _same_calls(scope, metric, columns, sources, inner)
    if calls is None:
        return "it computes another distance too, or one without an alias"
    parted = parted_conditions(scope, tuple(sides))
    if parted is None:
        return "its WHERE has a distance, a SELECT, or a column without its table's name"
    other = next(q for q in sides if q != owner)
    each, near = (replace(sides[q], conditions=tuple(parted[q])) for q in (owner, other))
    return NearestJoin(scope, replace(each, given=given), near, metric, k, tuple(parted[""]), calls)


def all_pairs(scope: Scope, *, tables: bool = True) -> bool:
    """Whether FROM is two sources, of which each row meets each. tables: whether both are tables."""
    entries, span, tokens = scope.sources.entries, scope.clauses["FROM"], scope.tokens
    if len(entries) != 2 or any((tables and e.kind != "table") or e.modified or e.bracketed for e in entries):
        return False
    between = tuple(t.upper or t.text for t in tokens[entries[0].last : entries[1].first])
    rest = tuple(t.upper or t.text for t in tokens[entries[1].last : span.last])
    on = rest[:1] == ("ON",) and rest[1:] in _ALWAYS
    return on if between in _ON else between in _EACH and not rest


def _order(scope: Scope, keys: frozenset[str]) -> tuple[Metric, int, int, bool] | None:
    """The metric, the tokens of the distance call that a SELECT is sorted by, and whether descending.

    keys: of LIMIT BY, as texts: what is sorted by those first is in each group sorted by the distance.
    """
    items = scope.items("ORDER")
    if not items or any(_key(scope, a, b) not in keys for a, b in items[:-1]):
        return None
    tokens, (first, last) = scope.tokens, items[-1]
    descending = tokens[last - 1].upper in ("DESC", "DESCENDING")
    if tokens[last - 1].upper in ("DESC", "DESCENDING", "ASC", "ASCENDING"):
        last -= 1
    if last - first == 1:
        first, last = scope.aliases.get(tokens[first].name or "", (first, last))
    metric = metric_named(tokens[first].text) if tokens[first].kind == "word" else None
    if metric is None or last - first < 4 or tokens[first + 1].text != "(" or matching(tokens, first + 1) != last - 1:
        return None
    return metric, first, last, descending


def _key(scope: Scope, first: int, last: int) -> str:
    """`table.column`, of an item that is just that, with its direction at most; else nothing that is a key."""
    tokens = scope.tokens
    if tokens[last - 1].upper in ("DESC", "DESCENDING", "ASC", "ASCENDING"):
        last -= 1
    if last - first != 3 or tokens[first + 1].text != ".":
        return ""
    return f"{tokens[first].name}.{tokens[first + 2].name}"


def _limit_by(scope: Scope) -> tuple[int, str, frozenset[str]] | None:
    """n, the qualifier of the keys, and the keys of `LIMIT n BY key, …`."""
    tokens = scope.within("LIMIT")
    if len(tokens) < 5 or tokens[0].kind != "number" or not tokens[0].text.isdigit() or tokens[1].upper != "BY":
        return None
    owners, keys = set(), set()
    for first, last in split_list(tokens, 2, len(tokens)):
        if last - first != 3 or tokens[first + 1].text != ".":
            return None
        owners.add(tokens[first].name or "")
        keys.add(f"{tokens[first].name}.{tokens[first + 2].name}")
    k = int(tokens[0].text)
    return (k, owners.pop(), frozenset(keys)) if len(owners) == 1 and 1 <= k <= 1000 else None


def columns_of(scope: Scope, first: int, last: int, sources: list[Source]) -> list[tuple[str, Source, str]] | None:
    """The two `qualifier.column` arguments of a call."""
    found = []
    for a, b in split_list(scope.tokens, first + 2, last - 1):
        names = scope.tokens[a].name, scope.tokens[b - 1].name
        source = next((s for s in sources if s.qualifier == names[0]), None)
        if b - a != 3 or scope.tokens[a + 1].text != "." or source is None or not source.table.column(names[1] or ""):
            return None
        found.append((source.qualifier, source, names[1] or ""))
    return found if len(found) == 2 and found[0][0] != found[1][0] else None


def _same_calls(
    scope: Scope,
    metric: Metric,
    columns: list[tuple[str, Source, str]],
    sources: list[Source],
    inner: tuple[int, int],
) -> tuple[tuple[int, int], ...] | None:
    """The places of the sorted-by distance; None where other distances are computed, or one names a column."""
    found = []
    tokens = scope.tokens
    wanted = {(q, c) for q, _, c in columns}
    named, items = scope.aliases, scope.items("SELECT")
    for call in scope.calls:
        if not metric_named(call.name) or inner[0] <= call.at < inner[1]:
            continue
        called = columns_of(scope, call.at, call.close + 1, sources)
        if metric_named(call.name) is not metric or called is None or {(q, c) for q, _, c in called} != wanted:
            return None
        item = next(((a, b) for a, b in items if a <= call.at < b), None)
        if item and tokens[item[1] - 1].name not in named:
            return None  # its name would change
        found.append((tokens[call.at].start, tokens[call.close].end))
    return tuple(found)


def parted_conditions(scope: Scope, qualifiers: tuple[str, ...]) -> dict[str, list[str]] | None:
    """WHERE by the table it concerns, '' for both; None where that cannot be told."""
    found: dict[str, list[str]] = {q: [] for q in (*qualifiers, "")}
    span = scope.clauses.get("WHERE")
    for first, last in conjuncts(scope.tokens, span.first, span.last) if span else []:
        tokens = scope.tokens[first:last]
        owners = condition_owners(tokens, qualifiers)
        if owners is None:
            return None
        text = scope.text[tokens[0].start : tokens[-1].end]
        found[owners.pop() if len(owners) == 1 else ""].append(text)
    return found


def condition_owners(tokens: Sequence[Token], qualifiers: tuple[str, ...]) -> set[str] | None:
    """The tables whose columns a condition names, all of them qualified; None otherwise."""
    owners: set[str] = set()
    words = {"AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "NULL", "TRUE", "FALSE"}
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.upper == "SELECT" or (token.kind == "word" and metric_named(token.text)):
            return None
        dotted = at + 2 < len(tokens) and tokens[at + 1].text == "."
        if token.name in qualifiers and dotted:
            owners.add(token.name)
            at += 3
            continue
        called = at + 1 < len(tokens) and tokens[at + 1].text == "(" and token.kind == "word"
        if token.text == "{" and token.kind == "symbol":
            at = matching(tokens, at) + 1
            continue
        if token.name and not called and token.upper not in words:
            return None
        at += 1
    return owners


def from_clause(
    sides: tuple[Side, Side], registry: Registry, pairs: str, vectors: Mapping[str, Sequence[str]] = NOTHING
) -> str:
    """FROM that reads the pairs in the Arrow table of the name `pairs`, and just their rows.

    vectors: the vector columns that are read of each side, by its qualifier, besides all other columns.
    """

    def rows(side: Side, key: str) -> str:
        own = [*map(quote_name, vectors.get(side.qualifier, ())), ROW] if side.given is None else []
        read = ", ".join(["*", *own])
        return (
            f"(SELECT {read} FROM {side.source(registry)} WHERE {ROW} IN (SELECT {key} FROM Python({pairs}))) "
            f"AS {quote_name(side.qualifier)}"
        )

    each, near = (quote_name(side.qualifier) for side in sides)
    return (
        f"Python({pairs}) AS {PAIRS} INNER JOIN {rows(sides[0], 'clipql_each')} "
        f"ON {each}.{ROW} = {PAIRS}.clipql_each INNER JOIN {rows(sides[1], 'clipql_near')} "
        f"ON {near}.{ROW} = {PAIRS}.clipql_near"
    )


def _names(
    join: NearestJoin, registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> list[Edit]:
    """The edits that keep the names of items without an alias, which ClickHouse gives by what else there is in FROM."""
    scope = join.scope
    ends = [scope.tokens[b - 1] for _, b in scope.items("SELECT")]
    unnamed = {token.end for token in ends if token.name not in scope.aliases}
    valued = any(token.text == "{" for token in scope.within("SELECT"))  # values may be part of a name
    names = item_names(scope, registry, params if valued else typical(params), tables) if unnamed else {}
    if unnamed and not names:
        raise QueryError("the names of the columns of a join cannot be told")
    return [(end, end, f" AS {quote_name(name)}") for end, name in names.items() if end in unnamed]


def edits(
    join: NearestJoin,
    registry: Registry,
    pairs: str,
    params: Mapping[str, Any],
    tables: Mapping[str, pa.Table] = NOTHING,
) -> list[Edit]:
    """The edits that have ClickHouse join the pairs: FROM, WHERE, the distances that are known, and names.

    Raises QueryError where the names cannot be told.
    """
    scope = join.scope
    found = [(a, b, f"toFloat32(assumeNotNull({PAIRS}.clipql_distance))") for a, b in join.calls]
    found += _names(join, registry, params, tables)
    source = scope.clauses["FROM"]
    found.append((source.start, source.end, from_clause((join.each, join.near), registry, pairs)))
    span = scope.clauses.get("WHERE")
    if span:
        kept = " AND ".join(f"({c})" for c in join.mixed)
        found.append((scope.tokens[span.first - 1].start, span.end, f"WHERE {kept}" if kept else ""))
    return found
