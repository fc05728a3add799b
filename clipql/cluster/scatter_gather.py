"""SELECTs over sharded tables: each is split, runs on its shards, and a SELECT over the gathered rows takes its place.

Inner SELECTs come first. What must stay true: the statement that runs in the end names no sharded table, and gives what
the user's statement means.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.cluster.normal_form import normal_form
from clipql.cluster.partial_aggregates import PartialAggregates
from clipql.cluster.partial_query import PartialQuery, Rows, joined
from clipql.cluster.placeholder import DATABASE, Shape
from clipql.cluster.plan_cache import CachedSplit, PlanCache
from clipql.cluster.split import NUMBER, SOURCE, Split, split
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import UnsupportedStatement
from clipql.sql.recognition.calls import find_sources
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.edits import edited
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope

# answers up to this size travel as a parameter of the statement, larger ones through a table in memory
INLINE_BYTES = 1 << 18
# what an inner SELECT may give to one over shards, which each of them is sent
TRAVEL_BYTES = 32 << 20
# name AS (SELECT …, in WITH
_NAMED = re.compile(r"([A-Za-z_]\w*)\s+AS\s*\(\s*(?:SELECT|WITH)\b", re.IGNORECASE)
FindShape = Callable[[str | None, str], Shape | None]


@dataclass(frozen=True)
class Gathered:
    """What the shards answered: their rows in the order of the shards, how many answered, how many there are."""

    rows: Sequence[Rows]
    answered: int
    shards: int


RunOnShards = Callable[[Sequence[PartialQuery], Shape], Sequence[Gathered]]


@dataclass
class Rewritten:
    """A statement without sharded tables, and what it reads instead. asked: for each SELECT over shards."""

    sql: str
    params: dict[str, Any]
    tables: list[str] = field(default_factory=list)
    gathered: list[Gathered] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)


class ScatterGather:
    """Rewrites statements over sharded tables.

    find: such a table by its name. run_on_shards: runs partial queries on all shards of a table.
    """

    def __init__(self, engine: Engine, find: FindShape, run_on_shards: RunOnShards) -> None:
        self._engine, self._find, self._run_on_shards = engine, find, run_on_shards
        self._aggregates, self._plan_cache = PartialAggregates(engine), PlanCache()
        self._names = itertools.count()

    @contextlib.contextmanager
    def rewritten(
        self, sql: str, params: Mapping[str, Any], settings: Mapping[str, str], statements: tuple[str, ...] = ()
    ) -> Iterator[Rewritten]:
        """The statement over what the shards answered, for as long as it may run. settings: clipql's own, for them.

        statements: ClickHouse's SETs that hold. Raises UnsupportedStatement for what cannot be split.
        """
        rewritten = Rewritten(sql, dict(params))
        try:
            while (scope := self._innermost(rewritten.sql)) is not None:
                self._replace(rewritten, scope, settings, statements)
            yield rewritten
        finally:
            for name in rewritten.tables:
                self._engine.run(f"DROP TABLE IF EXISTS {name}")

    def many(
        self, sql: str, params: Sequence[Mapping[str, Any]], settings: Mapping[str, str], statements: tuple[str, ...]
    ) -> list[pa.Table] | None:
        """The rows of one SELECT for each set of parameters, asked of the shards together.

        None where it is not of one SELECT over shards that gives rows, or the sets differ in more than vectors.
        """
        found = [s for s in read(sql).selects if self._sources(s)]
        vectors = [n for n, v in params[0].items() if isinstance(v, np.ndarray) and v.ndim == 1]
        if len(found) != 1 or found[0].nested or not _same_but(vectors, params):
            return None
        rewritten = Rewritten(sql, dict(params[0]))
        template, shape, _ = self._known(rewritten, found[0])
        if template is None or template.made.many is None:
            return None
        if set(template.places) - template.literals.keys() != set(vectors):
            return None
        final, select = template.made.many, template.made.query.select
        queries = [
            replace(
                template.with_vectors(given).query,
                select=f"{select}, toUInt32({i}) AS {NUMBER}",
                settings=settings,
                statements=statements,
            )
            for i, given in enumerate(params)
        ]
        rows = [r for gathered in self._run_on_shards(queries, shape) for r in gathered.rows]
        try:
            final = final.replace(SOURCE, self._source(rewritten, joined(rows, shape.full_name)), 1)
            table = self._engine.query(final, params={**rewritten.params, **queries[0].params}, user=True).arrow()
        finally:
            for name in rewritten.tables:
                self._engine.run(f"DROP TABLE IF EXISTS {name}")
        ends = np.searchsorted(table.column(0).to_numpy(), np.arange(len(params) + 1))
        return [table.slice(a, b - a).drop_columns([NUMBER]) for a, b in itertools.pairwise(ends)]

    def plans(self, sql: str, params: Mapping[str, Any]) -> list[Split]:
        """How each SELECT over shards would be split, inner ones first; nothing is asked."""
        rewritten = Rewritten(sql, dict(params))
        while (scope := self._innermost(rewritten.sql)) is not None:
            made, _ = self._split(rewritten, scope)
            rewritten.splits.append(made)
            nothing = f"SELECT * FROM (SELECT * FROM ({_with(scope, self._analysed(scope))}) WHERE 0)"
            if _is_argument(scope):
                nothing = "SELECT CAST([0], 'Array(Float32)')"
            rewritten.sql = rewritten.sql[: scope.whole.start] + nothing + rewritten.sql[scope.whole.end :]
        return rewritten.splits

    def concerns(self, sql: str) -> bool:
        """Whether a statement reads a sharded table."""
        return self._innermost(sql) is not None

    def _innermost(self, sql: str) -> Scope | None:
        found = read(sql).selects
        return next((s for s in reversed(found) if self._sources(s)), None)

    def _sources(self, scope: Scope) -> bool:
        return bool(find_sources(scope, lambda d, n: shape.table if (shape := self._find(d, n)) else None)[0])

    def _replace(
        self, rewritten: Rewritten, scope: Scope, settings: Mapping[str, str], statements: tuple[str, ...]
    ) -> None:
        made, shape = self._split(rewritten, scope)
        _check_names(scope, made.query)
        query = replace(made.query, settings=settings, statements=statements)
        gathered = self._run_on_shards([query], shape)[0]
        source = self._source(rewritten, joined(gathered.rows, shape.full_name), self._travels(rewritten, scope))
        final = made.final.replace(SOURCE, source, 1)
        renamed = {name: f"{name}_{len(rewritten.gathered)}" for name in query.params}
        for name, other in renamed.items():
            final = final.replace(f"{{{name}:", f"{{{other}:")
            rewritten.params[other] = query.params[name]
        rewritten.gathered.append(gathered)
        rewritten.splits.append(made)
        start, end = scope.whole.start, scope.whole.end
        if _is_argument(scope) and (vector := self._vector(final, rewritten.params)) is not None:
            # as a parameter, so that the shards' planners know it for a constant
            start, end = scope.tokens[scope.whole.first - 1].start, scope.tokens[scope.whole.last].end
            name = f"clipql_vector_{len(rewritten.gathered)}"
            rewritten.params[name] = vector
            final = f"{{{name}:Array({'Float32' if vector.dtype == np.float32 else 'Float64'})}}"
        rewritten.sql = rewritten.sql[:start] + final + rewritten.sql[end:]

    def _vector(self, sql: str, params: Mapping[str, Any]) -> NDArray[Any] | None:
        """The one vector that a SELECT gives; None where it gives something else."""
        found = self._engine.arrow(sql, params=params, user=True)
        kind = found.schema.field(0).type
        if (
            found.num_rows != 1
            or found.num_columns != 1
            or not (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))
        ):
            return None
        return np.array(found.column(0)[0].as_py(), np.float32 if kind.value_type == pa.float32() else np.float64)

    def _split(self, rewritten: Rewritten, scope: Scope) -> tuple[Split, Shape]:
        template, shape, cut = self._known(rewritten, scope)
        return template.with_vectors(rewritten.params) if template else cut(), shape

    def _known(self, rewritten: Rewritten, scope: Scope) -> tuple[CachedSplit | None, Shape, Callable[[], Split]]:
        """A SELECT as it was cut before, if it may be known again, and what cuts it again."""
        shape, text = self._shape(scope), _with(scope, self._analysed(scope))

        def cut(text: str, params: Mapping[str, Any]) -> Split:
            return split(normal_form(self._engine, text, params), self._aggregates, shape.database, shape.name)

        params = rewritten.params
        acting = self._engine.acting
        scatter = (acting.database, acting.user.statements, sorted(acting.settings.items()))
        context = repr((scatter, shape.listed, shape.unlisted, shape.vectors))
        found = self._plan_cache.find(text, params, tuple(shape.vectors), context, cut)
        return found, shape, partial(cut, text, params)

    def _shape(self, scope: Scope) -> Shape:
        found, joins = find_sources(scope, lambda d, n: shape.table if (shape := self._find(d, n)) else None)
        table = found[0].table
        if len(found) > 1 or joins:
            names = " and ".join(dict.fromkeys(s.table.full_name for s in found))
            what = "a join of" if len(found) > 1 or len(scope.within("FROM")) > 4 else "FINAL or SAMPLE on"
            raise UnsupportedStatement(
                f"{what} {names} cannot be split over shards: select the rows it needs from each in an inner SELECT, "
                "(SELECT … FROM …), and join those"
            )
        shape = self._find(table.database, table.name)
        assert shape is not None, "it was found by this name"
        return shape

    def _analysed(self, scope: Scope) -> str:
        """The text of a SELECT over the empty table that stands in for a sharded one."""
        shape = self._shape(scope)
        span, tokens = scope.clauses["FROM"], scope.tokens
        last = span.first + (3 if span.first + 2 < span.last and tokens[span.first + 1].text == "." else 1)
        alias = "" if last < span.last else f" AS {quote_name(shape.name)}"
        called = tokens[span.last - 1].name or shape.name if last < span.last else shape.name
        edits = [(tokens[span.first].start, tokens[last - 1].end, shape.analysed + alias)]
        edits += [
            (tokens[at].start, tokens[at + 2].end, quote_name(called))
            for at in range(scope.whole.first, scope.whole.last - 4)
            if not span.first <= at < span.last and _qualifies(scope, at, shape)
        ]
        return edited(scope.text, edits, scope.whole.start, scope.whole.end)

    def _travels(self, rewritten: Rewritten, scope: Scope) -> bool:
        """Whether a SELECT stands within another over shards, which are sent its rows."""
        around = [s for s in read(rewritten.sql).selects if s.whole.first < scope.whole.first]
        return any(s.whole.last >= scope.whole.last and self._sources(s) for s in around)

    def _source(self, rewritten: Rewritten, rows: Rows, travels: bool = False) -> str:
        number = next(self._names)
        if travels and len(rows.body) > TRAVEL_BYTES:
            raise UnsupportedStatement(
                f"an inner SELECT gives {len(rows.body) >> 20} MB, which each shard would be sent, and at most "
                f"{TRAVEL_BYTES >> 20} may be: filter, aggregate or LIMIT it"
            )
        if travels or len(rows.body) <= INLINE_BYTES:
            name = f"clipql_rows_{number}"
            rewritten.params[name] = base64.b64encode(rows.data).decode()
            return f"format('RowBinaryWithNamesAndTypes', base64Decode({{{name}:String}}))"
        table = f"{DATABASE}.rows_{number}"
        columns = ", ".join(f"{quote_name(n)} {t}" for n, t in rows.columns)
        self._engine.run(f"CREATE TABLE {table} ({columns}) ENGINE = Memory")
        rewritten.tables.append(table)
        self._engine.insert_bytes(f"INSERT INTO {table}", "RowBinary", [rows.body])
        return table


def _check_names(scope: Scope, query: PartialQuery) -> None:
    """Refuse what names a SELECT of WITH within a SELECT over shards, where it is not known."""
    named = {m[1] for w in scope.withs for m in _NAMED.finditer(w)}
    used = {t.name for text in (query.select, query.prewhere, query.where, query.tail) for t in read(text).tokens}
    if found := sorted(n for n in named & used if n is not None):
        raise UnsupportedStatement(
            f"the SELECT that WITH calls {found[0]} cannot be used within a SELECT over the shards of "
            f"{query.database}.{query.table}: write it there instead of its name"
        )


def _with(scope: Scope, text: str) -> str:
    """A SELECT with the WITH clauses of those around it."""
    own = scope.body("WITH")
    around = [w for w in scope.withs if w != own] if own else list(scope.withs)
    if not around:
        return text
    return f"WITH {', '.join(around)}, {text[4:]}" if own else f"WITH {', '.join(around)} {text}"


def _same_but(names: Sequence[str], sets: Sequence[Mapping[str, Any]]) -> bool:
    """Whether sets of parameters differ in these alone, and in none of these by their length."""
    first = {n: v for n, v in sets[0].items() if n not in names}
    for given in sets:
        if given.keys() != sets[0].keys() or any(repr(given[n]) != repr(v) for n, v in first.items()):
            return False
        if any(not isinstance(given[n], np.ndarray) or given[n].shape != sets[0][n].shape for n in names):
            return False
        if not all(np.isfinite(given[n]).all() for n in names):
            return False
    return True


def _is_argument(scope: Scope) -> bool:
    """Whether a SELECT in brackets is an argument of a distance."""
    first, last, tokens = scope.whole.first, scope.whole.last, scope.tokens
    if first < 3 or last >= len(tokens) or tokens[first - 1].text != "(" or tokens[last].text != ")":
        return False
    depth, at = 0, first - 2
    while at > 0:
        if tokens[at].text in (")", "]"):
            depth += 1
        elif tokens[at].text in ("(", "["):
            if depth == 0:
                return metric_named(tokens[at - 1].text) is not None and tokens[at - 1].kind == "word"
            depth -= 1
        at -= 1
    return False


def _qualifies(scope: Scope, at: int, shape: Shape) -> bool:
    """Whether `database.table.` of a column stands here."""
    if at and scope.tokens[at - 1].text == ".":
        return False
    words = scope.tokens[at : at + 4]
    names = (words[0].name, words[1].text, words[2].name, words[3].text)
    return names == (shape.database, ".", shape.name, ".")
