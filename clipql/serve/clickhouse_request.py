"""What a request of ClickHouse's protocol says: the statement, the data of its INSERT, the values of its parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipql.engine.quoting import EscapedText
from clipql.errors import QueryError
from clipql.serve.inline_values import MOST_BYTES, as_select
from clipql.syntax import statements
from clipql.syntax.inputs import input_of
from clipql.syntax.reading import read

# a statement is looked for in so many bytes; what is longer is data
HEAD = 1 << 16


@dataclass(frozen=True)
class Asked:
    """sql: the statement. data: what is to be inserted, in `format`, maybe in pieces; None where there is none beside
    the statement."""

    sql: str
    data: bytes | Sequence[bytes] | None = None
    format: str = ""


def take_apart(query: str, body: bytes) -> Asked:
    """Tell the statement from the data of an INSERT. The statement ends where its format is named.

    query: what came in the address; the body goes on where it ends. Raises QueryError for what is not UTF-8.
    """
    whole = query.encode() + (b"\n" if body else b"") + body if query else body
    # a byte a character, so that places are places in the bytes
    head = whole[:HEAD].decode("latin-1")
    begin = _insert_after_with(head)
    whole, head = whole[begin:], head[begin:]
    inserts = re.match(r"(?:\s|--|#|/)*INSERT\b", head, re.I)
    statement, tokens = (read(head).kind, read(head).words) if inserts else (None, ())
    fed = input_of(head) if inserts else None
    if fed is not None:
        data = _data(whole, fed.data, fed.format)
        return Asked(_utf8(whole[: fed.data]), data, fed.format)
    if not isinstance(statement, statements.Insert) or statement.source not in ("VALUES", "FORMAT"):
        return Asked(_utf8(whole))
    after = next(i for i, t in enumerate(tokens) if t.start >= statement.body)
    end = tokens[after].end if statement.source == "VALUES" else tokens[min(after + 1, len(tokens) - 1)].end
    format = "Values" if statement.source == "VALUES" else head[tokens[after + 1].start : end]
    data = _data(whole, end, format)
    if format == "Values":
        rows = as_select(_utf8(data)) if len(data) <= MOST_BYTES else None
        if rows is not None:
            return Asked(f"{_utf8(whole[: statement.body])} {rows}")
    return Asked(_utf8(whole[:end]), data, format)


def _data(whole: bytes, end: int, format: str) -> bytes:
    """What stands behind the format's name, or VALUES, which end at this place."""
    blank = re.compile(rb"[ \t\r\f]*\n?").match(whole, end)
    data = whole[blank.end() if blank else end :]
    return data.rstrip(b"; \t\r\n") if format == "Values" else data


def _insert_after_with(head: str) -> int:
    """The place of the INSERT in `WITH … INSERT … VALUES` or FORMAT, whose data knows nothing of the WITH; else 0."""
    if not re.match(r"\s*WITH\b", head, re.I) or not re.search(r"\bINSERT\b", head, re.I):
        return 0
    for token in read(head).tokens:
        if token.upper == "INSERT":
            inner = read(head[token.start :]).kind
            if isinstance(inner, statements.Insert) and inner.source in ("VALUES", "FORMAT"):
                return token.start
    return 0


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise QueryError(
            f"the statement is not UTF-8: byte {data[error.start]:#04x} at {error.start}", code=62, name="SYNTAX_ERROR"
        ) from None


def value(text: str) -> Any:
    """A parameter's value, which comes escaped as in TabSeparated; arrays and tuples escape within."""
    if text == "\\N":
        return None
    if "\\" not in text:
        return text
    if text[:1] in ("[", "(", "{"):
        return EscapedText(text)
    known = {"t": "\t", "n": "\n", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}
    return re.sub(r"\\(.)", lambda m: known.get(m[1], m[1]), text, flags=re.DOTALL)
