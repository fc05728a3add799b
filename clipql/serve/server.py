"""Running the application: uvicorn, signals, the logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import uvicorn

from clipql.database import Database
from clipql.errors import ClipqlError
from clipql.serve.app import make_app
from clipql.serve.connections import Connection, Connections
from clipql.serve.limits import Options
from clipql.serve.service import Service
from clipql.version import __version__

LOG = logging.getLogger("clipql.serve")
# seconds in which a query that was cancelled should end, and the database be closed
END_SECONDS, CLOSE_SECONDS = 1, 15


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def log_to_stderr(level: str) -> None:
    """Send the server's logs to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("clipql.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper() if name == "clipql.serve" else logging.WARNING)


class Server(uvicorn.Server):
    """uvicorn that tells when it is ready, and leaves signals to `serve`: what runs at the end has its grace."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sandbox = self._service.options.sandbox.sentence
        LOG.info("started", extra={"fields": {"version": __version__, "pid": os.getpid(), "sandbox": sandbox}})
        self._loop = asyncio.get_running_loop()
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace = asyncio.get_running_loop().call_later(self._service.options.limits.grace, self._service.pool.stop_all)
        try:
            await super().shutdown(sockets)
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


def _warm(database: Database) -> None:
    """Load the model that searches by words will need, so that the first of them need not wait for it."""
    with contextlib.suppress(ClipqlError):  # where there is no model, a search by words will say so
        database.encoders.texts(["a picture"], database.encoders.usual(database.registry.catalog.tables))


def serve(database: Database, bound: socket.socket, options: Options, ready: Callable[[], None]) -> None:
    """Serve an open database on a bound socket until SIGTERM or SIGINT, then close it.

    What runs then has its grace; a second signal ends the process at once.

    ready: called once requests are taken.
    """
    app, service = make_app(database, options)
    config = uvicorn.Config(
        app,
        http=partial(Connection, Connections(options.limits)),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=options.limits.grace + END_SECONDS,
        backlog=256,  # as many are accepted at once, before the oldest make room
    )
    server = Server(config, service, ready)

    def stop(number: int, frame: FrameType | None) -> None:
        LOG.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
        server.stop()

    if not options.sandbox.whole:
        LOG.warning("not confined", extra={"fields": {"sandbox": options.sandbox.sentence}})
    threading.Thread(target=_warm, args=(database,), daemon=True).start()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        if not service.close(END_SECONDS):
            LOG.error("ended while a query still ran")
            os._exit(1)
        database.close()
        bound.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        LOG.info("stopped")
