"""INSERT into a table with vector columns: whatever its source, rows come as Arrow blocks, vectors apart.

A block's vectors go to the segments and its other columns to MergeTree, under the same row numbers, in one commit.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from clipql.encode.names import canonical
from clipql.encode.service import Batch
from clipql.engine.arrow import numpy_numbers
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError, VectorError
from clipql.sql.inserts import staging
from clipql.sql.inserts.native_vectors import NUMBERS, Apart, Matrices, taken_apart
from clipql.sql.numbers.rowwise import LAZY
from clipql.sql.planning.outputs import Progress
from clipql.sql.planning.planner import Planner
from clipql.sql.recognition.passed_on import check_models, passed_on
from clipql.storage.catalog import Table
from clipql.storage.vectors.heads import Head
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.syntax.statements import Insert
from clipql.tables import shape
from clipql.tables.list_columns import as_matrix, check_there
from clipql.tables.registry import INTERNAL, ROW, Registry
from clipql.tables.vector_expressions import reading
from clipql.tables.writer import Insertion

# numpy 2 writes its scalars so, and pandas writes lists of them into CSV files
_NUMPY_SCALAR = "np\\.float(16|32|64)\\(([^)]*)\\)"
# np.float16(0.0675) stands for the float16 nearest to it, 0.0675049: eleven significant bits, 2^-24 at the least
_TO_HALF = (
    "arrayMap((x, step) -> round(x / step) * step, {0}, "
    "arrayMap(x -> exp2(greatest(floor(log2(abs(x))), -14) - 10), {0}))"
)
# ClickHouse would take the blanks at the end of a CSV file's unquoted text away
_VERBATIM = "input_format_csv_trim_whitespaces"


@dataclass(frozen=True)
class _Source:
    """Queries, one after the other, whose columns are the table's by position.

    stored: for a vector column whose vectors another table already stores, that table and column; the query then
    gives the row number in its place. apart: for one whose vectors came apart, those, by such numbers. batches,
    heads: what its rows will ask for, held until they have.
    """

    queries: tuple[str, ...]
    names: tuple[str, ...]
    params: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    stored: Mapping[str, tuple[Table, str]]
    batches: tuple[Batch, ...] = ()
    heads: tuple[Head, ...] = ()
    apart: Mapping[str, Matrices] = field(default_factory=dict)


def insert(
    registry: Registry,
    planner: Planner,
    table: Table,
    sql: str,
    statement: Insert,
    params: Mapping[str, Any],
    progress: Progress | None = None,
) -> int:
    """Carry the statement out and return the number of rows. Raises VectorError or QueryError; then nothing changed.

    progress: told what its SELECT has read and the table has taken, as ClickHouse tells of its own.
    """
    table = registry.current(table)
    names, types = _filled(registry, table, statement)
    if statement.source == "SELECT":
        given = passed_on(sql[statement.body :], registry.find, partial(star, registry))
        origins = {names[at]: o for at, o in given.items() if at < len(names) and table.column(names[at])}
        check_models(table, origins, canonical)
        source = _from_select(registry, planner, table, sql[statement.body :], names, types, params)
        fresh = {c.name for c in table.columns if c.rows == c.absent}
        models = {name: c.model for name, (_, c) in origins.items() if c.model and name in fresh}
        return _store(registry, table, source, models, progress)
    infile = _from_infile(registry, table, sql, statement, names, types) if statement.source == "INFILE" else None
    if infile:
        return _store(registry, table, infile, progress=progress)
    body = sql[statement.body :]
    if statement.source == "VALUES":
        body = planner.encoding.written_out(body, params)
    return _staged(registry, table, body, statement, names, params)


def load(registry: Registry, table: Table, statement: Insert, format: str, data: Iterable[bytes]) -> int:
    """Carry out `INSERT … FORMAT name` whose data comes apart, in pieces, and return the number of rows.

    Raises VectorError or QueryError; then nothing changed.
    """
    table = registry.current(table)
    names, _ = _filled(registry, table, statement)
    if format == "Native":
        data = list(data)
        found = _vectors_apart(registry, table, statement, data)
        if found is not None:
            return _staged(registry, table, "", statement, names, {}, (format, found.pieces), found.vectors)
    return _staged(registry, table, "", statement, names, {}, (format, data))


def _vectors_apart(registry: Registry, table: Table, statement: Insert, data: Sequence[bytes]) -> Apart | None:
    """The data with the vectors apart; None where ClickHouse needs them to read the rest, or should read them."""
    names = [c.name for c in table.columns if statement.columns is None or c.name in statement.columns]
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)} AND default_kind = 'ALIAS'"
    alias = registry.engine.scalar(f"SELECT count() FROM system.columns WHERE {where}")
    if not names or alias or reading(registry.engine, table):
        return None
    return taken_apart(data, names)


def _filled(registry: Registry, table: Table, statement: Insert) -> tuple[tuple[str, ...], dict[str, str]]:
    """The columns that an INSERT fills, and the types of all columns."""
    types = dict(shape.insertable(registry.engine, table))
    names = statement.columns or tuple(types)
    for name in names:
        if name not in types:
            raise QueryError(f"{table.full_name} has no column {name} to insert into; it has {', '.join(types)}")
    for column in table.columns:
        if column.name not in names and not column.optional:
            raise VectorError(
                f"{table.full_name} needs a vector in {column.name} for each row; the INSERT names {', '.join(names)}"
            )
    return names, types


def _staged(
    registry: Registry,
    table: Table,
    body: str,
    statement: Insert,
    names: Sequence[str],
    params: Mapping[str, Any],
    data: tuple[str, Iterable[bytes]] | None = None,
    apart: Mapping[str, Matrices] | None = None,
) -> int:
    """Let ClickHouse itself read VALUES or a FORMAT, defaults included, into a table in memory of the same shape.

    apart: vectors that are not in the data, which has numbers of rows in their place.
    """
    engine = registry.engine
    later = _computed_later(registry, table, statement.columns)
    plain = not later and not apart
    numbers = dict.fromkeys(apart or (), NUMBERS)
    shape_of = (
        f"AS {registry.shape(table)}"
        if plain and data is None
        else staging.columns(engine, INTERNAL, table.id, computed=later, retyped=numbers)
    )
    with staging.stage(engine, table.id, shape_of) as stage:
        listed = "(" + ", ".join(map(quote_name, statement.columns)) + ") " if statement.columns else ""
        settings = statement.settings
        if _VERBATIM not in settings:
            settings = f"{settings}, {_VERBATIM} = 0" if settings else f"SETTINGS {_VERBATIM} = 0"
        head = f"INSERT INTO {stage} {listed}{settings}"
        if data is None:
            engine.query(f"{head} {body}", "Null", params=params, user=True)
        else:
            staging.fill(engine, stage, head, *data)
        everything = tuple(n for n, _ in shape.insertable(engine, table) if n not in later)
        select = f"SELECT {', '.join(map(quote_name, everything))} FROM {stage}"
        return _store(registry, table, _Source((select,), everything, {}, {}, {}, apart=apart or {}))


def _computed_later(registry: Registry, table: Table, given: Sequence[str] | None) -> set[str]:
    """The columns that are not given and are computed as the rows are stored, since what ClickHouse would compute here
    is something else, or an error, of a row without a vector.
    """
    if not any(c.optional for c in table.columns):
        return set()
    defaults = {name for name, _ in shape.insertable(registry.engine, table)}
    return {n for n in reading(registry.engine, table) if n not in defaults or (given and n not in given)}


def _from_select(
    registry: Registry,
    planner: Planner,
    table: Table,
    select: str,
    names: Sequence[str],
    types: Mapping[str, str],
    params: Mapping[str, Any],
) -> _Source:
    select = select.rstrip().rstrip(";")
    rewritten = planner.rewrite(select, params)
    text, by_position = _stored_vectors(registry, rewritten.sql, names)
    described = registry.engine.query(
        f"DESCRIBE TABLE ({text})", params=rewritten.params, tables=rewritten.tables, user=True
    ).arrow()
    given = described.column(0).to_pylist()
    if len(given) != len(names):
        raise QueryError(
            f"the SELECT gives {len(given)} columns ({', '.join(given)}); {table.full_name} takes {len(names)} "
            f"({', '.join(names)})"
        )
    stored = {names[at]: origin for at, origin in by_position.items() if table.column(names[at])}
    if len(set(given)) == len(given):
        wanted = {n: ("UInt64" if n in stored else types[n]) for n in names}
        casts = (
            f"CAST({quote_name(g)}, {quote_string(wanted[n])}) AS {quote_name(n)}"
            for g, n in zip(given, names, strict=True)
        )
        settings = f" SETTINGS {LAZY}" if LAZY in text else ""
        text = f"SELECT {', '.join(casts)} FROM ({text}){settings}"
    held = rewritten.batches, rewritten.heads
    return _Source((text,), tuple(names), rewritten.params, rewritten.tables, stored, *held)


def _stored_vectors(registry: Registry, select: str, names: Sequence[str]) -> tuple[str, dict[int, tuple[Table, str]]]:
    """The SELECT with row numbers in the place of vectors that it only passes on, and whose vectors they are."""
    found = read(select).selects
    outer = found[0] if found and not found[0].nested else None
    if outer is None or outer.whole.start != 0 or outer.whole.end != len(select):
        return select, {}
    entries, chosen = outer.sources.entries, outer.within("SELECT")
    if not chosen or {"GROUP", "HAVING", "LIMIT 2"} & outer.clauses.keys() or chosen[0].upper == "DISTINCT":
        return select, {}
    if len(entries) != 1 or entries[0].kind != "table" or entries[0].last < outer.clauses["FROM"].last:
        return select, {}
    entry = entries[0]
    origin = None if entry.database is None and entry.name in outer.names else registry.find(entry.database, entry.name)
    if origin is None:
        return select, {}
    paths = _item_paths(outer)
    if [text for _, text in paths] == ["*"]:  # which is in order, or it would have been spelled out
        paths = [((n,), quote_name(n)) for n, _ in shape.insertable(registry.engine, origin)]
    called = {(), (entry.called,)} | (set() if entry.alias else {(origin.database, origin.name)})
    hidden = outer.aliases.keys() | outer.inner_names
    plain = {(*before, c.name): c.name for c in origin.columns for before in called if before or c.name not in hidden}
    stored = {at: (origin, plain[path]) for at, (path, _) in enumerate(paths) if path in plain}
    items = [text for _, text in paths]
    if not stored or len(items) != len(names):
        return select, {}
    span = outer.clauses["SELECT"]
    row = f"{quote_name(entry.called)}.{ROW}"
    listed = [f"{row} AS {quote_name(f'{ROW} {at}')}" if at in stored else item for at, item in enumerate(items)]
    return select[: span.start] + ", ".join(listed) + select[span.end :], stored


def _item_paths(scope: Scope) -> list[tuple[tuple[str, ...], str]]:
    """The items of SELECT as the names that they are made of, with their texts; a list COLUMNS(a, b) is many items.

    An item that is no name has no names.
    """
    tokens, found = scope.tokens, []
    for first, last in scope.items("SELECT"):
        listed = tokens[first].upper == "COLUMNS" and last - first > 3 and matching(tokens, first + 1) == last - 1
        inside = split_list(tokens, first + 2, last - 1) if listed else [(first, last)]
        if listed and any(t.kind == "string" for t in tokens[first:last]):
            inside = [(first, last)]
        for a, b in inside:
            named = (b - a) % 2 == 1 and all(t.name if i % 2 == 0 else t.text == "." for i, t in enumerate(tokens[a:b]))
            path = tuple(t.name or "" for t in tokens[a:b:2]) if named else ()
            found.append((path, scope.text_of(a, b)))
    return found


def _from_infile(
    registry: Registry, table: Table, sql: str, statement: Insert, names: Sequence[str], types: Mapping[str, str]
) -> _Source | None:
    """FROM INFILE as a stream from disk; None where the table has defaults, which ClickHouse's own INSERT fills in."""
    tokens = read(sql[statement.body :]).tokens
    words = {t.upper: i for i, t in enumerate(tokens)}
    path = _value(tokens, 2)
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)}"
    defaults = registry.engine.scalar(f"SELECT count() FROM system.columns WHERE {where} AND default_kind != ''")
    if path is None or defaults or "SETTINGS" in words:
        return None
    compression = _value(tokens, words["COMPRESSION"] + 1) if "COMPRESSION" in words else "auto"
    if compression is None:
        return None
    files = sorted(glob.glob(path))
    if not files:
        raise QueryError(
            f"no file matches {path}, which INSERT … FROM INFILE names; paths are relative to the current folder"
        )
    kind = tokens[words["FORMAT"] + 1].text if "FORMAT" in words else "auto"
    scalars = {c.name for c in table.columns} if any(map(_has_numpy_scalars, files)) else set()
    structure = ", ".join(f"{quote_name(n)} {'String' if n in scalars else types[n]}" for n in names)
    columns = ", ".join(_numbers(n) if n in scalars else quote_name(n) for n in names)
    selects = (
        f"SELECT {columns} FROM file({quote_string(f)}, {quote_string(kind)}, {quote_string(structure)}, "
        f"{quote_string(compression)}) SETTINGS {_VERBATIM} = 0"
        for f in files
    )
    return _Source(tuple(selects), tuple(names), {}, {}, {})


def _value(tokens: Sequence[Token], at: int) -> str | None:
    """The string at a place; None where there is none."""
    value = tokens[at].value if at < len(tokens) else None
    return None if value is None else os.fsdecode(value)


def _numbers(name: str) -> str:
    """A column of text such as [np.float16(0.5), 1.0] as Array(Float32)."""
    column = quote_name(name)
    array = f"CAST(replaceRegexpAll({column}, {quote_string(_NUMPY_SCALAR)}, '\\\\2'), 'Array(Float32)')"
    half = f"CAST({_TO_HALF.format(array)}, 'Array(Float32)')"
    return f"if(position({column}, 'np.float16(') > 0, {half}, {array}) AS {column}"


def _has_numpy_scalars(path: str) -> bool:
    with open(path, "rb") as file:
        return b"np.float" in file.read(1 << 20)


def star(registry: Registry, table: Table) -> list[str]:
    """What the star of a table stands for, where its columns are in order."""
    return [name for name, _ in shape.insertable(registry.engine, table)]


def _store(
    registry: Registry,
    table: Table,
    source: _Source,
    models: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> int:
    with Insertion(registry, table.id) as insertion:
        insertion.add_rows(_without_vectors(registry, insertion, source, progress))
        insertion.commit(models=models)
        return insertion.rows


def _without_vectors(
    registry: Registry, insertion: Insertion, source: _Source, progress: Progress | None
) -> Iterator[pa.RecordBatch]:
    """The blocks of a source without their vectors, which are handed to the insertion on the way."""
    vectors = [n for n in source.names if insertion.table.column(n)]
    others = [i for i, n in enumerate(source.names) if n not in vectors]
    row = 0

    told = (lambda read: progress({**read, "written_rows": row})) if progress else None
    stream = partial(registry.engine.stream, params=source.params, tables=source.tables, user=True, progress=told)
    for block in itertools.chain.from_iterable(map(stream, source.queries)):
        for name in vectors:
            column = block.column(source.names.index(name))
            if name in source.apart:
                at = row
                for part in source.apart[name].take(column.to_numpy(zero_copy_only=False)):
                    insertion.add_vectors(name, part, at)
                    at += len(part)
                continue
            if name in source.stored:
                origin, original = source.stored[name]
                numbers, store = numpy_numbers(column), registry.store(origin, original)
                found, there = store.take(numbers), None if store.there is None else store.there[numbers]
                if there is not None:
                    check_there(insertion.table, name, there, row)
            else:
                found, there = as_matrix(insertion.table, name, column, row)
            if len(found):
                insertion.add_vectors(name, found, row, there)
        row += block.num_rows
        if others:
            yield pa.RecordBatch.from_arrays([block.column(i) for i in others], [source.names[i] for i in others])
        else:  # a batch without columns would have no length
            yield pa.RecordBatch.from_arrays([pa.nulls(block.num_rows, pa.uint64())], [ROW])
