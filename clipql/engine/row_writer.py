"""A few rows in the formats that programs ask for, written as ClickHouse writes them, without asking it.

ClickHouse takes a millisecond to begin a statement, ten times what ten rows take to be written. What must stay true:
the bytes are those that ClickHouse gives for such rows (tests compare them); whatever is not certain is left to it.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from clipql.engine.arrow import numpy_numbers

_NULLABLE = re.compile(r"Nullable\((.*)\)\Z")
_PACKED = {"UInt8": "B", "UInt16": "H", "UInt32": "I", "UInt64": "Q", "Int8": "b", "Int16": "h", "Int32": "i",
           "Int64": "q", "Float32": "f", "Float64": "d", "Bool": "?"}  # fmt: skip
_ESCAPED = str.maketrans({"\b": "\\b", "\f": "\\f", "\r": "\\r", "\n": "\\n", "\t": "\\t", "\0": "\\0", "'": "\\'",
                          "\\": "\\\\"})  # fmt: skip
_IN_JSON = str.maketrans(
    {c: f"\\u{c:04X}" for c in range(32)}
    | {"\b": "\\b", "\f": "\\f", "\r": "\\r", "\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\", "/": "\\/"}
    | {"\u2028": "\\u2028", "\u2029": "\\u2029"}
)
_TO_ESCAPE, _RARE_IN_JSON = re.compile(r"[\0\x08\t\n\f\r'\\]"), re.compile(r"[\0-\x1f\u2028\u2029]")
_ONE_BYTE = [bytes([n]) for n in range(128)]
# exponents between which a number is written without one
_SMALLEST, _LARGEST = -6, 21
Cell = Callable[[Any], str]


def written(table: pa.Table, types: Sequence[str], format: str, seconds: float = 0.0) -> bytes | None:
    """The rows in a ClickHouse format, as with its default settings. None where ClickHouse must write them.

    types: ClickHouse's, of the columns in their order: numbers, Bool and String, also Nullable. seconds: that they took
    to find, for formats that say so.
    """
    kinds = _kinds(tuple(types))
    if kinds is None:
        return None
    if format == "Native":
        return _native(table, types, kinds)
    write = _FORMATS.get(format)
    if write is None:
        return None
    columns = [_values(c, k) for c, k in zip(table.columns, kinds, strict=True)]
    if any(c is None for c in columns):
        return None
    made = write(table.column_names, types, kinds, columns, table.num_rows)
    if format in ("JSON", "JSONCompact"):
        counts = f'"rows_read": {table.num_rows},\n\t\t"bytes_read": {table.nbytes}'
        made += f'\t"statistics":\n\t{{\n\t\t"elapsed": {_number(seconds)},\n\t\t{counts}\n\t}}\n}}\n'.encode()
    return made


@functools.lru_cache(512)
def _kinds(types: tuple[str, ...]) -> tuple[str, ...] | None:
    """Types without Nullable; None where one of them is not written here."""
    kinds = tuple(_NULLABLE.sub(r"\1", t) for t in types)
    return kinds if all(k in _PACKED or k == "String" for k in kinds) else None


def _values(column: pa.ChunkedArray, kind: str) -> list[Any] | None:
    """A column's values as Python's or numpy's own; None where a text is not UTF-8."""
    if kind in ("Float32", "Float64") and not column.null_count:
        return list(numpy_numbers(column))
    try:
        values = column.to_pylist()
        if kind == "String":
            return [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError:
        return None
    if kind == "Bool":
        return [None if v is None else bool(v) for v in values]
    return [None if v is None else np.float32(v) for v in values] if kind == "Float32" else values


def _number(value: Any) -> str:
    """A number in the fewest digits that tell it from its neighbours."""
    text = str(value)
    if text in ("nan", "inf", "-inf"):
        return text
    sign, text = ("-", text[1:]) if text[0] == "-" else ("", text)
    mantissa, _, power = text.partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    if not digits:
        return f"{sign}0"
    point = len(whole) + int(power or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    if not _SMALLEST <= point - 1 < _LARGEST:
        return f"{sign}{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{point - 1}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point >= len(digits):
        return f"{sign}{digits}{'0' * (point - len(digits))}"
    return f"{sign}{digits[:point]}.{digits[point:]}"


def _plain(kind: str) -> Cell:
    if kind in ("Float32", "Float64"):
        return _number
    return (lambda v: "true" if v else "false") if kind == "Bool" else str


def _escaped(text: str) -> str:
    return text.translate(_ESCAPED) if _TO_ESCAPE.search(text) else text


def _in_json(text: str) -> str:
    if _RARE_IN_JSON.search(text):  # a table of letters takes ten times as long as three searches
        return f'"{text.translate(_IN_JSON)}"'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("/", "\\/")
    return f'"{escaped}"'


def _json_number(value: Any) -> str:
    return _number(value) if np.isfinite(value) else "null"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _cells(kinds: Sequence[str], columns: Sequence[Any], text: Cell, null: str, number: Cell = _number) -> list[Any]:
    """The columns as texts. text: how a String is written; number: how a Float is."""

    def cell(kind: str) -> Cell:
        return text if kind == "String" else number if kind.startswith("Float") else _plain(kind)

    made = []
    for kind, column in zip(kinds, columns, strict=True):
        of = cell(kind)
        made.append([null if v is None else of(v) for v in column])
    return made


def _separated(
    names: Sequence[str], types: Sequence[str], kinds: Sequence[str], columns: Sequence[Any], rows: int, *, head: int
) -> bytes:
    lines = [[_escaped(n) for n in names], [_escaped(t) for t in types]][:head]
    lines += zip(*_cells(kinds, columns, _escaped, "\\N"), strict=True)  # type: ignore[arg-type]
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def _commas(
    names: Sequence[str], types: Sequence[str], kinds: Sequence[str], columns: Sequence[Any], rows: int, *, head: int
) -> bytes:
    lines = [[_quoted(n) for n in names]][:head]
    lines += zip(*_cells(kinds, columns, _quoted, "\\N"), strict=True)  # type: ignore[arg-type]
    return "".join(",".join(line) + "\n" for line in lines).encode()


def _objects(
    names: Sequence[str], types: Sequence[str], kinds: Sequence[str], columns: Sequence[Any], rows: int
) -> bytes:
    keys = [_in_json(n) for n in names]
    cells = zip(*_cells(kinds, columns, _in_json, "null", _json_number), strict=True)
    return "".join("{" + ",".join(f"{k}:{v}" for k, v in zip(keys, row, strict=True)) + "}\n" for row in cells).encode()


def _document(
    names: Sequence[str], types: Sequence[str], kinds: Sequence[str], columns: Sequence[Any], rows: int, *, keys: bool
) -> bytes:
    """JSON up to what it says of the search."""
    said = [_in_json(n) for n in names]
    meta = ",\n".join(
        f'\t\t{{\n\t\t\t"name": {n},\n\t\t\t"type": {_in_json(t)}\n\t\t}}' for n, t in zip(said, types, strict=True)
    )
    cells = zip(*_cells(kinds, columns, _in_json, "null", _json_number), strict=True)
    if keys:
        each = [",\n".join(f"\t\t\t{k}: {v}" for k, v in zip(said, row, strict=True)) for row in cells]
        data = ",\n".join(f"\t\t{{\n{row}\n\t\t}}" for row in each)
    else:
        data = ",\n".join(f"\t\t[{', '.join(row)}]" for row in cells)
    return f'{{\n\t"meta":\n\t[\n{meta}\n\t],\n\n\t"data":\n\t[\n{data}\n\t],\n\n\t"rows": {rows},\n\n'.encode()


def _native(table: pa.Table, types: Sequence[str], kinds: Sequence[str]) -> bytes | None:
    """None where a column of text is neither Arrow's string nor its binary."""
    rows = table.num_rows
    if not rows:
        return b""
    parts: list[bytes | memoryview] = [varint(table.num_columns), varint(rows)]
    for name, kind, type_, column in zip(table.column_names, kinds, types, table.columns, strict=True):
        parts += [_said(name.encode()), _said(type_.encode())]
        if type_ != kind:
            parts.append(bytes(column.is_null().to_pylist()))
        if kind == "String":
            texts = _texts(column)
            if texts is None:
                return None
            parts += texts
        elif column.null_count:
            parts.append(struct.pack(f"<{rows}{_PACKED[kind]}", *(0 if v is None else v for v in column.to_pylist())))
        else:
            parts.append(numpy_numbers(column).astype(f"<{_PACKED[kind]}", copy=False).tobytes())
    return b"".join(parts)


def _texts(column: pa.ChunkedArray) -> list[bytes | memoryview] | None:
    """Texts as Native has them, as their bytes are; a NULL is an empty one."""
    if not pa.types.is_string(column.type) and not pa.types.is_binary(column.type):
        return None
    parts: list[bytes | memoryview] = []
    for chunk in column.chunks:
        _, edges, data = chunk.buffers()
        first, there = chunk.offset, chunk.is_valid().to_pylist() if chunk.null_count else None
        if edges is None:
            return None
        ends = np.frombuffer(edges, np.int32)[first : first + len(chunk) + 1].tolist()
        whole = memoryview(data) if data is not None else memoryview(b"")
        for i, (begin, end) in enumerate(itertools.pairwise(ends)):
            if there is not None and not there[i]:
                begin = end
            parts += [varint(end - begin), whole[begin:end]]
    return parts


def _said(data: bytes) -> bytes:
    return varint(len(data)) + data


def varint(number: int) -> bytes:
    """A number as ClickHouse's formats have it: seven bits a byte, the lowest first."""
    if number < 128:
        return _ONE_BYTE[number]
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


_FORMATS: dict[str, Callable[..., bytes]] = {
    **dict.fromkeys(("TabSeparated", "TSV"), partial(_separated, head=0)),
    **dict.fromkeys(("TabSeparatedWithNames", "TSVWithNames"), partial(_separated, head=1)),
    **dict.fromkeys(("TabSeparatedWithNamesAndTypes", "TSVWithNamesAndTypes"), partial(_separated, head=2)),
    "CSV": partial(_commas, head=0),
    "CSVWithNames": partial(_commas, head=1),
    **dict.fromkeys(("JSONEachRow", "JSONLines", "NDJSON"), _objects),
    "JSON": partial(_document, keys=True),
    "JSONCompact": partial(_document, keys=False),
}
