"""One process of a server of many: what it tells the others, and what it asks of them.

The first is the writer; in a server that only reads, it is the one where sessions are. The others are workers: each
answers what only reads, and passes the rest on.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from clipql.reader import ReadOnlyDatabase
from clipql.serve.fellows import Fellows, Running
from clipql.serve.limits import Limits
from clipql.serve.workers import board as numbers
from clipql.serve.workers import channel as letters
from clipql.serve.workers.board import Board
from clipql.serve.workers.channel import Channel
from clipql.serve.workers.following import Follower
from clipql.serve.workers.forwarding import Forwarding, Receive, Scope, Send
from clipql.serve.workers.routing import HEAD, Elsewhere, keeps_to_writer, only_reads, statement
from clipql.serve.workers.stateless import Stateless, named
from clipql.serve.workers.supervisor import WRITER

# seconds between two signs of life
BEAT = 0.5
_OF_WRITER = "/api/projection"  # it alone keeps maps, and has them laid out
_ANYWHERE = frozenset({"/ping", "/replicas_status", "/healthz", "/metrics", "/api/openapi.json", "/api/login"})
Protocol = Callable[[], asyncio.Protocol]


class Member(Fellows):
    """A process, as its server uses it. metrics: the folder where all write their figures."""

    def __init__(self, number: int, board: Board, channel: Channel, metrics: str) -> None:
        super().__init__()
        self.number, self.metrics = number, metrics
        self._board, self._channel = board, channel
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        self._beating: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self.running: Running | None = None

    @property
    def writes(self) -> bool:
        """Whether it is the writer."""
        return self.number == WRITER

    def limits(self, limits: Limits) -> Limits:
        """The limits of its connections: its share of those that a server may have."""
        workers = max(1, self._board.members - 1)
        return replace(limits, connections=-(-limits.connections // workers))

    # what holds for all processes together

    def start(self, most: int) -> bool:
        self._board.add(self.number, numbers.RUNNING, 1)
        if self._board.sum(numbers.RUNNING) <= most:
            return True
        self._board.add(self.number, numbers.RUNNING, -1)
        return False

    def finish(self) -> None:
        self._board.add(self.number, numbers.RUNNING, -1)

    def others_taken(self, ours: int) -> int:
        self._board.put(self.number, numbers.TAKEN, ours)
        return self._board.sum(numbers.TAKEN, but=self.number)

    def others_bodies(self, ours: int) -> int:
        self._board.put(self.number, numbers.BODIES, ours)
        return self._board.sum(numbers.BODIES, but=self.number)

    def began(self, query_id: str) -> None:
        place = self._board.note(self.number, query_id)
        if place is not None:
            self._places[query_id] = place

    def ended(self, query_id: str) -> None:
        place = self._places.pop(query_id, None)
        if place is not None:
            self._board.forget(self.number, place)

    def runs(self, query_id: str) -> bool:
        return self._board.who_runs(query_id, but=self.number) is not None

    def kill(self, query_id: str) -> bool:
        other = self._board.who_runs(query_id, but=self.number)
        return other is not None and self._channel.send(letters.KILL, bytes([other]) + query_id.encode())

    def wrote(self) -> None:
        with self._lock:
            self._board.written += 1

    # its part in the server

    def attach(
        self,
        running: Running,
        client: Protocol,
        fellow: Protocol,
        stop: Callable[[], None],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Take connections from now on. Call it from the event loop.

        client, fellow: make the protocol of a connection of a client, of another process. stop: what to do when the
        supervisor is gone. tls: what clients' connections are wrapped in.
        """
        loop = asyncio.get_running_loop()
        self.running = running

        def hear() -> None:
            for message in self._channel.receive():
                if message is None:
                    loop.remove_reader(self._channel.fileno())
                    stop()
                    return
                letter, rest, brought = message
                if letter == letters.KILL:
                    running.kill_here(rest.decode("utf-8", "replace"))
                elif brought is not None:
                    brought.setblocking(False)
                    protocol, wrapped = (client, tls) if letter == letters.CLIENT else (fellow, None)
                    if letter == letters.CLIENT:
                        self._channel.send(letters.TAKEN)
                    task = asyncio.ensure_future(loop.connect_accepted_socket(protocol, brought, ssl=wrapped))
                    self._tasks.add(task)
                    task.add_done_callback(self._connected)

        def beat() -> None:
            self._board.put(self.number, numbers.BEAT, int(time.monotonic() * 1000))
            self._beating = loop.call_later(BEAT, beat)

        beat()
        loop.add_reader(self._channel.fileno(), hear)
        self._channel.send(letters.READY)

    def _connected(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.closed()

    def closed(self) -> None:
        """A client's connection is no more."""
        self._board.add(self.number, numbers.CLOSED, 1)

    def failed(self, why: str) -> None:
        """Tell the supervisor why this process cannot start."""
        self._channel.send(letters.FAILED, why.encode())

    def follower(self, database: ReadOnlyDatabase, failed: Callable[[], None]) -> Follower:
        """What keeps a worker's reader up to date. failed: called where it cannot."""
        return Follower(database, self._board, failed)

    def worker(self, app: Any, follower: Follower | None) -> Any:
        """The application of a worker around that of a server. follower: None where nothing is ever written."""
        sessions = Stateless(self._board, self.number)
        return _Worker(self.number, app, Forwarding(self._channel), follower, sessions)


class _Worker:
    """ASGI: answers what only reads, and passes the rest on."""

    def __init__(
        self, number: int, app: Any, forward: Forwarding, follower: Follower | None, sessions: Stateless
    ) -> None:
        self._sessions = sessions
        self._name = (b"x-clipql-worker", b"%d" % number)
        self._served, self._forward, self._follower = app, forward, follower

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here, and say so."""

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._name]
            await send(message)

        await self._served(scope, receive, told)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not any(n == b"host" for n, _ in scope["headers"]):
            await self._app(scope, receive, send)
        elif path == "/":
            await self._statement(scope, receive, send)
        elif path in _ANYWHERE or not path.startswith("/api/"):
            await self._app(scope, receive, send)
        elif (
            (path == _OF_WRITER and self._follower is not None)
            or not self._is_current()
            or (self._elsewhere.names and scope["method"] == "POST")
        ):
            await self._forward(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_current(self) -> bool:
        return self._follower is None or self._follower.is_current()

    @property
    def _elsewhere(self) -> Elsewhere:
        return self._follower.elsewhere if self._follower is not None else Elsewhere()

    async def _statement(self, scope: Scope, receive: Receive, send: Send) -> None:
        query_string = scope["query_string"]
        if scope["method"] != "POST" and b"query" not in query_string and b"%" not in query_string:
            await self._app(scope, receive, send)
            return
        if keeps_to_writer(query_string, scope["headers"]) or not self._is_current():
            await self._forward(scope, receive, send)
            return
        messages, head, more = [], b"", True
        while more and len(head) < HEAD:
            message = await receive()
            messages.append(message)
            if message["type"] == "http.disconnect":
                return
            head += message.get("body", b"")
            more = message.get("more_body", False)

        async def again() -> MutableMapping[str, Any]:
            return messages.pop(0) if messages else await receive()

        text = None if more else statement(query_string, head)
        here = text is not None and only_reads(text, self._elsewhere) and self._is_current()
        if not here or b"session_" not in query_string:
            await (self._app if here else self._forward)(scope, again, send)
            return
        session = named(query_string)
        with self._sessions.running(session) if session is not None else nullcontext(False) as free:
            if free and session is not None:
                await self._app({**scope, "query_string": session.rest}, again, send)
        if not free:
            await self._forward(scope, again, send)
