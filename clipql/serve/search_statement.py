"""The SQL of a search that was asked for: what it says is what is run.

Nothing here runs anything. What must stay true: names are quoted, values are parameters; what is shown gives the rows
shown, alone; pages neither overlap nor skip; the guard sees the statement all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine.quoting import quote_name, quote_string
from clipql.serve.column_roles import ColumnRoles, kind
from clipql.serve.search_request import Score, Search, Term, where_sql, wrong
from clipql.sql.hybrid import Hybrid, words_column
from clipql.sql.hybrid import statement as fused
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import ROW

MOST_LISTED = 1_000  # rows that a condition lists which come as listed: each that is found is looked for in the list
_LISTED = re.compile(rf"{ROW} IN \(([0-9]{{1,19}}(?:, ?[0-9]{{1,19}}){{1,{MOST_LISTED - 1}}})\)")


@dataclass(frozen=True)
class Statement:
    """sql runs with `params` as it stands; shown is the same with encode_text('…') in the place of their vectors."""

    sql: str
    shown: str
    params: Mapping[str, Any]
    shown_params: Mapping[str, Any]


def mixed(vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """The weighted sum of unit vectors; a single one of weight 1 is itself."""
    if len(vectors) == 1 and weights[0] == 1:
        return vectors[0]
    total = np.zeros(len(vectors[0]), np.float64)
    for vector, weight in zip(vectors, weights, strict=True):
        if len(vector) != len(total):
            raise wrong(f"the terms' vectors have {len(total)} and {len(vector)} numbers")
        length = float(np.linalg.norm(vector))
        total += weight * (vector.astype(np.float64) / length if length else vector)
    return total.astype(np.float32)


def statement(
    search: Search,
    table: Table,
    column: VectorColumn,
    roles: ColumnRoles,
    vector: NDArray[np.float32] | None,
    *,
    download: bool = False,
    without: Sequence[int] = (),
) -> Statement:
    """The SQL of a search by a vector, or of a walk through the table where there is none.

    download: for a file, without the row's number and a row more. without: numbers of rows that are left out.
    """
    listed = list(roles.plain if search.columns is None else search.columns)
    for name in listed:
        if name not in roles.types:
            raise wrong(f"{table.full_name} has no column {name[:60]}; it has {', '.join(roles.types)}")
    shown_query, shown_params = expression(search.terms, table, column, search.model)
    source = f"{quote_name(table.database)}.{quote_name(table.name)}"
    left_out = f"{ROW} NOT IN ({', '.join(map(str, without))})" if without else None
    where = where_sql(search.where, roles.safe if search.safe else None, left_out)
    settings = [f"recall = {search.recall}"] if search.recall is not None else []
    settings += ["vector_index = 0"] if search.exact else []
    tail = f" SETTINGS {', '.join(settings)}" if settings else ""
    first = 0 if search.fold is not None else search.offset
    count = search.k + (0 if download else 1) + (search.offset - first) - len(without)
    offset = f" OFFSET {first}" if first else ""
    row = [] if download else [ROW]
    score = _scored(search.score, table, roles) if search.score else None

    def made(query: str, *, plain: bool) -> str:
        names = [quote_name(c) for c in listed] + ([] if plain else row)
        # what is shown gives the rows shown; what is run, one more, which tells whether there are more
        limit = f" LIMIT {search.k + search.offset - first if plain else count}{offset}"
        if vector is not None and search.hybrid:
            words = quote_string(search.terms[0].text or "") if plain else "{words:String}"
            only = where.removeprefix(" WHERE ")
            return _hybrid(search, table, column, roles, query, words, names, only) + limit + tail
        if vector is None:
            order = f"{score}, {ROW}" if score else _walk(search)
            return f"SELECT {', '.join(names) or ROW} FROM {source}{where} ORDER BY {order}{limit}{tail}"
        distance = f"cosineDistance({quote_name(column.name)}, {query}) AS distance"
        order = f"distance {score}, {ROW}" if score else "distance"
        return f"SELECT {', '.join([*names, distance])} FROM {source}{where} ORDER BY {order}{limit}{tail}"

    params: dict[str, Any] = {} if vector is None else {"query": vector}
    if search.hybrid:
        params["words"] = search.terms[0].text
    return Statement(made("{query:Array(Float32)}", plain=False), made(shown_query, plain=True), params, shown_params)


def _scored(score: Score, table: Table, roles: ColumnRoles) -> str:
    """What the distance is less: a column's numbers, weighed. In ClickHouse's order NaN and NULL are last."""
    numbers = [n for n in roles.plain if kind(roles.types[n]) == "number"]
    if score.column not in numbers:
        raise wrong(f"score: {score.column[:60]!r} is no column of numbers; {', '.join(numbers) or 'none'} are")
    name = quote_name(score.column)
    if score.column == "distance":  # which alone means that of the vectors
        name = f"{quote_name(table.name)}.{name}"
    return f"{'-' if score.weight >= 0 else '+'} {abs(score.weight)!r} * toFloat64({name})"


def _walk(search: Search) -> str:
    """What a walk through a table goes by: rows that a condition lists by number, not too many, come as listed."""
    listed = next((found[1] for c in search.where if (found := _LISTED.fullmatch(c.strip()))), None)
    return ROW if listed is None else f"indexOf([{listed}], {ROW})"


def _hybrid(
    search: Search,
    table: Table,
    column: VectorColumn,
    roles: ColumnRoles,
    query: str,
    words: str,
    names: Sequence[str],
    where: str,
) -> str:
    """A search by meaning and by words, without its LIMIT. names: quoted columns; query, words: SQL."""
    source = f"{quote_name(table.database)}.{quote_name(table.name)}"
    worded = words_column([roles.caption] if roles.caption else [], roles.plain, search.words)
    distance = f"cosineDistance({quote_name(column.name)}, {query})"
    # pages within the same hundred are of one ranking
    depth = -(-(search.offset + search.k + 1) // 100) * 100
    way = Hybrid(source, names, distance, False, f"bm25({quote_name(worded)}, {words})", where, depth)
    return fused(way)


def expression(
    terms: Sequence[Term], table: Table, column: VectorColumn, model: str | None = None
) -> tuple[str, dict[str, Any]]:
    """A search's terms as SQL, and the parameters that it names. model: the one that was asked for."""
    by = f", {quote_string(model)}" if model else ""
    parts: list[str] = []
    params: dict[str, Any] = {}
    source = f"{quote_name(table.database)}.{quote_name(table.name)}"
    for term in terms:
        if term.text is not None:
            text = f"encode_text({quote_string(term.text)}{by})"
        elif term.row is not None:
            text = f"(SELECT {quote_name(column.name)} FROM {source} WHERE {ROW} = {term.row})"
        else:
            name = f"vector{len(params)}" if term.vector is not None else f"picture{len(params)}"
            params[name] = [] if term.vector is None else term.vector
            text = f"{{{name}:Array(Float32)}}"
        if len(terms) == 1 and term.weight == 1:
            return text, params
        sign = "-" if term.weight < 0 else "+"
        weight = abs(term.weight)
        text = text if weight == 1 else f"arrayMap(x -> x * {weight:g}, {text})"
        parts.append(f"{sign} {text}" if parts else (text if sign == "+" else f"arrayMap(x -> -x, {text})"))
    return " ".join(parts), params
