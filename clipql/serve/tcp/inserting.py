"""What an INSERT of the native protocol fills, and its data while they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipql.errors import QueryError
from clipql.serve.request_body import Bodies, Held
from clipql.serve.tcp.blocks import Block
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
            self.pieces += block.pieces
            self.size += block.size

    def drop(self) -> None:
        """Keep nothing, where it is not being inserted."""
        self.pieces.clear()
        self.held.release()


def body_of(sql: str) -> int:
    """The place in an INSERT where VALUES or FORMAT begins."""
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
