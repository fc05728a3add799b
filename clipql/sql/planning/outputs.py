"""The bytes of a result: of what the row file gave, or of what ClickHouse makes of a planned statement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from clipql.engine.arrow import arrow_stream
from clipql.engine.output import Output
from clipql.engine.row_writer import written
from clipql.errors import QueryError
from clipql.sql.joins.components import NAME as CONNECTED
from clipql.sql.joins.near_any import written_out
from clipql.sql.numbers import heads
from clipql.sql.planning.planner import Rewritten
from clipql.sql.planning.work import Direct, Step
from clipql.sql.search.direct import as_select
from clipql.sql.search.harmless import written_by_default
from clipql.tables.registry import Registry

Progress = Callable[[Mapping[str, Any]], None]
# takes a result piece by piece
Sink = Callable[[bytes], None]


class Outputs:
    """Makes them, as whoever acts."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._engine = registry, registry.engine

    def answered(self, answer: Direct, format: str, began: float, *, as_table: bool = False) -> Output:
        """A result that the row file gave. as_table: as an Arrow table, where it is one."""
        if answer.types is None and as_table:
            return Output(rows=answer.table.num_rows, table=answer.table)
        if answer.types is None:
            return Output(arrow_stream(answer.table), rows=answer.table.num_rows)
        acting, seconds = self._engine.acting, time.perf_counter() - began
        if written_by_default(acting.user.statements, acting.settings):
            data = written(answer.table, answer.types, format, seconds)
            if data is not None:
                return Output(data, seconds, answer.table.num_rows)
        sql = as_select(answer.table, answer.types, "clipql_answer")
        return self._engine.query(sql, format, tables={"clipql_answer": answer.table}, user=True)

    def stream(self, planned: Rewritten, format: str, sink: Sink, progress: Progress | None) -> Output:
        began, rows, size = time.perf_counter(), 0, 0

        def count(more_rows: int, more_bytes: int) -> None:
            nonlocal rows, size
            rows, size = rows + more_rows, size + more_bytes

        for piece in self._engine.stream_bytes(
            planned.sql, format, params=planned.params, count=count, progress=progress
        ):
            if piece:
                sink(piece)
        return Output(elapsed=time.perf_counter() - began, rows=rows, rows_read=rows, bytes_read=size)

    def run(
        self, planned: Rewritten, original: str, params: Mapping[str, Any], format: str, progress: Progress | None
    ) -> tuple[Output, tuple[Step, ...]]:
        try:
            output = self._engine.query(
                planned.sql, format, params=planned.params, progress=progress, tables=planned.tables, user=True
            )
            return output, planned.steps
        except QueryError:
            original = written_out(heads.written_out(original), self._registry)
            if planned.sql == original or CONNECTED in original:  # which ClickHouse does not know
                raise
        # an error is reported in terms of what the user wrote; should that succeed, it is the answer
        output = self._engine.query(original, format, params=params, progress=progress, user=True)
        why = "ClickHouse refused the planned statement"
        return output, tuple(Step(s.plan, "as it is", why, s.cost) for s in planned.steps)
