"""Packets of the native protocol as values, by the revision that both sides know.

https://clickhouse.com/docs/native-protocol, and DBMS_MIN_… in ClickHouse's src/Core/ProtocolDefines.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from clipql.engine.row_writer import varint
from clipql.errors import ClipqlError, QueryError
from clipql.serve.errors import error_code, error_message
from clipql.serve.limits import Limits
from clipql.serve.native_blocks import Blocks
from clipql.serve.progress import Counts
from clipql.serve.tcp.wire import Source, broken
from clipql.syntax.lexer import string_value

# what this server knows: ClickHouse 24.9, the first with packets in chunks; and the oldest that it speaks to, of 2019
REVISION, OLDEST = 54470, 54429
HELLO, QUERY, DATA, CANCEL, PING, TABLES_STATUS = range(6)
SCALAR = 7  # of a server that asks this one: values of its own statement
(_HELLO, DATA_SENT, _EXCEPTION, _PROGRESS, PONG, END_OF_STREAM, _PROFILE, TOTALS, EXTREMES) = range(9)
_STATUS, _COLUMNS, _EVENTS = 9, 11, 14
# revisions from which on something is told
_SECRET, _TRACE, _FORWARDED, _REFERER, _DEPTH, _START = 54441, 54442, 54443, 54447, 54448, 54449
_REPLICAS, _ADDENDUM, _PARAMETERS, _ELAPSED, _RULES, _NONCE = 54453, 54458, 54459, 54460, 54461, 54462
EVENTS, _TOTAL_BYTES, _AGGREGATION, CHUNKS = 54456, 54463, 54469, 54470
# the last stage of a query, in which the answer is whole
_COMPLETE = 2
_IMPORTANT = 1
# bytes of a name, of a password, of a setting
_NAME, _VALUE, _MOST_SETTINGS = 1 << 12, 1 << 16, 2_000
_OPTIONAL = "notchunked_optional"


def text(value: str) -> bytes:
    """A string."""
    data = value.encode("utf-8", "surrogateescape")
    return varint(len(data)) + data


@dataclass(frozen=True)
class Hello:
    """A client, as it says who it is. revision: what both sides know."""

    client: str
    revision: int
    database: str
    user: str
    password: str


async def read_hello(source: Source) -> Hello:
    """The rest of a Hello. Raises QueryError for a client that is too old."""
    client = await source.text(_NAME)
    await source.number()
    await source.number()
    revision = await source.number()
    database, user, password = [await source.text(_NAME) for _ in range(3)]
    if revision < OLDEST:
        raise QueryError(
            f"the client speaks revision {revision} of the native protocol; {OLDEST}, of 2019, is the oldest here",
            code=48,
            name="NOT_IMPLEMENTED",
        )
    return Hello(client, min(revision, REVISION), database, user, password)


def hello(revision: int, version: str, timezone: str) -> bytes:
    """The answer to a Hello. version: ClickHouse's, such as 26.9.1.1."""
    major, minor, patch = [int(n) for n in version.split(".")[:3]]
    out = [varint(_HELLO), text("ClickHouse"), varint(major), varint(minor), varint(REVISION), text(timezone)]
    out += [text("clipql"), varint(patch)]
    if revision >= CHUNKS:
        out += [text(_OPTIONAL), text(_OPTIONAL)]
    if revision >= _RULES:
        out.append(varint(0))
    if revision >= _NONCE:
        out.append(bytes(8))
    return b"".join(out)


async def read_addendum(source: Source, revision: int) -> tuple[bool, bool]:
    """What a client adds to its Hello: whether it sends, and whether it wants, packets in chunks."""
    if revision >= _ADDENDUM:
        await source.text(_NAME)
    if revision < CHUNKS:
        return False, False
    sends, wants = await source.text(_NAME), await source.text(_NAME)
    return sends.startswith("chunked"), wants.startswith("chunked")


@dataclass(frozen=True)
class Asking:
    """A Query. params: as their values come, escaped. important: settings that must be known. packed: whether blocks
    are compressed, both ways. refused: why it cannot be answered, though it was read to its end."""

    query_id: str
    sql: str
    settings: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    important: frozenset[str] = frozenset()
    packed: bool = False
    refused: str = ""


async def read_query(source: Source, revision: int, limits: Limits, count: Callable[[int], None]) -> Asking:
    """The rest of a Query. count: told of bytes before they are kept."""
    query_id = await source.text(_NAME)
    await _client_info(source, revision)
    settings, important = await _settings(source, limits, count)
    if revision >= _SECRET:
        await source.text(_NAME)
    stage, packed = await source.number(), await source.number()
    sql = await source.text(limits.statement + limits.body, count)
    params, _ = await _settings(source, limits, count) if revision >= _PARAMETERS else ({}, ())
    refused = "" if stage == _COMPLETE else f"a query is answered as a whole, not to stage {stage}"
    values = {name: _unquoted(value) for name, value in params.items()}
    return Asking(query_id, sql, settings, values, important, packed == 1, refused)


async def _client_info(source: Source, revision: int) -> None:
    if not await source.byte():
        return
    for _ in range(3):
        await source.text(_NAME)
    if revision >= _START:
        await source.take(8)
    interface = await source.byte()
    if interface == 1:
        for _ in range(3):
            await source.text(_NAME)
        for _ in range(3):
            await source.number()
    elif interface == 2:
        await source.byte()
        for since in (0, _FORWARDED, _REFERER):
            if revision >= since:
                await source.text(_NAME)
    await source.text(_NAME)
    if revision >= _DEPTH:
        await source.number()
    if interface == 1:
        await source.number()
    if revision >= _TRACE and await source.byte():
        await source.take(24)
        await source.text(_NAME)
        await source.byte()
    if revision >= _REPLICAS:
        for _ in range(3):
            await source.number()


async def _settings(
    source: Source, limits: Limits, count: Callable[[int], None]
) -> tuple[dict[str, str], frozenset[str]]:
    found: dict[str, str] = {}
    important: set[str] = set()
    size = 0
    while name := await source.text(_NAME):
        if await source.number() & _IMPORTANT:
            important.add(name)
        found[name] = value = await source.text(limits.statement, count)
        size += len(value)
        if len(found) > _MOST_SETTINGS or size > limits.body:
            raise broken(f"there are more than {_MOST_SETTINGS:,} settings or parameters, or they are too long")
    return found, frozenset(important)


def _unquoted(value: str) -> str:
    """A parameter's value without the quotes that it comes in."""
    inner = string_value(value)
    return value if inner is None else inner.decode("utf-8", "surrogateescape")


def data(block: bytes, kind: int = DATA_SENT) -> bytes:
    """A block, as it is to be sent. kind: of the answer's rows, or TOTALS or EXTREMES."""
    return varint(kind) + text("") + block


def exception(error: ClipqlError) -> bytes:
    """An error."""
    code = struct.pack("<i", error_code(error)[0])
    return varint(_EXCEPTION) + code + text("DB::Exception") + text(error_message(error)) + text("") + b"\x00"


def progress(revision: int, counts: Counts) -> bytes:
    """What was read and written since the last one."""
    out = [varint(_PROGRESS), varint(counts.rows), varint(counts.size), varint(counts.total_rows)]
    if revision >= _TOTAL_BYTES:
        out.append(varint(counts.total_size))
    out += [varint(counts.written), varint(counts.written_size)]
    if revision >= _ELAPSED:
        out.append(varint(int(counts.seconds * 1e9)))
    return b"".join(out)


def profile(revision: int, *, rows: int, blocks: int, size: int, before_limit: int | None = None) -> bytes:
    """What an answer was. before_limit: its rows without LIMIT, where they are known."""
    known = b"\x00" if before_limit is None else b"\x01"
    before = rows if before_limit is None else before_limit
    out = [varint(_PROFILE), varint(rows), varint(blocks), varint(size), known, varint(before), known]
    if revision >= _AGGREGATION:
        out += [b"\x00", varint(0)]
    return b"".join(out)


def events(blocks: Blocks) -> bytes:
    """ProfileEvents without any: what clients wait for after each block that they insert."""
    columns = [
        ("host_name", "String"),
        ("current_time", "DateTime"),
        ("thread_id", "UInt64"),
        ("type", "Enum8('increment' = 1, 'gauge' = 2)"),
        ("name", "String"),
        ("value", "Int64"),
    ]
    return varint(_EVENTS) + text("") + blocks.header(columns)


def columns(described: Sequence[Mapping[str, str]]) -> bytes:
    """TableColumns: the columns of a table with their defaults, as DESCRIBE tells of them."""
    lines = ["columns format version: 1", f"{len(described)} columns:"]
    for each in described:
        default = f"\t{each['default_type']}\t{each['default_expression']}" if each["default_type"] else ""
        lines.append(f"`{each['name']}` {each['type']}{default}")
    return varint(_COLUMNS) + text("") + text("\n".join(lines) + "\n")


async def read_tables_status(source: Source) -> list[tuple[str, str]]:
    """The tables whose status is asked for."""
    count = await source.number()
    if count > _MOST_SETTINGS:
        raise broken(f"{count:,} tables are asked for at once")
    return [(await source.text(_NAME), await source.text(_NAME)) for _ in range(count)]


def tables_status(tables: Sequence[tuple[str, str]]) -> bytes:
    """That none of them is replicated."""
    return varint(_STATUS) + varint(len(tables)) + b"".join(text(d) + text(t) + b"\x00" for d, t in tables)
