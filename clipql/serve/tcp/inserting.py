"""What an INSERT of the native protocol fills, and its data while they come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from clipql.errors import QueryError
from clipql.serve import clickhouse_request as reading
from clipql.serve import native_blocks as native
from clipql.serve.pool import Pipe
from clipql.serve.progress import Counts
from clipql.serve.request_body import Bodies, Held
from clipql.serve.statements import Call
from clipql.serve.tcp import packets
from clipql.serve.tcp.blocks import Block
from clipql.serve.tcp.talk import Client, Lost, Talk
from clipql.serve.tcp.wire import broken
from clipql.sql.inserts.native_types import check_type
from clipql.syntax.inputs import input_of
from clipql.syntax.reading import read
from clipql.syntax.statements import Insert


class Portion:
    """Blocks that are inserted together. held: what they take, which whoever inserts them lets go."""

    def __init__(self, bodies: Bodies) -> None:
        self.held, self.pieces, self.size = Held(bodies), list[bytes](), 0

    def add(self, block: Block, names: Sequence[str]) -> None:
        """Keep a block. Raises QueryError for one with other columns than were told."""
        found = [name for name, _ in block.columns]
        if sorted(found) != sorted(names):
            raise QueryError(
                f"a block of the INSERT has the columns {', '.join(found)[:300]}; told were {', '.join(names)[:300]}",
                code=10,
                name="NOT_FOUND_COLUMN_IN_BLOCK",
            )
        if block.rows:
            self.pieces.append(block.data)  # one for each block, as pieces take more than small data
            self.size += block.size

    def drop(self) -> None:
        """Keep nothing, where it is not being inserted."""
        self.pieces.clear()
        self.held.release()


def body_of(sql: str) -> int:
    """The place in an INSERT where VALUES or FORMAT begins."""
    fed = input_of(sql)
    if fed is not None:
        return fed.clause
    statement = read(sql).kind
    return statement.body if isinstance(statement, Insert) else len(sql)


def filled(sql: str, described: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """The columns that an INSERT fills, with their types. described: those of its table. Raises QueryError."""
    statement = read(sql).kind
    types = {each["name"]: each["type"] for each in described}
    named = statement.columns if isinstance(statement, Insert) else None
    if named is None:
        return [
            (each["name"], each["type"])
            for each in described
            if each["default_type"] not in ("ALIAS", "MATERIALIZED", "EPHEMERAL")
        ]
    for name in named:
        if name not in types:
            raise QueryError(
                f"No such column {name[:60]} in the table; it has {', '.join(types)[:300]}",
                code=16,
                name="NO_SUCH_COLUMN_IN_TABLE",
            )
    return [(name, types[name]) for name in named]


async def insert(talk: Talk, client: Client, asking: packets.Asking, call: Call) -> None:
    """Take the data of an INSERT, as it comes: all at once up to half a body, else in portions of that size."""
    names = await _sample(talk, client, asking, call)
    sql = f"{call.asked.sql[: body_of(call.asked.sql)]} FORMAT Native"
    portion = Portion(talk.service.bodies)
    running: asyncio.Task[int] | None = None
    rows = 0
    try:
        while await _inserted(talk, asking, portion, names):
            if portion.size * 2 >= talk.limits.body:
                rows += await running if running else 0
                full, portion = portion, Portion(talk.service.bodies)
                running = asyncio.ensure_future(_load(talk, client, asking, call, sql, full))
            _tell_events(talk)
        rows += await running if running else 0
        running = None
        if portion.pieces:
            full, portion = portion, Portion(talk.service.bodies)
            rows += await _load(talk, client, asking, call, sql, full)
    finally:
        portion.drop()
        if running is not None:
            running.cancel()
    _tell_events(talk)
    talk.line.send(packets.progress(talk.revision, Counts(written=rows)))
    talk.line.send(bytes([packets.END_OF_STREAM]))


async def _inserted(talk: Talk, asking: packets.Asking, portion: Portion, names: list[str]) -> bool:
    """Have the next block of an INSERT in the portion; whether there was one."""
    talk.line.expects("data")
    kind = await talk.read(talk.incoming.number())
    talk.line.expects("rest")
    if kind == packets.CANCEL:
        raise QueryError("the INSERT was cancelled", code=394, name="QUERY_WAS_CANCELLED")
    if kind != packets.DATA:
        raise Lost(broken(f"packet {kind} comes where data were expected"))
    block = (await talk.block(packed=asking.packed, count=portion.held.take))[1]
    if not block.columns:
        return False
    portion.add(block, names)
    return True


def _tell_events(talk: Talk) -> None:
    """What clients wait for after each block."""
    if talk.revision >= packets.EVENTS:
        talk.line.send(packets.events(native.Blocks(talk.revision, dict)))


async def _sample(talk: Talk, client: Client, asking: packets.Asking, call: Call) -> list[str]:
    """Tell the client which columns an INSERT fills, by a block without rows; their names."""
    call.describes = True
    talk.prepare(client, asking, call)
    call.request.format = "ArrowStream"
    pipe = Pipe(talk.limits.stall)
    answer = await talk.carried_out(call, pipe, talk.statements.submit(call, pipe))
    if answer is None:
        raise QueryError("the INSERT was cancelled", code=394, name="QUERY_WAS_CANCELLED")
    described = answer.output.arrow().to_pylist()
    fed = input_of(call.asked.sql)
    if fed is not None and fed.structure.strip():
        columns = [(each["name"], each["type"]) for each in described]
    else:
        columns = filled(call.asked.sql, described)
    for _, type in columns:
        check_type(type)  # before the client sends what could not be read
    if fed is None and any(each["default_type"] for each in described):
        talk.line.send(packets.columns(described))
    talk.send_block(native.Blocks(talk.revision, dict).header(columns), packed=asking.packed)
    await talk.line.drained()
    return [name for name, _ in columns]


async def _load(talk: Talk, client: Client, asking: packets.Asking, first: Call, sql: str, portion: Portion) -> int:
    """Have a portion inserted; its rows."""
    call = Call(first.query_id, portion.held, asked=reading.Asked(sql, tuple(portion.pieces), "Native"))
    portion.pieces.clear()
    try:
        talk.prepare(client, asking, call)
        pipe = Pipe(talk.limits.stall)
        future = talk.statements.submit(call, pipe)
    except BaseException:
        talk.statements.leave(call)
        raise
    try:
        return (await asyncio.shield(future)).rows or 0
    except asyncio.CancelledError:
        talk.statements.stop(call, pipe)
        raise
