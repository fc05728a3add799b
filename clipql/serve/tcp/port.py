"""The port of the native protocol: opened beside HTTP's, closed with it."""

from __future__ import annotations

import asyncio
import socket

from clipql.errors import QueryError
from clipql.serve.connections import Connections
from clipql.serve.listening import Doors
from clipql.serve.statements import Statements
from clipql.serve.tcp import packets
from clipql.serve.tcp.connection import TcpConnection


class NativePort:
    """Call `open` in the event loop. connections: those of the server, of both protocols."""

    def __init__(self, bound: socket.socket, doors: Doors, connections: Connections, statements: Statements) -> None:
        self._bound = bound
        self._doors, self._connections, self._statements = doors, connections, statements
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Take connections."""

        def made() -> TcpConnection:
            return TcpConnection(self._connections, self._statements, self._doors.url)

        self._server = await asyncio.get_running_loop().create_server(
            made, sock=self._bound, ssl=self._doors.tls, backlog=256
        )

    def close(self) -> None:
        """Take no more, and close those for which nothing runs."""
        if self._server is not None:
            self._server.close()
        for each in self._made():
            each.stop()

    async def ended(self, seconds: float) -> None:
        """Wait until nothing runs for a client any more, so long at most."""
        tasks = [each.task for each in self._made() if each.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _made(self) -> list[TcpConnection]:
        return [each for each in list(self._connections.all) if isinstance(each, TcpConnection)]


def wrong_port(native: str) -> bytes:
    """What a client of the native protocol is told at the port of HTTP. native: the right address, if there is one."""
    there = f"is at {native}" if native else "is not served: start the server with --tcp-port"
    return packets.exception(
        QueryError(
            f"this port is for HTTP; the native protocol {there}", code=217, name="CLIENT_HAS_CONNECTED_TO_WRONG_PORT"
        )
    )
