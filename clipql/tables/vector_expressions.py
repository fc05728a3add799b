"""Expressions over vector columns, as definitions of the physical table have them: by the number of the row.

    clip_score Float32 DEFAULT 1 - cosineDistance(image_embedding, text_embedding)
    clip_score Float32 DEFAULT 1 - ifNull(_clipql_vector_number('cosineDistance t-1/column-0 t-1/column-1', _row), nan)

ClickHouse computes such a column as rows come in, when their vectors are there already, and keeps it. What must stay
true: it is in every part of the table, as merges run where the functions of Python are not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError, UnsupportedStatement
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching
from clipql.syntax.names import FunctionCall, calls_in, lambda_arguments
from clipql.syntax.reading import read
from clipql.tables.computed import OF_ONE, name_of
from clipql.tables.registry import FUNCTION, INTERNAL, NUMBERS, ROW, Registry

_DEFAULTS = {"DEFAULT", "MATERIALIZED"}
# what may follow the expression of a column
_AFTER = {"COMMENT", "CODEC", "TTL", "STATISTICS", "SETTINGS", "PRIMARY", "AFTER", "FIRST"}


def vector_read(table: Table, column: VectorColumn) -> str:
    """The vector of a row, as an Array(Float32)."""
    handle = quote_string(f"{table.id}/{column.folder}")
    return f"reinterpret(assumeNotNull({FUNCTION}({handle}, {ROW})), 'Array(Float32)')"


def looked_up(function: str, handles: Sequence[str], qualifier: str) -> str:
    """A number of the vectors of a row. qualifier: of the row's number, with its dot."""
    kind = OF_ONE.get(function, "Float32")
    text = f"{NUMBERS[kind]}({quote_string(name_of(function, handles))}, {qualifier}{ROW})"
    if kind == "UInt64":
        return f"assumeNotNull({text})"
    return f"ifNull({text}, to{kind}(nan))"  # chDB takes the NaN of a function of Python for NULL


def by_row(engine: Engine, table: Table, text: str) -> str:
    """A column's definition, or a change of one, with what its DEFAULT or MATERIALIZED reads of vectors by the row.

    Raises UnsupportedStatement where a lambda gives the name of such a column to an argument.
    """
    tokens = read(text).words
    start = next((i for i, t in enumerate(tokens) if t.kind == "word" and t.upper in _DEFAULTS), len(tokens)) + 1
    end = start
    while end < len(tokens) and not (tokens[end].kind == "word" and tokens[end].upper in _AFTER):
        end = matching(tokens, end) + 1 if tokens[end].text in ("(", "[", "{") else end + 1
    if not any(t.name for t in tokens[start:end]):
        return text
    readable = _readable(engine, table)
    return edited(text, list(_edits(tokens, start, end, table, readable)))


def reading(engine: Engine, table: Table) -> list[str]:
    """The columns that ClickHouse computes from vectors and keeps."""
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)}"
    found = engine.arrow(
        f"SELECT name, default_expression AS text FROM system.columns WHERE {where} "
        "AND default_kind IN ('DEFAULT', 'MATERIALIZED')"
    ).to_pylist()
    readable = _readable(engine, table) if found else {}
    return [row["name"] for row in found if any(t.name in readable for t in read(row["text"]).tokens)]


def kept_of(engine: Engine, table: Table, names: Iterable[str]) -> list[str]:
    """The MATERIALIZED columns that are computed from vector columns of these names, also by way of other columns, each
    after those that it reads. ClickHouse's UPDATE computes just these anew: a DEFAULT column keeps its values.
    """
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)}"
    found = engine.arrow(
        f"SELECT name, default_kind AS kind, default_expression AS text FROM system.columns WHERE {where} "
        "AND default_kind IN ('MATERIALIZED', 'ALIAS') ORDER BY position"
    ).to_pylist()
    reads = {row["name"]: {t.name for t in read(row["text"]).tokens} for row in found}
    changed, reached = set(names), set[str]()
    while more := {name for name, read_by in reads.items() if read_by & (changed | reached)} - reached:
        reached |= more
    order: list[str] = []
    while left := [name for name in reads if name in reached and name not in order]:
        order += [name for name in left if not reads[name] & (set(left) - {name})] or left
    kinds = {row["name"]: row["kind"] for row in found}
    return [name for name in order if kinds[name] == "MATERIALIZED"]


def check_kept(registry: Registry, table: Table, names: Sequence[str]) -> None:
    """Have ClickHouse compute such columns for all rows and keep nothing. Raises QueryError where it cannot, and
    UnsupportedStatement where they say in which partition a row is.
    """
    where = f"database = {quote_string(table.database)} AND table = {quote_string(table.name)}"
    found = registry.engine.arrow(
        f"SELECT name, type, default_expression AS text, is_in_partition_key AS key FROM system.columns WHERE {where} "
        f"AND name IN ({', '.join(map(quote_string, names))})"
    ).to_pylist()
    keys = [row["name"] for row in found if row["key"]]
    if keys:
        raise UnsupportedStatement(
            f"{table.full_name} is partitioned by {', '.join(keys)}, which is computed from these vectors: INSERT the "
            "rows with other vectors, and DELETE the ones that are there"
        )
    _try_out(registry, table, [(row["text"], row["type"]) for row in found])


def check_added(registry: Registry, table: Table, name: str) -> None:
    """The same of a column that the shape has already, and the physical table not yet, if it is computed of vectors."""
    if table.rows == 0 or name not in reading(registry.engine, table):
        return
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)} AND name = {quote_string(name)}"
    row = registry.engine.arrow(
        f"SELECT type, default_expression AS text FROM system.columns WHERE {where}"
    ).to_pylist()[0]
    text = by_row(registry.engine, table, f"DEFAULT {row['text']}").removeprefix("DEFAULT ")
    try:
        _try_out(registry, table, [(text, row["type"])])
    except QueryError as error:
        raise QueryError(
            f"{name} cannot be computed for the rows that {table.full_name} has, so it was not added: {error}",
            code=error.code,
            name=error.name,
        ) from error


def _try_out(registry: Registry, table: Table, values: Sequence[tuple[str, str]]) -> None:
    casts = ", ".join(f"CAST(({text}), {quote_string(kind)})" for text, kind in values)
    # a sum of hashes, as ClickHouse leaves out what it need not know
    registry.engine.run(f"SELECT sum(cityHash64({casts})) FROM {registry.physical(table)}")


def compute_anew(registry: Registry, table: Table, names: Sequence[str]) -> None:
    """Compute MATERIALIZED columns for all rows, one after the other, as one may read another."""
    for name in names:
        registry.engine.run(
            f"ALTER TABLE {registry.physical(table)} MATERIALIZE COLUMN {quote_name(name)} SETTINGS mutations_sync = 2"
        )


def anew(engine: Engine, table: Table, name: str) -> str:
    """The change of an ALTER that computes such a column anew for all rows, as CLEAR COLUMN has it: without leaving
    parts that lack it.
    """
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)} AND name = {quote_string(name)}"
    found = engine.arrow(f"SELECT default_kind AS kind, default_expression AS text FROM system.columns WHERE {where}")
    column = found.to_pylist()[0]
    if column["kind"] == "MATERIALIZED":
        return f"MATERIALIZE COLUMN {quote_name(name)}"
    text = by_row(engine, table, f"DEFAULT {column['text']}").removeprefix("DEFAULT ")
    return f"UPDATE {quote_name(name)} = {text} WHERE 1"


def fill(registry: Registry, table: Table) -> None:
    """Have ClickHouse write the columns that it computes from vectors where parts lack them."""
    for name in reading(registry.engine, table):
        where = f"active AND database = {quote_string(table.database)} AND table = {quote_string(table.name)}"
        column = f"SELECT name FROM system.parts_columns WHERE {where} AND column = {quote_string(name)}"
        if registry.engine.scalar(f"SELECT count() FROM system.parts WHERE {where} AND name NOT IN ({column})"):
            registry.engine.run(
                f"ALTER TABLE {registry.physical(table)} MATERIALIZE COLUMN {quote_name(name)} "
                "SETTINGS mutations_sync = 2"
            )


def _readable(engine: Engine, table: Table) -> Mapping[str, str]:
    """What reads a vector by its row, by the names of columns: of vectors, and of ALIAS columns that read them."""
    found = {c.name: vector_read(table, c) for c in table.columns}
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)} AND default_kind = 'ALIAS'"
    left = engine.arrow(f"SELECT name, default_expression AS text FROM system.columns WHERE {where}").to_pylist()
    while True:  # one may read another
        ready = [row for row in left if any(t.name in found for t in read(row["text"]).tokens)]
        if not ready:
            return found
        left = [row for row in left if row not in ready]
        for row in ready:
            tokens = read(row["text"]).words
            found[row["name"]] = f"({edited(row['text'], list(_edits(tokens, 0, len(tokens), table, found)))})"


def _edits(tokens: Sequence[Token], first: int, last: int, table: Table, readable: Mapping[str, str]) -> Iterator[Edit]:
    hidden = lambda_arguments(tokens, first, last) & set(readable)
    if hidden:
        raise UnsupportedStatement(
            f"{', '.join(sorted(hidden))} names a column of vectors and an argument of a lambda in one expression: "
            "use another name for the argument"
        )
    done = first
    calls = {c.at: c for c in calls_in(tokens, first, last)}
    for at in range(first, last):
        if at < done:
            continue
        number = _number(tokens, calls[at], table) if at in calls else None
        if number:
            done = calls[at].close + 1
            yield tokens[at].start, tokens[done - 1].end, number
        elif tokens[at].name in readable and at not in calls and not (at > first and tokens[at - 1].text == "."):
            yield tokens[at].start, tokens[at].end, readable[tokens[at].name or ""]


def _number(tokens: Sequence[Token], call: FunctionCall, table: Table) -> str | None:
    """What looks up a number that is computed in blocks: a distance of two columns, or a function of one."""
    columns = [table.column(tokens[a].name or "") if b - a == 1 else None for a, b in call.arguments]
    named = [c for c in columns if c]
    metric = metric_named(call.name)
    function = metric.value if metric else call.name if call.name in OF_ONE else None
    if function is None or not call.closed or len(named) < len(columns) or len(named) != (2 if metric else 1):
        return None
    return looked_up(function, [f"{table.id}/{c.folder}" for c in named], "")
