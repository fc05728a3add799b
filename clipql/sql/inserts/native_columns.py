"""Where the columns of Native begin and end.

What must stay true: only what is known is stepped over; what is not is refused, and what ends too early raises
IndexError, OverflowError, ValueError or struct.error.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from clipql.sql.inserts.native_types import (
    BASIC,
    HAS_KEYS,
    JSON_TEXTS,
    SHAPES,
    Layout,
    dynamic_types,
    elements,
    size_of,
    split_type,
    typed_paths,
    unknown_version,
)
from clipql.storage.vectors.compiled import compiled

# rows from which strings are gone through by compiled code
_MANY = 64


def warm() -> None:
    """Compile what goes through strings."""
    _after_strings(np.frombuffer(b"\x01a", np.uint8), 0, 1)


@compiled
def _after_strings(data: Any, at: int, rows: int) -> int:
    """The place after so many strings; beyond the data where they end within."""
    for _ in range(rows):
        length = shift = 0
        while True:
            if at >= len(data):
                return len(data) + 1
            byte = int(data[at])
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 56:
                return len(data) + 1
        if length > len(data) - at:  # the sum may be more than 63 bits hold
            return len(data) + 1
        at += length
    return at


class Reader:
    """Steps over what Native holds."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at, self.size = data, at, len(data)

    def first(self) -> int:
        """The rows of the first block."""
        self.number()
        return self.number()

    def number(self) -> int:
        """A number of variable length."""
        found = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7

    def text(self) -> bytes:
        """A string."""
        length = self.number()
        self.at += length
        return self.data[self.at - length : self.at]

    def word(self) -> int:
        """A UInt64."""
        self.at += 8
        found: int = struct.unpack_from("<Q", self.data, self.at - 8)[0]
        return found

    def layout(self, type: str) -> Layout:
        """How a column lies, by its type and by what stands before it, which is stepped over."""
        name, inner = split_type(type)
        within: list[str] = []
        if name == "LowCardinality":
            self.at += 8
        elif name in ("Array", "Nullable", "Tuple", "Map", "Nested", "SimpleAggregateFunction"):
            within = elements(name, inner)
        elif name == "Variant":
            self._mode()
            within = inner
        elif name == "Dynamic":
            version = self.word()
            if version not in (1, 2):
                raise unknown_version(name, version)
            if version == 1:
                self.number()
            within = dynamic_types([self.text().decode() for _ in range(self.number())])
            self._mode()
        elif name == "JSON":
            version = self.word()
            if version == JSON_TEXTS:
                return Layout("String", "String", [])
            if version not in (0, 2):
                raise unknown_version(name, version)
            if version == 0:
                self.number()
            paths = [self.text() for _ in range(self.number())]
            within = [*typed_paths(type), *["Dynamic" for _ in paths]]
        return Layout(name, type, [self.layout(each) for each in within])

    def _mode(self) -> None:
        mode = self.word()
        if mode != BASIC:
            raise unknown_version("Variant", mode)

    def column(self, layout: Layout, rows: int) -> None:
        """Step over a column's values."""
        name, within = layout.name, layout.within
        if name in SHAPES:
            self.column(self.layout(SHAPES[name]), rows)
        elif name == "String":
            self._strings(rows)
        elif name == "Nullable":
            self.at += rows
            self.column(within[0], rows)
        elif name in ("Array", "Map", "Nested"):
            items = self._items(rows)
            for each in within:
                self.column(each, items)
        elif name in ("Tuple", "SimpleAggregateFunction"):
            for each in within:
                self.column(each, rows)
            self.at += 0 if within else rows
        elif name in ("Variant", "Dynamic"):
            kinds = np.bincount(np.frombuffer(self.data, np.uint8, rows, self.at), minlength=256)
            self.at += rows
            for each, count in zip(within, kinds, strict=False):
                self.column(each, int(count))
        elif name == "JSON":
            for each in within:
                self.column(each, rows)
            items = self._items(rows)  # further paths with their values, as Array(Tuple(String, String))
            self._strings(items)
            self._strings(items)
        elif name == "LowCardinality":
            self._dictionary(split_type(layout.type)[1][0], rows)
        else:
            self.at += size_of(layout.type, *split_type(layout.type)) * rows

    def _items(self, rows: int) -> int:
        """How many items arrays have together, whose offsets are stepped over."""
        self.at += 8 * rows
        return struct.unpack_from("<Q", self.data, self.at - 8)[0] if rows else 0

    def _strings(self, rows: int) -> None:
        if rows > _MANY:
            self.at = _after_strings(np.frombuffer(self.data, np.uint8), self.at, rows)
            return
        for _ in range(rows):
            length = self.number()
            self.at += length

    def _dictionary(self, type: str, rows: int) -> None:
        if not rows:
            return
        flags = self.word()
        if flags & HAS_KEYS:
            name, inner = split_type(type)
            self.column(self.layout(inner[0] if name == "Nullable" else type), self.word())
        values = self.word()
        self.at += values << (flags & 0xFF)  # indices of 1, 2, 4 or 8 bytes
