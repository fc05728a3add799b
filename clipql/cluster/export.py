"""Sending a table with its vectors to a ClickHouse server, by its HTTP protocol.

Rows go in blocks, in the order of their numbers, each block as one INSERT, which a server takes whole or not at all. So
the number of rows that are there tells where to go on. What must stay true: nothing is sent before what is there was
found to be the beginning of the table, by count and hash; success is told after the same check of all of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from clipql.cluster.ddl import Exported, create_local, described
from clipql.database import Database
from clipql.engine.quoting import quote_name
from clipql.errors import QueryError, ServerError
from clipql.tables.registry import ROW

BLOCK_ROWS = 10_000
PORTS = {"http": 8123, "https": 8443}


@dataclass(frozen=True)
class ExportReport:
    """rows: in the table there now. sent: by this run."""

    rows: int
    sent: int


@dataclass(frozen=True)
class Target:
    """A table on a ClickHouse server. url: of the server. table: its quoted name."""

    url: str
    user: str
    password: str
    database: str
    table: str

    @property
    def name(self) -> str:
        """The quoted name, with the database."""
        return f"{quote_name(self.database)}.{quote_name(self.table)}"


def target_of(address: str) -> Target:
    """clickhouse://user:password@host:port/db.table, or clickhouses:// for TLS; the password may be in
    $CLICKHOUSE_PASSWORD. Raises ServerError."""
    found = urlsplit(address)
    schemes = {"clickhouse": "http", "clickhouses": "https"}
    name = unquote(found.path.strip("/"))
    if found.scheme not in schemes or not found.hostname or not name or "/" in name:
        raise ServerError(f"{address}: expected clickhouse://user:password@host:port/database.table")
    scheme = schemes[found.scheme]
    database, _, table = name.rpartition(".")
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    url = f"{scheme}://{host}:{found.port or PORTS[scheme]}/"
    password = unquote(found.password or "") or os.environ.get("CLICKHOUSE_PASSWORD", "")
    return Target(url, unquote(found.username or "default"), password, database or "default", table)


class Server:
    """A ClickHouse server by HTTP. Close it after use."""

    def __init__(self, target: Target, *, seconds: float = 600) -> None:
        import httpx2

        self._target, self._library = target, httpx2
        headers = {
            "X-ClickHouse-User": target.user,
            **({"X-ClickHouse-Key": target.password} if target.password else {}),
        }
        self._client = httpx2.Client(headers=headers, timeout=seconds, trust_env=False)

    def run(self, statement: str, data: bytes | None = None) -> str:
        """What a statement gives as text; data: what follows it. Raises QueryError, or ServerError."""
        url = self._target.url
        try:
            if data is None:
                reply = self._client.post(url, content=statement.encode())
            else:
                reply = self._client.post(url, params={"query": statement}, content=data)
        except self._library.HTTPError as error:
            raise ServerError(f"{url} does not answer ({error}): see that a ClickHouse server runs there") from error
        text = str(reply.text)
        if reply.status_code == 200:
            return text
        code = int(reply.headers.get("X-ClickHouse-Exception-Code", "0") or 0)
        if reply.status_code in (401, 403) or code == 516:
            raise ServerError(f"{url} refuses user {self._target.user}: give clickhouse://user:password@host/…")
        raise QueryError(f"{url} answered {reply.status_code}: {text.strip()[:500]}", code=code)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def export(
    db: Database,
    table: str,
    address: str,
    *,
    indexes: bool = False,
    block_rows: int = BLOCK_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Send a table to a ClickHouse server; what is there of it already is checked and left out.

    address: clickhouse://user:password@host:port/database.table; the table is made there if it is not. indexes: with
    `vector_similarity` indexes. progress: told rows there and rows in all. Raises ServerError where the server cannot
    be reached or holds other rows, QueryError for what it refuses.
    """
    target = target_of(address)
    shape = described(db, table)
    server = Server(target)
    try:
        if target.database != "default":
            server.run(f"CREATE DATABASE IF NOT EXISTS {quote_name(target.database)}")
        if server.run(f"EXISTS TABLE {target.name}").strip() != "1":
            server.run(create_local(shape, target.name, indexes=indexes))
        return _Export(
            db, _quoted(table), shape, target, server, block_rows, progress or (lambda done, total: None)
        ).run()
    finally:
        server.close()


def _quoted(table: str) -> str:
    database, _, name = table.rpartition(".")
    return f"{quote_name(database)}.{quote_name(name)}" if database else quote_name(name)


class _Export:
    def __init__(
        self,
        db: Database,
        source: str,
        shape: Exported,
        target: Target,
        server: Server,
        block_rows: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self._db, self._source, self._target, self._server = db, source, target, server
        self._block, self._progress = block_rows, progress
        self._columns = ", ".join(map(quote_name, shape.stored))
        parts = (f"isNull({n}), assumeNotNull({n})" for n in map(quote_name, shape.stored))
        self._check = f"count(), sum(cityHash64({', '.join(parts)}))"

    def run(self) -> ExportReport:
        blocks = self._db.sql(
            f"SELECT intDiv({ROW}, {self._block}) AS block, count() FROM {self._source} GROUP BY block ORDER BY block"
        ).rows
        ends = [0, *itertools.accumulate(int(n) for _, n in blocks)]
        done = int(self._server.run(f"SELECT count() FROM {self._target.name}"))
        if done not in ends:
            raise ServerError(
                f"{self._target.name} at {self._target.url} has {done:,} rows, which is no number of whole blocks of "
                f"{self._source}: it holds something else, or was filled with other blocks; name an empty table"
            )
        at = ends.index(done)
        if done:
            self._compare(int(blocks[at - 1][0]) + 1, "what is there already")
        for (block, _), end in zip(blocks[at:], ends[at + 1 :], strict=True):
            self._send(int(block))
            self._progress(end, ends[-1])
        self._compare(int(blocks[-1][0]) + 1 if blocks else 0, "what arrived")
        return ExportReport(ends[-1], ends[-1] - done)

    def _send(self, block: int) -> None:
        first, last = block * self._block, (block + 1) * self._block
        rows = self._db.execute(
            f"SELECT {self._columns} FROM {self._source} WHERE {ROW} >= {first} AND {ROW} < {last} ORDER BY {ROW}",
            format="RowBinary",
        )
        self._server.run(f"INSERT INTO {self._target.name} ({self._columns}) FORMAT RowBinary", rows.output.data)

    def _compare(self, blocks: int, what: str) -> None:
        here: Sequence[Any] = self._db.sql(
            f"SELECT {self._check} FROM {self._source} WHERE {ROW} < {blocks * self._block}"
        ).rows[0]
        there = [int(n) for n in self._server.run(f"SELECT {self._check} FROM {self._target.name} FORMAT TSV").split()]
        if [int(n) for n in here] != there:
            raise ServerError(
                f"{self._target.name} at {self._target.url}: {what} is not the table's: {there[0]:,} rows with hash "
                f"{there[1]:x}, expected {int(here[0]):,} with {int(here[1]):x}; DROP it there and export again"
            )
