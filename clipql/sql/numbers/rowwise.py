"""The rule for numbers computed of the vectors of one row, wherever they are written: they are computed in blocks.

    SELECT domain(url), avg(cosineDistance(image_embedding, text_embedding)) FROM laion GROUP BY 1
    SELECT domain(url), avg(_clipql_vector_number('cosineDistance a/0 a/1', laion._row)) FROM laion GROUP BY 1

ClickHouse would read both vectors of each row through their ALIAS columns. What must stay true: only what names columns
of a row for certain is replaced; the columns of the result keep their names; where a condition compares a distance and
float32 could decide, ClickHouse computes it itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipql.brief import short
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.index.flat import WIDE
from clipql.sql.numbers.row_arrays import RowArrays, leaving
from clipql.sql.numbers.row_comparisons import RowCall, bounded, conditions, is_inside, own_near
from clipql.sql.recognition.calls import FindTable, Source, column_named, find_sources, has_outer_join
from clipql.sql.recognition.plan import NOT_CHOSEN
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.edits import Edit
from clipql.syntax.lexer import Token
from clipql.syntax.names import FunctionCall, lambda_arguments
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.computed import ELEMENT, LENGTH, OF_ONE, SECOND_HASH, name_of
from clipql.tables.indexes import Chosen
from clipql.tables.registry import GROUPED, ROW, Registry
from clipql.tables.vector_expressions import looked_up

# ClickHouse takes a function of Python for a cheap one, and would call it for every row
LAZY = "short_circuit_function_evaluation = 'force_enable'"
# what tells vectors from each other and nothing more, and how it is called here
_TELLING, _DISTINCT = ("uniqExact", "count", "countDistinct"), "uniqExact"
# which tell rows that have a vector from those that have none: what is put behind the length
_OF_LENGTH = {"length": "", "notEmpty": " > 0", "empty": " = 0"}
# of the vectors of a group, by the type of the numbers of the array; and the most rows that may be named for one
_OF_GROUP = {"sumForEach": "Float64", "avgForEach": "Float64", "minForEach": "Float32", "maxForEach": "Float32"}
MOST_GROUPED = 1 << 26
# what gives the expression for a number, by its function, handles and qualifier
LookedUp = Callable[[str, Sequence[str], str], str]


@dataclass(frozen=True, repr=False)
class RowDistances:
    """A SELECT, or a condition of another statement, that computes numbers of the vectors of a row."""

    calls: tuple[RowCall, ...]
    kind: str = "numbers of rows"
    why: str = "a distance of two columns of one row, or a function of one column"
    chosen: Chosen = NOT_CHOSEN
    # numbers are computed of all rows at once where these conditions leave most of them; None: as they are asked for
    leaving: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"RowDistances({self.searched}, why={short(self.why)})"

    @property
    def table(self) -> Table:
        """The table whose rows they are of; the first, where there are several."""
        return self.calls[0].source.table

    @property
    def searched(self) -> str:
        """The table and its columns, in words."""
        return f"{self.table.full_name}: {', '.join(c.name for c in self.columns)}"

    @property
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it reads."""
        return tuple(dict.fromkeys(c for call in self.calls for c in call.columns))


def row_distances(scope: Scope, find: FindTable) -> RowDistances | None:
    """The distances of two columns of a row that a SELECT itself computes, or None where it has none."""
    calls = [c for c in scope.calls if _may_be(c)]
    elements = any(t.kind == "vector" for t in scope.tokens)
    sources, joined = find_sources(scope, find) if calls or elements else ([], False)
    qualifiers = {s.qualifier for s in sources}  # an alias of that name may be a tuple
    if not sources or has_outer_join(scope) or len(qualifiers) < len(sources) or qualifiers & scope.aliases.keys():
        return None
    inner = [s.whole for s in read(scope.text).selects if is_inside(s, scope)]
    own = [c for c in calls if not any(i.first <= c.at < i.last for i in inner)]
    hidden = frozenset(scope.aliases) | scope.lambda_arguments
    found = tuple(_row_calls(scope.tokens, own, sources, joined, hidden))
    if elements:
        whole = range(scope.whole.first, scope.whole.last)
        places = [i for i in whole if not any(a.first <= i < a.last for a in inner)]
        found += tuple(_elements(scope.tokens, places, sources, joined, hidden))
    names = {name for c in found for name in (c.source.qualifier, *(column.name for column in c.columns))}
    if names & scope.inner_names:
        return None
    return RowDistances(found, leaving=leaving(scope, found)) if found else None


def in_statement(tokens: Sequence[Token], table: Table, calls: Sequence[FunctionCall]) -> RowDistances | None:
    """The same of calls that stand in an UPDATE or DELETE of a table."""
    own = [c for c in calls if _may_be(c)]
    hidden = lambda_arguments(tokens, 0, len(tokens))
    found = tuple(_row_calls(tokens, own, [Source(table, table.name)], False, hidden))
    return RowDistances(found) if found else None


def _row_calls(
    tokens: Sequence[Token], calls: Sequence[FunctionCall], sources: list[Source], joined: bool, hidden: frozenset[str]
) -> Iterator[RowCall]:
    for call in calls:
        metric, telling = metric_named(call.name), _tells(tokens, call)
        over = tokens[call.close + 1].upper in ("OVER", "FILTER") if call.close + 1 < len(tokens) else False
        if (call.name in _TELLING and not telling) or (call.name in _OF_GROUP and over):
            continue
        arguments = [(a + 1 if tokens[a].upper == "DISTINCT" else a, b) for a, b in call.arguments]
        named = [known for a in arguments if (known := column_named(tokens, *a, sources, joined, hidden))]
        if len(named) < len(arguments) or len({qualifier for _, qualifier in named}) != 1:
            continue
        source = next(s for s in sources if s.qualifier == named[0][1])
        columns = tuple(c for name, _ in named if (c := source.table.column(name)))
        if any(c.absent for c in columns) if call.name not in _OF_LENGTH else source.table.rows == 0:
            continue  # of an empty array ClickHouse has its own numbers
        if len({c.dimension for c in columns}) != 1 or not (columns[0].dimension or call.name in _OF_LENGTH):
            continue  # ClickHouse says what is wrong, or that there is nothing
        if call.name in _OF_GROUP and (source.table.rows > MOST_GROUPED or tokens[call.at + 2].upper == "DISTINCT"):
            continue
        first, last = (call.at, call.close + 1) if not telling else arguments[0]
        function = metric.value if metric else _DISTINCT if telling else call.name
        yield RowCall(function, source, columns, first, last, tokens[first].start, tokens[last - 1].end)


def _elements(
    tokens: Sequence[Token], places: Sequence[int], sources: list[Source], joined: bool, hidden: frozenset[str]
) -> Iterator[RowCall]:
    """Numbers of a vector by their place, as in v[17] and t.v[-1]."""
    for at in places:
        index = tokens[at].text.strip("[] ") if tokens[at].kind == "vector" else ""
        if not re.fullmatch(r"-?[1-9]\d{0,8}", index):
            continue
        first = at - 1
        while first >= 2 and tokens[first - 1].text == ".":
            first -= 2
        known = column_named(tokens, first, at, sources, joined, hidden)
        source = next((s for s in sources if known and s.qualifier == known[1]), None)
        column = source.table.column(known[0]) if known and source else None
        size, place = (column.dimension or 0) if column else 0, int(index)
        if source and column and abs(place) <= size:
            function = f"{ELEMENT}{place - 1 if place > 0 else size + place}"
            yield RowCall(function, source, (column,), first, at + 1, tokens[first].start, tokens[at].end)


def _may_be(call: FunctionCall) -> bool:
    """Whether a call has the name and the number of arguments of what is computed here."""
    if not call.closed:
        return False
    if metric_named(call.name):
        return len(call.arguments) == 2
    return len(call.arguments) == 1 and call.name in {*OF_ONE, *_OF_GROUP, *_TELLING, *_OF_LENGTH}


def _tells(tokens: Sequence[Token], call: FunctionCall) -> bool:
    """Whether it only tells vectors from each other: `count` does so with DISTINCT."""
    first = call.arguments[0][0]
    return call.name in _TELLING and (call.name != "count" or tokens[first].upper == "DISTINCT")


def computed(call: RowCall, registry: Registry, qualifier: str, looked_up: LookedUp = looked_up) -> str:
    """The expression that gives the number of a call. qualifier: of the row's number, with its dot."""
    handles = [registry.handle(call.source.table, c) for c in call.columns]
    if call.function == _DISTINCT:
        return ", ".join(looked_up(f, handles, qualifier) for f in ("cityHash64", SECOND_HASH))
    if call.function in _OF_GROUP:
        rows = f"base64Encode(reinterpretAsString(groupArray({qualifier}{ROW})))"
        text = f"assumeNotNull({GROUPED}({quote_string(name_of(call.function, handles))}, {rows}))"
        return f"reinterpret({text}, 'Array({_OF_GROUP[call.function]})')"
    if call.function in _OF_LENGTH:
        number = looked_up(LENGTH, handles, qualifier)
        return f"({number}{_OF_LENGTH[call.function]})" if _OF_LENGTH[call.function] else number
    return looked_up(call.function, handles, qualifier)


def edits(
    found: RowDistances, scope: Scope, registry: Registry, params: Mapping[str, Any], arrays: RowArrays | None = None
) -> list[Edit]:
    """The edits that have a SELECT look its distances up. arrays: for the numbers of all rows, where all are read.

    Raises QueryError where its names cannot be told.
    """
    bounds = bounded(scope, found.calls, registry)
    planned = [c for c in found.calls if bounds.get(c, True) and not _too_large(c, registry)]
    lookup = arrays.looked_up if arrays else looked_up
    texts = _Texts(lambda call: computed(call, registry, f"{quote_name(call.source.qualifier)}.", lookup))
    for call in planned:
        if bound := bounds.get(call):
            texts[call] = own_near(scope, call, bound, texts[call], registry)
    items = scope.items("SELECT")
    unnamed = [
        (first, last)
        for first, last in items
        if scope.tokens[last - 1].name not in scope.aliases and any(first <= c.first < last for c in planned)
    ]
    names = item_names(scope, registry, params) if unnamed else {}
    left = [] if names or not unnamed else unnamed  # names that cannot be told must not change
    changed = [c for c in planned if not any(first <= c.first < last for first, last in left)]
    result = conditions(scope, changed, texts, registry, arrays.decide if arrays else None)
    inside = [(a, b) for a, b, _ in result]
    result += [(c.start, c.end, texts[c]) for c in changed if not any(a <= c.start < b for a, b in inside)]
    ends = {scope.tokens[last - 1].end for _, last in unnamed}
    return result + [(end, end, f" AS {quote_name(name)}") for end, name in names.items() if end in ends]


def _too_large(call: RowCall, registry: Registry) -> bool:
    """Whether ClickHouse's own number may be infinite, or NaN, where float32 does not hold squares or products."""
    return any(registry.store(call.source.table, c.name).largest > WIDE for c in call.columns)


class _Texts(dict[RowCall, str]):
    """What stands for each call, made when it is asked for."""

    def __init__(self, made: Callable[[RowCall], str]) -> None:
        super().__init__()
        self._made = made

    def __missing__(self, call: RowCall) -> str:
        self[call] = self._made(call)
        return self[call]


def lazily(sql: str) -> list[Edit]:
    """The edit that has ClickHouse compute what stands in a branch for the rows of that branch alone.

    The settings of a whole statement are those of the last of its SELECTs that stand in no other.
    """
    last = next((s for s in reversed(read(sql).selects) if not s.nested), None)
    if last is None or "short_circuit_function_evaluation" in sql:
        return []
    own = last.clauses.get("SETTINGS")
    if own:
        return [(own.start, own.start, f"{LAZY}, ")]
    for clause in ("FORMAT", "INTO"):
        if clause in last.clauses:
            start = last.tokens[last.clauses[clause].first - 1].start
            return [(start, start, f"SETTINGS {LAZY} ")]
    return [(last.whole.end, last.whole.end, f" SETTINGS {LAZY}")]


def item_names(
    scope: Scope, registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table] | None = None
) -> dict[int, str]:
    """Where the items of SELECT end, and the names that ClickHouse gives them; empty where that cannot be told."""
    items, end = scope.items("SELECT"), scope.whole.end
    for clause in ("FORMAT", "SETTINGS", "INTO"):
        if clause in scope.clauses:
            end = min(end, scope.tokens[scope.clauses[clause].first - 1].start)
    if any(t.text == "*" or t.upper == "COLUMNS" for first, _ in items for t in scope.tokens[first : first + 3]):
        return {}
    own = scope.withs[:-1] if "WITH" in scope.clauses else scope.withs
    around = f"SELECT * FROM ({scope.text[scope.whole.start : end]})"
    text = f"WITH {', '.join(own)} {around}" if own else around
    try:
        described = registry.engine.query(f"DESCRIBE TABLE ({text})", params=params, tables=tables, user=True).arrow()
    except QueryError:
        return {}
    names = described.column(0).to_pylist()
    ends = [scope.tokens[last - 1].end for _, last in items]
    return dict(zip(ends, names, strict=True)) if len(names) == len(ends) else {}
