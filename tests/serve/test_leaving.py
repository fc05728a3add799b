"""Whatever a request is at when its client leaves, and however the client leaves, nothing of it stays behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from clipql.encode.models import BUNDLED
from tests.patience import LAST_NET_SECONDS, until
from tests.serve.conftest import Running, fill, start, stop

# how many are tried; 0: all
COUNT = int(os.environ.get("CLIPQL_ATTEMPTS", "16"))
ENDLESS = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) % 7 = 9"
CALLS = "SELECT sum(length(encode_text(toString(number)))) FROM numbers(30000000)"
LONG = "SELECT sum(position(repeat('ab', 500000), toString(number))) FROM numbers(3000000000)"
ROWS = "SELECT number, repeat('x', 1000) FROM numbers(100000000000) FORMAT TSV"
BODY = 1 << 20


def _head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def _post(sql: str, path: str = "/", *more: str) -> bytes:
    return _head(path, len(sql.encode()), *more) + sql.encode()


def _search(where: str) -> bytes:
    return _post(json.dumps({"table": "laion", "where": where}), "/api/search", "Content-Type: application/json")


# what a request is at: what was sent of it, and whether it then runs
STAGES: dict[str, tuple[bytes, bool]] = {
    "nothing is sent": (b"", False),
    "a word is sent": (b"PO", False),
    "half its headers are sent": (b"POST / HTTP/1.1\r\nHost: localhost\r\nX-", False),
    "its body has not begun": (_head("/", BODY), False),
    "half its body is sent": (_head("/", BODY) + bytes(BODY // 2), False),
    "a chunk is sent": (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nSEL", False),
    "half its packed body is sent": (
        _head("/", BODY, "Content-Encoding: deflate") + zlib.compress(bytes(8 << 20))[:4000], False
    ),
    "half its JSON is sent": (_head("/api/search", BODY, "Content-Type: application/json") + b'{"table": ', False),
    "half a form is sent": (
        _head("/", BODY, "Content-Type: multipart/form-data; boundary=x") + b"--x\r\nContent-Disposition: form-", False
    ),
    "half an INSERT is sent": (_head("/", BODY) + b"INSERT INTO laion (url) VALUES ('a'), ('b", False),
    "it runs": (_post(ENDLESS), True),
    "it runs by GET": (f"GET /?query={quote(ENDLESS)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), True),
    "it calls what ClickHouse cannot interrupt": (_post(CALLS), True),
    "it goes through long texts": (_post(LONG), True),
    "it runs in a session": (_post(ENDLESS, "/?session_id=left"), True),
    "it inserts": (_post("INSERT INTO laion (url) " + ENDLESS.replace("count()", "toString(count())")), True),
    "it makes a table": (_post("CREATE TABLE left ENGINE = Memory AS " + ENDLESS.replace("()", "() AS n")), True),
    "it explains": (_post("EXPLAIN ESTIMATE SELECT 1 WHERE (" + ENDLESS + ") = 1"), True),
    "it searches through REST": (_search(f"({ENDLESS}) = 1"), True),
    "its result streams": (_post(ROWS), True),
    "its result streams packed": (_post(ROWS, "/?enable_http_compression=1", "Accept-Encoding: gzip"), True),
    "its result streams in blocks": (_post(ROWS, "/?compress=1"), True),
    "another follows it": (_post(ENDLESS) + _post("SELECT 1"), True),
}  # fmt: skip


def close(connection: socket.socket) -> None:
    """Say goodbye."""
    connection.close()


def reset(connection: socket.socket) -> None:
    """Break off: what was sent and not taken is lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_close(connection: socket.socket) -> None:
    """Send no more, and still listen."""
    connection.shutdown(socket.SHUT_WR)


def read_on_and_close(connection: socket.socket) -> None:
    """Take what has come, then go."""
    connection.settimeout(0.2)
    with contextlib.suppress(OSError):
        connection.recv(1 << 16)
    connection.close()


LEAVING = {f.__name__: f for f in (close, reset, half_close, read_on_and_close)}
# beside it: nothing, or as much as may run, so that it waits
CROWDS = ("alone", "in the queue")
EVERY = [
    (stage, way, crowd)
    for stage, way, crowd in itertools.product(STAGES, LEAVING, CROWDS)
    if crowd == "alone" or STAGES[stage][1]
]
CHOSEN = EVERY if COUNT == 0 else random.Random(5).sample(EVERY, min(COUNT, len(EVERY)))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that runs one request at a time, for as long as a test may take."""
    folder: Path = tmp_path_factory.mktemp("single")
    fill(folder)
    running = start(
        folder, "--write", "--max-running", "1", "--max-seconds", str(LAST_NET_SECONDS),
        environment={"CLIPQL_MODEL": BUNDLED},
    )  # fmt: skip
    assert running.sql("SELECT length(encode_text('a cat')) > 0").text == "1\n"
    yield running
    stop(running)


def taken(server: Running) -> int:
    """The requests that run or wait."""
    text = server.ask("/metrics").text
    return int(float(text.partition("\nclipql_requests_taken ")[2].split()[0]))


@pytest.mark.parametrize(("stage", "way", "crowd"), CHOSEN)
def test_nothing_stays_of_a_request_whose_client_leaves(single: Running, stage: str, way: str, crowd: str) -> None:
    sent, runs = STAGES[stage]
    before = 0
    if crowd == "in the queue":
        occupied = socket.create_connection(("127.0.0.1", single.port), LAST_NET_SECONDS)
        occupied.sendall(_post(ENDLESS))
        until(lambda: taken(single) == 1, "another runs")
        before = 1
    connection = socket.create_connection(("127.0.0.1", single.port), LAST_NET_SECONDS)
    connection.sendall(sent)
    if runs:
        until(lambda: taken(single) == before + 1, "it is there")
    LEAVING[way](connection)
    until(lambda: taken(single) == before, "it has gone")
    assert single.ask("/ping").text == "Ok.\n"
    if before:
        occupied.close()
    until(lambda: taken(single) == 0, "nothing runs")
    assert single.sql("SELECT count() FROM laion", session_id="left").text == "300\n"
    assert single.sql("DROP TABLE IF EXISTS left").status == 200
    connection.close()
