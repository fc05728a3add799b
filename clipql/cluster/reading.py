"""SELECTs over sharded tables: each is split, its shards are asked, and a SELECT over their rows takes its place.

Inner SELECTs come first. What must stay true: what runs in the end names no sharded table, and gives what the user's
statement means.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipql.cluster.aggregates import Aggregates
from clipql.cluster.form import normal_form
from clipql.cluster.piece import Piece, Rows, joined
from clipql.cluster.split import SOURCE, Split, split
from clipql.cluster.standin import DATABASE, Shape
from clipql.engine import Engine
from clipql.errors import UnsupportedStatement
from clipql.query.calls import find_sources
from clipql.query.lexer import tokenize
from clipql.query.scopes import Scope, scopes
from clipql.quoting import quote_name

# answers up to this size travel as a parameter of the statement, larger ones through a table in memory
INLINE_BYTES = 1 << 18
FindShape = Callable[[str | None, str], Shape | None]


@dataclass(frozen=True)
class Asked:
    """What the shards answered: their rows in the order of the shards, how many answered, how many there are."""

    rows: Sequence[Rows]
    answered: int
    shards: int


Ask = Callable[[Piece, Shape], Asked]


@dataclass
class Reading:
    """A statement without sharded tables, and what it reads instead. asked: for each SELECT over shards."""

    sql: str
    params: dict[str, Any]
    tables: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)


class Reader:
    """Rewrites statements over sharded tables. find: such a table by its name; ask: runs a piece on all its shards."""

    def __init__(self, engine: Engine, find: FindShape, ask: Ask) -> None:
        self._engine, self._find, self._ask = engine, find, ask
        self._aggregates = Aggregates(engine)
        self._names = itertools.count()

    @contextlib.contextmanager
    def rewritten(
        self, sql: str, params: Mapping[str, Any], settings: Mapping[str, str], statements: tuple[str, ...] = ()
    ) -> Iterator[Reading]:
        """The statement over what the shards answered, for as long as it may run. settings: clipql's own, for them.

        statements: ClickHouse's SETs that hold. Raises UnsupportedStatement for what cannot be split.
        """
        reading = Reading(sql, dict(params))
        try:
            while (scope := self._innermost(reading.sql)) is not None:
                self._replace(reading, scope, settings, statements)
            yield reading
        finally:
            for name in reading.tables:
                self._engine.run(f"DROP TABLE IF EXISTS {name}")

    def plans(self, sql: str, params: Mapping[str, Any]) -> list[Split]:
        """How each SELECT over shards would be split, inner ones first; nothing is asked."""
        reading = Reading(sql, dict(params))
        while (scope := self._innermost(reading.sql)) is not None:
            made, _ = self._split(reading, scope)
            reading.splits.append(made)
            nothing = f"(SELECT * FROM ({_with(scope, self._analysed(scope))}) WHERE 0)"
            reading.sql = reading.sql[: scope.whole.start] + f"SELECT * FROM {nothing}" + reading.sql[scope.whole.end :]
        return reading.splits

    def concerns(self, sql: str) -> bool:
        """Whether a statement reads a sharded table."""
        return self._innermost(sql) is not None

    def _innermost(self, sql: str) -> Scope | None:
        found = scopes(sql, tokenize(sql))
        return next((s for s in reversed(found) if self._sources(s)), None)

    def _sources(self, scope: Scope) -> bool:
        return bool(find_sources(scope, lambda d, n: shape.table if (shape := self._find(d, n)) else None)[0])

    def _replace(
        self, reading: Reading, scope: Scope, settings: Mapping[str, str], statements: tuple[str, ...]
    ) -> None:
        made, shape = self._split(reading, scope)
        piece = replace(made.piece, settings=settings, statements=statements)
        asked = self._ask(piece, shape)
        source = self._source(reading, joined(asked.rows, shape.full_name))
        final = made.final.replace(SOURCE, source, 1)
        renamed = {name: f"{name}_{len(reading.asked)}" for name in piece.params}
        for name, other in renamed.items():
            final = final.replace(f"{{{name}:", f"{{{other}:")
            reading.params[other] = piece.params[name]
        reading.asked.append(asked)
        reading.splits.append(made)
        reading.sql = reading.sql[: scope.whole.start] + final + reading.sql[scope.whole.end :]

    def _split(self, reading: Reading, scope: Scope) -> tuple[Split, Shape]:
        shape = self._shape(scope)
        form = normal_form(self._engine, _with(scope, self._analysed(scope)), reading.params)
        return split(form, self._aggregates, shape.database, shape.name), shape

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
        edits = [(tokens[span.first].start, tokens[last - 1].end, shape.analysed + alias)]
        for at in range(scope.whole.first, scope.whole.last - 4):
            if not span.first <= at < span.last and _qualifies(scope, at, shape) and not (at and tokens[at - 1].text == "."):
                edits.append((tokens[at].start, tokens[at + 2].end, quote_name(shape.name)))
        text, start = scope.text[scope.whole.start : scope.whole.end], scope.whole.start
        for a, b, new in sorted(edits, reverse=True):
            text = text[: a - start] + new + text[b - start :]
        return text

    def _source(self, reading: Reading, rows: Rows) -> str:
        number = next(self._names)
        if len(rows.body) <= INLINE_BYTES:
            name = f"clipql_rows_{number}"
            reading.params[name] = base64.b64encode(rows.data).decode()
            return f"format('RowBinaryWithNamesAndTypes', base64Decode({{{name}:String}}))"
        table = f"{DATABASE}.rows_{number}"
        columns = ", ".join(f"{quote_name(n)} {t}" for n, t in rows.columns)
        self._engine.run(f"CREATE TABLE {table} ({columns}) ENGINE = Memory")
        reading.tables.append(table)
        self._engine.insert_bytes(f"INSERT INTO {table}", "RowBinary", [rows.body])
        return table


def _with(scope: Scope, text: str) -> str:
    """A SELECT with the WITH clauses of those around it."""
    own = scope.body("WITH")
    around = [w for w in scope.withs if w != own] if own else list(scope.withs)
    if not around:
        return text
    return f"WITH {', '.join(around)}, {text[4:]}" if own else f"WITH {', '.join(around)} {text}"


def _qualifies(scope: Scope, at: int, shape: Shape) -> bool:
    """Whether `database.table.` of a column stands here."""
    words = scope.tokens[at : at + 4]
    names = (words[0].name, words[1].text, words[2].name, words[3].text)
    return names == (shape.database, ".", shape.name, ".")
