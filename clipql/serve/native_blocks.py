"""Native as clients want it who send `client_protocol_version`: clickhouse-connect, clickhouse-go, and Grafana by it.

They expect before each block what sort of block it is, in the type of a DateTime its time zone, and newer ones in
each column whether its serialization is a special one. chDB writes none of these, so its blocks are read here for where
their columns begin. What must stay true: only bytes are put in between and types of DateTime changed; where columns
must be told apart, a type whose size is not known is refused, not guessed.
https://clickhouse.com/docs/interfaces/formats/Native, https://clickhouse.com/docs/native-protocol/server
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from clipql.engine.row_writer import varint
from clipql.errors import QueryError
from clipql.storage.vectors.compiled import compiled

# from these versions on a DateTime says its time zone, and a column whether its serialization is special
TIME_ZONES, CUSTOM_SERIALIZATION = 54337, 54454
_PLAIN_TIME = b"\x08DateTime"
# field 1, no overflow; field 2, bucket -1; the end
_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
_SIZES = {
    **dict.fromkeys(("Int8", "UInt8", "Bool", "Enum8", "Nothing"), 1),
    **dict.fromkeys(("Int16", "UInt16", "Date", "Enum16", "BFloat16"), 2),
    **dict.fromkeys(("Int32", "UInt32", "Float32", "Date32", "DateTime", "Time", "IPv4", "Decimal32"), 4),
    **dict.fromkeys(("Int64", "UInt64", "Float64", "DateTime64", "Time64", "Decimal64"), 8),
    **dict.fromkeys(("Int128", "UInt128", "UUID", "IPv6", "Decimal128"), 16),
    **dict.fromkeys(("Int256", "UInt256", "Decimal256"), 32),
}
SHAPES = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "MultiPoint": "Array(Point)",
    "Polygon": "Array(Ring)",
    "MultiLineString": "Array(LineString)",
    "MultiPolygon": "Array(Polygon)",
}
# types within types
_DEEPEST = 20
# rows from which strings are gone through by compiled code
_MANY = 64
HAS_KEYS = 1 << 9  # in the first word of a LowCardinality column: keys of its own follow


def version(params: Mapping[str, str]) -> int:
    """The version that a request's parameters ask for; 0 where they ask for none."""
    text = params.get("client_protocol_version", "")
    return int(text[:9]) if text.isascii() and text.isdigit() else 0


class Blocks:
    """Blocks of Native as a version has them.

    zones: gives the types of the columns of the result, such as DateTime('Asia/Tokyo'), by their places from 0; it is
    asked once, when there is a column of type DateTime.
    """

    def __init__(self, version: int, zones: Callable[[], Mapping[int, str]]) -> None:
        self._version, self._zones = version, zones
        self._known: Mapping[int, str] | None = None
        self.unknown: QueryError | None = None  # of a type that is not known

    def of(self, data: bytes, *, rows: int | None = None) -> bytes:
        """Whole blocks. rows: where it is known how many there are. Raises QueryError for types that are not known.

        A single block is not gone through where nothing changes in it.
        """
        if not data:
            return data
        zones = self._zones_of(data)
        simple = self._version < CUSTOM_SERIALIZATION and not zones
        if simple and (rows is None or Reader(data).first() == rows):
            return _INFO + data
        return b"".join(self.each(data))

    def each(self, data: bytes, *, rows: int | None = None) -> Iterator[bytes]:
        """The blocks one by one. Raises QueryError as `of`.

        rows: of all; where the first block has them, so that it is the only one, its last column ends with the data,
        and may be of any type.
        """
        reader, zones = Reader(data), self._zones_of(data)
        whole = bool(data) and Reader(data).first() == rows
        while reader.at < len(data):
            yield self._read(reader, zones, whole=whole)

    def _zones_of(self, data: bytes) -> Mapping[int, str]:
        if self._version < TIME_ZONES or _PLAIN_TIME not in data:
            return {}
        if self._known is None:
            self._known = self._zones()
        return self._known

    def _read(self, reader: Reader, zones: Mapping[int, str], *, whole: bool = False) -> bytes:
        try:
            made = self._versioned(reader, zones, whole)
            if reader.at <= reader.size:
                return made
        except (IndexError, struct.error, ValueError):
            pass  # read past the end
        except QueryError as error:
            self.unknown = error
            raise
        raise QueryError(
            f"Native of {reader.size:,} bytes ends at {reader.at:,} as it is read", code=33, name="CANNOT_READ_ALL_DATA"
        )

    def _versioned(self, reader: Reader, zones: Mapping[int, str], whole: bool) -> bytes:
        """The next block."""
        data = reader.data
        plain = b"\x00" if self._version >= CUSTOM_SERIALIZATION else b""
        begin = reader.at
        columns, rows = reader.number(), reader.number()
        out = [_INFO, data[begin : reader.at]]
        for place in range(columns):
            begin = reader.at
            reader.text()
            named = reader.at
            type = reader.text().decode()
            told = zones.get(place, type).encode() if type == "DateTime" else b""
            out += (data[begin:named], bytes([len(told)]) + told if told else data[named : reader.at], plain)
            begin = reader.at
            if whole and place == columns - 1:
                reader.at = reader.size
            elif rows:
                reader.prefix(type)
                reader.column(type, rows)
            out.append(data[begin : reader.at])
        return b"".join(out)

    def header(self, columns: Iterable[tuple[str, str]]) -> bytes:
        """A block without rows. columns: their names and types."""
        plain = b"\x00" if self._version >= CUSTOM_SERIALIZATION else b""
        each = [_text(name) + _text(type) + plain for name, type in columns]
        return b"".join([_INFO, varint(len(each)), b"\x00", *each])

    def header_of(self, block: bytes) -> bytes:
        """The block without rows that says what the columns of a block are, as this version has it."""
        reader = Reader(block, len(_INFO))
        columns, rows = reader.number(), reader.number()
        found: list[tuple[str, str]] = []
        for place in range(columns):
            found.append((reader.text().decode("utf-8", "surrogateescape"), reader.text().decode()))
            reader.at += self._version >= CUSTOM_SERIALIZATION
            if rows and place < columns - 1:
                reader.prefix(found[-1][1])
                reader.column(found[-1][1], rows)
        return self.header(found)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return varint(len(data)) + data


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

    def prefix(self, type: str) -> None:
        """Step over what stands before a column: the version of each dictionary in it."""
        name, inner = split_type(type)
        if name == "LowCardinality":
            self.at += 8
        elif name in ("Array", "Nullable", "Tuple", "Map", "Nested", "SimpleAggregateFunction"):
            for each in elements(name, inner):
                self.prefix(each)

    def column(self, type: str, rows: int) -> None:
        """Step over a column's values."""
        name, inner = split_type(type)
        if name in SHAPES:
            self.column(SHAPES[name], rows)
        elif name == "String":
            self._strings(rows)
        elif name == "Nullable":
            self.at += rows
            self.column(inner[0], rows)
        elif name in ("Array", "Map", "Nested"):
            self.at += 8 * rows
            items = struct.unpack_from("<Q", self.data, self.at - 8)[0] if rows else 0
            for each in elements(name, inner):
                self.column(each, items)
        elif name in ("Tuple", "SimpleAggregateFunction"):
            for each in elements(name, inner):
                self.column(each, rows)
            self.at += 0 if inner else rows
        elif name == "LowCardinality":
            self._dictionary(inner[0], rows)
        else:
            self.at += size_of(type, name, inner) * rows

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
            self.column(inner[0] if name == "Nullable" else type, self.word())
        values = self.word()
        self.at += values << (flags & 0xFF)  # indices of 1, 2, 4 or 8 bytes


def size_of(type: str, name: str, inner: list[str]) -> int:
    """Bytes of a value."""
    if name == "FixedString":
        return _argument(type, inner)
    if name == "Decimal":
        digits = _argument(type, inner)
        return 4 if digits <= 9 else 8 if digits <= 18 else 16 if digits <= 38 else 32
    if name.startswith("Interval"):
        return 8
    if name not in _SIZES:
        raise QueryError(
            f"a column of type {type[:100]} is not told apart in Native for clients that name their version: ask for "
            "it as a String, or in another format",
            code=48,
            name="NOT_IMPLEMENTED",
        )
    return _SIZES[name]


def check_type(type: str, depth: int = 0) -> None:
    """Raise QueryError for a type whose columns cannot be told apart."""
    if depth > _DEEPEST:
        raise QueryError(f"a column's type is more than {_DEEPEST} types deep", code=306, name="TOO_DEEP_RECURSION")
    name, inner = split_type(type)
    if name in ("Array", "Nullable", "LowCardinality") and len(inner) != 1:
        raise QueryError(f"expected one type in {name}(…), found {len(inner)}", code=50, name="UNKNOWN_TYPE")
    if name in ("Array", "Nullable", "Tuple", "Map", "Nested", "SimpleAggregateFunction", "LowCardinality"):
        for each in elements(name, inner):
            check_type(each, depth + 1)
    elif name not in (*SHAPES, "String"):
        size_of(type, name, inner)


def _argument(type: str, inner: list[str]) -> int:
    if not inner or not re.fullmatch(r"[0-9]{1,9}", inner[0]) or not int(inner[0]):
        raise QueryError(f"expected a number in the brackets of {type[:100]}", code=50, name="UNKNOWN_TYPE")
    return int(inner[0])


def elements(name: str, inner: list[str]) -> list[str]:
    """The types in a type: those of a Tuple may have names, SimpleAggregateFunction begins with its function."""
    if name == "SimpleAggregateFunction":
        return inner[1:]
    return [_unnamed(each) for each in inner] if name in ("Tuple", "Nested") else inner


def _unnamed(element: str) -> str:
    if element[:1] in ("`", '"'):
        end = element.index(element[0], 1)
        while element[end - 1] == "\\" or element[end + 1 : end + 2] == element[0]:
            end = element.index(element[0], end + (1 if element[end - 1] == "\\" else 2))
        return element[end + 1 :].strip()
    head = element.partition("(")[0]
    return element.partition(" ")[2] if " " in head.strip() else element


def split_type(type: str) -> tuple[str, list[str]]:
    """A type's name and what stands between its brackets, at its commas."""
    name, bracket, rest = type.strip().partition("(")
    if not bracket:
        return name.strip(), []
    parts, depth, begin, quote = [], 0, 0, ""
    inside = rest.rstrip()[:-1]
    skip = False
    for at, letter in enumerate(inside):
        if skip:
            skip = False
        elif quote:
            skip = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'`\"":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "," and not depth:
            parts.append(inside[begin:at].strip())
            begin = at + 1
    last = inside[begin:].strip()
    return name.strip(), [*parts, last] if last else parts
