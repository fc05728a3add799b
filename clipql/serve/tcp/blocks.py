"""Blocks that a client sends, as Native has them without a version: what an INSERT and external tables bring.

What must stay true: nothing is taken beyond the limit for one block; where the next packet begins is known, or the
conversation ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from clipql.engine.row_writer import varint
from clipql.errors import QueryError
from clipql.serve.native_blocks import CUSTOM_SERIALIZATION
from clipql.serve.tcp.wire import Source, broken, others
from clipql.serve.unpacking import too_large
from clipql.sql.inserts.native_types import (
    BASIC,
    HAS_KEYS,
    JSON_TEXTS,
    SHAPES,
    Layout,
    check_type,
    dynamic_types,
    elements,
    size_of,
    split_type,
    typed_paths,
    unknown_version,
)
from clipql.storage.vectors.compiled import compiled

_NAME, _COLUMNS = 1 << 16, 10_000
# bytes of all its types, as many as a statement may have
_TYPES = 256 << 10
# bytes that a block takes beside its own
_BLOCK = 256
# types within types, those that the data name included
_DEEPEST = 40


class Block:
    """A block. columns: names and types. data: it in Native; empty where it has no columns, which ends the data."""

    def __init__(self) -> None:
        self.columns: list[tuple[str, str]] = []
        self.rows = self.size = 0
        self.pieces: list[bytes] = []

    @property
    def data(self) -> bytes:
        """It in Native."""
        return b"".join(self.pieces)


async def read_block(source: Source, revision: int, most: int, count: Callable[[int], None]) -> Block:
    """The next block. most: its bytes. count: told of bytes before they are kept. Raises QueryError."""
    return await _Reading(source, revision, most, count).block()


class _Reading:
    def __init__(self, source: Source, revision: int, most: int, count: Callable[[int], None]) -> None:
        self._source, self._revision, self._most, self._count = source, revision, most, count
        self._block = Block()
        self._layouts = 0

    async def block(self) -> Block:
        source, block = self._source, self._block
        self._count(_BLOCK)
        while field := await source.number():  # what sort of block it is
            await source.take(1 if field == 1 else 4)
            if field > 2:
                raise broken(f"a block tells field {field} of itself")
        columns, block.rows = await source.number(), await source.number()
        if columns > _COLUMNS:
            raise broken(f"a block claims {columns:,} columns")
        self._keep(varint(columns) + varint(block.rows))
        types = 0
        for _ in range(columns):
            await others()
            name, type = await source.text(_NAME), await source.text(_NAME)
            types += len(type)
            if types > _TYPES:
                raise broken(f"the types of a block have more than {_TYPES:,} bytes")
            check_type(type)
            block.columns.append((name, type))
            for each in (name, type):
                data = each.encode()
                self._keep(varint(len(data)) + data)
            if self._revision >= CUSTOM_SERIALIZATION and await source.byte():
                raise QueryError(
                    f"the column {name[:60]} is serialized in a special way, which is not read here: send it plain",
                    code=48,
                    name="NOT_IMPLEMENTED",
                )
            if block.rows:
                await self._column(await self._layout(type), block.rows)
        return block

    def _keep(self, data: bytes) -> None:
        self._claim(len(data))
        self._block.pieces.append(data)

    def _claim(self, size: int) -> None:
        self._block.size += size
        if self._block.size > self._most:
            raise too_large(self._most)
        self._count(size)

    async def _take(self, size: int) -> bytes:
        self._claim(size)
        data = await self._source.take(size)
        self._block.pieces.append(data)
        return data

    async def _layout(self, type: str, depth: int = 0) -> Layout:
        """How a column lies: by its type, and by what stands before it."""
        if depth > _DEEPEST or self._layouts > _COLUMNS:
            raise QueryError("a column has too many types within types", code=306, name="TOO_DEEP_RECURSION")
        self._layouts += 1
        name, inner = split_type(type)
        within: list[str] = []
        if name == "LowCardinality":
            await self._take(8)
        elif name in ("Array", "Nullable", "Tuple", "Map", "Nested", "SimpleAggregateFunction"):
            within = elements(name, inner)
        elif name == "Variant":
            await self._mode()
            within = inner
        elif name == "Dynamic":
            within = await self._types()
            await self._mode()
        elif name == "JSON":
            version = await self._word()
            if version == JSON_TEXTS:
                return Layout("String", "String", [])
            return Layout("JSON", type, await self._paths(type, version, depth))
        return Layout(name, type, [await self._layout(each, depth + 1) for each in within])

    async def _mode(self) -> None:
        mode = await self._word()
        if mode != BASIC:
            raise unknown_version("Variant", mode)

    async def _types(self) -> list[str]:
        """The types of a Dynamic column, in the order in which its values lie."""
        version = await self._word()
        if version not in (1, 2):
            raise unknown_version("Dynamic", version)
        if version == 1:
            await self._number()
        names = [await self._text() for _ in range(await self._number(_COLUMNS))]
        for each in names:
            check_type(each)
        return dynamic_types(names)

    async def _paths(self, type: str, version: int, depth: int) -> list[Layout]:
        """What lies in a JSON column: paths whose type it names, then those that the data name."""
        if version not in (0, 2):
            raise unknown_version("JSON", version)
        if version == 0:
            await self._number()
        found = await self._number(_COLUMNS)
        for _ in range(found):
            await self._text()
        return [await self._layout(each, depth + 1) for each in [*typed_paths(type), *["Dynamic"] * found]]

    async def _word(self) -> int:
        """A UInt64, kept."""
        found: int = struct.unpack("<Q", await self._take(8))[0]
        return found

    async def _number(self, most: int = 1 << 32) -> int:
        """A number of variable length, kept. Raises QueryError for more than `most`."""
        found = await self._source.number()
        if found > most:
            raise broken(f"a column claims {found:,} types or paths")
        self._keep(varint(found))
        return found

    async def _text(self) -> str:
        """A string, kept."""
        data = await self._take(await self._number(_NAME))
        return data.decode("utf-8", "replace")

    async def _column(self, layout: Layout, rows: int) -> None:
        name, within = layout.name, layout.within
        if name in SHAPES:
            await self._column(await self._layout(SHAPES[name]), rows)
        elif name == "String":
            await self._strings(rows)
        elif name == "Nullable":
            await self._take(rows)
            await self._column(within[0], rows)
        elif name in ("Array", "Map", "Nested"):
            items = await self._items(rows)
            for each in within:
                await self._column(each, items)
        elif name in ("Tuple", "SimpleAggregateFunction"):
            for each in within:
                await self._column(each, rows)
            if not within:
                await self._take(rows)
        elif name in ("Variant", "Dynamic"):
            kinds = np.bincount(np.frombuffer(await self._take(rows), np.uint8), minlength=256)
            for each, count in zip(within, kinds, strict=False):
                await self._column(each, int(count))
        elif name == "JSON":
            for each in within:
                await others()
                await self._column(each, rows)
            items = await self._items(rows)  # further paths with their values, as Array(Tuple(String, String))
            await self._strings(items)
            await self._strings(items)
        elif name == "LowCardinality":
            await self._dictionary(split_type(layout.type)[1][0], rows)
        else:
            await self._take(size_of(layout.type, *split_type(layout.type)) * rows)

    async def _items(self, rows: int) -> int:
        """How many items arrays have together, their offsets being kept."""
        offsets = await self._take(8 * rows)
        items: int = struct.unpack_from("<Q", offsets, 8 * rows - 8)[0] if rows else 0
        if items > self._most:
            raise too_large(self._most)
        return items

    async def _dictionary(self, type: str, rows: int) -> None:
        if not rows:
            return
        (flags,) = struct.unpack("<Q", await self._take(8))
        if flags & HAS_KEYS:
            name, inner = split_type(type)
            (keys,) = struct.unpack("<Q", await self._take(8))
            await self._column(await self._layout(inner[0] if name == "Nullable" else type), keys)
        (values,) = struct.unpack("<Q", await self._take(8))
        if flags & 0xFF > 3:
            raise broken("the indices of a LowCardinality column are of no known size")
        await self._take(values << (flags & 0xFF))

    async def _strings(self, rows: int) -> None:
        source = self._source
        while rows:
            there = memoryview(source.buffer)[source.at :]
            done, size = _whole_strings(np.frombuffer(there, np.uint8), rows) if len(there) else (0, 0)
            there.release()
            if done:
                await self._take(int(size))
                rows -= int(done)
            else:
                await self._string()
                rows -= 1

    async def _string(self) -> None:
        size = await self._source.number()
        self._keep(varint(size))
        await self._take(size)


def warm() -> None:
    """Compile what goes through strings."""
    _whole_strings(np.frombuffer(b"\x01a", np.uint8), 1)


@compiled
def _whole_strings(data: Any, rows: int) -> Any:
    """How many strings, of so many, lie in the data as a whole, and their bytes."""
    at = done = 0
    while done < rows:
        place, length, shift, ended = at, 0, 0, False
        while place < len(data) and shift <= 56:
            byte = int(data[place])
            place += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                ended = True
                break
            shift += 7
        if not ended or length > len(data) - place:  # the sum may be more than 63 bits hold
            break
        at = place + length
        done += 1
    return done, at
