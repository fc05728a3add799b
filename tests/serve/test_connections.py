"""Connections that never come to a request, or to its end: bytes and time are bounded, and there is room for others."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn

from clipql.serve.connections import Connection, Connections
from clipql.serve.limits import Limits
from tests.patience import LAST_NET_SECONDS, until

LIMITS = Limits(connections=20, head=64 << 10, head_seconds=1, stall=4, pace=1 << 30)
BIG = 64 << 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body and tells its size; /early answers before, /big sends much."""
    size = 0
    while scope["path"] != "/early" and (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = bytes(BIG) if scope["path"] == "/big" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[tuple[int, Connections]]:
    """A server within small limits: its port and its connections."""
    connections = Connections(LIMITS)
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=partial(Connection, connections), lifespan="off", log_config=None)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    until(lambda: server.started, "it runs")
    yield bound.getsockname()[1], connections
    server.should_exit = True
    thread.join(LAST_NET_SECONDS)
    bound.close()


def opened(port: int, data: bytes = b"") -> socket.socket:
    """A connection on which this was sent."""
    made = socket.create_connection(("127.0.0.1", port), LAST_NET_SECONDS)
    made.sendall(data)
    return made


def answered(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionError:
        pass
    connection.close()
    return found


def ping(port: int) -> bool:
    """Whether another client is answered."""
    with opened(port, b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n") as other:
        return other.recv(15) == b"HTTP/1.1 200 OK"


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "a header line": (HEAD + b"X: ", b"x" * 1000, 431),
    "a first header line": (b"GET / HTTP/1.1\r\nX: ", b"x" * 1000, 431),
    "a header name": (HEAD, b"x" * 1000, 431),
    "header lines": (HEAD, b"X: y\r\n" * 100, 431),
    "an address": (b"GET /", b"x" * 1000, 414),
    "a query": (b"GET /?", b"x=y&" * 250, 414),
    "empty lines": (b"", b"\r\n" * 500, 431),
    "a trailer": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"x" * 1000, 431),
    "trailers": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: y\r\n" * 100, 431),
    "a chunk's size": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000, 431),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("size", [1, 300])
def test_what_has_no_end_is_ended_by_its_size(port: tuple[int, Connections], name: str, size: int) -> None:
    begin, more, status = ENDLESS[name]
    connection = opened(port[0], begin)
    sent = 0
    try:
        while sent < 8 << 20:
            connection.sendall(more * size)
            sent += len(more) * size
    except OSError:
        pass
    reply = answered(connection)
    assert reply[:12] == b"HTTP/1.1 %d" % status or (not reply and sent < 8 << 20)
    assert ping(port[0])


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"", b""),
        (b"G", b"HTTP/1.1 408"),
        (HEAD + b"X: y\r\n", b"HTTP/1.1 408"),
        (b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 408"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\n\r\nGET / HT", b"HTTP/1.1 200"),
        (b"POST /early HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 200"),
    ],
)
def test_what_does_not_come_is_not_waited_for(port: tuple[int, Connections], begin: bytes, status: bytes) -> None:
    assert answered(opened(port[0], begin))[:12] == status


def test_what_trickles_is_not_waited_for(port: tuple[int, Connections]) -> None:
    body = b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
    for begin, drop in ((HEAD, b"X: y\r\n"), (body, b"x"), (b"", b"\r\n")):
        connection = opened(port[0], begin)
        until(lambda: _ended(connection, drop), "it is closed")  # noqa: B023
        connection.close()


def _ended(connection: socket.socket, drop: bytes) -> bool:
    try:
        connection.sendall(drop)
        connection.settimeout(0.05)
        return not connection.recv(1 << 16)
    except TimeoutError:
        return False
    except OSError:
        return True


def test_half_requests_make_room_for_whole_ones(port: tuple[int, Connections]) -> None:
    body, whole = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf", b"GET / HTTP/1.1\r\n\r\n"
    for begin in (b"", HEAD, body, whole):
        crowd = [opened(port[0], begin) for _ in range(4 * LIMITS.connections)]
        if begin == whole:  # some may still be answered, and have their place until then
            until(lambda: ping(port[0]), "all are answered")
        else:
            assert ping(port[0]), begin
        assert len(port[1].all) <= LIMITS.connections
        for each in crowd:
            each.close()


def test_a_crowd_of_requests_on_one_connection_is_not_queued(port: tuple[int, Connections]) -> None:
    reply = answered(opened(port[0], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5_000))
    assert reply.count(b"HTTP/1.1 200") <= 20
    few = opened(port[0], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9 + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answered(few).count(b"HTTP/1.1 200") == 10


def test_a_reply_that_nobody_reads_is_let_go(port: tuple[int, Connections]) -> None:
    connection = opened(port[0], b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    until(lambda: any(c.transport.get_write_buffer_size() for c in list(port[1].all)), "it is being sent")
    until(lambda: not any(c.transport.get_write_buffer_size() for c in list(port[1].all)), "it is let go")
    assert len(answered(connection)) < BIG


def test_large_bodies_and_kept_connections_go_on_as_ever(port: tuple[int, Connections]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port[0], timeout=LAST_NET_SECONDS)
    for size in (0, 1, 100_000, 10 << 20):
        connection.request("POST", "/", bytes(size))
        assert connection.getresponse().read() == b"%d" % size
    connection.close()
    reader = opened(port[0], b"GET /big HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert len(answered(reader)) > BIG


def test_connections_are_forgotten_when_they_end(port: tuple[int, Connections]) -> None:
    until(lambda: not port[1].all, "all have ended")
