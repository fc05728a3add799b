"""The rule for range joins: all pairs of rows of two tables, or of one with itself, that are nearer than a bound.

    SELECT l.url, e.id FROM laion AS l JOIN evals AS e ON cosineDistance(l.image_embedding, e.v) < 0.1
    SELECT a.id, b.id FROM laion a, laion b WHERE a.id < b.id AND cosineDistance(a.v, b.v) < 0.05

ClickHouse would compare every pair, at some 600,000 a second. Here the pairs are found by `index/within.py`, exactly,
and ClickHouse joins just those. What must stay true: the pairs are those of ClickHouse alone, as it decides itself what
its rounding could decide; memory does not grow with them; any other join is left as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipql.brief import Brief, short
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.index.base import Cost
from clipql.index.within import PairsWithin
from clipql.index.within import Side as Rows
from clipql.sql.affine import Parser
from clipql.sql.calls import FindTable, Source, find_sources
from clipql.sql.clauses import conjuncts
from clipql.sql.constants import Constants, with_clause
from clipql.sql.joins import PAIRS, Side, columns_of, condition_owners, from_clause
from clipql.sql.pairs import PairStore, as_pairs, rows_of
from clipql.sql.plan import NOT_CHOSEN
from clipql.sql.row_comparisons import spelled_out
from clipql.sql.rowwise import item_names
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.indexes import Chosen, reported
from clipql.tables.registry import ROW, Registry

_BELOW, _ABOVE = {"<", "<="}, {">", ">="}
# pairs that are held in a file, at 24 bytes each; a statement of more is ClickHouse's, which holds none
MOST_PAIRS = 500_000_000
# what a long search is told of by
STAGE = "pairs compared"
# pairs that ClickHouse decides in one query
DECIDED_AT_ONCE = 50_000
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

    def __repr__(self) -> str:
        return f"RangeJoinPlan({self.searched}, bound={self.bound:g}, why={short(self.why)})"

    @property
    def searched(self) -> str:
        """The columns that it joins by, in words."""
        return " and ".join(f"{side.table.full_name}: {side.column}" for side in self.join.sides)

    @property
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it compares."""
        found = (side.table.column(side.column) for side in self.join.sides)
        return tuple(c for c in found if c)


def recognise_range_join(scope: Scope, find: FindTable) -> RangeJoin | None:
    """The range join that a SELECT is, or None."""
    sources, _ = find_sources(scope, find)
    conditions = _conditions(scope)
    if len(sources) != 2 or conditions is None or sources[0].qualifier == sources[1].qualifier:
        return None
    tokens = scope.tokens
    starred = any(
        t.text == "*" and (tokens[i - 1].text in (",", ".") or tokens[i - 1].upper == "SELECT")
        for i, t in enumerate(tokens[scope.whole.first : scope.whole.last], scope.whole.first)
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
        return RangeJoin(scope, *sides, metric, op, weight, constant, value, place, kept, same)
    return None


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
        if len({c.dimension for c in dimensions if c}) > 1:
            continue  # ClickHouse says what is wrong
        place = Call(call.at, call.close + 1, scope.tokens[call.at].start, scope.tokens[call.close].end)
        found.append((place, metric, ((one, a), (other, b))))
    return found


def _conditions(scope: Scope) -> list[tuple[int, int]] | None:
    """What ON and WHERE join by AND; None where FROM is not two tables, joined so that each pair stands for itself."""
    span, entries = scope.clauses.get("FROM"), scope.sources.entries
    if span is None or len(entries) != 2 or any(e.kind != "table" or e.modified or e.bracketed for e in entries):
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


class RangePairs:
    """The pairs of one range join. settings: those of the statement, for the conditions."""

    def __init__(self, registry: Registry, plan: RangeJoinPlan, params: Mapping[str, Any], settings: str) -> None:
        self._registry, self._plan, self._join, self._params = registry, plan, plan.join, params
        self._settings = f"{settings}, " if settings else ""

    def find(self) -> tuple[pa.Table, Cost] | str:
        """Pairs as clipql_each, clipql_near, clipql_distance, and what it took; or why they are not searched for."""
        left, right = (self._rows(side) for side in self._join.sides)
        search = PairsWithin(self._join.metric, left, right, self._plan.bound)
        if not search.possible:
            return "values too large for float32"
        if len(left) * len(right) > MOST_PAIRS and search.expected > MOST_PAIRS:
            return f"about {search.expected:.0e} pairs are within the bound, more than is held"
        held = PairStore(self._registry.folder)
        unsure: list[pa.Table] = []

        def check() -> None:
            self._registry.engine.check_cancelled()
            reported(STAGE, *search.progress)

        for found in search.find(check):
            pairs = as_pairs(found.left, found.right, found.distances)
            held.add(pairs.filter(pa.array(~found.unsure)))
            unsure.append(pairs.filter(pa.array(found.unsure)))
            if sum(map(len, unsure)) > DECIDED_AT_ONCE:
                held.add(self._decided(pa.concat_tables(unsure)))
                unsure.clear()
        if any(map(len, unsure)):
            held.add(self._decided(pa.concat_tables(unsure)))
        return held.table(), search.cost

    def _rows(self, side: Side) -> Rows:
        store = self._registry.store(side.table, side.column)
        chosen = rows_of(self._registry, side, self._params, self._settings)
        return Rows(store, side.table.rows, chosen)

    def _decided(self, pairs: pa.Table) -> pa.Table:
        """Those of the pairs that ClickHouse takes."""
        scope = self._join.scope
        aliases = {n: scope.text_of(*span) for n, span in scope.aliases.items()}
        text = edited(
            scope.text,
            spelled_out(scope, *self._join.bound, self._join.calls),
            scope.tokens[self._join.bound[0]].start,
            scope.tokens[self._join.bound[1] - 1].end,
        )
        wanted = {s.qualifier: (s.column,) for s in self._join.sides}
        sql = (
            f"{with_clause(text, scope.withs, aliases)}SELECT {PAIRS}.clipql_each, {PAIRS}.clipql_near, "
            f"{PAIRS}.clipql_distance FROM {from_clause(self._join.sides, self._registry, PAIRS, wanted)} WHERE {text} "
            f"SETTINGS {self._settings}limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
        )
        met = self._registry.engine.query(sql, params=self._params, tables={PAIRS: pairs}, user=True).arrow()
        return as_pairs(*(met.column(i).to_numpy() for i in range(3)))


def edits(join: RangeJoin, registry: Registry, pairs: str, params: Mapping[str, Any]) -> list[Edit]:
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
    names = item_names(scope, registry, params) if unnamed else {}
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
