"""Statements from the network, whichever protocol they came by: their sessions, their ids, the work on them.

What must stay true: a statement holds its session, its id and what counts for its body from `prepare` until `leave`,
which follows once the work on it has ended in truth; the guard looks at each before it runs.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from clipql.engine.quoting import quote_name
from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError, QueryError
from clipql.serve import allowed, asked_functions, external, native_answers
from clipql.serve import clickhouse_request as reading
from clipql.serve.allowed import words
from clipql.serve.guard import Checked
from clipql.serve.pool import Pipe
from clipql.serve.progress import Counts, Meter
from clipql.serve.request_body import Held
from clipql.serve.service import Request, Service
from clipql.serve.sessions import Kept, Sessions
from clipql.serve.short_way import ShortWay
from clipql.serve.spelling import with_identifiers
from clipql.serve.told import Asked, Told
from clipql.serve.totals import Apart
from clipql.sql.recognition import settings as own_settings
from clipql.sql.recognition.column_origins import Origin
from clipql.sql.session import Answer, Session
from clipql.syntax.inputs import input_of
from clipql.syntax.reading import read
from clipql.syntax.statements import Insert

LOG = logging.getLogger("clipql.serve")
# what is shorter is read at once, on the event loop
SHORT = 1 << 13
# bytes of a long statement, words and signs of one of many, and the seconds that such a one waits for another
LONG, WORDY, PATIENCE = 1 << 15, 4_096, 2.0
_KILL = re.compile(r"\s*KILL\s", re.IGNORECASE)
# statements after which a session is as it was before
LEAVE_NOTHING = words("SELECT WITH SHOW DESCRIBE DESC EXISTS EXPLAIN INSERT KILL")


@dataclass
class Call:
    """One statement, taken apart. held: what its data take. alone: its user, where there is one of its own.

    version: of the client, for answers in Native; 0 for one that names none. apart: where the answer is blocks of
    Native, handed over one by one, the first of which has no rows and names the columns; there are those of totals and
    extremes then. describes: whether the answer
    to an INSERT is the columns that it fills, and nothing is inserted. tells_origins: whether its client asks where the
    columns of the result come from, which is in `origins` by the time that it has a result.
    """

    query_id: str
    held: Held
    params: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[external.External, ...] = ()
    alone: EngineUser | None = None
    asked: reading.Asked = field(default_factory=lambda: reading.Asked(""))
    request: Request = field(default_factory=lambda: Request(""))
    acting: Acting | None = None
    kept: Kept | None = None
    checked: Checked | None = None
    version: int = 0
    apart: Apart | None = None
    describes: bool = False
    tells_origins: bool = False
    origins: tuple[Origin | None, ...] = ()
    binding: Mapping[str, Any] = field(default_factory=dict)
    submitted: bool = False
    writes: bool = False
    began: float = field(default_factory=time.perf_counter)
    code: int = 0


class Statements:
    """The statements of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sessions = Sessions(
            service.engine,
            service.new_user,
            service.database.session,
            service.options.limits.sessions,
            service.fellows,
        )
        found = service.engine.arrow("SELECT version(), timezone()")
        self.version, self.timezone = (str(column[0].as_py()) for column in found.columns)
        self._running, self._short = service.running, ShortWay(service)
        self._wordy = threading.Lock()
        self._texts: dict[str, tuple[str, float]] = {}
        self._told = Told(service.options.write, self._now)

    def prepare(self, call: Call, request: Request, kept: Kept | None = None) -> None:
        """Have a statement ready to be run: whose it is, its values, its settings. kept: its session, if it has one.

        Raises QueryError, and holds nothing of it then.
        """
        call.request, call.kept = request, kept
        try:
            call.binding = {**(kept.session.params if kept else {}), **request.params}
            call.alone = self.service.new_user() if call.tables and not kept else None
            call.acting = self.service.acting(kept.user if kept else call.alone, request)
            if call.query_id in self._running:
                raise QueryError(
                    f"Query with id = {call.query_id} is already running",
                    code=216,
                    name="QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                )
        except BaseException:
            self.leave(call)
            raise

    def _now(self) -> list[tuple[str, str, float, Counts]]:
        """The statements that run here, with what they have read as far as somebody has asked for that."""
        meters = self.service.meters.copy()
        return [
            (id, sql, began, meters[id].now if id in meters else Counts())
            for id, (sql, began) in self._texts.copy().items()
        ]

    def leave(self, call: Call) -> None:
        """Nothing works for a call any more."""
        call.held.release()
        if call.kept is not None:
            self.sessions.release(call.kept)
            call.kept = None
        if self._running.remove(call.query_id, call.acting):
            self._texts.pop(call.query_id, None)
            self.service.meters.pop(call.query_id, None)

    def finished(self, face: str, call: Call, status: int) -> None:
        """Count and log a statement. face: the protocol that it came by."""
        seconds = time.perf_counter() - call.began
        self.service.metrics.requests.labels(face, str(status)).inc()
        self.service.metrics.took(face, seconds)
        if call.submitted:
            database, began = call.request.database or "default", time.time() - seconds
            self._told.ended(Asked(call.query_id, call.asked.sql, database, began, seconds, call.code))
        if LOG.isEnabledFor(logging.INFO):
            fields = {"query_id": call.query_id, "status": status, "seconds": round(seconds, 6)}
            code = {"code": call.code} if call.code else {}
            LOG.info("query", extra={"fields": {**fields, **code, "sql": call.asked.sql[:500]}})

    def at_once(self, call: Call) -> Answer | None:
        """The answer to what is short work; None for anything else. Raises ClipqlError."""
        if call.kept or call.alone or call.acting is None or call.asked.data is not None or call.tables:
            return None
        if call.tells_origins:
            return None
        sql = with_identifiers(call.asked.sql, call.binding)
        if call.version or len(sql) > SHORT:
            return None
        own = self.service.guard.settings(call.request.settings)[1]
        write = call.request.write and self.service.options.write
        return self._short.answer(sql, call.request.params, call.request.format, call.acting, own, write=write)

    def submit(self, call: Call, pipe: Pipe) -> Any:
        """Have a statement run; the future of its answer, whose pieces go through the pipe. Raises Busy."""
        assert call.acting is not None
        self._running.add(call.query_id, call.acting)
        self._texts[call.query_id] = (call.asked.sql, time.time())
        if isinstance(call.request.progress, Meter):
            self.service.meters[call.query_id] = call.request.progress
        work, ended = partial(self._carried_out, call, pipe.put), partial(self.leave, call)
        pool = self.service.pool
        future = pool.aside(work, ended) if makes_room(call.asked.sql) else pool.submit(work, call.acting, ended)
        call.submitted = True
        return future

    def stop(self, call: Call, pipe: Pipe) -> None:
        """Cancel what nobody waits for."""
        pipe.close()
        if call.acting is not None:
            self.service.pool.stop(call.acting)

    # in a thread of the pool

    def _carried_out(self, call: Call, sink: Callable[[bytes], None]) -> Answer:
        try:
            return self._carry_out(call, sink)
        finally:
            if call.writes:
                self.service.fellows.wrote()
            if call.alone is not None:
                self.service.engine.forget(call.alone)

    def _carry_out(self, call: Call, sink: Callable[[bytes], None]) -> Answer:
        service, acting = self.service, call.acting
        assert acting is not None
        call.request.sql = with_identifiers(
            asked_functions.answered(self._told.rewritten(call.asked.sql)), call.binding
        )
        with self._turn_of(call.request.sql), service.engine.act(acting):
            checked = service.guard.check(call.request.sql, write=call.request.write and service.options.write)
            call.checked = checked
            call.writes = checked.writes
            if call.kept is not None and checked.word not in LEAVE_NOTHING:
                self.sessions.keeps(call.kept)
            if checked.kills is not None:
                return self._kill(checked.kills, call, stop=not checked.tests)
            alone = call.kept is None and checked.sets
            if call.kept is None and checked.temporary:
                raise QueryError(
                    "a temporary table needs a session: give session_id", code=372, name="SESSION_NOT_FOUND"
                )
            session = call.kept.session if call.kept else None
            if call.tells_origins and not call.tables:
                with contextlib.suppress(ClipqlError):  # which is said when the statement is run
                    own = session or service.database.session()
                    call.origins = own.origins(checked.sql, call.binding)
            if call.describes:
                return self._described(checked, call, session)
            if call.asked.data is not None and checked.writes:
                own = session or service.database.session()
                data = [call.asked.data] if isinstance(call.asked.data, bytes) else call.asked.data
                return own.load(checked.sql, call.asked.format, data, call.binding)
            if not alone:
                with external.given(service, call.tables, session or service.database.session()):
                    return native_answers.run(
                        service, checked, call.request, call.version, session, sink, apart=call.apart
                    )
        user = service.new_user()  # what is SET without a session holds for nothing else
        try:
            with service.engine.act(service.acting(user, call.request)):
                return service.run_checked(checked, call.request)
        finally:
            service.engine.forget(user)

    @contextlib.contextmanager
    def _turn_of(self, sql: str) -> Iterator[None]:
        """Statements of many words run one after the other, or begin a little later: ClickHouse takes 100 MB for the
        first look at each, and while many threads take memory the kernel has all others of the process wait.
        """
        ours = len(sql) > LONG and self._wordy.acquire(timeout=PATIENCE)
        if ours and len(read(sql).tokens) <= WORDY:  # a long vector is one
            self._wordy.release()
            ours = False
        try:
            yield
        finally:
            if ours:
                self._wordy.release()

    def _described(self, checked: Checked, call: Call, session: Session | None) -> Answer:
        """The columns of the table of an INSERT, or of its input(), as DESCRIBE has them.

        Raises QueryError where it would not be run.
        """
        statement = read(checked.sql).kind
        if not isinstance(statement, Insert):
            raise QueryError("expected INSERT INTO a table", code=62, name="SYNTAX_ERROR")
        table = ".".join(quote_name(n) for n in (statement.table.database, statement.table.name) if n)
        fed = input_of(checked.sql)
        if fed is not None and fed.structure.strip():
            table = f"null({fed.structure})"
        described = self.service.guard.check(f"DESCRIBE TABLE {table}", write=False)
        return self.service.run_checked(described, replace(call.request, format="ArrowStream"), session)

    def _kill(self, query_id: str, call: Call, *, stop: bool) -> Answer:
        found = self._running.kill(query_id, call.acting) if stop else query_id in self._running
        status = "waiting" if found else "no such query"
        sql = f"SELECT '{status}' AS kill_status, {{id:String}} AS query_id, 'default' AS user" + (
            "" if found else " WHERE 0"
        )
        format = own_settings.take_format(f"SELECT {call.asked.sql}")[1] or call.request.format
        output = self.service.engine.query(sql, format, params={"id": query_id}, user=False)
        return Answer(output, format, 0.0)


def makes_room(sql: str) -> bool:
    """Whether a statement is a KILL, which is carried out though all places are taken."""
    return len(sql) < SHORT and _KILL.match(sql) is not None


def format_of(name: str) -> str:
    """A format by its name. Raises QueryError for one that the network may not name."""
    if name not in allowed.FORMATS:
        raise QueryError(f"Unknown format {name[:60]}", code=73, name="UNKNOWN_FORMAT")
    return name
