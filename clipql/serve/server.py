"""Running the application: uvicorn, signals, the logs."""

from __future__ import annotations

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
from types import FrameType

import uvicorn

from clipql.database import Database
from clipql.errors import ClipqlError
from clipql.serve.app import make_app
from clipql.serve.limits import Options
from clipql.serve.sandbox import State
from clipql.version import __version__

LOG = logging.getLogger("clipql.serve")
# longer than any query may run
FINISH_SECONDS = 5


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
    """uvicorn that tells when it is ready, and leaves signals to `serve`."""

    def __init__(self, config: uvicorn.Config, sandbox: State, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._sandbox, self._ready = sandbox, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        LOG.info(
            "started", extra={"fields": {"version": __version__, "pid": os.getpid(), "sandbox": self._sandbox.sentence}}
        )
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _warm(database: Database) -> None:
    """Load the model that searches by words will need, so that the first of them need not wait for it."""
    with contextlib.suppress(ClipqlError):  # where there is no model, a search by words will say so
        database.encoders.texts(["a picture"], database.encoders.usual(database.registry.catalog.tables))


def serve(database: Database, bound: socket.socket, options: Options, ready: Callable[[], None]) -> None:
    """Serve an open database on a bound socket until SIGTERM or SIGINT, then finish what runs and close it.

    ready: called once requests are taken.
    """
    app, service = make_app(database, options)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=options.limits.seconds + FINISH_SECONDS,
        h11_max_incomplete_event_size=1 << 20,
    )
    server = Server(config, options.sandbox, ready)

    def stop(number: int, frame: FrameType | None) -> None:
        LOG.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
        server.should_exit = True

    if not options.sandbox.whole:
        LOG.warning("not confined", extra={"fields": {"sandbox": options.sandbox.sentence}})
    threading.Thread(target=_warm, args=(database,), daemon=True).start()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        service.close()
        database.close()
        bound.close()
        LOG.info("stopped")
