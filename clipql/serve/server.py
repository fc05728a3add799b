"""Running the application: uvicorn, signals, the logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from clipql.database import Database
from clipql.reader import ReadOnlyDatabase
from clipql.serve.app import make_app
from clipql.serve.connections import Connection, Connections
from clipql.serve.fellows import Fellows
from clipql.serve.limits import Options
from clipql.serve.listening import Doors
from clipql.serve.service import Service
from clipql.serve.tcp.port import NativePort, wrong_port
from clipql.serve.warming import Warming
from clipql.serve.workers.member import Member
from clipql.version import __version__

LOG = logging.getLogger("clipql.serve")
# seconds in which a query that was cancelled should end, and the database be closed
END_SECONDS, CLOSE_SECONDS = 1, 15
# Python's own is 5 ms
SWITCH_SECONDS = 0.0005
# Collections of garbage between two of all that there is. Python's own is 10, which the words of one long statement set
# off; all else waits for each, 0.1 to 0.3 s where the objects of libraries are looked at too.
COLLECTIONS = 500


class Server(uvicorn.Server):
    """uvicorn that tells when it is ready, and leaves signals to `serve`: what runs at the end has its grace."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        ready: Callable[[], None],
        doors: Doors,
        member: Member | None = None,
        native: NativePort | None = None,
    ) -> None:
        super().__init__(config)
        self._service, self._ready, self._member, self._native = service, ready, member, native
        self._doors = doors
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sandbox = self._service.options.sandbox.sentence
        LOG.info("started", extra={"fields": {"version": __version__, "pid": os.getpid(), "sandbox": sandbox}})
        self._loop = asyncio.get_running_loop()
        if self._native is not None:
            await self._native.open()
        if self._member is not None:
            self._attach(self._member)
        self._ready()

    def _attach(self, member: Member) -> None:
        """Take the connections that the supervisor hands over: clients', and those of other processes."""
        limits = self._service.options.limits
        clients = Connections(member.limits(limits), member.closed, wrong_port(self._doors.native))
        # what a client may take is watched by the process that it is connected to
        fellows = Connections(replace(limits, connections=1 << 20, head_seconds=600, stall=600, pace=1))

        def protocol(among: Connections) -> asyncio.Protocol:
            return Connection(among, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        made = partial(protocol, clients), partial(protocol, fellows)
        member.attach(self._service.running, *made, self._orphaned, tls=self._doors.tls)

    def _orphaned(self) -> None:
        if not self.should_exit:
            self.stop()

    def stop_soon(self) -> None:
        """`stop`, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace = asyncio.get_running_loop().call_later(self._service.options.limits.grace, self._service.pool.stop_all)
        try:
            if self._native is not None:
                self._native.close()
            await super().shutdown(sockets)
            if self._native is not None:
                await self._native.ended(self._service.options.limits.grace + END_SECONDS)
        finally:
            grace.cancel()
            self._service.pool.stop_all()

    def stop(self) -> None:
        """End once what runs has ended or its grace is over; at a second call, at once."""
        # said first: a second signal may come while the first is looked after
        again, self.should_exit = self.should_exit, True
        if again:
            self.force_exit = True
            _end_in(END_SECONDS + 1)
        else:
            _end_in(self._service.options.limits.grace + CLOSE_SECONDS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _end_in(seconds: float) -> None:
    """End the process then, whatever still runs in it: the next start recovers the database, as after a crash."""

    def end() -> None:
        LOG.error("ended before all was closed")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _spare_collections() -> None:
    """Look no more for garbage in what is loaded now, and stays."""
    gc.collect()
    gc.freeze()
    first, second, _ = gc.get_threshold()
    gc.set_threshold(first, second, COLLECTIONS)


class Ending:
    """ASGI around an application: what is cut off at the end of the server is told so, and to come again."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            headers = [(b"retry-after", b"1"), (b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _CUT_OFF})


_CUT_OFF = b"the server is ending: whether a statement that writes was carried out is not known\n"


def serve(
    database: Database,
    doors: Doors,
    options: Options,
    ready: Callable[[], None],
    member: Member | None = None,
) -> None:
    """Serve an open database on bound sockets until SIGTERM or SIGINT, then close it.

    What runs then has its grace; a second signal ends the process at once.

    ready: called once requests are taken. member: of a server of many processes, which is given its connections of
    HTTP; the native protocol is spoken by the one that writes.
    """
    app: Any
    app, statements = make_app(database, options, member or Fellows())
    service = statements.service
    connections = Connections(options.limits, wrong_port=wrong_port(doors.native))
    speaks = doors.tcp is not None and (member is None or member.writes)
    native = NativePort(doors.tcp, doors, connections, statements) if doors.tcp and speaks else None
    follower = None
    if member is not None and not member.writes:
        if isinstance(database, ReadOnlyDatabase):
            follower = member.follower(database, lambda: server.stop_soon())
            follower.start()
        app = member.worker(app, follower)
    config = uvicorn.Config(
        Ending(app),
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=options.limits.grace + END_SECONDS,
        backlog=256,  # as many are accepted at once, before the oldest make room
    )
    config.load()
    config.ssl = doors.tls
    server = Server(config, service, ready, doors, member, native)

    def stop(number: int, frame: FrameType | None) -> None:
        LOG.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
        server.stop()

    if not options.sandbox.whole:
        LOG.warning("not confined", extra={"fields": {"sandbox": options.sandbox.sentence}})
    _spare_collections()
    warming = Warming(database)
    # threads that read long statements take turns: the event loop, which waits for each of them, answers others in time
    sys.setswitchinterval(SWITCH_SECONDS)
    signals = (signal.SIGTERM, signal.SIGINT) if member is None else (signal.SIGTERM,)
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        server.run(sockets=[doors.http] if member is None else [])
    finally:
        if follower is not None:
            follower.stop()
        if not service.close(END_SECONDS) or not warming.stop(CLOSE_SECONDS):
            LOG.error("ended while a query still ran")
            os._exit(1)
        # what a query left behind still holds results of ClickHouse's, which must go before it is closed
        gc.unfreeze()
        gc.collect()
        database.close()
        doors.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        LOG.info("stopped")
