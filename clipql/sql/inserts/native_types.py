"""Types of ClickHouse's as Native has their columns: how many bytes a value takes, what a type is made of.

What must stay true: a type that is not known is refused, not guessed.
https://clickhouse.com/docs/interfaces/formats/Native, and src/DataTypes/Serializations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipql.errors import QueryError

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
HAS_KEYS = 1 << 9  # in the first word of a LowCardinality column: keys of its own follow
# a Variant whose rows each name their type; a JSON column of texts; the type whose values each bring their own
BASIC, JSON_TEXTS, _SHARED = 0, 1, "SharedVariant"
_OPTION = re.compile(r"max_dynamic_(paths|types)\s*=|SKIP\s", re.I)


@dataclass(frozen=True)
class Layout:
    """How a column lies. within: what it is made of."""

    name: str
    type: str
    within: list[Layout]


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
    elif name == "Variant":
        for each in inner:
            check_type(each, depth + 1)
    elif name not in (*SHAPES, "String", "Dynamic", "JSON"):
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
        end = element.find(element[0], 1)
        while end > 0 and (element[end - 1] == "\\" or element[end + 1 : end + 2] == element[0]):
            end = element.find(element[0], end + (1 if element[end - 1] == "\\" else 2))
        if end < 0:
            raise QueryError(f"the name in {element[:60]} has no end", code=50, name="UNKNOWN_TYPE")
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


def dynamic_types(named: Sequence[str]) -> list[str]:
    """The types of a Dynamic column in the order in which their values lie; those of other types lie as strings."""
    return ["String" if each == _SHARED else each for each in sorted([*named, _SHARED])]


def typed_paths(type: str) -> list[str]:
    """The types that JSON(…) names for paths, by the order of these."""
    found = []
    for each in split_type(type)[1]:
        if not _OPTION.match(each):
            of = _unnamed(each)
            found.append((each[: len(each) - len(of)].strip().strip("`"), of))
    return [of for _, of in sorted(found)]


def unknown_version(name: str, version: int) -> QueryError:
    """The error of a column that lies otherwise than is read here."""
    return QueryError(
        f"a {name} column is serialized in version {version}, which is not read here: send it otherwise, or ask "
        "for it as a String",
        code=48,
        name="NOT_IMPLEMENTED",
    )
