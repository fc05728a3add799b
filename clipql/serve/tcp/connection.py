"""A connection of the native protocol within bounds, as `connections.py` has them for HTTP.

What must stay true: a Hello comes in time, and so does the rest of a packet that has begun; an idle connection makes
room for new ones; what a client does not read is not held for ever.
"""

from __future__ import annotations

import asyncio
import logging
import struct

from clipql.errors import QueryError
from clipql.serve.connections import TICK, Connections
from clipql.serve.statements import Statements
from clipql.serve.tcp import packets
from clipql.serve.tcp.conversation import Conversation
from clipql.serve.tcp.wire import Gone, Incoming

LOG = logging.getLogger("clipql.serve")
# seconds that a client may be idle between queries, and between the blocks of an INSERT, as ClickHouse lets it
IDLE, BETWEEN = 3600, 300
# bytes of an answer that wait for a client to read them, beyond which nothing more is made for it
_UNREAD = 1 << 20
# seconds in which a client may read why it is refused
_LINGER = 5
_HTTP = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI")
_SAID = {408: "the packet did not come in time", 503: "there are too many connections"}


class TcpConnection(asyncio.Protocol):
    """One connection. wants_head, wants_body, refused: as `connections.Watched` has them."""

    transport: asyncio.Transport

    def __init__(self, among: Connections, statements: Statements, http: str) -> None:
        """http: the address of the HTTP port, for those who meant that one."""
        self._among, self._limits, self._statements, self._http = among, among.limits, statements, http
        self.incoming = Incoming(self._pause, self._resume)
        self.wants_head, self.wants_body, self.refused = True, False, 0
        self._what = "hello"
        self._loop = asyncio.get_running_loop()
        self._began = self._idle = self._loop.time()
        self._received = 0
        self._spoken = self._chunked = False
        self._paused = 0.0
        self._reads_nothing = self._stopping = False
        self._unread, self._stuck = 0, 0.0
        self._tick: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # the life of a connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(_UNREAD)
        self._tick = self._loop.call_later(TICK, self._look)
        self._among.add(self)
        if not self.refused:
            self.task = asyncio.ensure_future(self._converse())

    async def _converse(self) -> None:
        try:
            await Conversation(self._statements, self).run()
        except Exception:
            LOG.exception("a conversation by the native protocol has broken off")
        if not self.transport.is_closing():
            self._close_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.forget(self)
        self._among.lost()
        if self._tick is not None:
            self._tick.cancel()
        self.incoming.end()
        self.resume_writing()

    def eof_received(self) -> bool:
        self.incoming.end()
        return False

    def data_received(self, data: bytes) -> None:
        if self.refused or self.transport.is_closing():
            return
        if not self._spoken:
            self._spoken = True
            if data[:4] in _HTTP:
                self._say_http()
                return
        if not self._began:  # a packet begins
            self._began, self._paused, self._received = self._loop.time(), 0.0, 0
        self._received += len(data)
        self.incoming.feed(data)

    def _say_http(self) -> None:
        port = self.transport.get_extra_info("sockname")[1]
        # the first line is ClickHouse's own, which clients look for
        said = f"Port {port} is for clickhouse-client program: the native protocol\nHTTP is at {self._http}\n".encode()
        head = b"HTTP/1.0 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(said) + said)
        self.refused = 400
        self._close_later()

    def refuse(self, status: int, *, at_once: bool = False) -> None:
        """Tell the client that it goes no further, and close. at_once: not waiting until it has read that."""
        if self.refused or self.transport.is_closing():
            if at_once:
                self._among.forget(self)
                self.transport.abort()
            return
        self.refused = status
        idle = self._what == "packet" and not self._began
        if not idle:
            code, name = (209, "SOCKET_TIMEOUT") if status == 408 else (202, "TOO_MANY_SIMULTANEOUS_QUERIES")
            self.send(packets.exception(QueryError(_SAID[status], code=code, name=name)))
        self.incoming.end()
        self._among.forget(self)
        if at_once or idle:
            self.transport.close()
        else:
            self._close_later()

    def stop(self) -> None:
        """The server ends: close, unless a query runs, after which it closes."""
        self._stopping = True
        if self._what in ("hello", "packet"):
            self.refused = self.refused or 503
            self.incoming.end()
            self.transport.close()

    def _close_later(self) -> None:
        """Close once the client has read what it was told, also where it is still sending: a reset would take it."""
        self.refused = self.refused or 400
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            try:
                self.transport.write_eof()
            except OSError:  # the client has broken off
                self.transport.abort()
            else:
                self._loop.call_later(_LINGER, self.transport.abort)
        else:
            self.transport.close()

    # time

    def expects(self, what: str) -> None:
        """What is waited for, as `conversation.Line` has it."""
        self._what = what
        self.wants_head = what in ("hello", "packet")
        self.wants_body = what in ("rest", "data")
        if what == "packet" and self._stopping:
            self.stop()
        if what in ("packet", "data"):
            self._among.later(self)
            there = len(self.incoming.buffer) > self.incoming.at
            self._began, self._paused, self._received = (self._loop.time() if there else 0.0), 0.0, 0
            self._idle = self._loop.time()

    def _look(self) -> None:
        """Close what takes too long."""
        self._tick = self._loop.call_later(TICK, self._look)
        now, limits = self._loop.time(), self._limits
        if not self.transport.is_closing() and not self.refused:
            if self._reads_nothing:  # it is we who are slow
                self._paused += TICK
            waited = now - self._began - self._paused
            if self._what == "nothing":
                late = False
            elif self._what == "hello":
                late = waited > limits.head_seconds
            elif self._began:
                late = waited > limits.stall + self._received / limits.pace
            else:
                late = now - self._idle > (IDLE if self._what == "packet" else BETWEEN)
            if late:
                self.refuse(408)
                return
        left = self.transport.get_write_buffer_size()
        if not left or left != self._unread:
            self._unread, self._stuck = left, now
        elif now - self._stuck > limits.stall:
            self.transport.abort()

    def _pause(self) -> None:
        self._reads_nothing = True
        self.transport.pause_reading()

    def _resume(self) -> None:
        self._reads_nothing = False
        self.transport.resume_reading()

    # what goes out

    def send(self, packet: bytes) -> None:
        """Send a packet."""
        if self.transport.is_closing():
            return
        if self._chunked:
            packet = struct.pack("<I", len(packet)) + packet + bytes(4)
        self.transport.write(packet)

    def chunked(self) -> None:
        """Send packets in chunks from now on."""
        self._chunked = True

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def drained(self) -> None:
        """Wait until the client has read enough. Raises Gone."""
        if self._room is not None:
            await asyncio.shield(self._room)
        if self.transport.is_closing():
            raise Gone
