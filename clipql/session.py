"""Running statements: each kind goes its way, and what is not ours goes to ClickHouse as it stands.

Start here to see where a query goes: `Session.execute` is the crossroads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipql import chunks
from clipql.arrow import arrow_stream
from clipql.catalog import IndexEntry, Table
from clipql.encode.service import Encoders
from clipql.engine import Output, quote_name
from clipql.errors import QueryError, UnsupportedStatement
from clipql.index import definition
from clipql.query import explain, settings, statements
from clipql.query.calls import find_sources
from clipql.query.direct import settings_allow
from clipql.query.execution import Direct, Step
from clipql.query.insert import insert, load
from clipql.query.lexer import tokenize
from clipql.query.run import Planner, Rewritten
from clipql.query.scopes import scopes, split_list
from clipql.query.statements import CreateTable, Explain, Insert, OnDatabase, OnTable, Other, Select, Set, TableName
from clipql.tables import rewrite, schema
from clipql.tables.indexes import Indexes, unbuilt, watching
from clipql.tables.registry import INTERNAL, Registry

Progress = Callable[[Mapping[str, Any]], None]
# takes a result piece by piece
Sink = Callable[[bytes], None]


@dataclass(frozen=True)
class Answer:
    """What a statement gave: ClickHouse's output in the format that was asked for, and the vector searches in it.

    format: the format of the output, which is the statement's own where it names one. rows: rows inserted.
    """

    output: Output
    format: str
    elapsed: float
    steps: tuple[Step, ...] = ()
    rows: int | None = None


class Session:
    """Statements of one user on one open database: SET parameters, settings and the current database are kept."""

    def __init__(self, registry: Registry, indexes: Indexes, encoders: Encoders) -> None:
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self._planner = Planner(registry, indexes, encoders)
        self.params: dict[str, Any] = {}
        self.settings: dict[str, str] = {}

    def execute(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "ArrowStream",
        progress: Progress | None = None,
        sink: Sink | None = None,
    ) -> Answer:
        """Run one statement. Raises ClipqlError of the kind that fits.

        sink: is given the result in pieces where it need not be held as a whole; the answer then has no data.
        """
        with watching(_reported(progress)) if progress else contextlib.nullcontext():
            return self._execute(sql, params, format, progress, sink)

    def _execute(
        self, sql: str, params: Mapping[str, Any] | None, format: str, progress: Progress | None, sink: Sink | None
    ) -> Answer:
        began = time.perf_counter()
        statement, _tokens = statements.classify(sql)
        given = {**self.params, **(params or {})}
        own: str | None = None
        steps: tuple[Step, ...] = ()
        rows: int | None = None
        if isinstance(statement, (Select, Explain)):
            sql, own = settings.take_format(sql)
            output, steps = self._read(sql, statement, given, own or format, progress, sink)
        elif isinstance(statement, Insert):
            output, steps, rows = self._insert(sql, statement, given, progress)
        elif isinstance(statement, Set):
            output = self._set(sql, statement)
        elif isinstance(statement, CreateTable):
            output, rows = self._create(sql, statement, given)
        elif isinstance(statement, OnDatabase):
            output = self._on_database(sql, statement)
        elif isinstance(statement, OnTable):
            sql, own = settings.take_format(sql)
            output = self._on_table(sql, statement, given, own or format)
        else:
            sql, own = settings.take_format(sql)
            output = self._pass(sql, statement, given, own or format, progress)
        return Answer(output, own or format, time.perf_counter() - began, steps, rows)

    def _pass(
        self, sql: str, statement: Other, params: Mapping[str, Any], format: str, progress: Progress | None = None
    ) -> Output:
        if statement.word in ("BACKUP", "RESTORE") and self._registry.catalog.tables:
            raise UnsupportedStatement(f"{statement.word} would leave out the vectors, which lie outside ClickHouse")
        if statement.word == "CREATE":
            self._check_view(sql)
        output = self._engine.query(sql, format, params=params, progress=progress, user=True)
        self._note_temporary(sql, statement.word)
        return output

    def _note_temporary(self, sql: str, word: str) -> None:
        """A temporary table hides a table of ours of the same name, as it does in ClickHouse."""
        tokens = statements.classify(sql)[1]
        words = [t.upper for t in tokens]
        if word not in ("CREATE", "DROP") or not {"TEMPORARY", "TEMP"} & set(words[:4]) or "TABLE" not in words:
            return
        at = words.index("TABLE") + 1
        while at < len(words) - 1 and words[at] in ("IF", "NOT", "EXISTS"):
            at += 1
        name = tokens[at].name
        if name:
            change = self._registry.hidden.add if word == "CREATE" else self._registry.hidden.discard
            change(name)

    def _check_view(self, sql: str) -> None:
        """Refuse a materialized view that reads a table of ours: rows move into such a table past its views."""
        tokens = statements.classify(sql)[1]
        if not any(t.upper == "MATERIALIZED" for t in tokens[:4]):
            return
        for scope in scopes(sql, tokens):
            for source in find_sources(scope, self._registry.find)[0]:
                raise UnsupportedStatement(
                    f"a materialized view on {source.table.full_name} would not see its inserts; use a plain view"
                )

    # reading

    def _listed(self, sql: str) -> tuple[str, dict[str, pa.Table]]:
        """The statement with `clipql.indexes` as the table that it stands for."""
        tokens = statements.classify(sql)[1]
        for a, dot, b in reversed(list(zip(tokens, tokens[1:], tokens[2:], strict=False))):
            if (a.name, dot.text, b.name) == ("clipql", ".", "indexes"):
                sql = f"{sql[: a.start]}Python(clipql_indexes){sql[b.end :]}"
        return sql, {"clipql_indexes": self._indexes.listing()} if "clipql_indexes" in sql else {}

    def _read(
        self,
        sql: str,
        statement: Select | Explain,
        params: Mapping[str, Any],
        format: str,
        progress: Progress | None,
        sink: Sink | None,
    ) -> tuple[Output, tuple[Step, ...]]:
        text, own = settings.taken_from(statement.query if isinstance(statement, Explain) else sql)
        options = settings.options({**self.settings, **own})
        if isinstance(statement, Explain):
            plans = self._planner.plans(text, params, options) if options.plan else []
            if not plans:
                return self._engine.query(f"EXPLAIN {text}", format, params=params, user=True), ()
            table = pa.table({"explain": explain.describe(plans)})
            return self._engine.query(
                "SELECT explain FROM Python(lines)", format, tables={"lines": table}, user=True
            ), ()
        with self._registry.gate.reading():
            text, listing = self._listed(text) if "clipql" in text else (text, {})
            acting = self._engine.acting
            direct = settings_allow(acting.user.statements, acting.settings)
            rewritten = self._planner.rewrite(text, params, options, format=format if direct else None)
            if rewritten.answer is not None:
                return self._answered(rewritten.answer, format), rewritten.steps
            rewritten = dataclasses.replace(rewritten, tables={**rewritten.tables, **listing})
            if sink is not None and chunks.joins(format) and not (rewritten.steps or rewritten.tables):
                return self._stream(rewritten, format, sink), ()
            return self._run(rewritten, text, params, format, progress)

    def _answered(self, answer: Direct, format: str) -> Output:
        """A result that the row file gave."""
        if answer.sql is not None:
            return self._engine.query(answer.sql, format, tables={"clipql_answer": answer.table}, user=True)
        return Output(arrow_stream(answer.table), rows=answer.table.num_rows)

    def _stream(self, planned: Rewritten, format: str, sink: Sink) -> Output:
        began, rows, size = time.perf_counter(), 0, 0

        def progress(more_rows: int, more_bytes: int) -> None:
            nonlocal rows, size
            rows, size = rows + more_rows, size + more_bytes

        for piece in self._engine.stream_bytes(planned.sql, format, params=planned.params, progress=progress):
            if piece:
                sink(piece)
        return Output(elapsed=time.perf_counter() - began, rows=rows, rows_read=rows, bytes_read=size)

    def _run(
        self, planned: Rewritten, original: str, params: Mapping[str, Any], format: str, progress: Progress | None
    ) -> tuple[Output, tuple[Step, ...]]:
        try:
            output = self._engine.query(
                planned.sql, format, params=planned.params, progress=progress, tables=planned.tables, user=True
            )
            return output, planned.steps
        except QueryError:
            if planned.sql == original:
                raise
        # an error is reported in terms of what the user wrote; should that succeed, it is the answer
        output = self._engine.query(original, format, params=params, progress=progress, user=True)
        why = "ClickHouse refused the planned statement"
        return output, tuple(Step(s.plan, "as it is", why, s.cost) for s in planned.steps)

    # SET

    def _set(self, sql: str, statement: Set) -> Output:
        if statement.database is not None:
            self._engine.set(sql)
            self._registry.database = statement.database
            return Output()
        theirs: list[str] = []
        for name, text in statement.assignments:
            if name.startswith("param_"):
                self.params[name.removeprefix("param_")] = _parameter(text)
            elif name in settings.OURS:
                self.settings[name] = settings.checked(name, text)
            elif name in settings.KEPT:
                raise QueryError(f"{name} cannot be SET: clipql keeps it at {settings.KEPT[name]}")
            else:
                theirs.append(f"{name} = {text}")
        if theirs:
            self._engine.set("SET " + ", ".join(theirs))
        return Output()

    # writing

    def _insert(
        self, sql: str, statement: Insert, params: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Output, tuple[Step, ...], int | None]:
        table = self._find(statement.table)
        if table is not None:
            began = time.perf_counter()
            rows = self._fill(table, partial(insert, self._registry, self._planner, table, sql, statement, params))
            return Output(elapsed=time.perf_counter() - began, rows=rows), (), rows
        if statement.source != "SELECT":
            return self._engine.query(sql, "Null", params=params, progress=progress, user=True), (), None
        text, own = settings.taken_from(sql)
        with self._registry.gate.reading():
            options = settings.options({**self.settings, **own})
            planned = self._planner.rewrite(text[statement.body :], params, options)
            head = text[: statement.body]
            whole = dataclasses.replace(planned, sql=head + planned.sql)
            output, steps = self._run(whole, text, params, "Null", progress)
        return output, steps, None

    def load(self, sql: str, format: str, data: Iterable[bytes]) -> Answer:
        """Run `INSERT INTO table … FORMAT name`, or `… VALUES`, with the data apart, in pieces. Raises ClipqlError."""
        began = time.perf_counter()
        statement, _tokens = statements.classify(sql)
        if not isinstance(statement, Insert):
            raise QueryError(f"{sql[:100]}: expected INSERT INTO a table", code=62, name="SYNTAX_ERROR")
        table = self._find(statement.table)
        if table is not None:
            rows = self._fill(table, partial(load, self._registry, table, statement, format, data))
        else:
            rows = self._engine.insert_bytes(sql[: statement.body], format, data, user=True)
        return Answer(Output(elapsed=time.perf_counter() - began), "Null", time.perf_counter() - began, rows=rows)

    def _fill(self, table: Table, fill: Callable[[], int]) -> int:
        # in this order: a DELETE holds the write lock while it waits for the readers
        with self._registry.write_lock, self._registry.gate.reading():
            rows = fill()
            self._indexes.after_insert(table.id)
            return rows

    def _create(self, sql: str, statement: CreateTable, params: Mapping[str, Any]) -> tuple[Output, int | None]:
        name = statement.table
        database = name.database or self._registry.database
        engine = self._engine
        here = self._registry.find(database, name.name)
        exists = bool(engine.scalar(f"EXISTS TABLE {sql[name.start : name.end]}", user=True))
        like = self._find(statement.like) if statement.like else None
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
            if any(t.upper == "CLONE" for t in statements.classify(sql)[1]):
                raise UnsupportedStatement(
                    f"CLONE AS {like.full_name} would leave out the vectors: use AS SELECT * FROM it"
                )
        select = sql[statement.select :] if statement.select is not None and not statement.empty else None
        if statement.select is not None:
            definition = self._empty(definition, statement.select - statement.rest)
        replaced = here if statement.or_replace else None
        if replaced is not None:  # made beside the old table, which stays until all of the new one is there
            table = schema.create(self._registry, INTERNAL, f"rewrite of {replaced.id}", definition, entries, params)
            if table is None:
                schema.drop(self._registry, replaced)
        elif exists:
            raise UnsupportedStatement(
                f"{database}.{name.name} has no vector columns and the new table has: DROP it first"
            )
        else:
            table = schema.create(self._registry, database, name.name, definition, entries, params)
        if table is None and like is not None:  # the copy of its shape, with plain columns
            replace = "OR REPLACE " if statement.or_replace else ""
            engine.run(f"CREATE {replace}TABLE {sql[name.start : name.end]} {definition}", user=True)
            return Output(), None
        if table is None:
            return self._passed_create(sql, statement, params)
        rows = None
        try:
            if select is not None:
                into = Insert(name, None, "SELECT", 0, "")
                rows = self._fill(table, partial(insert, self._registry, self._planner, table, select, into, params))
            if replaced is not None:
                rewrite.take_place(self._registry, replaced, table)
        except BaseException:
            schema.drop_if_there(self._registry, table)
            raise
        return Output(rows=rows or 0), rows

    def _passed_create(self, sql: str, statement: CreateTable, params: Mapping[str, Any]) -> tuple[Output, int | None]:
        """A table that is ClickHouse's alone; its SELECT may still search one of ours."""
        with self._registry.gate.reading():
            at = statement.select if statement.select is not None else len(sql)
            planned = self._planner.rewrite(sql[at:], params)
            whole = dataclasses.replace(planned, sql=sql[:at] + planned.sql)
            return self._run(whole, sql, params, "Null", None)[0], None

    def _on_database(self, sql: str, statement: OnDatabase) -> Output:
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
        _, tokens = statements.classify(sql)
        first = next((i for i, t in enumerate(tokens) if t.start >= statement.rest), len(tokens))
        if first >= len(tokens) or tokens[first].text != "(":
            like = self._find(statement.like)
            return sql[statement.rest :], list(unbuilt(like)) if like else []
        found = definition.in_create(tokens, first, sql)
        text = sql
        for written in found:
            # one of the commas around it goes with it
            before, after = tokens[written.first - 1], tokens[written.last]
            start = before.start if before.text == "," else tokens[written.first].start
            end = after.end if before.text != "," and after.text == "," else tokens[written.last - 1].end
            text = text[:start] + " " * (end - start) + text[end:]
        return text[statement.rest :], [w.entry for w in found]

    def _empty(self, definition: str, select: int) -> str:
        """`… AS SELECT` as `… EMPTY AS SELECT`: the shape only, without the rows."""
        head = definition[:select].rstrip()
        assert head.upper().endswith("AS"), "the reader found AS before the SELECT"
        if head[:-2].rstrip().upper().endswith("EMPTY"):
            return definition
        return f"{head[:-2]}EMPTY AS {definition[select:]}"

    def _on_table(self, sql: str, statement: OnTable, params: Mapping[str, Any], format: str) -> Output:
        found = [self._find(name) for name in statement.tables]
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
        with self._registry.write_lock:
            if statement.verb in ("ALTER", "UPDATE", "TRUNCATE") and not _concerns_index(sql, statement):
                self._indexes.rows.drop(table)
            try:
                self._change(sql, statement, table, found, params)
            finally:
                self._registry.touched([table.id])
        return Output()

    def _change(
        self, sql: str, statement: OnTable, table: Table, found: list[Table | None], params: Mapping[str, Any]
    ) -> None:
        registry = self._registry
        verb = statement.verb
        if verb == "ALTER":
            _, tokens = statements.classify(sql)
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
            schema.delete(registry, table, sql, params)
        elif verb == "OPTIMIZE":
            final = any(t.upper == "FINAL" for t in statements.classify(sql)[1])
            rewrite.optimize(registry, self._indexes, table, sql, final=final)
        elif verb == "RENAME":
            pairs = [
                (t, new.database or registry.database, new.name)
                for t, new in zip(found[::2], statement.tables[1::2], strict=True)
                if t is not None
            ]
            schema.rename(registry, sql, pairs)
        else:
            raise UnsupportedStatement(
                f"{verb} is not carried out on {table.full_name}, whose vectors lie outside ClickHouse"
            )

    def _check_rest(self, sql: str, statement: OnTable) -> None:
        """Refuse what follows the table's name where nothing, or very little, may follow it."""
        rest = [t.upper or t.text for t in statements.classify(sql)[1] if t.start >= statement.rest]
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
        shape = str(self._engine.scalar(f"SHOW CREATE TABLE {self._registry.shape(table)}"))
        lines = shape.split("\n")
        lines[0] = f"CREATE TABLE {table.full_name}"
        end = lines.index(")")
        for entry in table.indexes:
            lines[end - 1] += ","
            lines.insert(end, f"    INDEX {quote_name(entry.name)} {quote_name(entry.column)} {entry.definition}")
            end += 1
        shown = pa.table({"statement": ["\n".join(lines)]})
        return self._engine.query("SELECT statement FROM Python(shown)", format, tables={"shown": shown}, user=True)

    def _find(self, name: TableName | None) -> Table | None:
        return self._registry.find(name.database, name.name) if name else None


def _parameter(text: str) -> str:
    """The value of SET param_x = …: a string without its quotes, anything else as it is written."""
    if text[:1] == "'" and text[-1:] == "'" and len(text) > 1:
        import re

        return re.sub(r"\\(.)", r"\1", text[1:-1].replace("''", "'"))
    return text


def _concerns_index(sql: str, statement: OnTable) -> bool:
    """Whether an ALTER defines, builds or drops an index, which changes no row."""
    tokens = tokenize(sql[statement.rest :])
    return "INDEX" in [t.upper for t in tokens[:2]] and len(split_list(tokens, 0, len(tokens))) == 1


def _reported(progress: Progress) -> Callable[[str, int, int], None]:
    """How the build of an index is told of: as ClickHouse tells of its rows, with the stage's name."""
    return lambda stage, done, total: progress({"stage": stage, "read_rows": done, "total_rows_to_read": total})
