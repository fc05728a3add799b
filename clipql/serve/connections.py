"""Connections within bounds, before anything of a request is believed: uvicorn's protocol over httptools, with limits.

httptools holds whatever a header says and however long it takes. What must stay true: a request's address and headers
have an end in bytes and in time, and so has a body that comes too slowly; connections that wait for a request, or for
the rest of one, make room for new ones; what a client does not read is not held for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import select
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from clipql.serve import early_head
from clipql.serve.limits import Limits

LOG = logging.getLogger("clipql.serve")
# requests that a client may send before it has the reply to the first
PIPELINED = 16
# seconds in which a client may read its reply while the body that nobody wants is still coming
LINGER = 5
# seconds between two looks at a connection
TICK = 1.0
_CLOSED = getattr(select, "POLLRDHUP", 0)  # Linux tells of it; a reset is always told
_SAID = {
    408: "the request did not come in time",
    414: "the address is too long",
    431: "the headers are too long",
    503: "there are too many connections",
}


class Watched(Protocol):
    """A connection, of whichever protocol. wants_head, wants_body: whether it is idle or within the beginning of a
    request, or within the rest of one. refused: with which status, 0 if it is not."""

    wants_head: bool
    wants_body: bool
    refused: int
    transport: Any

    def refuse(self, status: int, *, at_once: bool = False) -> None:
        """Tell the client that it goes no further, and close."""


class Connections:
    """All connections of a server, those that wait for the longest first; refused: of these, those that close soon."""

    def __init__(self, limits: Limits, lost: Callable[[], None] = lambda: None, wrong_port: bytes = b"") -> None:
        """lost: called when one is no more. wrong_port: what is said to a client of the native protocol."""
        self.limits, self.lost, self.wrong_port = limits, lost, wrong_port
        self.all: dict[Watched, None] = {}
        self.refused: dict[Watched, None] = {}

    def add(self, made: Watched) -> None:
        """Have one more, and make room for it. It is closed where there is none."""
        self.all[made] = None
        if len(self.all) <= self.limits.connections:
            return
        victim = body = None
        for each in itertools.chain(self.refused, self.all):
            if each is made:
                continue
            if each.refused or each.wants_head or each.transport.is_closing():
                victim = each
                break
            body = body or (each if each.wants_body else None)
        victim = victim or body
        if victim:
            victim.refuse(408, at_once=True)
        else:
            made.refuse(503, at_once=True)

    def forget(self, connection: Watched) -> None:
        """It is no more, or will not be for long."""
        self.all.pop(connection, None)
        self.refused.pop(connection, None)

    def later(self, connection: Watched) -> None:
        """It is served: others have waited for longer."""
        if connection in self.all:
            del self.all[connection]
            self.all[connection] = None


class Connection(HttpToolsProtocol):
    """One connection. wants_head, wants_body: whether it is idle or within a head, or within a body. refused: with
    which status, 0 if it is not."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._among, self._limits = connections, connections.limits
        self.wants_head, self.wants_body = True, False
        self._head = self._address = self._unanswered = self._received = 0
        self._progress = self._spoken = False
        self.refused = 0
        self._began = self.loop.time()  # of what it waits for; 0 where it may wait for as long as uvicorn lets it
        self._paused = 0.0
        self._unread, self._stuck = 0, 0.0
        self._tick: asyncio.TimerHandle | None = None
        self._at_work: Any = None  # the cycle that is being answered, before those that came behind it

    # the life of a connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._tick = self.loop.call_later(TICK, self._look)
        self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.forget(self)
        self._among.lost()
        if self._tick is not None:
            self._tick.cancel()
        self.pipeline.clear()
        self._leave()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._at_work = cycle
        early_head.offer(cycle)
        super()._start_asgi_task(cycle, app)

    def _leave(self) -> None:
        """Tell whoever works for the client that it has gone."""
        if self._at_work is not None and not self._at_work.response_complete:
            self._at_work.disconnected = True
            self._at_work.message_event.set()

    def refuse(self, status: int, *, at_once: bool = False) -> None:
        """Answer that it goes no further, where nothing was answered yet, and close.

        at_once: not waiting until the client, which may still be sending, has read the answer.
        """
        if self.refused or self.transport.is_closing():
            if at_once:
                self._among.forget(self)
                self.transport.abort()
            return
        self.refused = status
        running = self.cycle is not None and not self.cycle.response_complete
        begun = running and (self.cycle.response_started or early_head.begun(self.cycle))
        if not begun and not (status == 408 and self._is_idle()):
            said = _SAID[status].encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(said) + said)
        if running:  # whoever works for it is told that the client has gone
            self._leave()
        if at_once or self._is_idle():
            self._gone()
        else:
            try:
                self.transport.write_eof()
            except OSError:  # the client has broken off
                self._gone()
                return
            self.flow.resume_reading()
            self._among.refused[self] = None
            self.loop.call_later(LINGER, self.transport.abort)

    def _gone(self) -> None:
        """Close, and make room."""
        self._among.forget(self)
        self.transport.close()

    def _is_idle(self) -> bool:
        """Whether nothing of a request has come since the last one."""
        return self.wants_head and not self._unanswered and not self._head

    def _look(self) -> None:
        """Close what takes too long."""
        self._tick = self.loop.call_later(TICK, self._look)
        now, limits = self.loop.time(), self._limits
        if self.transport.is_closing():
            self._abort_unread(now, limits.stall)
            return
        if self.flow.read_paused:  # it is we who are slow
            self._paused += TICK
            if _has_left(self.transport):
                self.transport.abort()
                return
        waited = now - self._began - self._paused
        if self.wants_head and self._began and waited > limits.head_seconds:
            self.refuse(408)
        elif self.wants_body:
            answered = self.cycle is not None and self.cycle.response_complete
            if answered and waited > LINGER:
                self.transport.close()
            elif not answered and waited > limits.stall + self._received / limits.pace:
                self.refuse(408)
        self._abort_unread(now, limits.stall)

    def _abort_unread(self, now: float, stall: int) -> None:
        """Let go of a reply of which the client has read nothing for a while."""
        left = self.transport.get_write_buffer_size()
        if not left or left != self._unread:
            self._unread, self._stuck = left, now
        elif now - self._stuck > stall:
            self.transport.abort()

    # what comes in

    def data_received(self, data: bytes) -> None:
        if self.refused or self.transport.is_closing():
            return
        if not self._spoken:
            self._spoken = True
            if data[:1] == b"\x00":  # a Hello of the native protocol; no request begins so
                self.transport.write(self._among.wrong_port)
                self._gone()
                return
        if self._is_idle() and not self._began:  # a request begins
            self._began, self._paused = self.loop.time(), 0.0
        self._progress = False
        super().data_received(data)
        if self.refused or self.transport.is_closing():
            return
        self._unanswered = 0 if self._progress else self._unanswered + len(data)
        if self._unanswered - self._address > self._limits.head:
            self.refuse(431)

    def send_400_response(self, msg: str) -> None:
        if self.refused:  # an error of our own, within the parser
            return
        running = self.cycle is not None and not self.cycle.response_complete
        if running:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._address = 0

    def on_url(self, url: bytes) -> None:
        self._address += len(url)
        if self._address > self._limits.head:
            self._stop(414)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value) + 4
        if self._head > self._limits.head:
            self._stop(431)
        super().on_header(name, value)

    def _stop(self, status: int) -> None:
        self.refuse(status)
        raise ValueError("the head is too long")  # ends the parser's work on what it was given

    def on_headers_complete(self) -> None:
        self._progress = True
        if len(self.pipeline) >= PIPELINED:
            self.transport.close()
            raise ValueError("too many requests at once")
        self.wants_head, self.wants_body = False, True
        self._began, self._paused, self._received = self.loop.time(), 0.0, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        self.wants_body = False
        super().on_message_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.wants_body:  # its body goes on, for a while
            self._began, self._paused = self.loop.time(), 0.0
            self._unset_keepalive_if_required()
        elif not self.pipeline and self.cycle.response_complete:
            self._wait()

    def _wait(self) -> None:
        """Wait for the next request, as long as uvicorn keeps a connection."""
        self.wants_head, self._began, self._head, self._address, self._unanswered = True, 0.0, 0, 0, 0
        self._among.later(self)
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its side, though what it sent before is not read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _CLOSED)
    return bool(poll.poll(0))
