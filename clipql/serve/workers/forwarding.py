"""Requests that a worker passes on to the writer, both bodies as they come.

A connection to the writer is a pair of sockets, made here, whose other end the supervisor hands to it: in a sandbox
none could be connected by an address. On it is HTTP, so that the writer takes such a request as any other, with all
checks. What must stay true: a client that goes takes its request with it; a writer that has gone is a 503, or code 210
where lines of a head have been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import h11

from clipql.serve import early_head
from clipql.serve.workers import channel as letters
from clipql.serve.workers.channel import Channel

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
# of one connection: they are this one's business, not the writer's or the client's
_OF_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"upgrade", b"te", b"date"}
# bytes read at once; seconds that a connection is kept, less than the writer keeps it
PIECE, KEPT_SECONDS = 1 << 16, 10.0
_GONE = (
    b"the process that writes is being restarted: try again in a second; whether a statement that writes was carried "
    b"out is not known\n"
)
_OK, _PROGRESS = b"HTTP/1.1 200 ", b"x-clickhouse-progress:"


class WriterGone(Exception):
    """There is no writer, or it ended before its answer did."""


@dataclass
class _Link:
    """A connection to the writer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection
    used: float

    def usable(self) -> bool:
        return not self.reader.at_eof() and time.monotonic() - self.used < KEPT_SECONDS

    def abort(self) -> None:
        self.writer.transport.abort()


class ReplyHead:
    """The head of a reply, line by line as it comes: what it tells of progress is told on at once, and left out of it.

    So a head that is not ended for an hour is no longer than any other. tell: sends a line of a reply's head.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell, self._partial = tell, b""
        self._ended, self._well = False, False

    def rest(self, data: bytes) -> bytes:
        """What came, without what is told on here. A last line whose end has not come is kept for the next piece."""
        if self._ended:
            return data
        *lines, self._partial = (self._partial + data).split(b"\r\n")
        kept = bytearray()
        for i, line in enumerate(lines):
            if self._well and line[: len(_PROGRESS)].lower() == _PROGRESS:
                self._tell("X-ClickHouse-Progress", line[len(_PROGRESS) :].strip().decode("latin-1"))
                continue
            self._well = self._well or line.startswith(_OK)
            kept += line + b"\r\n"
            if not line:
                self._ended = True
                return bytes(kept) + b"\r\n".join([*lines[i + 1 :], self._partial])
        return bytes(kept)


class Forwarding:
    """Passes requests on. channel: to the supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._idle: list[_Link] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application, whose answers are the writer's."""
        begun = False

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        link: _Link | None = None
        told = early_head.line_sender(scope)
        try:
            link = await self._linked()
            await self._exchange(link, scope, receive, noted, told)
        except (WriterGone, OSError, h11.ProtocolError):
            if link is not None:
                link.abort()
            if not begun:
                await _unavailable(send)
            # where it has begun, uvicorn closes the connection, so that the client knows that the rest is missing
        except BaseException:
            if link is not None:
                link.abort()
            raise

    async def _linked(self) -> _Link:
        while self._idle:
            link = self._idle.pop()
            if link.usable():
                return link
            link.abort()
        ours, theirs = socket.socketpair()
        with theirs:
            if not self._channel.send(letters.FELLOW, given=theirs):
                ours.close()
                raise WriterGone
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return _Link(reader, writer, h11.Connection(h11.CLIENT, 1 << 20), 0.0)

    async def _exchange(
        self, link: _Link, scope: Scope, receive: Receive, send: Send, tell: Callable[[str, str], None] | None
    ) -> None:
        upload = asyncio.ensure_future(self._upload(link, scope, receive, at_once=tell is None))
        download = asyncio.ensure_future(self._download(link, send, tell))
        try:
            await asyncio.wait({upload, download}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done() and not download.done() and not isinstance(upload.exception(), OSError):
                upload.result()
                return  # the client has gone
            await download
        finally:
            whole = download.done() and not download.cancelled() and download.exception() is None
            for each in (upload, download):
                each.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.gather(upload, download, return_exceptions=True)
            if whole and link.http.our_state is h11.DONE and link.http.their_state is h11.DONE:
                link.http.start_next_cycle()
                link.used = time.monotonic()
                self._idle.append(link)
            else:
                link.abort()

    async def _upload(self, link: _Link, scope: Scope, receive: Receive, *, at_once: bool) -> None:
        """Send the request; returns when the client has gone. at_once: whether the reply's head shall be."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(n, v) for n, v in scope["headers"] if n not in _OF_CONNECTION]
        if at_once:
            headers.append((early_head.HEAD_AT_ONCE.encode(), b"1"))
        body = not any(n == b"content-length" for n, _ in headers) and _is_chunked(scope)
        if body:
            headers.append((b"transfer-encoding", b"chunked"))
        await _write(link, h11.Request(method=scope["method"], target=target, headers=headers))
        more = True
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not more:
                continue
            if message.get("body"):
                await _write(link, h11.Data(data=message["body"]))
            more = message.get("more_body", False)
            if not more:
                await _write(link, h11.EndOfMessage())

    async def _download(self, link: _Link, send: Send, tell: Callable[[str, str], None] | None) -> None:
        head = ReplyHead(tell) if tell else None
        while True:
            event = link.http.next_event()
            if event is h11.NEED_DATA:
                data = await link.reader.read(PIECE)
                if not data and link.http.their_state is not h11.SEND_BODY:
                    raise WriterGone
                rest = head.rest(data) if head and data else data
                if rest or not data:  # nothing at all is the end of the connection
                    link.http.receive_data(rest)
            elif isinstance(event, h11.Response):
                headers = [(n, v) for n, v in event.headers if n not in _OF_CONNECTION]
                await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.EndOfMessage):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise WriterGone

    def close(self) -> None:
        """Let go of all connections."""
        while self._idle:
            self._idle.pop().abort()


async def _write(link: _Link, event: Any) -> None:
    data = link.http.send(event)
    if data:
        link.writer.write(data)
        await link.writer.drain()


def _is_chunked(scope: Scope) -> bool:
    return any(n == b"transfer-encoding" and b"chunked" in v.lower() for n, v in scope["headers"])


async def _unavailable(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"1"),
               (b"content-length", b"%d" % len(_GONE)), (b"x-clickhouse-exception-code", b"210")]  # fmt: skip
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _GONE})
