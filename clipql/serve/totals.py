"""Answers with totals or extremes as the native protocol has them: in blocks of their own, behind the rows.

No binary format of ClickHouse has them. So such an answer is written as tab-separated values, which are exact for all
types, and its parts are read back by ClickHouse. What must stay true: the statement runs once; a part is known by the
number of rows, never by what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.serve.guard import Checked
from clipql.serve.native_blocks import Blocks
from clipql.serve.service import Request, Service
from clipql.sql.session import Answer, Session
from clipql.syntax.lexer import string_value

_FORMAT = "TabSeparatedWithNamesAndTypes"
# each line is a row, whatever is in it, and each column one
_AS_WRITTEN = (
    "date_time_input_format = 'best_effort', input_format_tsv_detect_header = 0, "
    "input_format_tsv_skip_first_lines = 0, input_format_tsv_empty_as_default = 0, "
    "input_format_allow_errors_num = 0, input_format_allow_errors_ratio = 0, "
    "flatten_nested = 0, extremes = 0, max_result_rows = 0"
)
# types whose text does not say of which type a value is
_UNTOLD = re.compile(r"\b(Variant|Dynamic|JSON|Object)\b")
# bytes of lines that become a block
_BLOCK = 1 << 20


@dataclass
class Apart:
    """Blocks that are sent behind those of the rows; empty where there are none."""

    totals: bytes = b""
    extremes: bytes = b""


@dataclass(frozen=True)
class _Parts:
    columns: list[tuple[str, str]]
    rows: list[bytes]
    totals: list[bytes]
    extremes: list[bytes]


def run(
    service: Service,
    checked: Checked,
    request: Request,
    version: int,
    session: Session | None,
    sink: Callable[[bytes], None],
    apart: Apart,
) -> Answer:
    """Run a SELECT without FORMAT; its blocks go to `sink`, one without rows first, and the others into `apart`."""
    answer = service.run_checked(checked, replace(request, format=_FORMAT), session)
    if not answer.output.data:  # FORMAT Null
        return answer
    parts = _parts(answer.output.data, answer.output.rows)
    for name, type in parts.columns:
        if _UNTOLD.search(type):
            raise QueryError(
                f"{name[:60]} is of type {type[:60]}: totals and extremes beside such a column are not told by the "
                "native protocol; leave them out, or CAST the column",
                code=48,
                name="NOT_IMPLEMENTED",
            )
    zones = {place: type for place, (_, type) in enumerate(parts.columns) if type.startswith("DateTime(")}
    blocks = Blocks(version, lambda: zones)

    def read_back(lines: list[bytes]) -> Iterator[bytes]:
        for some in _split(lines):
            output = service.engine.query(_reading(parts.columns, some), "Native", user=True)
            if output.rows != len(some):
                raise _unreadable(len(some), output.rows)
            yield from blocks.each(output.data, rows=output.rows)

    sink(blocks.header(parts.columns))
    for block in read_back(parts.rows):
        sink(block)
    apart.totals, apart.extremes = b"".join(read_back(parts.totals)), b"".join(read_back(parts.extremes))
    return replace(answer, output=replace(answer.output, data=b""))


def _parts(data: bytes, rows: int) -> _Parts:
    lines = [line.rstrip(b"\r") for line in data.split(b"\n")[:-1]]  # one within a value is escaped
    if rows:
        head, rest = lines[:2], lines[2:]
    else:  # ClickHouse writes totals before the names where there are no rows
        head, rest = lines[-2:], lines[:-2]
    found, behind = rest[:rows], rest[rows:]
    if len(head) != 2 or len(found) != rows or len(behind) not in (0, 2, 3, 5):
        raise _unreadable(rows, len(lines))
    totals = behind[1:2] if len(behind) in (2, 5) else []
    extremes = behind[-2:] if len(behind) in (3, 5) else []
    names, types = ([_unescaped(each) for each in line.split(b"\t")] for line in head)
    return _Parts(list(zip(names, types, strict=True)), found, totals, extremes)


def _unreadable(rows: int, lines: int) -> QueryError:
    return QueryError(
        f"an answer of {rows:,} rows came in {lines:,} lines, which cannot be read as {_FORMAT}",
        code=33,
        name="CANNOT_READ_ALL_DATA",
    )


def _unescaped(value: bytes) -> str:
    text = value.decode("utf-8", "surrogateescape")
    inner = string_value(f"'{text}'")
    return text if inner is None else inner.decode("utf-8", "surrogateescape")


def _split(lines: list[bytes]) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    size = 0
    for line in lines:
        some.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield some
            some, size = [], 0
    if some:
        yield some


def _reading(columns: list[tuple[str, str]], lines: list[bytes]) -> str:
    shape = ", ".join(f"{quote_name(name)} {type}" for name, type in columns)
    data = b"".join(line + b"\n" for line in lines).hex()
    return f"SELECT * FROM format(TSV, {quote_string(shape)}, unhex('{data}')) SETTINGS {_AS_WRITTEN}"
