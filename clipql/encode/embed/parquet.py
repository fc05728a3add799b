"""Parquet files with pictures as bytes, or with captions; every other column comes along with its type.

Read a few rows at a time. What must stay true: a damaged row group or row is a row with an error, and the rest of the
file is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipql.encode.base import Picture
from clipql.encode.embed.captions import CAPTION_NAMES, caption_name, spoken
from clipql.encode.embed.rows import LARGEST, Row, Skip
from clipql.errors import EncodeError

_PICTURE_NAMES = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_PICTURE_ROWS, _CAPTION_ROWS = 32, 4096
_MOST_ROWS, _MOST_ROWS_A_BYTE = 1_000_000, 64
# what pyarrow raises over a damaged file
_DAMAGE = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what; extra: the others' types by name."""

    picture: str | None
    caption: str | None
    extra: dict[str, pa.DataType]


def check_parquet(path: Path, *, pictures: bool, column: str | None) -> int:
    """The number of rows. Raises EncodeError where the file is damaged or lacks the column that is needed."""
    try:
        with pq.ParquetFile(path) as file:
            _columns(path, file.schema_arrow, pictures, column)
            return int(file.metadata.num_rows)
    except _DAMAGE as error:
        raise EncodeError(f"{path} is not a whole Parquet file ({error}); fetch it again") from error


def read_parquet(path: Path, skip: Skip, *, pictures: bool, column: str | None = None) -> Iterator[Row]:
    """One row a row of the file. pictures: whether it holds pictures, or captions alone. column: of the captions."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(path))
            columns = _columns(path, file.schema_arrow, pictures, column)
            groups = [int(file.metadata.row_group(i).num_rows) for i in range(file.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
                raise ValueError("its row groups do not add up")
            size = path.stat().st_size
            if sum(groups) > max(
                _MOST_ROWS, size * _MOST_ROWS_A_BYTE
            ):  # each of which would become a row with an error
                raise ValueError(f"it announces {sum(groups):,} rows in {size:,} bytes")
        except EncodeError as error:
            yield Row(f"{path}#!", path=str(path), error=str(error))
            return
        except _DAMAGE as error:
            message = f"{path} is not a whole Parquet file ({error}); fetch it again"
            yield Row(f"{path}#!", path=str(path), error=message)
            return
        for group, rows in enumerate(groups):
            yield from _group(path, file, group, sum(groups[:group]), rows, columns, skip)


def _group(
    path: Path, file: pq.ParquetFile, group: int, first: int, rows: int, columns: _Columns, skip: Skip
) -> Iterator[Row]:
    """The rows of one row group; what is skipped of it is read only where it is skipped in part."""
    done = 0
    while skip and done < rows:
        yield Row(f"{path}#{first + done}")
        done += 1
    if done == rows:
        return
    step, at = _PICTURE_ROWS if columns.picture else _CAPTION_ROWS, 0
    wanted = list(dict.fromkeys(c for c in (columns.picture, columns.caption, *columns.extra) if c))
    problem = "it has fewer rows than it announces"
    try:
        for batch in file.iter_batches(step, row_groups=[group], columns=wanted, use_threads=False):
            some = batch.slice(max(0, done - at), max(0, rows - max(done, at)))
            at += batch.num_rows
            # all of a batch before the first of them is given: a damaged one must not come twice
            found = list(_rows(path, some, first + done, columns))
            done += len(found)
            yield from found
    except _DAMAGE as error:
        problem = str(error)
    for row in range(first + done, first + rows):
        # every row keeps its place and its key, whichever of them could be read
        where = f"{path}#{row}"
        yield Row(where, path=where, error=f"{path}: row {row:,} cannot be read ({problem}); fetch the file again")


def _rows(path: Path, batch: pa.RecordBatch, first: int, columns: _Columns) -> Iterator[Row]:
    values = {name: _plain(batch.column(batch.schema.get_field_index(name))) for name in columns.extra}
    captions = _plain(batch.column(columns.caption)) if columns.caption else [None] * batch.num_rows
    for i in range(batch.num_rows):
        where = f"{path}#{first + i}"
        caption, error = spoken(captions[i]), ""
        extra, picture = {name: found[i] for name, found in values.items()}, None
        if columns.picture:
            picture, error, inner = _picture(path, batch.column(columns.picture)[i], where)
            if inner and "path" not in extra:
                extra["path"] = inner
        elif not caption:
            error = f"{where} has no caption"
        yield Row(where, picture, where, caption, error, extra, columns.extra)


def _picture(path: Path, value: pa.Scalar, where: str) -> tuple[Picture | None, str, str]:
    """The picture in a value, or what is wrong with it; and the path that Hugging Face's datasets keep with it."""
    inner = ""
    if pa.types.is_struct(value.type) and value.is_valid:
        fields = [f.name for f in value.type]
        named = value["path"].as_py() if "path" in fields else ""
        inner = named if isinstance(named, str) else ""
        value = value["bytes"]
    if value.is_valid:
        size = value.as_buffer().size
        if size > LARGEST:
            return None, f"{where} holds {size:,} bytes; the most that is read is {LARGEST:,}", inner
        return value.as_py(), "", inner
    if inner:
        beside = path.parent / inner
        if Path(inner).is_absolute() or ".." in Path(inner).parts or "\0" in inner:
            return None, f"{where} has no bytes and names {inner!r}, which lies elsewhere", ""
        return (
            (beside, "", inner) if beside.is_file() else (None, f"{where} has no bytes and {inner} is not there", inner)
        )
    return None, f"{where} has no picture", ""


def _plain(column: pa.Array) -> list[Any]:
    """Values as Python has them; times as whole numbers, which lose no nanoseconds; � for what is no UTF-8."""
    if _is_text(column.type):
        found = column.cast(pa.large_binary()).to_pylist()
        return [None if v is None else v.decode("utf-8", "replace") for v in found]
    whole = time_as_number(column.type)
    return list((column.cast(whole) if whole is not None else column).to_pylist())


def time_as_number(kind: pa.DataType) -> pa.DataType | None:
    """The integer type that stands in for a type of time on its way through; None for any other type."""
    if (
        pa.types.is_timestamp(kind)
        or pa.types.is_time64(kind)
        or pa.types.is_duration(kind)
        or pa.types.is_date64(kind)
    ):
        return pa.int64()
    if pa.types.is_time32(kind) or pa.types.is_date32(kind):
        return pa.int32()
    return None


def _columns(path: Path, schema: pa.Schema, pictures: bool, column: str | None) -> _Columns:
    names = list(schema.names)
    if column is not None and column not in names:
        raise EncodeError(f"{path} has no column {column} for the captions; its columns are {', '.join(names)}")
    picture = _picture_column(path, schema) if pictures else None
    texts = [n for n in names if n != picture and (n == column or _is_text(schema.field(n).type))]
    caption = caption_name(texts, column)
    if caption is None and not pictures:
        if len(texts) != 1:
            raise EncodeError(
                f"{path} has no column named {', '.join(CAPTION_NAMES)}; say which holds the captions with "
                f"--caption-column, of {', '.join(names)}"
            )
        caption = texts[0]
    # of a list, the caption is the first text, so the list comes along too
    kept = caption is not None and pa.types.is_nested(schema.field(caption).type)
    extra = {n: schema.field(n).type for n in names if n != picture and (n != caption or kept)}
    if len(set(names)) != len(names):
        raise EncodeError(f"{path} has two columns of one name: {', '.join(names)}")
    return _Columns(picture, caption, extra)


def _picture_column(path: Path, schema: pa.Schema) -> str:
    """By type first: a struct with `bytes`, as Hugging Face writes pictures, then a column of bytes; then by name."""
    tests: tuple[Callable[[pa.DataType], bool], ...] = (_is_picture_struct, _is_binary)
    for fits in tests:
        found = [f.name for f in schema if fits(f.type)]
        named = [n for n in found if n.lower() in _PICTURE_NAMES]
        if len(found) == 1 or len(named) == 1:
            return str((named or found)[0])
        if found:
            raise EncodeError(
                f"{path} has several columns that may hold pictures: {', '.join(found)}; name the right one 'image'"
            )
    raise EncodeError(
        f"{path} has no column of pictures: expected one of bytes, or of structs with bytes and path; its columns are "
        f"{', '.join(f'{f.name} ({f.type})' for f in schema)}"
    )


def _is_picture_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
