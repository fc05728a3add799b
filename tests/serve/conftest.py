"""A real server in a process of its own, over a small database, for the tests of this folder."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest

import clipql
from tests.parts import make_part, vectors
from tests.patience import LAST_NET_SECONDS

ROWS, DIMENSION = 300, 16
TOKEN = "open sesame"


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """A server that runs. native: the port of the native protocol, where it has one."""

    url: str
    process: subprocess.Popen[str]
    folder: Path
    native: int = 0

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url).port or 0

    def ask(
        self,
        path: str = "/",
        body: bytes | str | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        **query: str,
    ) -> Reply:
        """One request, with parameters in its address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LAST_NET_SECONDS)
        try:
            target = path + ("?" + urlencode(query, quote_via=quote) if query else "")
            data = body.encode() if isinstance(body, str) else body
            connection.request(method or ("GET" if data is None else "POST"), target, data, dict(headers or {}))
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def sql(self, sql: str, **query: str) -> Reply:
        """A statement by POST."""
        return self.ask("/", sql, **query)

    def post(self, path: str, body: Any) -> Reply:
        """JSON to the REST API."""
        return self.ask(path, json.dumps(body), headers={"Content-Type": "application/json"})


def start(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Running:
    """Start `clipql serve` on a free port."""
    command = [sys.executable, "-m", "clipql", "--db", str(folder / "test.db"), "serve", "--port", "0", *arguments]
    given = {**os.environ, "CLIPQL_MODEL": str(folder / "no-model"), **(environment or {})}
    with open(folder / "server.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env=given)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://" in line, (folder / "server.log").read_text()
    url, _, native = line.rstrip().partition(" at ")[2].partition(", and by the native protocol at ")
    return Running(url, process, folder, int(native.rpartition(":")[2] or 0))


def stop(server: Running) -> int:
    """Stop it and give its exit status."""
    server.process.terminate()
    try:
        return server.process.wait(LAST_NET_SECONDS)
    finally:
        assert server.process.stdout is not None
        server.process.stdout.close()


def fill(folder: Path) -> None:
    """A database with a table `laion` of 300 rows, and pictures in files in a table `pictures`."""
    from PIL import Image

    make_part(folder / "parts", ROWS, dimension=DIMENSION)
    with clipql.connect(folder / "test.db") as db:
        db.ingest(folder / "parts", table="laion")
        db.sql(
            "CREATE TABLE pictures (image_path String, caption String, NSFW Bool, image_embedding Array(Float32)) "
            "ENGINE = MergeTree ORDER BY caption"
        )
        (folder / "pictures").mkdir()
        Image.new("RGB", (400, 200), (200, 30, 30)).save(folder / "pictures/red.png")
        (folder / "pictures/secret.txt").write_text("the canary sings")
        for name, unsafe, vector in zip(
            ("red.png", "gone.png", "secret.txt", "late.png"),
            (False, False, False, True),
            vectors(4, 4, 7, np.float32),
            strict=True,
        ):
            db.sql(
                "INSERT INTO pictures VALUES ({p:String}, {c:String}, {n:Bool}, {v:Array(Float32)})",
                p=str(folder / "pictures" / name), c=f"a picture of {name}", n=unsafe, v=vector,
            )  # fmt: skip


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that may write, without a token, for all files of tests."""
    folder = tmp_path_factory.mktemp("writing")
    fill(folder)
    running = start(folder, "--write", "--pictures", str(folder / "pictures"), "--tcp-port", "0")
    yield running
    stop(running)


def tables(server: Running) -> set[str]:
    """What the default database has: tables, views and dictionaries."""
    sql = "SELECT name FROM system.tables WHERE database = currentDatabase() FORMAT TSVRaw"
    return set(server.sql(sql).text.splitlines())


@pytest.fixture(scope="module")
def server(writing: Running) -> Iterator[Running]:
    """A server that may write, without a token; a file of tests meets no tables that another has left there."""
    before = tables(writing)
    yield writing
    for name in tables(writing) - before:
        assert writing.sql(f"DROP TABLE IF EXISTS `{name}`").status == 200, name


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that only reads, and asks for a token."""
    folder = tmp_path_factory.mktemp("reading")
    fill(folder)
    running = start(folder, "--tcp-port", "0", environment={"CLIPQL_TOKEN": TOKEN})
    yield running
    stop(running)
