"""ClickHouse's HTTP protocol at `/`: what clickhouse-connect, curl, DBeaver, Grafana and SQLAlchemy speak.

https://clickhouse.com/docs/interfaces/http. What must stay true: a result's status is known before its first byte is
sent, so an error before any row has the status of an error; one after is written behind the rows, between markers
that clients know; a client that goes takes its query with it.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from clipql.errors import ClipqlError, QueryError
from clipql.serve import access_control, asked_for, compression, early_head, external, replies
from clipql.serve import clickhouse_request as reading
from clipql.serve.allowed import words
from clipql.serve.errors import error_code, error_headers, error_status, error_text, let_go
from clipql.serve.native_blocks import version as native_version
from clipql.serve.pool import Busy, Pipe, gone
from clipql.serve.progress import Meter, interval
from clipql.serve.request_body import Held, content_length
from clipql.serve.service import Request, Service
from clipql.serve.spelling import check_size
from clipql.serve.statements import SHORT, Call, Statements, format_of, makes_room
from clipql.serve.unpacking import too_large, unpack_blocks
from clipql.sql.recognition import settings as own_settings
from clipql.sql.session import Answer

# a result is held back to this size, so that an error in its beginning still has a status of its own
HELD = 1 << 20
# parameters of the protocol; all others are settings
_OWN = words(
    "query user password quota_key database default_format session_id session_timeout session_check query_id compress "
    "decompress role client_protocol_version stacktrace wait_end_of_query buffer_size"
)


class ClickHouse:
    """The protocol over a service."""

    def __init__(self, service: Service, statements: Statements) -> None:
        self._service, self._statements = service, statements

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
        call = Call(query_id, Held(service.bodies), params)
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
            let_go(error)
            return response
        except ClientDisconnect:
            status = 499
            return PlainTextResponse("", 499)
        finally:
            if status is not None:
                self._statements.finished("clickhouse", call, status)

    def _failure(self, error: ClipqlError, call: Call) -> Response:
        code, _ = error_code(error)
        call.code = code
        headers = {**self._headers(call), "X-ClickHouse-Exception-Code": str(code), **error_headers(error)}
        if code == 516:
            headers["WWW-Authenticate"] = 'Basic realm="clipql"'
        return PlainTextResponse(error_text(error, self._statements.version), error_status(error), headers)

    def _headers(self, call: Call) -> dict[str, str]:
        return {
            "X-ClickHouse-Query-Id": replies.header(call.query_id),
            "X-ClickHouse-Server-Display-Name": "clipql",
            "X-ClickHouse-Timezone": self._statements.timezone,
        }

    def _capped(self, call: Call) -> dict[str, str]:
        """X-Clipql-Capped, where limits hold that are lower than those that were asked for."""
        found = self._service.guard.capped(call.request.settings)
        if call.checked is not None and call.checked.capped:
            found["SET"] = call.checked.sql
        return {"X-Clipql-Capped": replies.header(", ".join(f"{n}={v}" for n, v in found.items()))} if found else {}

    # from the request to a statement

    async def _answer(self, request: HttpRequest, call: Call) -> Response:
        short = request.method == "GET" or (content_length(request) or SHORT) < SHORT
        if not short:
            self._service.pool.check()
        try:
            await self._read(request, call)
            if short and not makes_room(call.asked.sql):
                self._service.pool.check()
            return await self._answer_read(request, call)
        except BaseException:
            if not call.submitted:
                self._statements.leave(call)
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
        asking = Request(call.asked.sql, binding, format_of(format), settings, default, writes)
        kept = None
        if given.get("session_id"):
            check = given.get("session_check") == "1"
            kept = self._statements.sessions.take(given["session_id"], given.get("session_timeout"), check=check)
        call.version = native_version(call.params)
        call.tells_origins = asked_for.tells(request, "origins")
        self._statements.prepare(call, asking, kept)
        return await self._start(request, call)

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
        answer = self._statements.at_once(call)
        if answer is not None:
            self._statements.leave(call)
            compress = replies.encoding(request, call.params)
            return await self._answered(answer, answer.output.data, self._headers(call), compress, call)
        pipe = Pipe(service.options.limits.stall)
        meter = _metered(request, call)
        future = self._statements.submit(call, pipe)
        watch = asyncio.ensure_future(gone(request))
        held: list[bytes] = []
        counted = Held(service.bodies)
        try:
            first = asyncio.ensure_future(self._hold(pipe, future, held, replies.held_back(call.params, HELD), counted))
            await asyncio.wait({first, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.cancel()
                raise ClientDisconnect
            ended = first.result()
        except BaseException:
            self._statements.stop(call, pipe)
            raise
        finally:
            watch.cancel()
            counted.release()
            if meter is not None:
                meter.close()
        headers = {**self._headers(call), **self._capped(call), **asked_for.origins(call.origins)}
        compress = replies.encoding(request, call.params)
        if ended:
            answer = future.result()  # raises what went wrong, unless rows went before it
            answer = meter.counted(answer) if meter else answer
            data = b"".join([*held, answer.output.data])
            return await self._answered(answer, data, headers, compress, call)
        headers |= {"X-ClickHouse-Exception-Tag": (tag := secrets.token_hex(8)), **replies.counted(None, call.params)}
        if meter is not None and replies.wants_progress(call.params):
            headers["X-ClickHouse-Progress"] = meter.now.json()
        asked = own_settings.take_format(call.asked.sql)[1] or call.request.format
        headers |= replies.typed(asked)
        stream = self._stream(call, pipe, future, held, tag)
        if compress:
            headers["Content-Encoding"] = compress
        packer = compression.compressor(compress, call.params.get("compress") == "1")
        packed = compression.packed(stream, packer, compress)
        return StreamingResponse(packed, headers=headers)

    async def _answered(
        self, answer: Answer, data: bytes, headers: dict[str, str], compress: str, call: Call
    ) -> Response:
        """The response to a statement whose result is there as a whole."""
        headers |= {**replies.counted(answer, call.params), **replies.shards(answer)} | replies.indexes(answer)
        self._service.metrics.bytes_sent.inc(len(data))
        told = call.checked is None or not (call.checked.writes or call.checked.sets)
        headers |= replies.typed(answer.format) if told else replies.untyped()
        if compress:
            headers["Content-Encoding"] = compress
        packer = compression.compressor(compress, call.params.get("compress") == "1")
        return Response(await compression.whole(data, packer, compress), headers=headers)

    async def _hold(
        self, pipe: Pipe, future: asyncio.Future[Answer], held: list[bytes], most: float, counted: Held
    ) -> bool:
        """Take pieces until there are enough to send, or all; whether these are all.

        counted: what is more than HELD counts as requests' bodies do; where these are too many, no more is held.
        """
        size = 0
        while size < most:
            piece = await pipe.get(future)
            if piece is None:
                return True
            held.append(piece)
            size += len(piece)
            if size > HELD:
                try:
                    counted.take(len(piece))
                except Busy:
                    return False
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
            text = error_text(error, self._statements.version).encode()
            marker = tag.encode()
            let_go(error)
            yield b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (marker, text, len(text), marker)
        except BaseException:
            call.code = 394  # the client has gone
            self._statements.stop(call, pipe)
            raise
        finally:
            self._statements.finished("clickhouse", call, 200)


def _metered(request: HttpRequest, call: Call) -> Meter | None:
    """What knows how much a statement has read, where its client wants that: it is told by lines of the head until the
    reply's is sent, or to who asks.
    """
    send = early_head.sender(request) if replies.wants_progress(call.params) else None
    if send is None and not asked_for.tells(request, "progress"):
        return None
    meter = Meter(
        lambda counts: send("X-ClickHouse-Progress", counts.json()) if send else None,
        interval(call.params.get("http_headers_progress_interval_ms", "")),
    )
    call.request.progress = meter
    return meter


def _parameters(request: HttpRequest) -> dict[str, str]:
    """The parameters of a request, the last of each name. As `request.query_params`, in a third of the time where there
    is a vector, whose commas come as %2C: neither these nor spaces can begin or end another escape.
    """
    text = request.scope["query_string"].decode("latin-1")
    for escaped, plain in (("%2C", ","), ("%2c", ","), ("%20", " ")):
        text = text.replace(escaped, plain)
    return dict(parse_qsl(text, keep_blank_values=True))
