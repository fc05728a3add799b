"""INSERT, wherever its rows go and come from: into tables of ours by `insert.py`, into others by ClickHouse.

What must stay true: rows are counted as they are written, and the indexes of a table hear of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from clipql.engine.arrays import with_numbers
from clipql.engine.output import Output
from clipql.sql.inserts.input_rows import Written, check_has_data, staged_input
from clipql.sql.inserts.insert import insert, load
from clipql.sql.inserts.staging import load_plain
from clipql.sql.planning.outputs import Outputs, Progress
from clipql.sql.planning.planner import Planner
from clipql.sql.planning.work import Step
from clipql.sql.recognition import settings
from clipql.storage.catalog import Table
from clipql.syntax.inputs import input_of
from clipql.syntax.reading import read
from clipql.syntax.statements import Insert
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry


class Insertions:
    """Carries INSERTs out, for one session."""

    def __init__(self, registry: Registry, indexes: Indexes, planner: Planner, outputs: Outputs) -> None:
        self._registry, self._engine, self._indexes = registry, registry.engine, indexes
        self._planner, self._outputs = planner, outputs

    def insert(
        self,
        sql: str,
        statement: Insert,
        params: Mapping[str, Any],
        given: Mapping[str, str],
        progress: Progress | None,
    ) -> tuple[Output, tuple[Step, ...], int | None]:
        """Run an INSERT whose data are in it, or in a SELECT; given: the session's settings."""
        check_has_data(sql)
        table = self._table(statement)
        if table is not None:
            began = time.perf_counter()
            fill = partial(insert, self._registry, self._planner, table, sql, statement, params, progress)
            rows = self.fill(table, fill)
            return Output(elapsed=time.perf_counter() - began, rows=rows), (), rows
        if statement.source != "SELECT":
            return self._engine.query(sql, "Null", params=params, progress=progress, user=True), (), None
        text, own = settings.taken_from(sql)
        counted = Written(progress)
        with self._registry.gate.reading():
            planned = self._planner.rewrite(text[statement.body :], params, settings.options({**given, **own}))
            head = text[: statement.body]
            whole = dataclasses.replace(planned, sql=head + planned.sql)
            output, steps = self._outputs.run(whole, text, params, "Null", counted)
        return output, steps, counted.rows

    def load(
        self,
        sql: str,
        statement: Insert,
        format: str,
        data: Iterable[bytes],
        params: Mapping[str, Any],
        given: Mapping[str, str],
    ) -> int | None:
        """Run an INSERT whose data come apart, in pieces; the rows that were written, where they are known."""
        table, fed = self._table(statement), input_of(sql)
        rows: int | None
        if fed is not None:
            name = statement.table
            target = self._registry.shape(table) if table else sql[name.start : name.end]
            with staged_input(self._engine, sql, statement, target, fed, format, data) as text:
                inner = read(text).kind
                assert isinstance(inner, Insert), "only its source has changed"
                rows = self.insert(text, inner, with_numbers(sql, params), given, None)[2]
            self._registry.announce()
        elif table is not None:
            rows = self.fill(table, partial(load, self._registry, table, statement, format, data))
        else:
            rows = load_plain(self._engine, sql[: statement.body], statement, format, data)
            self._registry.announce()
        return rows

    def fill(self, table: Table, fill: Callable[[], int]) -> int:
        """Have rows put into a table, in this order: a DELETE holds the write lock while it waits for the readers."""
        with self._registry.write_lock, self._registry.gate.reading():
            rows = fill()
            self._indexes.fell_behind(table.id)
            return rows

    def indexes_of(self, statement: object) -> str:
        """How far the indexes of the table are that rows were inserted into."""
        table = self._table(statement) if isinstance(statement, Insert) else None
        return self._indexes.catching_up(table.id) if table else ""

    def _table(self, statement: Insert) -> Table | None:
        return self._registry.find(statement.table.database, statement.table.name)
