"""Statements about tables and databases: CREATE, ALTER, DROP, SHOW CREATE and their like, and DELETE.

What must stay true: a statement on a table of ours changes both halves of it or neither; any other is ClickHouse's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from clipql.engine.output import Output
from clipql.errors import QueryError, UnsupportedStatement
from clipql.index import definition
from clipql.sql.definitions.row_changes import plans, with_rows_found
from clipql.sql.definitions.safeguard import Ruling
from clipql.sql.inserts.insert import insert, star
from clipql.sql.numbers import heads
from clipql.sql.planning.explain import describe
from clipql.sql.planning.outputs import Progress
from clipql.sql.planning.planner import Planner, Rewritten
from clipql.sql.planning.work import Step
from clipql.sql.recognition.passed_on import passed_on
from clipql.sql.recognition.settings import SearchOptions
from clipql.storage.catalog import IndexEntry, Table, VectorColumn
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import split_list
from clipql.syntax.reading import read
from clipql.syntax.statements import CreateTable, Insert, OnDatabase, OnTable, TableName
from clipql.tables import rewrite, schema
from clipql.tables.index_entries import unbuilt
from clipql.tables.index_listing import statement
from clipql.tables.indexes import Indexes
from clipql.tables.registry import INTERNAL, Registry
from clipql.tables.vector_updates import changes_only_vectors

_CHANGES = ("ALTER", "DELETE", "UPDATE")  # which may concern the rows that a condition holds for
Run = Callable[[Rewritten, str, Mapping[str, Any], str, Progress | None], tuple[Output, tuple[Step, ...]]]
Fill = Callable[[Table, Callable[[], int]], int]


class Definitions:
    """Carries such statements out. fill: runs what puts rows into a table; run: runs a planned statement."""

    def __init__(self, registry: Registry, indexes: Indexes, planner: Planner, fill: Fill, run: Run) -> None:
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self._planner, self._fill, self._run = planner, fill, run

    def create(
        self, sql: str, statement: CreateTable, params: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Output, int | None]:
        """CREATE TABLE, and the rows of its SELECT; progress: told what that reads."""
        name = statement.table
        database = name.database or self._registry.database
        engine = self._engine
        here = self._registry.find(database, name.name)
        exists = bool(engine.scalar(f"EXISTS TABLE {sql[name.start : name.end]}", user=True))
        like = self.find(statement.like) if statement.like else None
        plain = not ("Array(" in sql or statement.select is not None or like is not None)
        replaces = here is not None and statement.or_replace
        if (plain and not replaces) or (exists and (statement.if_not_exists or not statement.or_replace)):
            return engine.query(sql, "Null", params=params, user=True), None
        if database == INTERNAL:
            raise UnsupportedStatement(f"the database {INTERNAL} is clipql's own: use another")
        definition, entries = self._without_indexes(sql, statement)
        if statement.like is not None and like is not None:
            a, b = statement.like.start - statement.rest, statement.like.end - statement.rest
            definition = definition[:a] + self._registry.shape(like) + definition[b:]
            if any(t.upper == "CLONE" for t in read(sql).words):
                raise UnsupportedStatement(
                    f"CLONE AS {like.full_name} would leave out the vectors: use AS SELECT * FROM it"
                )
        select = sql[statement.select :] if statement.select is not None and not statement.empty else None
        if statement.select is not None:
            definition = self._empty(definition, statement.select - statement.rest)
        definition = heads.written_out(definition)
        replaced = here if statement.or_replace else None
        if replaced is not None:  # made beside the old table, which stays until all of the new one is there
            table = schema.create(self._registry, INTERNAL, f"rewrite of {replaced.id}", definition, entries, params)
        elif exists:
            raise UnsupportedStatement(
                f"{database}.{name.name} has no vector columns and the new table has: DROP it first"
            )
        else:
            table = schema.create(self._registry, database, name.name, definition, entries, params)
        if table is None:
            if like is not None:  # the copy of its shape, with plain columns
                replace = "OR REPLACE " if statement.or_replace else ""
                sql = f"CREATE {replace}TABLE {sql[name.start : name.end]} {definition}"
                statement = dataclasses.replace(statement, select=None)
            make = partial(self._passed_create, sql, statement, params, progress)
            return schema.give_way(self._registry, replaced, make) if replaced else make()
        rows = None
        try:
            table = self._knowing(table, like, sql[statement.select :] if statement.select is not None else None)
            if select is not None:
                into = Insert(name, None, "SELECT", 0, "")
                fill = partial(insert, self._registry, self._planner, table, select, into, params, progress)
                rows = self._fill(table, fill)
            if replaced is not None:
                rewrite.take_place(self._registry, replaced, table)
        except BaseException:
            schema.drop_if_there(self._registry, table)
            raise
        return Output(rows=rows or 0), rows

    def _knowing(self, table: Table, like: Table | None, select: str | None) -> Table:
        """A table that was made of another one, or of a SELECT, with what is known of the columns that it has of it:
        what made their vectors, and whether rows may come without.
        """
        registry = self._registry
        known: dict[str, VectorColumn] = {c.name: c for c in like.columns} if like else {}
        if select is not None:
            names = star(registry, table)
            given = passed_on(select, registry.find, partial(star, registry))
            known = {names[at]: column for at, (_, column) in given.items() if at < len(names)}
        columns = tuple(
            dataclasses.replace(c, model=known[c.name].model, optional=known[c.name].optional) if c.name in known else c
            for c in table.columns
        )
        if columns == table.columns:
            return table
        with registry.write_lock:
            table = dataclasses.replace(registry.current(table), columns=columns)
            registry.save(registry.catalog.with_table(table))
        return table

    def _passed_create(
        self, sql: str, statement: CreateTable, params: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Output, int | None]:
        """A table that is ClickHouse's alone; its SELECT may still search one of ours."""
        with self._registry.gate.reading():
            at = statement.select if statement.select is not None else len(sql)
            planned = self._planner.rewrite(sql[at:], params)
            whole = dataclasses.replace(planned, sql=sql[:at] + planned.sql)
            return self._run(whole, sql, params, "Null", progress)[0], None

    def changing(self, ruling: Ruling, run: Callable[[], Output]) -> Output:
        """Run a statement of ClickHouse's that takes the place of a table of ours, or empties some."""
        for table in ruling.emptied:
            self._indexes.rows.drop(table)
            schema.truncate(self._registry, table)
        if ruling.replaced is None:
            return run()
        output = schema.give_way(self._registry, ruling.replaced, run)
        self._indexes.sweep()
        return output

    def on_database(self, sql: str, statement: OnDatabase) -> Output:
        ours = [t for t in self._registry.catalog.tables if t.database == statement.database]
        if statement.verb != "DROP" and ours:
            raise UnsupportedStatement(
                f"{statement.verb} DATABASE is not carried out on {statement.database}, which holds "
                f"{ours[0].full_name} with its vectors: move its tables by RENAME TABLE"
            )
        if statement.database == INTERNAL:
            raise UnsupportedStatement(f"the database {INTERNAL} is clipql's own")
        for table in ours:
            schema.drop(self._registry, table)
        self._engine.run(sql, user=True)
        self._indexes.sweep()
        return Output()

    def _without_indexes(self, sql: str, statement: CreateTable) -> tuple[str, list[IndexEntry]]:
        """What follows the table's name, with its vector indexes blanked out, and those."""
        tokens = read(sql).words
        first = next((i for i, t in enumerate(tokens) if t.start >= statement.rest), len(tokens))
        if first >= len(tokens) or tokens[first].text != "(":
            like = self.find(statement.like)
            return sql[statement.rest :], list(unbuilt(like)) if like else []
        found = definition.in_create(tokens, first, sql)
        edits: list[Edit] = []
        for written in found:
            # one of the commas around it goes with it
            before, after = tokens[written.first - 1], tokens[written.last]
            start = before.start if before.text == "," else tokens[written.first].start
            end = after.end if before.text != "," and after.text == "," else tokens[written.last - 1].end
            edits.append((start, end, " " * (end - start)))
        return edited(sql, edits)[statement.rest :], [w.entry for w in found]

    def _empty(self, definition: str, select: int) -> str:
        """`… AS SELECT` as `… EMPTY AS SELECT`: the shape only, without the rows."""
        head = definition[:select].rstrip()
        assert head.upper().endswith("AS"), "the reader found AS before the SELECT"
        if head[:-2].rstrip().upper().endswith("EMPTY"):
            return definition
        return f"{head[:-2]}EMPTY AS {definition[select:]}"

    def on_table(
        self, sql: str, statement: OnTable, params: Mapping[str, Any], format: str, options: SearchOptions
    ) -> Output:
        found = [self.find(name) for name in statement.tables]
        ours = [t for t in found if t is not None]
        if statement.verb == "SHOW DATABASES":
            return self._engine.query(f"{sql.rstrip('; ')} NOT LIKE '{INTERNAL}'", format, user=True)
        if not ours:
            return self._engine.query(sql, format, params=params, user=True)
        table = ours[0]
        verb = statement.verb
        self._check_rest(sql, statement)
        if verb == "SHOW CREATE":
            return self._show_create(table, format)
        if verb == "DESCRIBE":
            text = f"DESCRIBE TABLE {self._registry.shape(table)} {sql[statement.rest :]}"
            return self._engine.query(text, format, params=params, user=True)
        later = _built_later(sql, statement)
        if later and all(table.index(name) for name in later):
            for name in later:
                self._indexes.build_later(table, name)
            return Output()
        with self._registry.write_lock:
            if statement.verb in ("ALTER", "UPDATE", "TRUNCATE") and not _leaves_rows(sql, statement, table):
                self._indexes.rows.drop(table)
            try:
                if verb in _CHANGES:
                    with with_rows_found(self._registry, self._planner, sql, table, params, options) as text:
                        self._change(text, statement, table, found, params)
                else:
                    self._change(sql, statement, table, found, params)
            finally:
                self._registry.touched([table.id])
        return Output()

    def explained(self, sql: str, params: Mapping[str, Any]) -> list[str] | None:
        """EXPLAIN of a change: what a MATERIALIZE INDEX of ours will take, how rows are found by their vectors; nothing
        of another; None of a SELECT.
        """
        reading = read(sql)
        statement, tokens = reading.kind, reading.words
        if not isinstance(statement, OnTable):
            return None
        table = self.find(statement.tables[0])
        rest = [t for t in tokens if t.start >= statement.rest]
        if (
            table is not None
            and statement.verb in ("ALTER", "DELETE", "UPDATE")
            and any(t.upper == "WHERE" for t in rest)
        ):
            return describe(plans(self._planner, self._registry, sql, table, params))
        if (
            table is None
            or [t.upper for t in rest[:2]] != ["MATERIALIZE", "INDEX"]
            or len(rest) != 3
            or not rest[2].name
        ):
            return []
        return self._indexes.forecast(table, rest[2].name)

    def _change(
        self, sql: str, statement: OnTable, table: Table, found: list[Table | None], params: Mapping[str, Any]
    ) -> None:
        registry = self._registry
        verb = statement.verb
        if verb == "ALTER":
            tokens = read(sql).words
            first = next((i for i, t in enumerate(tokens) if t.start >= statement.rest), len(tokens))
            schema.alter(registry, self._indexes, table, tokens, first, sql, params)
        elif verb in ("DROP", "DROP IF EMPTY"):
            if verb == "DROP IF EMPTY":
                self._check_empty([t for t in found if t is not None])
            for name, each in zip(statement.tables, found, strict=True):
                if each is not None:
                    schema.drop(registry, each)
                    self._indexes.sweep()
                else:
                    self._engine.run(f"DROP TABLE {sql[name.start : name.end]}", user=True)
        elif verb == "TRUNCATE":
            schema.truncate(registry, table)
        elif verb in ("DELETE", "UPDATE"):
            schema.delete(registry, self._indexes, table, sql, params)
        elif verb == "OPTIMIZE":
            final = any(t.upper == "FINAL" for t in read(sql).words)
            rewrite.optimize(registry, self._indexes, table, sql, final=final)
        elif verb == "RENAME":
            pairs = [
                (t, new.database or registry.database, new.name)
                for t, new in zip(found[::2], statement.tables[1::2], strict=True)
                if t is not None
            ]
            schema.rename(registry, sql, pairs)
        elif verb == "EXCHANGE":
            if len(found) != 2:
                raise UnsupportedStatement("exchange tables with vector columns two in a statement")
            other = statement.tables[1 if found[0] is not None else 0]
            schema.exchange(registry, sql, table, other.database or registry.database, other.name)
            registry.touched([t.id for t in found if t is not None])
        else:
            raise UnsupportedStatement(
                f"{verb} is not carried out on {table.full_name}, whose vectors lie outside ClickHouse"
            )

    def _check_rest(self, sql: str, statement: OnTable) -> None:
        """Refuse what follows the table's name where nothing, or very little, may follow it."""
        rest = [t.upper or t.text for t in read(sql).words if t.start >= statement.rest]
        ends = statement.verb in ("DROP", "DROP IF EMPTY", "TRUNCATE", "SHOW CREATE") and rest
        if (ends and not set(rest) <= {"SYNC", "NO", "DELAY"}) or (statement.verb == "ALTER" and not rest):
            raise QueryError(
                f"{statement.verb} {sql[statement.tables[0].start : statement.tables[0].end]}: "
                + (f"it ends with {' '.join(rest)[:60]}, which is not understood" if rest else "it says no change"),
                code=62,
                name="SYNTAX_ERROR",
            )

    def _check_empty(self, tables: list[Table]) -> None:
        for table in tables:
            rows = self._engine.scalar(f"SELECT count() FROM {self._registry.physical(table)}")
            if rows:
                raise QueryError(f"{table.full_name} has {rows:,} rows, so DROP TABLE IF EMPTY does not drop it")

    def _show_create(self, table: Table, format: str) -> Output:
        shown = pa.table({"statement": [statement(self._registry, table)]})
        return self._engine.query("SELECT statement FROM Python(shown)", format, tables={"shown": shown}, user=True)

    def find(self, name: TableName | None) -> Table | None:
        return self._registry.find(name.database, name.name) if name else None


def _leaves_rows(sql: str, statement: OnTable, table: Table) -> bool:
    """Whether a change does nothing but update vectors, or define, build or drop indexes: MergeTree's rows stay."""
    if statement.verb == "UPDATE":
        return changes_only_vectors(table, read(sql).words)
    tokens = read(sql[statement.rest :]).tokens
    if changes_only_vectors(table, tokens):
        return True
    changes = split_list(tokens, 0, len(tokens))
    return bool(changes) and all(
        b - a > 2 and tokens[a].upper in ("ADD", "DROP", "CLEAR", "MATERIALIZE") and tokens[a + 1].upper == "INDEX"
        for a, b in changes
    )


def _built_later(sql: str, statement: OnTable) -> list[str]:
    """The indexes of an ALTER that does nothing but MATERIALIZE INDEX, where it is not waited for."""
    tokens = read(sql[statement.rest :]).words
    end = [t.upper or t.text for t in tokens[-4:]]
    if statement.verb != "ALTER" or end != [
        "SETTINGS",
        "MUTATIONS_SYNC",
        "=",
        "0",
    ]:
        return []
    changes = [tokens[a:b] for a, b in split_list(tokens, 0, len(tokens) - 4)]
    if not all(len(c) == 3 and [t.upper for t in c[:2]] == ["MATERIALIZE", "INDEX"] for c in changes):
        return []
    return [c[2].name or "" for c in changes]
