"""What a client of the native protocol says and is told, from its Hello to its end.

A connection is a session: what is SET, USEd or made as a temporary table lasts as long as it. What must stay true:
each statement goes the way that HTTP's go (`statements.py`); a client that leaves or cancels takes its query with it;
after an error that leaves no doubt where the next packet begins the conversation goes on, after any other it ends.
"""

from __future__ import annotations

import uuid

from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, QueryError
from clipql.serve import clickhouse_request as reading
from clipql.serve.access_control import same
from clipql.serve.errors import error_code
from clipql.serve.external import External
from clipql.serve.pool import Busy, Pipe
from clipql.serve.progress import Counts, Meter
from clipql.serve.request_body import Held
from clipql.serve.spelling import check_size
from clipql.serve.statements import Call, Statements, makes_room
from clipql.serve.tcp import packets
from clipql.serve.tcp.inserting import insert
from clipql.serve.tcp.talk import Client, Line, Lost, Talk, too_many
from clipql.serve.tcp.wire import Gone, broken, others
from clipql.serve.totals import Apart

# external tables of a query
_MOST_TABLES = 64


class Conversation:
    """With one client."""

    def __init__(self, statements: Statements, line: Line) -> None:
        self.talk = Talk(statements, line)
        self.statements, self.service = statements, statements.service
        self.line, self.incoming = line, line.incoming
        self._packed = False  # of the last query

    async def run(self) -> None:
        """Until the client goes, or says what ends it."""
        client = None
        try:
            client = await self._greeted()
            while True:
                self.line.expects("packet")
                kind = await self.talk.read(self.incoming.number())
                self.line.expects("rest")
                await self._packet(client, kind)
                await others()
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

    async def _greeted(self) -> Client:
        self.line.expects("hello")
        kind = await self.talk.read(self.incoming.number())
        if kind != packets.HELLO:
            raise broken(f"it begins with packet {kind}, and not with a Hello")
        hello = await self.talk.read(packets.read_hello(self.incoming))
        self.talk.revision = hello.revision
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
        sends, wants = await self.talk.read(packets.read_addendum(self.incoming, hello.revision))
        if sends:
            self.incoming.unchunk()
        if wants:
            self.line.chunked()
        return Client(hello, None if hello.database in ("", "default") else hello.database)

    async def _packet(self, client: Client, kind: int) -> None:
        if kind == packets.PING:
            self.line.send(bytes([packets.PONG]))
        elif kind == packets.TABLES_STATUS:
            self.line.send(packets.tables_status(await self.talk.read(packets.read_tables_status(self.incoming))))
        elif kind == packets.QUERY:
            await self._query(client)
        elif kind == packets.DATA:  # what was on its way when an INSERT failed
            held = Held(self.service.bodies)
            try:
                await self.talk.block(packed=self._packed, count=held.take)
            finally:
                held.release()
        elif kind != packets.CANCEL:  # one that comes when all is said
            raise broken(f"packet {kind} is not expected")

    # queries

    async def _query(self, client: Client) -> None:
        held = Held(self.service.bodies)
        try:
            asking = await self.talk.read(
                packets.read_query(self.incoming, self.talk.revision, self.talk.limits, held.take)
            )
        except BaseException:
            held.release()
            raise
        self._packed = asking.packed
        call = Call(asking.query_id or str(uuid.uuid4()), held)
        status = 500
        try:
            call.tables = await self._external(asking, call.held)
            call.asked = reading.take_apart(asking.sql, b"")
            self._check(asking, call)
            data = call.asked.data
            if data is not None and not data:
                await insert(self.talk, client, asking, call)
            else:
                await self._answer(client, asking, call)
            status = 200
        except Busy as busy:
            self._failed(call, too_many(busy))
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
        if not makes_room(call.asked.sql):
            self.service.pool.check()
        check_size(call.asked.sql, self.talk.limits)
        if not call.asked.sql.strip():
            raise QueryError("Empty query", code=62, name="SYNTAX_ERROR")
        if asking.refused:
            raise QueryError(asking.refused, code=48, name="NOT_IMPLEMENTED")

    def _failed(self, call: Call, error: ClipqlError) -> None:
        call.code = error_code(error)[0]
        self.line.send(packets.exception(error))

    async def _external(self, asking: packets.Asking, held: Held) -> tuple[External, ...]:
        """The tables that come with a query, to the block without columns that ends them."""
        found: dict[str, tuple[list[tuple[str, str]], list[bytes]]] = {}
        while True:
            await others()
            kind = await self.talk.read(self.incoming.number())
            if kind == packets.CANCEL:
                continue
            if kind not in (packets.DATA, packets.SCALAR):
                raise Lost(broken(f"packet {kind} comes where data were expected"))
            name, block = await self.talk.block(packed=asking.packed, count=held.take)
            if kind == packets.SCALAR:  # a statement that used it would be refused
                continue
            if not block.columns:
                break
            known, pieces = found.setdefault(name, (block.columns, []))
            if len(found) > _MOST_TABLES:
                raise Lost(broken(f"more than {_MOST_TABLES} external tables come with a query"))
            if known != block.columns:
                raise Lost(broken(f"the blocks of the external table {name[:60]} have other columns than its first"))
            if block.rows:
                pieces.append(block.data)
        return tuple(
            External(name, ", ".join(f"{quote_name(n)} {t}" for n, t in columns), "Native", b"".join(pieces))
            for name, (columns, pieces) in found.items()
        )

    async def _answer(self, client: Client, asking: packets.Asking, call: Call) -> None:
        call.apart = apart = Apart()
        self.talk.prepare(client, asking, call)
        sent = _Sent(self.talk)
        call.request.progress = meter = Meter(sent.tell)
        pipe = Pipe(self.talk.limits.stall)
        future = self.statements.submit(call, pipe)

        async def take(block: bytes) -> None:
            sent.add(block)
            self.service.metrics.bytes_sent.inc(len(block))
            self.talk.send_block(block, packed=asking.packed)
            await self.line.drained()

        try:
            answer = await self.talk.carried_out(call, pipe, future, take)
        finally:
            meter.close()
        if answer is not None:
            for kind, block in ((packets.TOTALS, apart.totals), (packets.EXTREMES, apart.extremes)):
                if block:
                    self.talk.send_block(block, kind, packed=asking.packed)
            output = meter.counted(answer).output
            read = Counts(
                output.rows_read or output.rows,
                output.bytes_read,
                meter.now.total_rows or output.rows_read or output.rows,
                meter.now.total_size,
                (answer.rows or meter.now.written) if call.writes else 0,
                meter.now.written_size if call.writes else 0,
                0.0 if call.writes else answer.elapsed,  # as ClickHouse has it
            )
            told = read.at_least(sent.told)
            sent.tell(told)
            if sent.blocks:
                self.line.send(
                    packets.profile(self.talk.revision, rows=output.rows, blocks=sent.blocks - 1, size=sent.size)
                )
            sent.tell(told)  # nothing more, as ClickHouse ends
            if call.checked is not None and call.checked.word == "USE":
                client.database = None
        self.line.send(bytes([packets.END_OF_STREAM]))


class _Sent:
    """What was sent of an answer. told: what was read for it, as far as that was told."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.blocks = self.size = 0
        self.told = Counts()

    def add(self, block: bytes) -> None:
        """A block was sent."""
        self.blocks += 1
        self.size += len(block)

    def tell(self, counts: Counts) -> None:
        """Send what was read since the last time."""
        self._talk.line.send(packets.progress(self._talk.revision, counts.since(self.told)))
        self.told = counts
