"""A server's REST and SQL, asked at its address or in this process, where a folder is opened to be read.

What must stay true: what an agent asks goes the way of everything that comes from the network, so that the same lists
and limits hold; a folder is read as it was at its last commit, whoever writes it meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

from clipql.errors import QueryError, ServerError

# seconds that a query may take, and a little for its way
SECONDS = 30
# rows of one result, on this side of which an answer is cut
ROWS = 10_000


class Asking:
    """One who asks. local: whether what is asked runs in this process."""

    def __init__(self, client: httpx2.AsyncClient, where: str) -> None:
        self._client, self.where = client, where

    async def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What a route of REST answers. Raises QueryError with what it says is wrong."""
        reply = await self._send("GET" if body is None else "POST", path, json=body)
        if reply.status_code != 200:
            raise QueryError(_said(reply), code=_code(reply))
        return reply.json()

    async def picture(self, path: str) -> bytes:
        """A small picture, as WebP. Raises QueryError where there is none."""
        reply = await self._send("GET", path)
        if reply.status_code != 200:
            raise QueryError(_said(reply), code=_code(reply))
        return reply.content

    async def sql(self, statement: str, rows: int) -> dict[str, Any]:
        """The answer to a statement that only reads: `meta` and `data`, of one row more than `rows` at most.

        Raises QueryError.
        """
        params = {
            "query": statement,
            "default_format": "JSONCompact",
            "limit": str(rows + 1),
            "output_format_json_quote_64bit_integers": "0",
            "wait_end_of_query": "1",
        }
        reply = await self._send("GET", "/", params=params)
        if reply.status_code != 200:
            raise QueryError(reply.text.strip(), code=int(reply.headers.get("x-clickhouse-exception-code", 0)))
        if reply.headers.get("x-clickhouse-format") not in ("JSONCompact", None):
            raise QueryError("leave FORMAT out: rows are given as JSON")
        found: dict[str, Any] = reply.json() if reply.content else {"meta": [], "data": []}
        return found

    async def close(self) -> None:
        """Ask no more."""
        await self._client.aclose()

    async def _send(self, method: str, path: str, **given: Any) -> httpx2.Response:
        try:
            return await self._client.request(method, path, **given)
        except httpx2.HTTPError as error:
            raise ServerError(f"{self.where} does not answer ({error}): see that `clipql serve` runs there") from error


def _said(reply: httpx2.Response) -> str:
    try:
        return str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"


def _code(reply: httpx2.Response) -> int:
    try:
        return int(reply.json().get("code", 0))
    except (ValueError, AttributeError):
        return 0


def of_server(url: str, token: str | None) -> Asking:
    """One who asks a server at its address."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Asking(httpx2.AsyncClient(base_url=url, headers=headers, timeout=SECONDS + 10), url)


@contextlib.contextmanager
def of_folder(folder: Path, model: str | None) -> Iterator[Asking]:
    """One who asks in this process. Raises NotADatabase and its like."""
    from clipql.reader import ReadOnlyDatabase
    from clipql.serve.app import make_app
    from clipql.serve.fellows import Fellows
    from clipql.serve.limits import Limits, Options

    options = Options(limits=Limits(seconds=SECONDS, rows=ROWS, running=2, waiting=16))
    before = os.getcwd()
    # ClickHouse takes a bare name that is no table's for a file of the folder it was opened in
    with tempfile.TemporaryDirectory(prefix="clipql-mcp-") as empty, contextlib.ExitStack() as held:
        os.chdir(empty)
        held.callback(os.chdir, before)
        database = held.enter_context(ReadOnlyDatabase(folder, model=model, follow=True))
        app, statements = make_app(database, options, Fellows())
        held.callback(statements.service.close, 1)
        transport = httpx2.ASGITransport(app=app)
        yield Asking(
            httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=SECONDS + 10), str(folder)
        )
