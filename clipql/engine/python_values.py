"""Values of results as Python's own types, where Arrow has none of ClickHouse's: by the names of ClickHouse's types.

What must stay true: text that is not UTF-8 is bytes, a Map is a dict, a Tuple is a tuple and, where its elements have
names, a dict; a value whose type is not told is as Arrow has it.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

Convert = Callable[[Any], Any]
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'\s*=\s*(-?\d+)")
_WIDE = re.compile(r"(U?)Int(128|256)$")

# Arrow's types that one of ClickHouse's alone becomes, or several that Python tells no more apart
_CLOSED = frozenset(
    kind.id
    for kind in (pa.string(), pa.large_string(), pa.float32(), pa.float64(), pa.bool_(), pa.uint8(), pa.uint16(),
                 pa.uint64(), pa.int32(), pa.int64())
)  # fmt: skip


def needs_types(schema: pa.Schema) -> bool:
    """Whether Arrow's types leave open which of ClickHouse's they are."""
    return any(kind.id not in _CLOSED and _open(kind) for kind in schema.types)


class NeedsTypes:
    """`needs_types` of schemas that mostly are the one before: to take one apart takes as long as to make a result."""

    def __init__(self) -> None:
        self._last: tuple[pa.Schema, bool] | None = None

    def __call__(self, schema: pa.Schema) -> bool:
        last = self._last
        if last is None or not schema.equals(last[0]):
            last = self._last = schema, needs_types(schema)
        return last[1]


def _open(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return _open(kind.key_type) or _open(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _open(kind.value_type)
    if pa.types.is_struct(kind):
        return True
    return bool(
        str(kind) == "extension<arrow.json>"
        or pa.types.is_uint32(kind)
        or pa.types.is_int8(kind)
        or pa.types.is_int16(kind)
        or pa.types.is_binary(kind)
        or (pa.types.is_fixed_size_binary(kind) and kind.byte_width in (16, 32))
    )


def python_columns(table: pa.Table, types: Mapping[str, str], *, short: bool = False) -> list[list[Any]]:
    """The columns of a result as lists of Python's values. types: ClickHouse's of its columns, as far as known.

    short: see `python_values`.
    """
    return [
        python_values(c, types.get(n, ""), short=short) for n, c in zip(table.column_names, table.columns, strict=True)
    ]


def python_values(column: pa.ChunkedArray, kind: str = "", *, short: bool = False) -> list[Any]:
    """The values of one column, of a ClickHouse type. short: those of Float32 as ClickHouse writes them, in the fewest
    digits that tell them apart: 0.1, and not what is nearest to it in Float64, 0.10000000149011612.
    """
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        found = _with_bytes(column)
    convert = converter(kind, short) if kind else _maps(column.type)
    return found if convert is None else [None if v is None else convert(v) for v in found]


def _with_bytes(column: pa.ChunkedArray) -> list[Any]:
    """Text as bytes where it is not UTF-8, also within lists."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        kind = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [_decoded(v) for v in column.cast(kind).to_pylist()]
    return [_plainly(v) for chunk in column.chunks for v in chunk]


def _plainly(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    kind = value.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _decoded(value.as_buffer().to_pybytes())
    if pa.types.is_map(kind):
        return [(_plainly(pair["key"]), _plainly(pair["value"])) for pair in value.values]
    if pa.types.is_list(kind):
        return [_plainly(v) for v in value.values]
    if pa.types.is_struct(kind):
        return {field.name: _plainly(value[i]) for i, field in enumerate(kind)}
    return value.as_py()


def _decoded(value: bytes | None) -> str | bytes | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _maps(kind: pa.DataType) -> Convert | None:
    return dict if pa.types.is_map(kind) else None


@functools.lru_cache(1024)
def converter(kind: str, short: bool = False) -> Convert | None:
    """What makes Python's value of Arrow's, for one of ClickHouse's types; None where they are the same.

    short: see `python_values`.
    """
    name, inner = _parsed(kind)
    if name in ("Nullable", "LowCardinality"):
        return converter(inner[0], short)
    if name == "SimpleAggregateFunction":
        return converter(inner[-1], short)
    if name == "Array":
        return _each(converter(inner[0], short))
    if name in ("Ring", "LineString"):
        return _each(converter("Point"))
    if name in ("Polygon", "MultiLineString"):
        return _each(converter("Ring"))
    if name == "MultiPolygon":
        return _each(converter("Polygon"))
    if name == "Point":
        return converter("Tuple(Float64, Float64)")
    if name == "Map":
        return _map(*(converter(i, short) for i in inner))
    if name == "Tuple":
        return _tuple(inner, short)
    if name in ("Enum8", "Enum16"):
        names = {int(number): _unquoted(text) for text, number in _QUOTED.findall(kind)}
        return lambda v: names.get(v, v)
    if name == "DateTime":
        zone = ZoneInfo(inner[0].strip("'")) if inner else None
        return lambda v: dt.datetime.fromtimestamp(v, zone or dt.UTC) if isinstance(v, int) else v
    if match := _WIDE.match(name):
        signed = not match[1]
        return lambda v: int.from_bytes(v, "little", signed=signed)
    if short and name in ("Float32", "BFloat16"):
        widened = _PLAIN.get(name) or (lambda v: v)
        return lambda v: float(str(np.float32(widened(v))))
    return _PLAIN.get(name)


def _bfloat16(value: Any) -> Any:
    return struct.unpack("<f", b"\0\0" + value)[0] if isinstance(value, bytes) and len(value) == 2 else value


_PLAIN: Mapping[str, Convert] = {
    "IPv4": ipaddress.IPv4Address,
    "IPv6": ipaddress.IPv6Address,
    "BFloat16": _bfloat16,
    "JSON": lambda v: json.loads(v) if isinstance(v, str) else v,
    "Dynamic": lambda v: json.loads(v) if isinstance(v, str) else v,
}


def _each(convert: Convert | None) -> Convert | None:
    return None if convert is None else lambda values: [None if v is None else convert(v) for v in values]


def _map(key: Convert | None, value: Convert | None) -> Convert:
    def made(pairs: Any) -> dict[Any, Any]:
        items = pairs.items() if isinstance(pairs, dict) else pairs
        return {_one(key, k): _one(value, v) for k, v in items}

    return made


def _one(convert: Convert | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _tuple(elements: Sequence[str], short: bool) -> Convert:
    named = [_element(e) for e in elements]
    converters = [converter(kind, short) for _, kind in named]

    def made(value: Mapping[str, Any]) -> Any:
        values = [_one(c, v) for c, v in zip(converters, value.values(), strict=True)]
        return dict(zip(value, values, strict=True)) if named and named[0][0] else tuple(values)

    return made


def _element(text: str) -> tuple[str, str]:
    """The name of a tuple's element, '' where it has none, and its type."""
    match = re.match(r"(`(?:[^`\\]|\\.)*`|\w+)\s+(?=\S)", text)
    return (match[1], text[match.end() :]) if match else ("", text)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _parsed(kind: str) -> tuple[str, list[str]]:
    """The name of a type and what stands in its brackets, cut at the commas."""
    kind = kind.strip()
    name, bracket, rest = kind.partition("(")
    if not bracket or not rest.endswith(")"):
        return name, []
    pieces, depth, quote, start, at, inside = [], 0, "", 0, 0, rest[:-1]
    while at < len(inside):
        c = inside[at]
        if quote:
            if c == "\\":
                at += 1
            elif c == quote:
                quote = ""
        elif c in "'`":
            quote = c
        elif c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
        elif c == "," and not depth:
            pieces.append(inside[start:at].strip())
            start = at + 1
        at += 1
    last = inside[start:].strip()
    return name, [*pieces, last] if last or pieces else []
