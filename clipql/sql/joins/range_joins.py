"""The rule for range joins: all pairs of rows of two tables, or of one with itself, that are nearer than a bound.

    SELECT l.url, e.id FROM laion AS l JOIN evals AS e ON cosineDistance(l.image_embedding, e.v) < 0.1
    SELECT a.id, b.id FROM laion a, laion b WHERE a.id < b.id AND cosineDistance(a.v, b.v) < 0.05

ClickHouse would compare every pair, at some 600,000 a second. Here the pairs are found by `range_pairs.py`, exactly,
and ClickHouse joins just those. The vectors of one side may come with the statement (`given_vectors.py`), be they of a
SELECT, a table function or a table without vector columns. What must stay true: the pairs are those of ClickHouse
alone, as it decides itself what its rounding could decide; any other join is left as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from clipql.brief import Brief, short
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql.joins.given_vectors import Given, described, typical
from clipql.sql.joins.nearest_joins import NOTHING, PAIRS, Side, columns_of, condition_owners, from_clause
from clipql.sql.numbers.rowwise import item_names
from clipql.sql.recognition.affine import Parser
from clipql.sql.recognition.calls import Source, find_sources
from clipql.sql.recognition.clauses import conjuncts
from clipql.sql.recognition.constants import Constants
from clipql.sql.recognition.plan import NOT_CHOSEN
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors.devices import CPU
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.syntax.sources import Entry
from clipql.tables.indexes import Chosen
from clipql.tables.registry import ROW, Registry

_BELOW, _ABOVE = {"<", "<="}, {">", ">="}
# what may stand between the two tables, and whether ON follows
_BETWEEN = {(",",): False, ("CROSS", "JOIN"): False, ("JOIN",): True, ("INNER", "JOIN"): True}


@dataclass(frozen=True)
class Call:
    """The distance in the text, by its places in tokens and letters."""

    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True, repr=False)
class RangeJoin(Brief):
    """A SELECT of the pairs of two sides with `weight * distance + constant op value`.

    bound: the condition's first and last token. value: the text that the distance is compared with. kept: the other
    conditions on both sides, as token ranges. calls: the places of the distance.
    """

    scope: Scope
    left: Side
    right: Side
    metric: Metric
    op: str
    weight: float
    constant: float
    value: str
    bound: tuple[int, int]
    kept: tuple[tuple[int, int], ...]
    calls: tuple[Call, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right."""
        return self.left, self.right


@dataclass(frozen=True, repr=False)
class RangeJoinPlan:
    """How a range join is to be carried out. bound: the largest distance (by dotProduct, the least product)."""

    join: RangeJoin
    bound: float
    kind: str = "range join"
    why: str = "a bound on a distance of columns of two tables"
    chosen: Chosen = NOT_CHOSEN
    device: str = CPU

    def __repr__(self) -> str:
        return f"RangeJoinPlan({self.searched}, bound={self.bound:g}, why={short(self.why)})"

    @property
    def searched(self) -> str:
        """The columns that it joins by, in words."""
        return " and ".join(f"{side.named}: {side.column}" for side in self.join.sides)

    @property
    def products(self) -> float:
        """Products of numbers that all pairs take."""
        left, right = self.join.sides
        pairs = float(left.table.rows) * right.table.rows
        if left.table is right.table and left.column == right.column:
            pairs /= 2
        return pairs * max((column.dimension or 0 for column in self.columns), default=0)

    @property
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it compares."""
        found = (side.table.column(side.column) for side in self.join.sides if side.given is None)
        return tuple(c for c in found if c)


def recognise_range_join(
    scope: Scope, registry: Registry, params: Mapping[str, Any] = NOTHING, tables: Mapping[str, pa.Table] = NOTHING
) -> RangeJoin | None:
    """The range join that a SELECT is, or None. params, tables: of the statement."""
    sources, _ = find_sources(scope, registry.find)
    conditions = _conditions(scope)
    if not sources or conditions is None:
        return None
    brought = _brought(scope, sources, registry, params, tables) if len(sources) == 1 else None
    if brought:
        entry, source, _ = brought
        sources.insert(scope.sources.entries.index(entry), source)
    kinds = [e.kind for e in scope.sources.entries if not (brought and e is brought[0])]
    if len(sources) != 2 or set(kinds) != {"table"} or sources[0].qualifier == sources[1].qualifier:
        return None
    inner = (brought[0].first, brought[0].last) if brought else (0, 0)
    tokens = scope.tokens
    starred = any(
        t.text == "*" and (tokens[i - 1].text in (",", ".") or tokens[i - 1].upper == "SELECT")
        for i, t in enumerate(tokens[scope.whole.first : scope.whole.last], scope.whole.first)
        if not inner[0] <= i < inner[1]
    )
    found = _calls(scope, sources)
    names = {name for _, _, columns in found for pair in columns for name in pair}
    if starred or not found or names & scope.inner_names:
        return None
    places = {c.first: (i, c.last) for i, (c, _, _) in enumerate(found)}
    parser = Parser(tokens, places, lambda token: scope.aliases.get(token.name or ""))
    for place in conditions:
        compared = _compared(scope, place, parser)
        if compared is None:
            continue
        at, weight, constant, op, value = compared
        _, metric, columns = found[at]
        below = (op in _BELOW) == (weight > 0)
        if below == metric.larger_is_nearer:
            continue  # the far ones are asked for
        same = tuple(c for c, m, other in found if m is metric and {o[:2] for o in other} == {o[:2] for o in columns})
        sides, kept = _parted(scope, sources, [c for c in conditions if c != place], columns)
        if brought:
            left, right = (replace(s, given=brought[2]) if s.table is brought[1].table else s for s in sides)
            sides = left, right
        return RangeJoin(scope, *sides, metric, op, weight, constant, value, place, kept, same)
    return None


def _brought(
    scope: Scope, sources: list[Source], registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> tuple[Entry, Source, Given] | None:
    """What is joined to a table of ours, where it brings vectors along that a distance is of."""
    entries = scope.sources.entries
    others = [e for e in entries if e.called and e.called != sources[0].qualifier]
    if len(others) != 1 or not all(e.plain for e in entries):
        return None
    tokens, called = scope.tokens, others[0].called
    if not any(
        metric_named(call.name) and any(t.name == called for t in tokens[call.at + 2 : call.close])
        for call in scope.calls
    ):
        return None
    found = described(scope, others[0], registry, params, tables)
    return (others[0], Source(found[0], called), found[1]) if found else None


_Columns = tuple[tuple[str, str], tuple[str, str]]  # qualifier and column of each argument


def _calls(scope: Scope, sources: list[Source]) -> list[tuple[Call, Metric, _Columns]]:
    """The distances between a column of each table that a SELECT itself computes."""
    inner = [s.whole for s in read(scope.text).selects if scope.whole.first < s.whole.first < scope.whole.last]
    found = []
    for call in scope.calls:
        metric = metric_named(call.name)
        if metric is None or any(i.first <= call.at < i.last for i in inner):
            continue
        columns = columns_of(scope, call.at, call.close + 1, sources)
        if columns is None:
            continue
        (one, first, a), (other, second, b) = columns
        dimensions = [s.table.column(c) for s, c in ((first, a), (second, b))]
        if len({c.dimension for c in dimensions if c and c.dimension}) > 1:
            continue  # ClickHouse says what is wrong
        place = Call(call.at, call.close + 1, scope.tokens[call.at].start, scope.tokens[call.close].end)
        found.append((place, metric, ((one, a), (other, b))))
    return found


def _conditions(scope: Scope) -> list[tuple[int, int]] | None:
    """What ON and WHERE join by AND; None where FROM is not two tables, joined so that each pair stands for itself."""
    span, entries = scope.clauses.get("FROM"), scope.sources.entries
    if span is None or len(entries) != 2 or any(e.modified or e.bracketed for e in entries):
        return None
    after, tokens = entries[1].last, scope.tokens
    between = tuple(t.upper or t.text for t in tokens[entries[0].last : entries[1].first])
    on = after < span.last and tokens[after].upper == "ON"
    if _BETWEEN.get(between) is not on or (after < span.last and not on):
        return None
    found = conjuncts(scope.tokens, after + 1, span.last) if on else []
    for clause in ("PREWHERE", "WHERE"):
        where = scope.clauses.get(clause)
        found += conjuncts(scope.tokens, where.first, where.last) if where else []
    return found


def _compared(scope: Scope, place: tuple[int, int], parser: Parser) -> tuple[int, float, float, str, str] | None:
    """A comparison of one distance with what has none: the call, its weight, what is added, the sign, the value."""
    first, last = place
    signs = [i for i in range(first, last) if scope.tokens[i].text in _BELOW | _ABOVE]
    if len(signs) != 1 or signs[0] in (first, last - 1):
        return None
    middle, op = signs[0], scope.tokens[signs[0]].text
    sides = [(first, middle), (middle + 1, last)]
    forms = [parser.parse(*side) for side in sides]
    for at in (0, 1):
        form, other = forms[at], forms[1 - at]
        if form and len(form.weights) == 1 and not (other and other.weights):
            if at == 1:
                op = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[op]
            ((call, weight),) = form.weights.items()
            return call, weight, form.constant, op, scope.text_of(*sides[1 - at])
    return None


def _parted(
    scope: Scope, sources: list[Source], conditions: list[tuple[int, int]], columns: _Columns
) -> tuple[tuple[Side, Side], tuple[tuple[int, int], ...]]:
    """Both sides with the conditions on them alone, and the conditions that are left."""
    named = dict(columns)
    own: dict[str, list[str]] = {s.qualifier: [] for s in sources}
    kept: list[tuple[int, int]] = []
    for first, last in conditions:
        owners = _owner_of_rows(scope, first, last) & own.keys() or condition_owners(
            scope.tokens[first:last], tuple(own)
        )
        if owners is not None and len(owners) == 1:
            own[owners.pop()].append(scope.text_of(first, last))
        else:
            kept.append((first, last))
    left, right = (Side(s.table, s.qualifier, named[s.qualifier], tuple(own[s.qualifier])) for s in sources)
    return (left, right), tuple(kept)


def _owner_of_rows(scope: Scope, first: int, last: int) -> set[str]:
    """The table of a condition `t._row IN (SELECT …)`, as nearAny is written out with."""
    words = [t.name or t.text for t in scope.tokens[first : first + 5]]
    if words[1:3] == [".", ROW] and words[3:5] == ["IN", "("] and matching(scope.tokens, first + 4) == last - 1:
        return {words[0]}
    return set()


def plan_range_join(join: RangeJoin, constants: Constants) -> RangeJoinPlan | None:
    """The plan, or None where the bound is not known beforehand."""
    calls = [join.scope.text[c.start : c.end] for c in join.calls]
    aliases = {n: join.scope.text_of(*span) for n, span in join.scope.aliases.items()}
    without = {n: text for n, text in aliases.items() if not any(c in text for c in calls)}
    value = constants.number(join.value, join.scope.withs, without)
    return None if value is None else RangeJoinPlan(join, (value - join.constant) / join.weight)


def edits(
    join: RangeJoin, registry: Registry, pairs: str, params: Mapping[str, Any], tables: Mapping[str, pa.Table] = NOTHING
) -> list[Edit]:
    """The edits that have ClickHouse join the pairs: FROM, WHERE, the distances that are known, and names.

    Raises QueryError where the names cannot be told.
    """
    scope = join.scope
    source, where = scope.clauses["FROM"], [scope.clauses[c] for c in ("PREWHERE", "WHERE") if c in scope.clauses]
    known = [(c.start, c.end, f"toFloat32(assumeNotNull({PAIRS}.clipql_distance))") for c in join.calls]
    replaced = [source, *where]
    found = [
        e for e, c in zip(known, join.calls, strict=True) if not any(s.first <= c.first < s.last for s in replaced)
    ]
    items = scope.items("SELECT")
    unnamed = [last for _, last in items if scope.tokens[last - 1].name not in scope.aliases]
    valued = any(token.text == "{" for token in scope.within("SELECT"))  # values may be part of a name
    names = item_names(scope, registry, params if valued else typical(params), tables) if unnamed else {}
    if unnamed and not names:
        raise QueryError("the names of the columns of a range join cannot be told")
    ends = {scope.tokens[last - 1].end for last in unnamed}
    found += [(end, end, f" AS {quote_name(name)}") for end, name in names.items() if end in ends]
    called = {(c.start, c.end) for c in join.calls}
    wanted = {s.qualifier: _mentioned(scope, s, called) for s in join.sides}
    found.append((source.start, source.end, from_clause(join.sides, registry, pairs, wanted)))
    kept = [f"({edited(scope.text, known, scope.tokens[a].start, scope.tokens[b - 1].end)})" for a, b in join.kept]
    text = f"WHERE {' AND '.join(kept)}" if kept else ""
    for i, span in enumerate(where):
        found.append((scope.tokens[span.first - 1].start, span.end, "" if i else text))
    if text and not where:
        found.append((source.end, source.end, f" {text}"))
    return found


def _mentioned(scope: Scope, side: Side, called: set[tuple[int, int]]) -> tuple[str, ...]:
    """The vector columns of a side that a SELECT reads besides the distance of its pairs."""
    tokens = [
        t.name
        for t in scope.tokens[scope.whole.first : scope.whole.last]
        if t.name and not any(start <= t.start < end for start, end in called)
    ]
    return tuple(c.name for c in side.table.columns if c.name in tokens)
