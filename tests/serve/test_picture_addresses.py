"""Searches by the address of a picture: fetched where the server was told to, from the public network alone."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clipql
from clipql.ingest.fetch.public import is_public
from clipql.serve import picture_addresses
from tests.patience import until
from tests.serve.conftest import Reply, Running, start, stop
from tests.serving import start as serving

MODEL = {"CLIPQL_MODEL": "clipql/emoji"}


def picture(colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    return out.getvalue()


RED = picture((200, 30, 30))


class Pictures:
    """A server of pictures, and of what is none. asked: path, Host and credentials of each request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.released = threading.Event()
        pictures = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told = self.headers.get("Authorization") or self.headers.get("Cookie")
                pictures.asked.append((self.path, self.headers.get("Host"), told))
                pictures.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test's output is the test's."""

        self._server = serving(Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """By the path."""
        path = handler.path
        to = {
            "/private": f"http://localhost:{self.port}/red.png",
            "/other": f"http://127.0.0.2:{self.port}/red.png",
            "/file": "file:///etc/hostname",
            "/again": "/red.png",
            "/with-name": f"http://me:secret@127.0.0.1:{self.port}/red.png",
            "/round": "/round",
        }
        if path in to:
            handler.send_response(302)
            handler.send_header("Location", to[path])
            handler.send_header("Set-Cookie", "a=b")
            handler.end_headers()
            return
        if path == "/gone":
            handler.send_error(404)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "image/png")
        handler.end_headers()
        if path == "/held.png":
            self.released.wait()
        handler.wfile.write(b"<html>no picture" * 10 if path == "/page" else RED)
        if path == "/slow.png":
            handler.wfile.flush()
            self.released.wait()
        while path == "/endless.png":  # until nobody takes more
            handler.wfile.write(bytes(1 << 16))

    def close(self) -> None:
        """End it."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def pictures() -> Iterator[Pictures]:
    """Pictures on this machine."""
    made = Pictures()
    yield made
    made.close()


def fill(folder: Path) -> None:
    """A table whose vectors are of the bundled model."""
    with clipql.connect(folder / "test.db") as db:
        db.sql("CREATE TABLE colours (name String, v Array(Float32)) ENGINE = MergeTree ORDER BY name")
        vector = "arrayMap(i -> toFloat32(sin(number * i + i)), range(1, 129))"
        db.sql(f"INSERT INTO colours SELECT toString(number), {vector} FROM numbers(50)")


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that fetches, also from 127.0.0.1, as its name and no other."""
    folder = tmp_path_factory.mktemp("fetching")
    fill(folder)
    running = start(folder, "--fetch-pictures", "--fetch-from", "127.0.0.1", environment=MODEL)
    yield running
    stop(running)


def search(server: Running, url: str, **more: Any) -> Reply:
    """By the picture at an address."""
    return server.post("/api/search", {"table": "colours", "terms": [{"url": url}], "k": 5, **more})


def test_the_picture_at_an_address_is_searched_by(fetching: Running, pictures: Pictures) -> None:
    asked = {"table": "colours", "k": 5, "terms": [{"image": base64.b64encode(RED).decode()}]}
    wanted = fetching.post("/api/search", asked).json
    found = search(fetching, f"{pictures.url}/red.png?size=1").json
    assert [r["id"] for r in found["rows"]] == [r["id"] for r in wanted["rows"]]
    assert len(found["rows"]) == 5
    assert found["params"] == wanted["params"]
    assert found["sql"] == wanted["sql"]
    before = len(pictures.asked)
    assert search(fetching, f"{pictures.url}/red.png?size=1", offset=5).json["rows"]  # the next page
    assert len(pictures.asked) == before
    mixed = [{"url": f"{pictures.url}/red.png"}, {"text": "cat", "weight": -0.5}]
    assert fetching.post("/api/search", {"table": "colours", "terms": mixed}).status == 200
    knn = {"image_url": f"{pictures.url}/red.png", "indice_name": "colours", "modality": "image"}
    assert fetching.post("/knn-service", knn).status == 200
    assert fetching.ask("/api/tables").json["fetches"] is True


def test_redirects_are_followed_without_credentials(fetching: Running, pictures: Pictures) -> None:
    for path in ("/again", "/with-name"):
        pictures.asked.clear()
        assert search(fetching, f"{pictures.url}{path}").status == 200
        assert pictures.asked == [(p, f"127.0.0.1:{pictures.port}", None) for p in (path, "/red.png")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/private", "localhost is not in the public network"),
        ("/other", "127.0.0.2 is not in the public network"),
        ("/file", "unsupported|protocol"),
        ("/round", "redirects"),
        ("/gone", "HTTP 404"),
        ("/page", "no picture that can be read"),
        ("/endless.png", "larger than 16 MB"),
        ("/slow.png", "was silent for 5 s|did not come within 10 s"),
    ],
)
def test_what_is_no_picture_in_time_is_refused(fetching: Running, pictures: Pictures, path: str, told: str) -> None:
    pictures.asked.clear()
    reply = search(fetching, f"{pictures.url}{path}")
    assert reply.status == 400, reply.text
    assert re.search(told, reply.json["error"], re.IGNORECASE), reply.text
    assert {asked for asked, _, _ in pictures.asked} == {path}


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.2", "127.1", "2130706433", "0x7f000001", "0", "[::1]", "[::ffff:127.0.0.1]", "[::]"]
)
def test_a_private_network_is_not_asked_however_it_is_spelled(fetching: Running, pictures: Pictures, host: str) -> None:
    pictures.asked.clear()
    reply = search(fetching, f"http://{host}:{pictures.port}/red.png")
    assert reply.status == 400, reply.text
    assert not pictures.asked


def test_which_addresses_are_public() -> None:
    for address in ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert is_public(address), address
    for address in (
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%2", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    ):  # fmt: skip
        assert not is_public(address), address


def test_an_address_is_one_of_the_web_without_a_name_in_it(fetching: Running) -> None:
    for url in (
        "file:///etc/passwd", "ftp://example.org/a.png", "//example.org/a.png", "a.png", "http://", "http://me@x.org/",
        "http://me:secret@x.org/a.png", "http://x.org:0/", "http://x.org:99999/", "http://[x/", "http://x.org/a b.png",
        "http://x.org/\n", f"http://x.org/{'a' * 5000}", "javascript:alert(1)", "data:image/png;base64,AAAA",
    ):  # fmt: skip
        reply = search(fetching, url)
        assert (reply.status, reply.json["error"].startswith("url: expected an address of the web")) == (400, True), url
    five = {"table": "colours", "terms": [{"url": "http://x.org/a.png"}] * 5}
    assert "at most 4 of them" in fetching.post("/api/search", five).json["error"]
    many = {"table": "colours", "queries": [{"url": "http://x.org/a.png"}]}
    assert "url goes with one search" in fetching.post("/api/search", many).json["error"]


def test_others_are_answered_while_a_picture_is_on_its_way(fetching: Running, pictures: Pictures) -> None:
    pictures.released.clear()
    pictures.asked.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(search, fetching, f"{pictures.url}/held.png")
        until(lambda: pictures.asked, "the picture is asked for")
        assert fetching.ask("/healthz").status == 200
        other = {"table": "colours", "terms": [{"vector": [1.0] * 128}]}
        assert fetching.post("/api/search", other).status == 200
        assert search(fetching, f"{pictures.url}/red.png?other").status == 200
        assert not waiting.done() or waiting.result().status == 400  # it has only so long
        pictures.released.set()
        waiting.result()


def test_nothing_is_fetched_unless_the_server_was_told_to(server: Running, pictures: Pictures) -> None:
    pictures.asked.clear()
    reply = server.post("/api/search", {"table": "laion", "terms": [{"url": f"{pictures.url}/red.png"}]})
    assert (reply.status, "`clipql serve --fetch-pictures` lets it" in reply.json["error"]) == (400, True), reply.text
    assert not pictures.asked
    assert server.ask("/api/tables").json["fetches"] is False


def test_workers_fetch_too_and_from_the_public_network_alone(tmp_path: Path, pictures: Pictures) -> None:
    fill(tmp_path)
    running = start(tmp_path, "--workers", "2", "--fetch-pictures", "--fetch-from", "127.0.0.1", environment=MODEL)
    try:
        assert search(running, f"{pictures.url}/red.png").status == 200
        assert search(running, f"http://localhost:{pictures.port}/red.png").status == 400
    finally:
        assert stop(running) == 0


def test_hosts_are_named_for_a_server_that_fetches_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    command = [sys.executable, "-m", "clipql", "--db", str(tmp_path / "test.db"), "serve", "--fetch-from", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode != 0, "give --fetch-pictures too" in done.stderr) == (True, True), done.stderr


def test_the_process_that_fetches_is_gone_with_the_server_and_is_missed(pictures: Pictures, tmp_path: Path) -> None:
    code = f"""
from clipql.errors import PictureError
from clipql.serve.picture_addresses import Helper
import os
helper = Helper({{"127.0.0.1"}}, "auto")
assert helper.fetch("{pictures.url}/red.png").startswith(b"\\x89PNG")
helper.close()
try:
    helper.fetch("{pictures.url}/red.png?again")
except PictureError as error:
    print(error)
try:
    os.kill(helper._process, 0)
except ProcessLookupError:
    print("gone")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["the process that fetches pictures is gone; start the server anew", "gone"]
    assert picture_addresses.SILENT_SECONDS < picture_addresses.SECONDS
