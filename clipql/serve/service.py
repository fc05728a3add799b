"""What all the server's faces share: the open database, who may do what in it, and the figures.

What must stay true: every statement from the network goes through `run`, which has the guard look at it first, and
runs on connections whose limits are set; so does every piece of SQL that a request may put into a statement.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from clipql.database import Database
from clipql.engine.embedded import Engine
from clipql.engine.users import Acting, EngineUser
from clipql.errors import UnknownTable, VectorError
from clipql.reader import ReadOnlyDatabase
from clipql.serve import allowed
from clipql.serve.column_roles import Roles
from clipql.serve.fellows import Fellows, Running
from clipql.serve.foreign import detach, foreign
from clipql.serve.guard import Checked, Guard
from clipql.serve.limits import Options
from clipql.serve.pool import Pool
from clipql.serve.progress import Meter
from clipql.serve.prometheus import Metrics
from clipql.serve.request_body import Bodies
from clipql.sql.planning.outputs import Progress, Sink
from clipql.sql.session import Answer, Session
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import INTERNAL

LOG = logging.getLogger("clipql.serve")


@dataclass
class Request:
    """One statement from the network. settings: as given beside it, ClickHouse's and clipql's own. progress: told what
    it has read, in the thread that works on it."""

    sql: str
    params: Mapping[str, Any] = field(default_factory=dict)
    format: str = "ArrowStream"
    settings: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None
    write: bool = False
    progress: Progress | None = None


class Service:
    """The database as the network may use it."""

    def __init__(self, database: Database, options: Options, fellows: Fellows) -> None:
        self.database, self.options = database, options
        self.registry = database.registry
        self.engine: Engine = database.registry.engine
        self.guard = Guard(database.registry, database.encoders, options)
        self._leave_out_foreign()
        moment: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.moment_now: Callable[[], contextlib.AbstractContextManager[bool]] = lambda: contextlib.nullcontext(True)
        if isinstance(database, ReadOnlyDatabase):
            moment, database.opened = database.snapshot, self._leave_out_foreign
            self.moment_now = database.snapshot_now
        self.fellows, self.bodies = fellows, Bodies(options.limits, fellows)
        self.pool = Pool(options.limits, self.engine.cancel, fellows, moment)
        self.running = Running(fellows, self.pool.stop_soon)
        self.meters: dict[str, Meter] = {}  # of the queries that run here and are metered, by their ids
        self.metrics = Metrics(self.registry, database.encoders, self._taken, fellows.metrics)
        self.everyone = self.new_user()
        self.roles, self.moment = Roles(self.registry), moment
        self.ending: list[Callable[[], None]] = []  # what is done before the database is closed
        database.encoders.files = False
        database.encoders.cached = options.models

    def _leave_out_foreign(self) -> None:
        """Refuse what lies in the database and does more than the network may: see `foreign.py`."""
        vectors = {(t.database, t.name): t.id for t in self.registry.catalog.tables}
        found = foreign(self.engine, vectors, lambda definition: self.guard.check(definition, write=True))
        for each in found:
            LOG.warning("left out", extra={"fields": {"object": str(each), "why": each.why}})
        self.guard.leave_out(found)
        detach(self.engine, [f for f in found if f.table], vectors)

    def _taken(self) -> int:
        """Requests that run or wait, in all processes."""
        return self.pool.taken + self.fellows.others_taken(self.pool.taken)

    def new_user(self) -> EngineUser:
        """Someone new, with the server's limits on what is run for them."""
        return EngineUser([self.guard.limits_sql()])

    def acting(self, user: EngineUser | None = None, request: Request | None = None) -> Acting:
        """A request of somebody's, or of everybody's. Raises QueryError for a setting that it may not have."""
        if request is None:
            return Acting(user or self.everyone)
        theirs, _ = self.guard.settings(request.settings)
        return Acting(user or self.everyone, theirs, request.database)

    def run(
        self, request: Request, acting: Acting | None = None, session: Session | None = None, sink: Sink | None = None
    ) -> Answer:
        """Run one statement after the guard has passed it; in the thread that calls. Raises ClipqlError."""
        acting = acting or self.acting(None, request)
        with self.engine.act(acting):
            checked = self.guard.check(request.sql, write=request.write and self.options.write)
            return self.run_checked(checked, request, session, sink)

    def run_checked(
        self, checked: Checked, request: Request, session: Session | None = None, sink: Sink | None = None
    ) -> Answer:
        """Run what the guard has passed, as whoever acts in this thread."""
        if checked.slow:
            block = {"max_block_size": str(allowed.SLOW_BLOCK)}
            self.engine.acting.settings = {**block, **self.engine.acting.settings}
        own = self.database.session()
        if session is not None:
            own.params, own.settings = dict(session.params), dict(session.settings)
        if not checked.sets:
            own.settings.update(self.guard.settings(request.settings)[1])
        changes = checked.word in ("ALTER", "DELETE", "UPDATE")
        rows = self.options.limits.rows
        with own.within_limits(checked.sql, request.params, rows) if changes else nullcontext(checked.sql) as sql:
            answer = own.execute(sql, request.params, format=request.format, sink=sink, progress=request.progress)
        if session is not None and checked.sets:
            session.params, session.settings = own.params, own.settings
        self.metrics.searched(answer)
        return answer

    def table(self, database: str | None, name: str) -> Table:
        """A table with vectors. Raises UnknownTable, and QueryError for one that is left out."""
        for each in (name, database or ""):
            self.guard.check_named(each)
        found = None if database == INTERNAL else self.registry.find(database, name)
        if found is None:
            tables = ", ".join(t.full_name for t in self.registry.catalog.tables if t.database != INTERNAL)
            raise UnknownTable(
                f"there is no table {database or 'default'}.{name} with vector columns; there are: {tables or 'none'}",
                code=60,
                name="UNKNOWN_TABLE",
            )
        return found

    @staticmethod
    def column(table: Table, name: str | None) -> VectorColumn:
        """A vector column of a table, by default its first. Raises VectorError."""
        if not table.columns:
            raise VectorError(f"{table.full_name} has no vector columns")
        if name is None:
            return table.columns[0]
        found = table.column(name)
        if found is None:
            names = ", ".join(c.name for c in table.columns)
            raise VectorError(f"{table.full_name} has no vector column {name}; it has {names}")
        return found

    def close(self, seconds: float) -> bool:
        """Wait for what runs, so long at most; whether it has ended."""
        for end in self.ending:
            end()
        ended = self.pool.close(seconds)
        if ended:
            self.bodies.close()
        return ended

    def run_many(self, request: Request, params: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Run a statement that reads for each of some sets of parameters, as whoever acts in this thread; outputs hold
        tables. Raises ClipqlError.
        """
        checked = self.guard.check(request.sql, write=False)
        answers = self.database.session().execute_many(checked.sql, params)
        for answer in answers:
            self.metrics.searched(answer)
        return answers
