"""What a client of the native protocol says and is told, from its Hello to its end.

A connection is a session: what is SET, USEd or made as a temporary table lasts as long as it. What must stay true:
each statement goes the way that HTTP's go (`statements.py`); a client that leaves or cancels takes its query with it;
after an error that leaves no doubt where the next packet begins the conversation goes on, after any other it ends.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, QueryError
from clipql.serve import clickhouse_request as reading
from clipql.serve import compression
from clipql.serve import native_blocks as native
from clipql.serve.access_control import same
from clipql.serve.errors import error_code
from clipql.serve.external import External
from clipql.serve.pool import Busy, Pipe
from clipql.serve.request_body import Held
from clipql.serve.service import Request
from clipql.serve.sessions import LONGEST_SECONDS
from clipql.serve.spelling import check_size
from clipql.serve.statements import Call, Statements
from clipql.serve.tcp import inserting, packets
from clipql.serve.tcp.blocks import Block, read_block
from clipql.serve.tcp.wire import Gone, Incoming, Unpacked, broken
from clipql.sql.session import Answer
from clipql.syntax.reading import read

T = TypeVar("T")
_NAME = 1 << 12


class Lost(Exception):
    """What came cannot be read, so nobody knows where the next packet begins."""

    def __init__(self, error: ClipqlError) -> None:
        super().__init__(str(error))
        self.error = error


class Line(Protocol):
    """What a conversation goes over."""

    incoming: Incoming

    def send(self, packet: bytes) -> None:
        """Send a packet."""

    async def drained(self) -> None:
        """Wait until the client has read enough. Raises Gone."""

    def expects(self, what: str) -> None:
        """What is waited for: 'hello', 'packet', 'rest' of one, 'data' of an INSERT, or 'nothing' of the client's."""

    def chunked(self) -> None:
        """Send packets in chunks from now on."""


@dataclass
class Client:
    """Who speaks. database: of its Hello, until it says USE. session: the id of its session, once it has one."""

    hello: packets.Hello
    database: str | None
    session: str | None = None


class Conversation:
    """With one client."""

    def __init__(self, statements: Statements, line: Line) -> None:
        self.statements, self.service = statements, statements.service
        self._limits = self.service.options.limits
        self.line, self.incoming = line, line.incoming
        self.revision = packets.REVISION
        self._packed = False  # of the last query

    async def run(self) -> None:
        """Until the client goes, or says what ends it."""
        client = None
        try:
            client = await self._greeted()
            while True:
                self.line.expects("packet")
                kind = await self.read(self.incoming.number())
                self.line.expects("rest")
                await self._packet(client, kind)
                await self.line.drained()
        except Gone:
            pass
        except Lost as lost:
            self.line.send(packets.exception(lost.error))
        except ClipqlError as error:
            self.line.send(packets.exception(error))
        finally:
            if client is not None and client.session is not None:
                self.statements.sessions.end(client.session)

    async def read(self, reading: Awaitable[T]) -> T:
        """What is read. Raises Lost where that went wrong: nobody knows then where the next packet begins."""
        try:
            return await reading
        except Busy as busy:
            raise Lost(_too_many(busy)) from busy
        except ClipqlError as error:
            raise Lost(error) from error

    async def _greeted(self) -> Client:
        self.line.expects("hello")
        kind = await self.read(self.incoming.number())
        if kind != packets.HELLO:
            raise broken(f"it begins with packet {kind}, and not with a Hello")
        hello = await self.read(packets.read_hello(self.incoming))
        self.revision = hello.revision
        token = self.service.options.token
        if token is not None and not same(token, hello.password):
            raise QueryError(
                f"{hello.user}: Authentication failed: password is incorrect, or there is no user with such name",
                code=516,
                name="AUTHENTICATION_FAILED",
            )
        if hello.database:
            self.service.guard.check_database(hello.database)
        self.line.send(packets.hello(hello.revision, self.statements.version, self.statements.timezone))
        self.line.expects("packet")
        sends, wants = await self.read(packets.read_addendum(self.incoming, hello.revision))
        if sends:
            self.incoming.unchunk()
        if wants:
            self.line.chunked()
        return Client(hello, None if hello.database in ("", "default") else hello.database)

    async def _packet(self, client: Client, kind: int) -> None:
        if kind == packets.PING:
            self.line.send(bytes([packets.PONG]))
        elif kind == packets.TABLES_STATUS:
            self.line.send(packets.tables_status(await self.read(packets.read_tables_status(self.incoming))))
        elif kind == packets.QUERY:
            await self._query(client)
        elif kind == packets.DATA:  # what was on its way when an INSERT failed
            await self.block(packed=self._packed, count=lambda size: None)
        elif kind != packets.CANCEL:  # one that comes when all is said
            raise broken(f"packet {kind} is not expected")

    async def block(self, *, packed: bool, count: Callable[[int], None]) -> tuple[str, Block]:
        """The rest of a Data packet: a table's name, and its rows."""

        async def both() -> tuple[str, Block]:
            name = await self.incoming.text(_NAME)
            source = Unpacked(self.incoming, self._limits.body) if packed else self.incoming
            found = await read_block(source, self.revision, self._limits.body, count)
            if source is not self.incoming and source.at < len(source.buffer):
                raise broken("a compressed frame goes on behind its block")
            return name, found

        return await self.read(both())

    # queries

    async def _query(self, client: Client) -> None:
        asking = await self.read(packets.read_query(self.incoming, self.revision, self._limits))
        self._packed = asking.packed
        call = Call(asking.query_id or str(uuid.uuid4()), Held(self.service.bodies))
        status = 500
        try:
            call.tables = await self._external(asking, call.held)
            call.asked = reading.take_apart(asking.sql, b"")
            self._check(asking, call)
            data = call.asked.data
            if data is not None and not data:
                await self._insert(client, asking, call)
            else:
                await self._answer(client, asking, call)
            status = 200
        except Busy as busy:
            self._failed(call, _too_many(busy))
        except ClipqlError as error:
            self._failed(call, error)
        except Lost as lost:
            call.code = error_code(lost.error)[0]
            raise
        except Gone:
            status, call.code = 499, 394
            raise
        finally:
            if not call.submitted:
                self.statements.leave(call)
            self.statements.finished("tcp", call, status)

    def _check(self, asking: packets.Asking, call: Call) -> None:
        self.service.pool.check()
        check_size(call.asked.sql, self._limits)
        if not call.asked.sql.strip():
            raise QueryError("Empty query", code=62, name="SYNTAX_ERROR")
        if asking.refused:
            raise QueryError(asking.refused, code=48, name="NOT_IMPLEMENTED")

    def _failed(self, call: Call, error: ClipqlError) -> None:
        call.code = error_code(error)[0]
        self.line.send(packets.exception(error))

    async def _external(self, asking: packets.Asking, held: Held) -> tuple[External, ...]:
        """The tables that come with a query, to the block without columns that ends them."""
        found: dict[str, tuple[Block, list[bytes]]] = {}
        while True:
            kind = await self.read(self.incoming.number())
            if kind == packets.CANCEL:
                continue
            if kind != packets.DATA:
                raise Lost(broken(f"packet {kind} comes where data were expected"))
            name, block = await self.block(packed=asking.packed, count=held.take)
            if not block.columns:
                break
            known, pieces = found.setdefault(name, (block, []))
            if known.columns != block.columns:
                raise Lost(broken(f"the blocks of the external table {name[:60]} have other columns than its first"))
            pieces.append(block.data if block.rows else b"")
        return tuple(
            External(name, ", ".join(f"{quote_name(n)} {t}" for n, t in first.columns), "Native", b"".join(pieces))
            for name, (first, pieces) in found.items()
        )

    def prepare(self, client: Client, asking: packets.Asking, call: Call) -> None:
        """Have a statement ready to be run, in the client's session where it has one or needs one."""
        guard = self.service.guard
        settings = {n: v for n, v in asking.settings.items() if n in asking.important or guard.knows_setting(n, v)}
        write = settings.get("readonly", "0") in ("", "0")
        params = {name: reading.value(text) for name, text in asking.params.items()}
        call.version = self.revision
        if client.session is None and _leaves_something(call.asked.sql):
            client.session = f"tcp {secrets.token_hex(16)}"
        kept = None
        if client.session is not None:
            kept = self.statements.sessions.take(client.session, str(LONGEST_SECONDS), check=False)
        request = Request(call.asked.sql, params, "Native", settings, client.database, write)
        self.statements.prepare(call, request, kept)

    async def _answer(self, client: Client, asking: packets.Asking, call: Call) -> None:
        call.blocks = True
        self.prepare(client, asking, call)
        pipe = Pipe(self._limits.stall)
        future = self.statements.submit(call, pipe)
        rows_sent = _Sent()

        async def take(block: bytes) -> None:
            rows_sent.add(block)
            self.service.metrics.bytes_sent.inc(len(block))
            self.send_block(block, packed=asking.packed)
            await self.line.drained()

        answer = await self.carried_out(call, pipe, future, take)
        if answer is not None:
            output = answer.output
            self.line.send(
                packets.progress(
                    self.revision,
                    rows=output.rows_read or output.rows,
                    size=output.bytes_read,
                    written=(answer.rows or 0) if call.writes else 0,
                    seconds=answer.elapsed,
                )
            )
            if rows_sent.blocks:
                self.line.send(
                    packets.profile(self.revision, rows=output.rows, blocks=rows_sent.blocks - 1, size=rows_sent.size)
                )
            if call.checked is not None and call.checked.word == "USE":
                client.database = None
        self.line.send(bytes([packets.END_OF_STREAM]))

    # INSERT

    async def _insert(self, client: Client, asking: packets.Asking, call: Call) -> None:
        """Take the data of an INSERT, as it comes: all at once up to half a body, else in portions of that size."""
        names = await self._sample(client, asking, call)
        sql = f"{call.asked.sql[: inserting.body_of(call.asked.sql)]} FORMAT Native"
        portion = inserting.Portion(self.service.bodies)
        running: asyncio.Task[int] | None = None
        rows = 0
        try:
            while await self._inserted(asking, portion, names):
                if portion.size * 2 >= self._limits.body:
                    rows += await running if running else 0
                    full, portion = portion, inserting.Portion(self.service.bodies)
                    running = asyncio.ensure_future(self._load(client, asking, call, sql, full))
                self._tell_events()
            rows += await running if running else 0
            running = None
            if portion.pieces:
                full, portion = portion, inserting.Portion(self.service.bodies)
                rows += await self._load(client, asking, call, sql, full)
        finally:
            portion.drop()
            if running is not None:
                running.cancel()
        self._tell_events()
        took = time.perf_counter() - call.began
        self.line.send(packets.progress(self.revision, rows=0, size=0, written=rows, seconds=took))
        self.line.send(bytes([packets.END_OF_STREAM]))

    async def _inserted(self, asking: packets.Asking, portion: inserting.Portion, names: list[str]) -> bool:
        """Have the next block of an INSERT in the portion; whether there was one."""
        self.line.expects("data")
        kind = await self.read(self.incoming.number())
        self.line.expects("rest")
        if kind == packets.CANCEL:
            raise QueryError("the INSERT was cancelled", code=394, name="QUERY_WAS_CANCELLED")
        if kind != packets.DATA:
            raise Lost(broken(f"packet {kind} comes where data were expected"))
        block = (await self.block(packed=asking.packed, count=portion.held.take))[1]
        if not block.columns:
            return False
        portion.add(block, names)
        return True

    def _tell_events(self) -> None:
        """What clients wait for after each block."""
        if self.revision >= packets.EVENTS:
            self.line.send(packets.events(native.Blocks(self.revision, dict)))

    async def _sample(self, client: Client, asking: packets.Asking, call: Call) -> list[str]:
        """Tell the client which columns an INSERT fills, by a block without rows; their names."""
        call.describes = True
        self.prepare(client, asking, call)
        call.request.format = "ArrowStream"
        pipe = Pipe(self._limits.stall)
        answer = await self.carried_out(call, pipe, self.statements.submit(call, pipe))
        if answer is None:
            raise QueryError("the INSERT was cancelled", code=394, name="QUERY_WAS_CANCELLED")
        described = answer.output.arrow().to_pylist()
        columns = inserting.filled(call.asked.sql, described)
        if any(each["default_type"] for each in described):
            self.line.send(packets.columns(described))
        self.send_block(native.Blocks(self.revision, dict).header(columns), packed=asking.packed)
        await self.line.drained()
        return [name for name, _ in columns]

    async def _load(
        self, client: Client, asking: packets.Asking, first: Call, sql: str, portion: inserting.Portion
    ) -> int:
        """Have a portion inserted; its rows."""
        call = Call(first.query_id, portion.held, asked=reading.Asked(sql, tuple(portion.pieces), "Native"))
        portion.pieces.clear()
        try:
            self.prepare(client, asking, call)
            pipe = Pipe(self._limits.stall)
            future = self.statements.submit(call, pipe)
        except BaseException:
            self.statements.leave(call)
            raise
        try:
            return (await asyncio.shield(future)).rows or 0
        except asyncio.CancelledError:
            self.statements.stop(call, pipe)
            raise

    def send_block(self, block: bytes, *, packed: bool) -> None:
        """Send a block of Native as a Data packet."""
        if packed:
            step = compression.BLOCK
            block = b"".join(compression.pack_block(block[at : at + step]) for at in range(0, len(block), step))
        self.line.send(packets.data(block))

    async def carried_out(
        self,
        call: Call,
        pipe: Pipe,
        future: asyncio.Future[Answer],
        take: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Answer | None:
        """The answer of a statement that runs, its blocks taken; None where the client cancelled it.

        Raises Gone where the client goes, and what went wrong.
        """
        self.line.expects("nothing")
        watch = asyncio.ensure_future(self._cancels())
        try:
            while True:
                piece = asyncio.ensure_future(pipe.get(future))
                await asyncio.wait({piece, watch}, return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    piece.cancel()
                    self.statements.stop(call, pipe)
                    watch.result()
                    await asyncio.wait({future})
                    future.exception()
                    return None
                found = piece.result()
                if found is None:
                    return future.result()
                if take is not None:
                    await take(found)
        except BaseException:
            self.statements.stop(call, pipe)
            raise
        finally:
            watch.cancel()

    async def _cancels(self) -> None:
        """Wait until the client cancels. Raises Gone where it goes."""
        await self.incoming.need(1)
        if self.incoming.buffer[self.incoming.at] == packets.CANCEL:
            await self.incoming.byte()
            return
        while not self.incoming.ended:  # the next query has come already
            await asyncio.sleep(0.2)
        raise Gone


class _Sent:
    """What was sent of an answer."""

    def __init__(self) -> None:
        self.blocks = self.size = 0

    def add(self, block: bytes) -> None:
        """A block was sent."""
        self.blocks += 1
        self.size += len(block)


def _too_many(busy: Busy) -> QueryError:
    return QueryError(f"Too many simultaneous queries: {busy}", code=202, name="TOO_MANY_SIMULTANEOUS_QUERIES")


def _leaves_something(sql: str) -> bool:
    """Whether a statement is for those that follow it on its connection."""
    first = [token.upper for token in read(sql).words[:4]]
    return first[:1] in (["SET"], ["USE"]) or (first[:1] == ["CREATE"] and bool({"TEMPORARY", "TEMP"} & set(first)))
