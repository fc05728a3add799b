"""The rule for `nearAny(column, (SELECT v FROM t), metric, bound)`: is a row nearer than a bound to any?

    DELETE FROM laion WHERE nearAny(image_embedding, (SELECT v FROM evals), 'cosineDistance', 0.1)
    … WHERE _row IN (SELECT a._row FROM laion AS a JOIN evals AS b ON cosineDistance(a.image_embedding, b.v) < 0.1)

It is written out as a range join, which `range_joins.py` plans. What must stay true: it is written out wherever it
stands, planned or not, as ClickHouse has no such function.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql.recognition.calls import Source, column_named, find_sources
from clipql.storage.catalog import Table
from clipql.storage.vectors.metrics import metric_spelled
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token
from clipql.syntax.names import FunctionCall, calls_in
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.registry import ROW, Registry

NAME = "nearAny"
_NEAR, _ANY = "clipql_near", "clipql_any"
_USE = "expected nearAny(vector column, (SELECT column FROM table), 'cosineDistance', largest distance)"


def written_out(sql: str, registry: Registry, changed: Table | None = None) -> str:
    """The statement without calls of nearAny. changed: the table of an UPDATE or DELETE.

    Raises QueryError where one is not understood.
    """
    if NAME.lower() not in sql.lower():
        return sql
    while True:
        tokens = read(sql).tokens
        calls = [c for c in calls_in(tokens, 0, len(tokens)) if c.name == NAME]
        if not calls:
            return sql
        sql = edited(sql, [_edit(sql, tokens, calls[-1], registry, changed)])  # inner ones first


def _edit(sql: str, tokens: Sequence[Token], call: FunctionCall, registry: Registry, changed: Table | None) -> Edit:
    around = [s for s in read(sql).selects if s.whole.first <= call.at < s.whole.last]
    if around:
        sources, joined = find_sources(around[-1], registry.find)
    else:
        sources, joined = ([Source(changed, changed.name)] if changed else []), False
    if len(call.arguments) != 4 or not call.closed:
        raise QueryError(f"{NAME} has {len(call.arguments)} arguments; {_USE}")
    column, vectors, metric_at, bound = call.arguments
    known = column_named(tokens, *column, sources, joined, frozenset())
    if known is None:
        said = sql[tokens[column[0]].start : tokens[column[1] - 1].end]
        raise QueryError(f"{NAME}: {said} is not plainly a vector column of a table that is read here; {_USE}")
    metric = metric_spelled(tokens[metric_at[0]].said) if tokens[metric_at[0]].kind == "string" else None
    if metric is None:
        raise QueryError(f"{NAME}: {tokens[metric_at[0]].text[:40]} is no distance; {_USE}")
    inner = _inner(sql, vectors)
    if inner is None:
        raise QueryError(f"{NAME}: the second argument is not a SELECT in brackets of one column; {_USE}")
    source, item, where = inner
    table = next(s.table for s in sources if s.qualifier == known[1])
    sign = ">" if metric.larger_is_nearer else "<"
    row = f"{quote_name(known[1])}.{ROW}" if around else ROW
    text = (
        f"{row} IN (SELECT {_NEAR}.{ROW} FROM {registry.physical(table)} AS {_NEAR} "
        f"JOIN {source} AS {_ANY} ON {metric.value}({_NEAR}.{quote_name(known[0])}, {_ANY}.{item}) {sign} "
        f"{sql[tokens[bound[0]].start : tokens[bound[1] - 1].end]}{where})"
    )
    return (
        tokens[call.at].start,
        tokens[call.close].end,
        text if around else text.replace(f"{quote_name(known[1])}.", "", 1),
    )


def _inner(sql: str, place: tuple[int, int]) -> tuple[str, str, str] | None:
    """What the SELECT of the vectors reads, the column it gives, and the WHERE that chooses its rows."""
    first, last = place
    scope = next((s for s in read(sql).selects if s.whole.first == first + 1 and s.whole.last == last - 1), None)
    items = scope.items("SELECT") if scope else []
    if scope is None or len(items) != 1:
        return None
    tokens, (a, b) = scope.tokens, items[0]
    name = tokens[b - 1].name
    if set(scope.clauses) <= {"SELECT", "FROM", "WHERE"} and scope.sources.alone and name and _is_plain(scope, a, b):
        entry = scope.sources.entries[0]
        if entry.kind == "table" and not entry.modified and entry.last == scope.clauses["FROM"].last:
            table = scope.text_of(entry.first, entry.first + (3 if entry.database is not None else 1))
            where = ""
            if "WHERE" in scope.clauses:
                rows = f"(SELECT {ROW} FROM {scope.body('FROM')} WHERE {scope.body('WHERE')})"
                where = f" WHERE {_ANY}.{ROW} IN {rows}"
            return table, quote_name(name), where
    return (
        f"(SELECT {_ANY}.1 AS v FROM (SELECT tuple(*) AS {_ANY} FROM ({scope.text_of(first + 1, last - 1)})))",
        "v",
        "",
    )


def _is_plain(scope: Scope, first: int, last: int) -> bool:
    """Whether an item is a column, by its name alone or with its table's."""
    return last - first == 1 or (last - first == 3 and scope.tokens[first + 1].text == ".")
