"""The further columns of a source: their types, where JSON declares none, and their names beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clipql.encode.embed.parquet import time_as_number
from clipql.encode.embed.rows import Row

# what clipql itself adds on ingest, besides the columns of a part
_TAKEN = ("image_embedding", "text_embedding", "_row")


def own_fields(pictures: bool) -> list[pa.Field]:
    """The columns that every part has, with their types."""
    text = [pa.field("caption", pa.string(), nullable=False)]
    error = [pa.field("error", pa.string(), nullable=False)]
    if not pictures:
        return text + error
    sizes = [pa.field(n, pa.int32(), nullable=False) for n in ("width", "height")]
    path = [pa.field("image_path", pa.string(), nullable=False)]
    return [*path, *text, *sizes, pa.field("similarity", pa.float32()), *error]


def further(rows: Sequence[Row], own: Sequence[str]) -> dict[str, pa.Array]:
    """The further columns of some rows, by name; null where a row has none."""
    names = {name: None for row in rows for name in row.extra}
    found: dict[str, pa.Array] = {}
    for name in names:
        shown = _shown(name, own)
        while shown in found:
            shown = f"source_{shown}"
        kinds = {row.types[name] for row in rows if name in row.types}
        declared = all(name in row.types for row in rows if name in row.extra)
        values = [row.extra.get(name) for row in rows]
        found[shown] = _declared(values, kinds.pop()) if declared and len(kinds) == 1 else _observed(values)
    return found


def _shown(name: str, own: Sequence[str]) -> str:
    if name.lower() == "url":
        return "url"
    # a table has no column without a name
    return f"source_{name}" if not name or name in own or name in _TAKEN else as_text(name)


def _declared(values: list[Any], kind: pa.DataType) -> pa.Array:
    whole = time_as_number(kind)
    return pa.array(values, kind) if whole is None else pa.array(values, whole).cast(kind)


def _observed(values: list[Any]) -> pa.Array:
    """Values of JSON: truths, numbers and texts keep their types, anything else and any mixture becomes text."""
    kinds = {type(v) for v in values if v is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and all(v is None or abs(v) < 2**53 or isinstance(v, float) for v in values):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if v is None else as_text(v) for v in values], pa.string())


def as_text(value: Any) -> str:
    """A text as it is, anything else as JSON; lone surrogates, which no file of ours can hold, as `?`."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()


def unified(schemas: Sequence[pa.Schema]) -> dict[str, pa.DataType]:
    """One type for each column that holds what all of them hold."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for f in schema:
            types[f.name] = _both(types[f.name], f.type) if f.name in types else f.type
    return types


def _both(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        return pa.int64()
    numbers = (pa.types.is_integer, pa.types.is_floating)
    if any(is_(a) for is_ in numbers) and any(is_(b) for is_ in numbers):
        return pa.float64()
    return pa.string()


def fitted(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The table with all of these columns and no others, in their types and order; null where it has no value."""
    none = pa.nulls(table.num_rows)
    names = set(table.schema.names)
    columns = {n: table.column(n).combine_chunks() if n in names else none for n in types}
    return pa.table({n: _as_type(columns[n], kind) for n, kind in types.items()})


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in the type that was found for all; null where a value does not fit it."""
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    if pa.types.is_string(kind) and not pa.types.is_binary(column.type):
        return pa.array([None if v is None else as_text(v) for v in column.to_pylist()], kind)
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.concat_arrays([_one(column.slice(i, 1), kind) for i in range(len(column))])


def _one(value: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return value.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(1, kind)
