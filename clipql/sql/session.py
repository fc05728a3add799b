"""Running statements: each kind goes its way, and what is not ours goes to ClickHouse as it stands.

Start here to see where a query goes: `Session.execute` is the crossroads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipql.brief import Brief
from clipql.encode.service import Encoders
from clipql.engine import chunks
from clipql.engine.arrays import with_numbers
from clipql.engine.output import Output
from clipql.errors import QueryError, UnsupportedStatement
from clipql.index.base import Route
from clipql.sql.definitions.bounded_changes import within_limits
from clipql.sql.definitions.definitions import Definitions
from clipql.sql.definitions.introspection import Introspection
from clipql.sql.definitions.safeguard import Safeguard, with_names
from clipql.sql.inserts.input_rows import with_inline_data
from clipql.sql.inserts.insertion import Insertions
from clipql.sql.planning import explain
from clipql.sql.planning.outputs import Outputs, Progress, Sink
from clipql.sql.planning.planner import Planner, Rewritten
from clipql.sql.planning.prepared import Asked, Repeats
from clipql.sql.planning.short import is_short
from clipql.sql.planning.work import Step
from clipql.sql.read_only import reads, refuse
from clipql.sql.recognition import settings
from clipql.sql.recognition.column_origins import ColumnOrigins, Origin
from clipql.sql.recognition.stars import Stars
from clipql.sql.recognition.views import check_view, finder
from clipql.sql.recognition.words import telling_where
from clipql.sql.search.harmless import settings_allow
from clipql.sql.temporary import note_temporary
from clipql.sql.totals import may_have_more
from clipql.syntax.inputs import input_of
from clipql.syntax.reading import read, select_of
from clipql.syntax.spelling import respelled
from clipql.syntax.statements import CreateTable, Explain, Insert, OnDatabase, OnTable, Other, Select, Set
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry
from clipql.tables.watchers import watching

_ROUTES: ContextVar[Sequence[Route]] = ContextVar("clipql_routes", default=())


@dataclass(frozen=True, repr=False)
class Answer(Brief):
    """What a statement gave: ClickHouse's output in the format that was asked for, and the vector searches in it.

    format: the format of the output, which is the statement's own where it names one. rows: rows inserted.
    shards: how many shards answered, as 3/4, where there are shards. indexes: how far those of the table are that rows
    were inserted into, where they are brought up to date in the background.
    """

    output: Output
    format: str
    elapsed: float
    steps: tuple[Step, ...] = ()
    rows: int | None = None
    shards: str | None = None
    indexes: str = ""


class Session:
    """Statements of one user on one open database: SET parameters, settings and the current database are kept."""

    def __init__(self, registry: Registry, indexes: Indexes, encoders: Encoders) -> None:
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self._planner, self._stars = Planner(registry, indexes, encoders), Stars(registry)
        self._safeguard, self._outputs = Safeguard(registry), Outputs(registry)
        self._introspection = Introspection(registry, indexes)
        self._insertions = own = Insertions(registry, indexes, self._planner, self._outputs)
        self._definitions = Definitions(registry, indexes, self._planner, own.fill, self._outputs.run)
        self.params: dict[str, Any] = {}
        self.settings: dict[str, str] = {}

    def beside(self) -> Session:
        """Another session on the same database, with parameters and settings of its own. What reads statements is
        shared, as it keeps nothing of a session.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, params={}, settings={})
        return other

    @property
    def repeats(self) -> Repeats:
        """The statements that are known already."""
        return self._planner.repeats

    def execute(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "ArrowStream",
        progress: Progress | None = None,
        sink: Sink | None = None,
        routes: Sequence[Route] = (),
        as_table: bool = False,
    ) -> Answer:
        """Run one statement. Raises ClipqlError of the kind that fits.

        as_table: the output may hold an Arrow table instead of bytes.
        sink: is given the result in pieces where it need not be held as a whole; the answer then has no data.
        routes: lists of ivf indexes, ranked elsewhere for the query vectors of a SELECT.
        """
        fed = input_of(sql)
        if fed is not None:
            head, data = with_inline_data(sql, fed)
            return self.load(head, fed.format, [data], params)
        given = {**self.params, **with_numbers(sql, params or {})}
        asked = None if routes else self._planner.repeats.asked(sql, format, self.settings, given)
        again = self._again(asked, given, as_table) if asked else None
        if again is not None:
            return again
        sql = respelled(sql, self._defined)
        before = _ROUTES.set(routes)
        try:
            with watching(_reported(progress)) if progress else contextlib.nullcontext():
                return self._execute(sql, given, format, progress, sink, asked)
        finally:
            _ROUTES.reset(before)

    def _again(self, asked: Asked, params: Mapping[str, Any], as_table: bool) -> Answer | None:
        """The answer to a statement that was planned before, for other values; None where it must be read anew."""
        began, repeats = time.perf_counter(), self._planner.repeats
        prepared = repeats.find(asked)
        given = repeats.values(prepared, params) if prepared else None
        if prepared is None or given is None:
            return None
        found = repeats.answer(prepared, asked.literals, given)
        if found is None:
            return None
        answer, steps = found
        with self._registry.gate.reading():
            output = self._outputs.answered(answer, prepared.format, began, as_table=as_table)
        return Answer(output, prepared.format, time.perf_counter() - began, steps)

    def at_once(self, sql: str, params: Mapping[str, Any], *, format: str, as_table: bool = False) -> Answer | None:
        """The answer to a statement that was planned before, where it is short work and has to wait for nobody.

        None where it is not: then `execute` it, which says what as_table is. Raises ClipqlError.
        """
        given, repeats = {**self.params, **with_numbers(sql, params)}, self._planner.repeats
        asked = repeats.asked(sql, format, self.settings, given)
        prepared = repeats.find(asked) if asked else None
        if asked is None or prepared is None or not is_short(prepared):
            return None
        began, bound = time.perf_counter(), repeats.values(prepared, given)
        with self._registry.gate.reading_now() as held:
            if not held or bound is None or not repeats.holds(prepared):
                return None
            found = repeats.run(prepared, asked.literals, bound)
            if found is None:
                return None
            output = self._outputs.answered(found[0], prepared.format, began, as_table=as_table)
        return Answer(output, prepared.format, time.perf_counter() - began, found[1])

    def execute_many(self, sql: str, params: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Run one statement for each of some sets of parameters: a search for many vectors on all cores.

        Outputs hold tables. Raises ClipqlError of the kind that fits.
        """
        answers: list[Answer | None] = [None] * len(params)
        if params:
            answers[0] = self.execute(sql, params[0], as_table=True)  # after which the statement is known
        rest = [{**self.params, **with_numbers(sql, given)} for given in params[1:]]
        began, repeats = time.perf_counter(), self._planner.repeats
        asked = repeats.asked(sql, "ArrowStream", self.settings, rest[0]) if rest else None
        prepared = repeats.find(asked) if asked else None
        plain = prepared is not None and not prepared.encoded and prepared.types is None
        if prepared is not None and plain and prepared.of_one_kind(rest):
            with self._registry.gate.reading():
                found = repeats.run_many(prepared, rest) if repeats.holds(prepared) else None
            seconds = (time.perf_counter() - began) / max(1, len(rest))
            for at, one in enumerate(found or (), 1):
                if one is not None:
                    output = Output(rows=one[0].table.num_rows, table=one[0].table)
                    answers[at] = Answer(output, "ArrowStream", seconds, one[1])
        return [
            a if a is not None else self.execute(sql, given, as_table=True)
            for a, given in zip(answers, params, strict=True)
        ]

    def within_limits(
        self, sql: str, params: Mapping[str, Any], most_rows: int
    ) -> contextlib.AbstractContextManager[str]:
        """An ALTER, DELETE or UPDATE as a server runs it: see `bounded_changes.py`."""
        given = {**self.params, **params}

        def plan(select: str) -> Rewritten:
            text, listing = self._listed(self._stars.spelled(respelled(select, self._defined)))
            with self._registry.gate.reading():
                planned = self._planner.rewrite(text, given, settings.options(self.settings))
            return dataclasses.replace(planned, tables={**planned.tables, **listing})

        return within_limits(self._engine, sql, plan, self._safeguard.held, most_rows)

    def origins(self, sql: str, params: Mapping[str, Any]) -> tuple[Origin | None, ...]:
        """Where the columns of a SELECT's result come from. Raises ClipqlError where it cannot be read."""
        given = {**self.params, **params}
        text = settings.take_format(self._stars.spelled(respelled(with_names(sql, given), self._defined)))[0]
        with self._registry.gate.reading():
            return ColumnOrigins(self._stars, finder(self._registry, given)).of(text)

    def _defined(self) -> list[str]:
        """The functions that users made: whatever they are called, they mean what they say."""
        made = self._engine.arrow("SELECT name FROM system.functions WHERE origin = 'SQLUserDefined'")
        return [str(name) for name in made.column(0).to_pylist()]

    def _execute(
        self,
        sql: str,
        params: Mapping[str, Any] | None,
        format: str,
        progress: Progress | None,
        sink: Sink | None,
        asked: Asked | None = None,
    ) -> Answer:
        began = time.perf_counter()
        given = {**self.params, **(params or {})}
        if self._registry.reads_of:
            refuse(sql, self._registry.reads_of)
        ruling = self._safeguard.rule(with_names(sql, given))
        if self._registry.reads_of:
            refuse(ruling.text, self._registry.reads_of)
        sql = self._stars.spelled(ruling.text)
        reading = read(sql)
        statement, tokens = reading.kind, reading.words
        own: str | None = None
        steps: tuple[Step, ...] = ()
        rows: int | None = None
        if isinstance(statement, (Select, Explain)):
            sql, own = settings.take_format(sql)
            output, steps = self._read(sql, statement, given, own or format, progress, sink, asked)
        elif isinstance(statement, Insert):
            output, steps, rows = self._insertions.insert(sql, statement, given, self.settings, progress)
        elif isinstance(statement, Set):
            output = self._set(sql, statement)
        elif isinstance(statement, CreateTable):
            with telling_where():
                output, rows = self._definitions.create(sql, statement, given, progress)
        elif isinstance(statement, OnDatabase):
            output = self._definitions.on_database(sql, statement)
        elif isinstance(statement, OnTable):
            sql, own = settings.take_format(sql)
            options = settings.options(self.settings)
            with telling_where():
                output = self._definitions.on_table(sql, statement, given, own or format, options)
        else:
            sql, own = settings.take_format(sql)
            with telling_where():
                output = self._definitions.changing(
                    ruling, partial(self._pass, sql, statement, given, own or format, progress)
                )
        if not isinstance(statement, (Select, Explain, Insert)):
            self._registry.changes += 1
        if not reads(statement):
            self._registry.announce()
        note_temporary(self._registry, tokens)
        return Answer(
            output,
            own or format,
            time.perf_counter() - began,
            steps,
            rows,
            indexes=self._insertions.indexes_of(statement),
        )

    def _pass(
        self, sql: str, statement: Other, params: Mapping[str, Any], format: str, progress: Progress | None = None
    ) -> Output:
        if statement.word in ("BACKUP", "RESTORE") and self._registry.catalog.tables:
            raise UnsupportedStatement(
                f"{statement.word} would leave out the vectors, which lie outside ClickHouse: use `clipql backup` and "
                "`clipql restore`"
            )
        if statement.word == "CREATE":
            check_view(sql, self._registry.find)
        shown = self._introspection.show(sql, read(sql).words, format) if statement.word == "SHOW" else None
        if shown is not None:
            return shown
        return self._engine.query(sql, format, params=params, progress=progress, user=True)

    # reading

    def _listed(self, sql: str) -> tuple[str, dict[str, pa.Table]]:
        """The statement with `clipql.indexes` and ClickHouse's tables about tables as what they stand for."""
        return self._introspection.listed(sql)

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
        options = settings.options({**self.settings, **own}, _ROUTES.get())
        if isinstance(statement, Explain):
            lines = self._definitions.explained(statement.query, params)
            if lines is None and options.plan and not self._planner.cuts_short(text):
                lines = explain.describe(self._planner.plans(select_of(text), params, options), self._registry)
            if not lines:
                text, listing = self._listed(text)
                return self._engine.query(f"EXPLAIN {text}", format, params=params, tables=listing, user=True), ()
            table = pa.table({"explain": lines})
            return self._engine.query(
                "SELECT explain FROM Python(lines)", format, tables={"lines": table}, user=True
            ), ()
        began = time.perf_counter()
        with self._registry.gate.reading():
            text, listing = self._listed(text)
            acting = self._engine.acting
            direct = settings_allow(acting.user.statements, acting.settings)
            rewritten = self._planner.rewrite(
                text, params, options, format=format if direct else None, asked=None if listing else asked
            )
            if rewritten.answer is not None:
                return self._outputs.answered(rewritten.answer, format, began), rewritten.steps
            rewritten = dataclasses.replace(rewritten, tables={**rewritten.tables, **listing})
            plain = chunks.joins(format) and not (rewritten.steps or rewritten.tables)
            if sink is not None and plain and not (chunks.tells_more(format) and may_have_more(text, self._registry)):
                return self._outputs.stream(rewritten, format, sink, progress), ()
            return self._outputs.run(rewritten, text, params, format, progress)

    # SET

    def _set(self, sql: str, statement: Set) -> Output:
        if statement.database is not None:
            self._engine.set(sql)
            self._registry.database = statement.database
            return Output()
        theirs: list[str] = []
        for name, text in statement.assignments:
            if name.startswith("param_"):
                self.params[name.removeprefix("param_")] = settings.parameter(text)
            elif name in settings.OURS:
                self.settings[name] = settings.checked(name, text)
            elif (why := settings.broken(name, text)) is not None:
                raise QueryError(f"{name} cannot be SET to {text[:20]}: clipql keeps it at {why}")
            else:
                theirs.append(f"{name} = {text}")
        if theirs:
            self._engine.set("SET " + ", ".join(theirs))
        return Output()

    # writing

    def load(self, sql: str, format: str, data: Iterable[bytes], params: Mapping[str, Any] | None = None) -> Answer:
        """Run `INSERT INTO table … FORMAT name`, `… VALUES`, or `… SELECT … FROM input(…) FORMAT name`, with the data
        apart, in pieces. Raises ClipqlError."""
        began = time.perf_counter()
        if self._registry.reads_of:
            refuse(sql, self._registry.reads_of)
        sql = respelled(self._stars.spelled(self._safeguard.rule(sql).text), self._defined)
        statement = read(sql).kind
        if not isinstance(statement, Insert):
            raise QueryError(f"{sql[:100]}: expected INSERT INTO a table", code=62, name="SYNTAX_ERROR")
        given = {**self.params, **(params or {})}
        rows = self._insertions.load(sql, statement, format, data, given, self.settings)
        elapsed, told = time.perf_counter() - began, self._insertions.indexes_of(statement)
        return Answer(Output(elapsed=elapsed), "Null", elapsed, rows=rows, indexes=told)


def _reported(progress: Progress) -> Callable[[str, int, int], None]:
    """How the build of an index is told of: as ClickHouse tells of its rows, with the stage's name."""
    return lambda stage, done, total: progress({"stage": stage, "read_rows": done, "total_rows_to_read": total})
