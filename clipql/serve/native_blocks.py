"""Native as clients want it who send `client_protocol_version`: clickhouse-connect, clickhouse-go, and Grafana by it.

They expect before each block what sort of block it is, in the type of a DateTime its time zone, and newer ones in
each column whether its serialization is a special one. chDB writes none of these, so its blocks are read here for where
their columns begin. What must stay true: only bytes are put in between and types of DateTime changed; where columns
must be told apart, a type whose size is not known is refused, not guessed.
https://clickhouse.com/docs/interfaces/formats/Native, https://clickhouse.com/docs/native-protocol/server
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from clipql.engine.row_writer import varint
from clipql.errors import QueryError
from clipql.sql.inserts.native_columns import Reader

# from these versions on a DateTime says its time zone, and a column whether its serialization is special
TIME_ZONES, CUSTOM_SERIALIZATION = 54337, 54454
_PLAIN_TIME = b"\x08DateTime"
# field 1, no overflow; field 2, bucket -1; the end
_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"


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
        except (IndexError, OverflowError, struct.error, ValueError):
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
                reader.column(reader.layout(type), rows)
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
                reader.column(reader.layout(found[-1][1]), rows)
        return self.header(found)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return varint(len(data)) + data
