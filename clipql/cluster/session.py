"""Statements over sharded tables: SELECTs are split, CREATE and DROP go to the coordinator, others are refused by name.

What is not about a sharded table runs in the database that merges, as it would in any.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import pyarrow as pa

from clipql.cluster.partial_query import PartialQuery
from clipql.cluster.placeholder import Shape
from clipql.cluster.scatter_gather import Rewritten, ScatterGather
from clipql.encode.service import Encoders
from clipql.engine.arrays import with_numbers
from clipql.engine.output import Output
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import UnsupportedStatement
from clipql.index import definition
from clipql.sql.planning.outputs import Progress, Sink
from clipql.sql.planning.prepared import Asked
from clipql.sql.planning.work import Step
from clipql.sql.recognition import settings
from clipql.sql.recognition.encode_calls import Encoding
from clipql.sql.session import Answer, Session
from clipql.storage.catalog import Table
from clipql.syntax.reading import read, select_of
from clipql.syntax.spelling import respelled
from clipql.syntax.statements import CreateTable, Explain, Insert, OnDatabase, OnTable, Select, Set, TableName
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

# settings that cut a result short: they hold for the answer, not for what a shard gives
_CUTS = {"limit", "offset", "max_result_rows", "max_result_bytes", "result_overflow_mode"}


class Cluster(Protocol):
    """What a session needs of the cluster."""

    scatter_gather: ScatterGather

    def pinned(self) -> AbstractContextManager[None]:
        """Have all SELECTs of a statement see one map."""

    def shape(self, database: str | None, name: str) -> Shape | None:
        """A sharded table as statements may use it."""

    def shapes(self) -> tuple[Shape, ...]:
        """All of them."""

    def definition(self, shape: Shape) -> str:
        """CREATE TABLE of it."""

    def ranked(self, query: PartialQuery) -> list[str]:
        """Which lists of indexes are ranked here for a partial query, in words."""

    def listing(self) -> pa.Table:
        """All indexes of all replicas, for `clipql.indexes`."""

    def create(self, database: str, name: str, definition: str) -> None:
        """Make a table on every shard."""

    def alter(self, shape: Shape, statement: str, index: str, there: bool, lenient: bool) -> None:
        """Add an index to a table on every shard, or drop it. lenient: where it is so already, that is no error."""

    def add_column(self, shape: Shape, statement: str, column: str, lenient: bool) -> None:
        """Add a column of vectors to a table on every shard. lenient: where it is there, that is no error."""

    def build(self, shape: Shape, index: str) -> None:
        """Build an index on every shard."""

    def drop(self, database: str, name: str) -> None:
        """Drop a table on every shard, whatever is wrong with it."""

    def is_broken(self, database: str | None, name: str) -> bool:
        """Whether the shards of a table do not fit together, so that it can only be dropped."""


class ClusterSession(Session):
    """Statements of one user over sharded tables."""

    def __init__(self, cluster: Cluster, registry: Registry, indexes: Indexes, encoders: Encoders) -> None:
        super().__init__(registry, indexes, encoders)
        self._cluster, self._told = cluster, threading.local()
        self._encoding = Encoding(registry.engine, encoders, self._find, lambda: [s.table for s in cluster.shapes()])

    def _find(self, database: str | None, name: str) -> Table | None:
        shape = self._cluster.shape(database, name)
        return shape.table if shape else None

    def _execute(
        self,
        sql: str,
        params: Mapping[str, Any] | None,
        format: str,
        progress: Progress | None,
        sink: Sink | None,
        asked: Asked | None = None,
    ) -> Answer:
        self._told.shards = None
        statement = read(sql).kind
        if isinstance(statement, Insert) and self._named(statement.table):
            self._refuse("INSERT", self._named(statement.table), "rows come in as parts: clipql ingest")
        if isinstance(statement, CreateTable) and self._is_ours(sql, statement):
            return Answer(self._create(sql, statement), format, 0.0)
        if isinstance(statement, OnTable) and statement.verb == "DROP" and len(statement.tables) == 1:
            name = statement.tables[0]
            if self._cluster.is_broken(name.database, name.name):
                self._cluster.drop(name.database or self._registry.database, name.name)
                return Answer(Output(), format, 0.0)
        if isinstance(statement, OnTable) and (shape := self._first_of(statement)) is not None:
            return self._on_table(sql, statement, shape, params, format)
        if isinstance(statement, OnDatabase) and any(s.database == statement.database for s in self._cluster.shapes()):
            raise UnsupportedStatement(f"{statement.verb} DATABASE {statement.database}: drop its sharded tables first")
        answer = super()._execute(sql, params, format, progress, sink, asked)
        return replace(answer, shards=self._told.shards)

    def _named(self, name: TableName) -> Shape | None:
        return self._cluster.shape(name.database, name.name)

    def _first_of(self, statement: OnTable) -> Shape | None:
        return next((s for t in statement.tables if (s := self._named(t)) is not None), None)

    @staticmethod
    def _refuse(what: str, shape: Shape | None, instead: str) -> None:
        raise UnsupportedStatement(f"{what} on the shards of {shape.full_name if shape else 'a table'}: {instead}")

    # definitions

    def _is_ours(self, sql: str, statement: CreateTable) -> bool:
        temporary = any(t.upper in ("TEMPORARY", "TEMP") for t in read(sql).words[:5])
        return not temporary and (statement.table.database or self._registry.database) != "system"

    def _create(self, sql: str, statement: CreateTable) -> Output:
        if statement.select is not None or statement.like is not None or statement.or_replace:
            raise UnsupportedStatement("CREATE TABLE over shards names its columns: without AS, CLONE and OR REPLACE")
        if "Array(Float32)" not in sql.replace(" ", ""):
            raise UnsupportedStatement(
                "only tables with vector columns, Array(Float32), are sharded; CREATE TEMPORARY TABLE makes one here"
            )
        database = statement.table.database or self._registry.database
        if self._named(statement.table) and statement.if_not_exists:
            return Output()
        name = statement.table
        whole = f"{quote_name(database)}.{quote_name(name.name)}"
        self._cluster.create(database, name.name, f"{sql[: name.start]}{whole}{sql[name.end :]}")
        return Output()

    def _on_table(
        self, sql: str, statement: OnTable, shape: Shape, params: Mapping[str, Any] | None, format: str
    ) -> Answer:
        if statement.verb in ("DROP", "DESCRIBE") and len(statement.tables) == 1:
            if statement.verb == "DROP":
                self._cluster.drop(shape.database, shape.name)
                return Answer(Output(), format, 0.0)
            return super()._execute(sql, params, format, None, None)
        if statement.verb == "ALTER" and (change := index_change(sql, statement)) is not None:
            verb, index, lenient = change
            if verb == "MATERIALIZE":
                self._cluster.build(shape, index)
            else:
                if verb == "ADD" and not _is_vector_index(sql, statement):
                    self._refuse("an index of ClickHouse's own", shape, "only vector indexes are added to it")
                text = _named_whole(sql, statement, shape)
                self._cluster.alter(shape, text, index, verb == "ADD", lenient)
            return Answer(Output(), format, 0.0)
        if statement.verb == "ALTER" and (added := added_vectors(sql, statement)) is not None:
            self._cluster.add_column(shape, _named_whole(sql, statement, shape), *added)
            return Answer(Output(), format, 0.0)
        if statement.verb == "SHOW CREATE":
            given = {"clipql_definition": self._cluster.definition(shape)}
            return super()._execute("SELECT {clipql_definition:String} AS statement", given, format, None, None)
        done = "a sharded table is made, filled by clipql ingest, given vector columns and indexes, read and dropped"
        self._refuse(statement.verb, shape, done)
        raise AssertionError

    # reading

    def _listed(self, sql: str) -> tuple[str, dict[str, pa.Table]]:
        text, tables = super()._listed(sql)
        return text, {name: self._cluster.listing() for name in tables}

    def _read(
        self,
        sql: str,
        statement: Select | Explain,
        params: Mapping[str, Any],
        format: str,
        progress: Progress | None,
        sink: Sink | None,
        asked: Asked | None = None,
    ) -> tuple[Output, tuple[Step, ...]]:
        text, own = settings.taken_from(statement.query if isinstance(statement, Explain) else sql)
        if not self._cluster.scatter_gather.concerns(text):
            return super()._read(sql, statement, params, format, progress, sink, asked)
        ours = {n: settings.checked(n, v) for n, v in {**self.settings, **own}.items()}
        inner = select_of(text) if isinstance(statement, Explain) else text
        encoded = self._encoding.replace(inner, params, rows=False)
        if isinstance(statement, Explain):
            table = pa.table({"explain": self._described(encoded.sql, encoded.params, ours)})
            shown = self._engine.query("SELECT explain FROM Python(lines)", format, tables={"lines": table}, user=True)
            return shown, ()
        merging = self._cluster.scatter_gather.rewritten(encoded.sql, encoded.params, ours, self._kept())
        with self._cluster.pinned(), merging as rewritten:
            self._told.shards = _answered(rewritten)
            return super()._read(rewritten.sql, Select(), rewritten.params, format, progress, sink)

    def many(self, sql: str, params: Sequence[Mapping[str, Any]]) -> list[pa.Table] | None:
        """One SELECT for each set of parameters as one batch; None where it has to go one by one."""
        sql = respelled(sql, self._defined)
        statement = read(sql).kind
        text, own = settings.taken_from(sql)
        if not isinstance(statement, Select) or settings.take_format(sql)[1] or not params:
            return None
        ours = {n: settings.checked(n, v) for n, v in {**self.settings, **own}.items()}
        given = [{**self.params, **with_numbers(text, each)} for each in params]
        encoded = [self._encoding.replace(text, each, rows=False) for each in given]
        if len({e.sql for e in encoded}) > 1:
            return None
        return self._cluster.scatter_gather.many(encoded[0].sql, [e.params for e in encoded], ours, self._kept())

    def _kept(self) -> tuple[str, ...]:
        """The SETs of whoever acts that hold on the shards too."""
        acting = self._engine.acting
        kept = []
        for text in acting.user.statements:
            statement = read(text).kind
            given = statement.assignments if isinstance(statement, Set) else ()
            kept += [f"SET {name} = {value}" for name, value in given if _holds(name)]
        return (*kept, *(f"SET {n} = {quote_string(v)}" for n, v in acting.settings.items() if _holds(n)))

    def _described(self, sql: str, params: Mapping[str, Any], ours: Mapping[str, str]) -> list[str]:
        lines = []
        for split in self._cluster.scatter_gather.plans(sql, params):
            query = split.query
            shape = self._cluster.shape(query.database, query.table)
            lines.append(f"{split.kind} of {shape.full_name if shape else query.table}: {split.why}")
            lines.append(f"  each shard: SELECT {query.select} … {query.tail}".rstrip())
            lines += [f"  {told}" for told in self._cluster.ranked(replace(query, settings=ours))]
            lines.append(f"  over all: {split.final}")
        return lines


def _holds(setting: str) -> bool:
    """Whether a setting holds on the shards: not what cuts a result short, nor how it is written."""
    return setting not in _CUTS and not setting.startswith(("output_format_", "format_"))


def index_change(sql: str, statement: OnTable) -> tuple[str, str, bool] | None:
    """ADD, DROP or MATERIALIZE, the name of the one index that an ALTER TABLE is about, and whether IF [NOT] EXISTS is
    said; None for any other.
    """
    tokens = [t for t in read(sql).words if t.start >= statement.tables[0].end]
    words = [t.upper for t in tokens]
    if len(words) < 3 or words[0] not in ("ADD", "DROP", "MATERIALIZE") or words[1] != "INDEX":
        return None
    at = 2
    while at < len(words) - 1 and words[at] in ("IF", "NOT", "EXISTS"):
        at += 1
    depth = 0
    for token in tokens:
        depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
        if token.text == "," and depth == 0:  # another change after it
            return None
    name = tokens[at].name
    return (words[0], name, at > 2) if name is not None else None


def added_vectors(sql: str, statement: OnTable) -> tuple[str, bool] | None:
    """The name of the one vector column that an ALTER TABLE adds, and whether IF NOT EXISTS is said; None for any other
    change.
    """
    tokens = [t for t in read(sql).words if t.start >= statement.tables[0].end]
    words = [t.upper or t.text for t in tokens]
    at = 5 if words[2:5] == ["IF", "NOT", "EXISTS"] else 2
    place = words[at + 5 :]
    anywhere = not place or place == ["FIRST"] or (place[0] == "AFTER" and len(place) == 2)
    if words[:2] != ["ADD", "COLUMN"] or words[at + 1 : at + 5] != ["ARRAY", "(", "FLOAT32", ")"] or not anywhere:
        return None
    name = tokens[at].name
    return (name, at > 2) if name is not None else None


def _is_vector_index(sql: str, statement: OnTable) -> bool:
    tokens = [t for t in read(sql).words if t.start >= statement.tables[0].end]
    first = next(i for i in range(2, len(tokens)) if tokens[i].upper not in ("IF", "NOT", "EXISTS"))
    return definition.read(tokens, first, len(tokens), sql) is not None


def _named_whole(sql: str, statement: OnTable, shape: Shape) -> str:
    """The statement with its table's database, as a replica has it."""
    name = statement.tables[0]
    return f"{sql[: name.start]}{quote_name(shape.database)}.{quote_name(shape.name)}{sql[name.end :]}"


def _answered(rewritten: Rewritten) -> str | None:
    """How many shards answered, of the SELECT that fewest did for."""
    fewest = min(rewritten.gathered, key=lambda a: a.answered / a.shards, default=None)
    return f"{fewest.answered}/{fewest.shards}" if fewest else None
