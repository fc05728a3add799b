"""What a conversation is made of: packets read and sent, and statements carried out for a client.

What must stay true: each statement goes the way that HTTP's go (`statements.py`); a client that leaves or cancels takes
its query with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from clipql.errors import ClipqlError, QueryError
from clipql.serve import clickhouse_request as reading
from clipql.serve import compression
from clipql.serve.pool import Busy, Pipe
from clipql.serve.request_body import Held
from clipql.serve.service import Request
from clipql.serve.sessions import LONGEST_SECONDS
from clipql.serve.statements import Call, Statements
from clipql.serve.tcp import packets
from clipql.serve.tcp.blocks import Block, read_block
from clipql.serve.tcp.wire import Gone, Incoming, Unpacked, broken, others
from clipql.sql.session import Answer
from clipql.syntax.reading import read

T = TypeVar("T")
_NAME = 1 << 12
# seconds after which a query that was cancelled is stopped, as ClickHouse looks no sooner
LOOKS = 0.1


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


class Talk:
    """With one client. revision: what both sides know."""

    def __init__(self, statements: Statements, line: Line) -> None:
        self.statements, self.service = statements, statements.service
        self.limits = self.service.options.limits
        self.line, self.incoming = line, line.incoming
        self.revision = packets.REVISION

    async def read(self, reading: Awaitable[T]) -> T:
        """What is read. Raises Lost where that went wrong: nobody knows then where the next packet begins."""
        try:
            return await reading
        except Busy as busy:
            raise Lost(too_many(busy)) from busy
        except ClipqlError as error:
            raise Lost(error) from error

    async def block(self, *, packed: bool, count: Callable[[int], None]) -> tuple[str, Block]:
        """The rest of a Data packet: a table's name, and its rows."""

        async def both() -> tuple[str, Block]:
            await others()
            name = await self.incoming.text(_NAME)
            source = Unpacked(self.incoming, self.limits.body, held) if packed else self.incoming
            found = await read_block(source, self.revision, self.limits.body, count)
            if source is not self.incoming and source.at < len(source.buffer):
                raise broken("a compressed frame goes on behind its block")
            return name, found

        held = Held(self.service.bodies)
        try:
            return await self.read(both())
        finally:
            held.release()

    def prepare(self, client: Client, asking: packets.Asking, call: Call) -> None:
        """Have a statement ready to be run, in the client's session where it has one or needs one."""
        settings = self.service.guard.without_idle(asking.settings, asking.important)
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

    def send_block(self, block: bytes, kind: int = packets.DATA_SENT, *, packed: bool) -> None:
        """Send a block of Native as a Data packet, or as one of totals or extremes."""
        if packed:
            step = compression.BLOCK
            block = b"".join(compression.pack_block(block[at : at + step]) for at in range(0, len(block), step))
        self.line.send(packets.data(block, kind))

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
        watched = {watch}
        try:
            while True:
                piece = asyncio.ensure_future(pipe.get(future))
                await asyncio.wait({piece, *watched}, return_when=asyncio.FIRST_COMPLETED)
                if watched and watch.done():
                    may_end = take is not None and watch.exception() is None
                    if not (may_end and (await asyncio.wait({future}, timeout=LOOKS))[0]):
                        piece.cancel()
                        self.statements.stop(call, pipe)
                        watch.result()
                        await asyncio.wait({future})
                        future.exception()
                        return None
                    watched = set()  # what has ended by then is told as a whole
                found = await piece
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


def too_many(busy: Busy) -> QueryError:
    return QueryError(f"Too many simultaneous queries: {busy}", code=202, name="TOO_MANY_SIMULTANEOUS_QUERIES")


def _leaves_something(sql: str) -> bool:
    """Whether a statement is for those that follow it on its connection."""
    first = [token.upper for token in read(sql).words[:4]]
    return first[:1] in (["SET"], ["USE"]) or (first[:1] == ["CREATE"] and bool({"TEMPORARY", "TEMP"} & set(first)))
