"""A database behind a `clipql serve`, with the same calls as one in a folder.

What must stay true: one session on the server, so that SET, USE and temporary tables last as they do in a folder; its
statements go one at a time, as the server wants it. What needs the folder itself is refused, with what to do instead.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import pyarrow as pa
from numpy.typing import NDArray

from clipql.database import Database
from clipql.encode import pictures
from clipql.encode.base import Picture
from clipql.engine.arrays import with_numbers
from clipql.engine.output import Output
from clipql.engine.quoting import parameter_text, quote_name
from clipql.engine.translate import translate
from clipql.errors import ClipqlError, QueryError, ServerError
from clipql.result import Result, Stats
from clipql.sql.hybrid import words_column
from clipql.sql.planning.outputs import Progress
from clipql.sql.result_types import describing, told
from clipql.sql.search_text import search_text
from clipql.sql.session import Answer

SECONDS = 600
SESSION_SECONDS = 3600
# longer parameters go into the body
LONGEST_ADDRESS = 4000


class RemoteDatabase(Database):
    """A database on a server. Thread-safe."""

    def __init__(self, url: str, *, token: str | None = None, timeout_seconds: float = SECONDS) -> None:
        found = urlsplit(url)
        if found.scheme not in ("http", "https") or not found.hostname:
            raise ServerError(f"{url}: expected http://host:port")
        self.url = f"{found.scheme}://{found.netloc.rpartition('@')[2]}"
        self.path = Path(self.url)
        self._address = (found.scheme, found.hostname, found.port)
        self._token = token or found.password or os.environ.get("CLIPQL_TOKEN") or None
        self._timeout = timeout_seconds
        self._id = uuid.uuid4().hex
        self._talking = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._closed, self._timezone = False, "UTC"
        try:
            self.execute("SELECT 1", format="Null")
        except BaseException:
            self.close()
            raise

    def execute(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "ArrowStream",
        progress: Progress | None = None,
    ) -> Answer:
        """Run one statement and return its output in a ClickHouse format, unless it names its own."""
        if self._closed:
            raise QueryError(f"the connection to {self.url} is closed")
        params = with_numbers(statement, params or {})
        query = {"default_format": format, "session_id": self._id, "session_timeout": str(SESSION_SECONDS)}
        given = {f"param_{n}": _wire(v) for n, v in params.items() if f"{{{n}" in statement.replace(" ", "")}
        if sum(map(len, given.values())) <= LONGEST_ADDRESS:
            reply, data = self._post("/?" + urlencode({**query, **given}, quote_via=quote), statement.encode())
        else:
            body, kind = _form({"query": statement, **given})
            reply, data = self._post("/?" + urlencode(query), body, kind)
        self._timezone = reply.headers.get("X-ClickHouse-Timezone") or self._timezone
        summary = json.loads(reply.headers.get("X-ClickHouse-Summary") or "{}")
        elapsed = int(summary.get("elapsed_ns", 0)) / 1e9
        output = Output(data, elapsed, 0, int(summary.get("read_rows", 0)), int(summary.get("read_bytes", 0)))
        rows = int(summary.get("written_rows", 0)) or None
        shards = reply.headers.get("X-Clipql-Shards")
        return Answer(output, reply.headers.get("X-ClickHouse-Format") or format, elapsed, rows=rows, shards=shards)

    def _answer(self, statement: str, params: Mapping[str, Any]) -> Answer:
        return self.execute(statement, params)

    def _types(self, statement: str, params: Mapping[str, Any]) -> Mapping[str, str]:
        """Asked in the same session each time, as somebody else may have changed the definitions."""
        question = describing(statement)
        if question is None:
            return {}
        try:
            answer = self.execute(question, params)
        except QueryError:
            return {}
        return told(answer.output.arrow(), self._timezone)

    def _post(self, target: str, body: bytes, kind: str = "text/plain") -> tuple[http.client.HTTPResponse, bytes]:
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        with self._talking:
            try:
                reply, data = self._exchange(target, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                raise ServerError(
                    f"{self.url} does not answer ({error or type(error).__name__}): see that `clipql serve` runs there"
                ) from error
        if reply.status != 200 or b"\r\n__exception__\r\n" in data[-32_768:]:
            raise _error(self.url, reply, data)
        return reply, data

    def _exchange(self, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        kept = self._connection is not None
        try:
            return self._ask(target, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._drop()
            if not kept:  # a kept connection may have timed out at the other end, unused
                raise
            return self._ask(target, body, headers)

    def _ask(self, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection is None:
            scheme, host, port = self._address
            make = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            self._connection = make(host, port, timeout=self._timeout)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.request("POST", target, body, dict(headers))
        reply = self._connection.getresponse()
        return reply, reply.read()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def search(
        self,
        table: str,
        *,
        text: str | None = None,
        image: Picture | None = None,
        vector: NDArray[Any] | Sequence[float] | None = None,
        k: int = 10,
        where: str | None = None,
        column: str = "image_embedding",
        columns: Sequence[str] | None = None,
        distance: str = "cosineDistance",
        recall: float | None = None,
        hybrid: bool = False,
        words: str | None = None,
    ) -> Result:
        """As `Database.search`; a picture is read here and sent, and compared by cosineDistance."""
        given = [name for name, v in (("text", text), ("image", image), ("vector", vector)) if v is not None]
        if len(given) != 1:
            raise QueryError(f"search got {' and '.join(given) or 'nothing to look for'}: give text, image or vector")
        if image is not None:
            if hybrid or words is not None:
                raise QueryError("a hybrid search is by words as well as by meaning, this one by image: give text")
            if distance != "cosineDistance":
                raise QueryError(f"distance = {distance}: a server compares pictures by cosineDistance")
            return self._search_by_picture(image, table, k, where, column, columns, recall)
        statement = self.search_sql(table, by=given[0], k=k, where=where, column=column, columns=columns,
                                    distance=distance, recall=recall, hybrid=hybrid, words=words)  # fmt: skip
        return self.sql(statement, query=vector if vector is not None else text)

    def search_many(
        self,
        table: str,
        *,
        vectors: NDArray[Any] | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        images: Sequence[Picture] | None = None,
        **options: Any,
    ) -> list[Result]:
        """As `Database.search_many`, one request after the other."""
        given = {"vector": vectors, "text": texts, "image": images}
        asked = [(name, values) for name, values in given.items() if values is not None]
        if len(asked) != 1:
            raise QueryError("search_many got nothing, or more than one of vectors, texts and images: give one")
        ((name, values),) = asked
        return [self.search(table, **{name: value, **options}) for value in values]

    def sql_many(self, text: str, params: Sequence[Mapping[str, Any]], /) -> list[Result]:
        """As `Database.sql_many`, one request after the other."""
        return [self.sql(text, **given) for given in params]

    def _search_by_picture(
        self,
        image: Picture,
        table: str,
        k: int,
        where: str | None,
        column: str,
        columns: Sequence[str] | None,
        recall: float | None,
    ) -> Result:
        data = pictures.content(image)
        database, _, name = table.rpartition(".")
        asked = {
            "table": name,
            "database": database or None,
            "column": column,
            "k": k,
            "where": where,
            "safe": False,
            "recall": recall,
            "columns": list(columns) if columns is not None else None,
            "terms": [{"image": base64.b64encode(data).decode()}],
            "format": "Arrow",
        }
        _, found = self._post("/api/search", json.dumps(asked).encode(), "application/json")
        return Result(pa.ipc.open_file(pa.py_buffer(found)).read_all(), Stats(0.0))

    def search_sql(
        self,
        table: str,
        *,
        by: str = "vector",
        k: int = 10,
        where: str | None = None,
        column: str = "image_embedding",
        columns: Sequence[str] | None = None,
        distance: str = "cosineDistance",
        recall: float | None = None,
        hybrid: bool = False,
        words: str | None = None,
    ) -> str:
        """As `Database.search_sql`; a server reads no picture by its path."""
        if by == "image":
            raise QueryError("a server reads no files for queries: use search(image=…), which sends the picture")
        database, _, name = table.rpartition(".")
        source = f"{quote_name(database)}.{quote_name(name)}" if database else quote_name(name)
        if columns is None or hybrid or words is not None:
            rows = self.sql(f"DESCRIBE TABLE {source}").rows
            plain = [str(r[0]) for r in rows if r[1] != "Array(Float32)"]
            columns = plain if columns is None else columns
            words = words_column([], plain, words) if hybrid or words is not None else None
        return search_text(source, columns, column=column, by=by, k=k, where=where, distance=distance,
                           recall=recall, words=words)  # fmt: skip

    def tables(self) -> list[dict[str, Any]]:
        """The tables with vectors, as `GET /api/tables` describes them."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with self._talking:
            self._drop()
            scheme, host, port = self._address
            make = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            connection = make(host, port, timeout=self._timeout)
            try:
                connection.request("GET", "/api/tables", headers=headers)
                reply = connection.getresponse()
                data = reply.read()
            finally:
                connection.close()
        if reply.status != 200:
            raise _error(self.url, reply, data)
        found: list[dict[str, Any]] = json.loads(data)["tables"]
        return found

    def close(self) -> None:
        """Close the connection; harmless when called twice. The session ends on the server by its timeout."""
        self._closed = True
        with self._talking:
            self._drop()

    def _refuse(self, what: str) -> NoReturn:
        raise ServerError(
            f"{what} needs the database's folder: run it where the server runs, with --db, while it is stopped"
        )

    def ingest(self, source: Any, *, table: str = "laion", **options: Any) -> Any:
        """Refused: parts are files of the machine that holds the database."""
        self._refuse("taking parts in")

    def wait_for_indexes(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Return when no index is built in the server's background; progress(state, 0, 0) is called now and then."""
        while told := self.sql("SELECT state FROM clipql.indexes WHERE state LIKE '%; in the background: %'").rows:
            if progress is not None:
                progress(str(told[0][0]), 0, 0)
            time.sleep(0.2)

    def session(self) -> NoReturn:
        """Refused: open another connection."""
        self._refuse("a session of its own")

    @property
    def registry(self) -> NoReturn:
        """Refused."""
        self._refuse("this")

    @property
    def indexes(self) -> NoReturn:
        """Refused."""
        self._refuse("this")


def _wire(value: Any) -> str:
    """A parameter as the protocol has it: escaped once."""
    return parameter_text(value)


def _form(fields: Mapping[str, str]) -> tuple[bytes, str]:
    """Fields as multipart/form-data, and its Content-Type."""
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    return "".join([*parts, f"--{mark}--\r\n"]).encode(), f"multipart/form-data; boundary={mark}"


def _error(url: str, reply: http.client.HTTPResponse, data: bytes) -> ClipqlError:
    text = data[-32_768:].decode("utf-8", "replace")
    if "\r\n__exception__\r\n" in text:
        text = text.rpartition("\r\n__exception__\r\n")[0].rpartition("Code: ")[2]
        text = "Code: " + text.rpartition("\n")[0]
    if reply.status == 401:
        return ServerError(f"{url} asks for a token, or for another one: give token=… or $CLIPQL_TOKEN")
    if "DB::Exception" in text:
        return translate(RuntimeError(re.sub(r"\s*\(version [^)]*\)\s*\Z", "", text)))
    try:
        told = json.loads(data)
        return QueryError(str(told["error"]), code=int(told.get("code", 0)))
    except (ValueError, KeyError, TypeError):
        return ServerError(f"{url} answered {reply.status}: {text[:300]}")
