"""ClickHouse's HTTP protocol at `/`: what clickhouse-connect, curl, DBeaver, Grafana and SQLAlchemy speak.

https://clickhouse.com/docs/interfaces/http. What must stay true: a result's status is known before its first byte is
sent, so an error before any row has the status of an error; one after is written behind the rows, between markers
that clients know; a client that goes takes its query with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError, QueryError
from clipql.serve import access_control, compression, external, native_answers, replies, told
from clipql.serve import clickhouse_request as reading
from clipql.serve.allowed import words
from clipql.serve.errors import error_code, error_status, error_text
from clipql.serve.guard import Checked
from clipql.serve.native_blocks import version as native_version
from clipql.serve.pool import Busy, Pipe, gone
from clipql.serve.request_body import Held, content_length
from clipql.serve.service import Request, Service
from clipql.serve.sessions import Kept, Sessions
from clipql.serve.short_way import ShortWay
from clipql.serve.spelling import check_size, with_identifiers
from clipql.serve.told import Told
from clipql.serve.unpacking import too_large, unpack_blocks
from clipql.sql import settings as own_settings
from clipql.sql.session import Answer

LOG = logging.getLogger("clipql.serve")
# a result is held back to this size, so that an error in its beginning still has a status of its own
HELD = 1 << 20
# what is shorter is read at once, on the event loop
SHORT = 1 << 13
# parameters of the protocol; all others are settings
_OWN = words(
    "query user password quota_key database default_format session_id session_timeout session_check query_id compress "
    "decompress role client_protocol_version stacktrace"
)


# statements after which a session is as it was before
_LEAVE_NOTHING = words("SELECT WITH SHOW DESCRIBE DESC EXISTS EXPLAIN INSERT KILL")


@dataclass
class Call:
    """One request, taken apart. held: what its body takes. alone: its user, where there is one of its own."""

    query_id: str
    params: Mapping[str, str]
    held: Held
    tables: tuple[external.External, ...] = ()
    alone: EngineUser | None = None
    asked: reading.Asked = field(default_factory=lambda: reading.Asked(""))
    request: Request = field(default_factory=lambda: Request(""))
    acting: Acting | None = None
    kept: Kept | None = None
    checked: Checked | None = None
    binding: Mapping[str, Any] = field(default_factory=dict)
    submitted: bool = False
    writes: bool = False
    began: float = field(default_factory=time.perf_counter)
    code: int = 0


class ClickHouse:
    """The protocol over a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions = Sessions(
            service.engine,
            service.new_user,
            service.database.session,
            service.options.limits.sessions,
            service.fellows,
        )
        found = service.engine.arrow("SELECT version(), timezone()")
        self.version, self.timezone = (str(column[0].as_py()) for column in found.columns)
        self._running, self._short = service.running, ShortWay(service)
        self._texts: dict[str, tuple[str, float]] = {}
        self._told = Told(service.options.write, lambda: [(id, *said) for id, said in self._texts.copy().items()])

    async def ping(self, request: HttpRequest) -> Response:
        """`/ping`."""
        return PlainTextResponse("Ok.\n")

    async def replicas(self, request: HttpRequest) -> Response:
        """`/replicas_status`."""
        return PlainTextResponse("Ok.\n")

    async def handle(self, request: HttpRequest) -> Response:
        """`/`."""
        service = self._service
        params = _parameters(request)
        query_id = params.get("query_id") or request.headers.get("x-clickhouse-query-id") or str(uuid.uuid4())
        call = Call(query_id, params, Held(service.bodies))
        status: int | None = 500
        try:
            if not access_control.authorised(service.options.token, request, params):
                raise QueryError(
                    "default: Authentication failed: password is incorrect, or there is no user with such name",
                    code=516,
                    name="AUTHENTICATION_FAILED",
                )
            response = await self._answer(request, call)
            # what is streamed is told of at its end
            status = None if isinstance(response, StreamingResponse) else response.status_code
            return response
        except Busy as busy:
            error = QueryError(f"Too many simultaneous queries: {busy}", code=202, name="TOO_MANY_SIMULTANEOUS_QUERIES")
            response = self._failure(error, call)
            response.headers["Retry-After"] = "1"
            status = response.status_code
            return response
        except ClipqlError as error:
            response = self._failure(error, call)
            status = response.status_code
            return response
        except ClientDisconnect:
            status = 499
            return PlainTextResponse("", 499)
        finally:
            if status is not None:
                self._finished(call, status)

    def _finished(self, call: Call, status: int) -> None:
        """Count and log a query."""
        seconds = time.perf_counter() - call.began
        self._service.metrics.requests.labels("clickhouse", str(status)).inc()
        self._service.metrics.took("clickhouse", seconds)
        if call.submitted:
            database, began = call.request.database or "default", time.time() - seconds
            self._told.ended(told.Asked(call.query_id, call.asked.sql, database, began, seconds, call.code))
        fields = {"query_id": call.query_id, "status": status, "seconds": round(seconds, 6)}
        code = {"code": call.code} if call.code else {}
        LOG.info("query", extra={"fields": {**fields, **code, "sql": call.asked.sql[:500]}})

    def _failure(self, error: ClipqlError, call: Call) -> Response:
        code, _ = error_code(error)
        call.code = code
        headers = {**self._headers(call), "X-ClickHouse-Exception-Code": str(code)}
        if code == 516:
            headers["WWW-Authenticate"] = 'Basic realm="clipql"'
        return PlainTextResponse(error_text(error, self.version), error_status(error), headers)

    def _headers(self, call: Call) -> dict[str, str]:
        return {
            "X-ClickHouse-Query-Id": replies.header(call.query_id),
            "X-ClickHouse-Server-Display-Name": "clipql",
            "X-ClickHouse-Timezone": self.timezone,
        }

    def _capped(self, call: Call) -> dict[str, str]:
        """X-Clipql-Capped, where limits hold that are lower than those that were asked for."""
        found = self._service.guard.capped(call.request.settings)
        if call.checked is not None and call.checked.capped:
            found["SET"] = call.checked.sql
        return {"X-Clipql-Capped": replies.header(", ".join(f"{n}={v}" for n, v in found.items()))} if found else {}

    # from the request to a statement

    async def _answer(self, request: HttpRequest, call: Call) -> Response:
        service = self._service
        service.pool.check()
        try:
            await self._read(request, call)
            return await self._answer_read(request, call)
        except BaseException:
            if not call.submitted:
                self._leave(call)
            raise

    async def _answer_read(self, request: HttpRequest, call: Call) -> Response:
        service, given = self._service, call.params
        if not call.asked.sql.strip():
            if request.method in ("GET", "HEAD") and not given:
                return PlainTextResponse("Ok.\n")
            raise QueryError("Empty query", code=62, name="SYNTAX_ERROR")
        database = given.get("database") or request.headers.get("x-clickhouse-database") or None
        if database:
            service.guard.check_database(database)
        format = given.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated"
        binding = {n.removeprefix("param_"): reading.value(v) for n, v in given.items() if n.startswith("param_")}
        known = _OWN | external.described(call.tables)
        settings = {n: v for n, v in given.items() if n not in known and not n.startswith("param_")}
        writes = request.method == "POST" and settings.get("readonly", "0") in ("", "0")
        default = None if database == "default" else database
        call.request = Request(call.asked.sql, binding, _format(format), settings, default, writes)
        if given.get("session_id"):
            check = given.get("session_check") == "1"
            call.kept = self._sessions.take(given["session_id"], given.get("session_timeout"), check=check)
        try:
            kept = call.kept.session.params if call.kept else {}
            call.binding = {**kept, **binding}
            call.alone = service.new_user() if call.tables and not call.kept else None
            call.acting = service.acting(call.kept.user if call.kept else call.alone, call.request)
            if call.query_id in self._running:
                raise QueryError(
                    f"Query with id = {call.query_id} is already running",
                    code=216,
                    name="QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                )
            return await self._start(request, call)
        except BaseException:
            if not call.submitted:
                self._leave(call)
            raise

    def _leave(self, call: Call) -> None:
        """Nothing works for a call any more."""
        call.held.release()
        if call.kept is not None:
            self._sessions.release(call.kept)
            call.kept = None
        if self._running.remove(call.query_id, call.acting):
            self._texts.pop(call.query_id, None)

    async def _read(self, request: HttpRequest, call: Call) -> None:
        """The statement and its data, from `query=` and the body."""
        limits, bodies = self._service.options.limits, self._service.bodies
        kind = request.headers.get("content-type", "")
        query = call.params.get("query", "")
        if kind.startswith("multipart/form-data") and request.method == "POST":
            length = content_length(request)
            if length is None or length > limits.body:
                raise too_large(limits.body)
            call.held.take(length)
            async with request.form(max_part_size=limits.body) as form:
                fields = {k: v for k, v in form.items() if isinstance(v, str)}
                files = {k: await v.read() for k, v in form.items() if not isinstance(v, str)}
            call.params = {**call.params, **fields}
            call.tables = external.of(files, call.params)
            query, body = call.params.get("query", ""), b""
        else:
            body = await bodies.read(request, limits.body, call.held) if request.method == "POST" else b""

        def taken_apart() -> reading.Asked:
            packed = call.params.get("decompress") == "1" and body
            asked = reading.take_apart(query, unpack_blocks(body, limits.body, call.held.take) if packed else body)
            check_size(asked.sql, limits)
            return asked

        short = len(body) + len(query) < SHORT and call.params.get("decompress") != "1"
        call.asked = taken_apart() if short else await bodies.in_thread(taken_apart)

    # from the statement to a response

    async def _start(self, request: HttpRequest, call: Call) -> Response:
        service = self._service
        answer = self._at_once(call)
        if answer is not None:
            self._leave(call)
            compress = replies.encoding(request, call.params)
            return self._answered(answer, answer.output.data, self._headers(call), compress, call)
        pipe = Pipe(service.options.limits.stall)
        assert call.acting is not None
        self._running.add(call.query_id, call.acting)
        self._texts[call.query_id] = (call.asked.sql, time.time())
        future = service.pool.submit(lambda: self._carried_out(call, pipe.put), call.acting, lambda: self._leave(call))
        call.submitted = True
        watch = asyncio.ensure_future(gone(request))
        held: list[bytes] = []
        try:
            first = asyncio.ensure_future(self._hold(pipe, future, held))
            await asyncio.wait({first, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.cancel()
                raise ClientDisconnect
            ended = first.result()
        except BaseException:
            self._stop(call, pipe)
            raise
        finally:
            watch.cancel()
        headers = {**self._headers(call), **self._capped(call)}
        compress = replies.encoding(request, call.params)
        if ended:
            answer = future.result()  # raises what went wrong, unless rows went before it
            data = b"".join([*held, answer.output.data])
            return self._answered(answer, data, headers, compress, call)
        headers |= {
            "X-ClickHouse-Exception-Tag": (tag := secrets.token_hex(8)),
            "X-ClickHouse-Summary": replies.summary(None),
        }
        asked = own_settings.take_format(call.asked.sql)[1] or call.request.format
        headers |= replies.typed(asked)
        stream = self._stream(call, pipe, future, held, tag)
        if compress:
            headers["Content-Encoding"] = compress
        packed = compression.packed(stream, compression.compressor(compress, call.params.get("compress") == "1"))
        return StreamingResponse(packed, headers=headers)

    def _at_once(self, call: Call) -> Answer | None:
        """The answer to what is short work; None for anything else."""
        if call.kept or call.alone or call.acting is None or call.asked.data is not None or call.tables:
            return None
        sql = with_identifiers(call.asked.sql, call.binding)
        if native_version(call.params) or len(sql) > SHORT:
            return None
        own = self._service.guard.settings(call.request.settings)[1]
        write = call.request.write and self._service.options.write
        return self._short.answer(sql, call.request.params, call.request.format, call.acting, own, write=write)

    def _answered(self, answer: Answer, data: bytes, headers: dict[str, str], compress: str, call: Call) -> Response:
        """The response to a statement whose result is there as a whole."""
        headers |= {"X-ClickHouse-Summary": replies.summary(answer), **replies.shards(answer)} | replies.indexes(answer)
        self._service.metrics.bytes_sent.inc(len(data))
        told = call.checked is None or not (call.checked.writes or call.checked.sets)
        headers |= replies.typed(answer.format) if told else replies.untyped()
        return self._whole(data, headers, compress, call)

    @staticmethod
    def _whole(data: bytes, headers: dict[str, str], compress: str, call: Call) -> Response:
        if compress:
            headers["Content-Encoding"] = compress
        packer = compression.compressor(compress, call.params.get("compress") == "1")
        return Response(packer.add(data) + packer.end(), headers=headers)

    async def _hold(self, pipe: Pipe, future: asyncio.Future[Answer], held: list[bytes]) -> bool:
        """Take pieces until there are enough to send, or all; whether these are all."""
        size = 0
        while size < HELD:
            piece = await pipe.get(future)
            if piece is None:
                return True
            held.append(piece)
            size += len(piece)
        return False

    async def _stream(
        self, call: Call, pipe: Pipe, future: asyncio.Future[Answer], held: list[bytes], tag: str
    ) -> AsyncIterator[bytes]:
        metrics = self._service.metrics
        try:
            for first in held:
                yield first
            held.clear()
            while (piece := await pipe.get(future)) is not None:
                metrics.bytes_sent.inc(len(piece))
                yield piece
            yield future.result().output.data
        except ClipqlError as error:
            call.code, _ = error_code(error)
            text = error_text(error, self.version).encode()
            marker = tag.encode()
            yield b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (marker, text, len(text), marker)
        except BaseException:
            call.code = 394  # the client has gone
            self._stop(call, pipe)
            raise
        finally:
            self._finished(call, 200)

    def _stop(self, call: Call, pipe: Pipe) -> None:
        """Cancel what nobody waits for."""
        pipe.close()
        if call.acting is not None:
            self._service.pool.stop(call.acting)

    # in a thread of the pool

    def _carried_out(self, call: Call, sink: Callable[[bytes], None]) -> Answer:
        try:
            return self._carry_out(call, sink)
        finally:
            if call.writes:
                self._service.fellows.wrote()
            if call.alone is not None:
                self._service.engine.forget(call.alone)

    def _carry_out(self, call: Call, sink: Callable[[bytes], None]) -> Answer:
        service, acting = self._service, call.acting
        assert acting is not None
        call.request.sql = with_identifiers(self._told.rewritten(call.asked.sql), call.binding)
        with service.engine.act(acting):
            checked = service.guard.check(call.request.sql, write=call.request.write and service.options.write)
            call.checked = checked
            call.writes = checked.writes
            if call.kept is not None and checked.word not in _LEAVE_NOTHING:
                self._sessions.keeps(call.kept)
            if checked.kills is not None:
                return self._kill(checked.kills, call, stop=not checked.tests)
            alone = call.kept is None and checked.sets
            if call.kept is None and checked.temporary:
                raise QueryError(
                    "a temporary table needs a session: give session_id", code=372, name="SESSION_NOT_FOUND"
                )
            session = call.kept.session if call.kept else None
            if call.asked.data is not None and checked.writes:
                own = session or service.database.session()
                return own.load(checked.sql, call.asked.format, [call.asked.data])
            if not alone:
                with external.given(service, call.tables, session or service.database.session()):
                    return native_answers.run(service, checked, call.request, call.params, session, sink)
        user = service.new_user()  # what is SET without a session holds for nothing else
        try:
            with service.engine.act(service.acting(user, call.request)):
                return service.run_checked(checked, call.request)
        finally:
            service.engine.forget(user)

    def _kill(self, query_id: str, call: Call, *, stop: bool) -> Answer:
        found = self._running.kill(query_id, call.acting) if stop else query_id in self._running
        status = "waiting" if found else "no such query"
        sql = f"SELECT '{status}' AS kill_status, {{id:String}} AS query_id, 'default' AS user" + (
            "" if found else " WHERE 0"
        )
        format = own_settings.take_format(f"SELECT {call.asked.sql}")[1] or call.request.format
        output = self._service.engine.query(sql, format, params={"id": query_id}, user=False)
        return Answer(output, format, 0.0)


def _parameters(request: HttpRequest) -> dict[str, str]:
    return dict(request.query_params.multi_items())


def _format(name: str) -> str:
    from clipql.serve import allowed

    if name not in allowed.FORMATS:
        raise QueryError(f"Unknown format {name[:60]}", code=73, name="UNKNOWN_FORMAT")
    return name
