"""The letters of a statement from the network: what characters and names it may have, before it is read as SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.serve.limits import Limits
from clipql.syntax.edits import Edit, edited
from clipql.syntax.reading import read

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b]")
_UNSAFE_NAME = re.compile(r"[\x00-\x1f\x7f/\\*?]|\A\.|://|\A~")


def check_size(sql: str, limits: Limits) -> None:
    """Raise QueryError for a statement of more bytes or more tokens than may be, as ClickHouse does."""
    size = check_bytes(sql, limits)
    if size > limits.tokens and (count := len(read(sql).tokens)) > limits.tokens:
        raise QueryError(
            f"AST is too big. Maximum: {limits.tokens}: the statement has {count:,} words and signs",
            code=168,
            name="TOO_BIG_AST",
        )


def check_bytes(sql: str, limits: Limits) -> int:
    """The bytes of a statement. Raises QueryError where they are more than may be."""
    size = len(sql) if len(sql) > limits.statement else len(sql.encode())
    if size > limits.statement:
        raise QueryError(
            f"Syntax error: failed at position {limits.statement}: Max query size exceeded: the statement has "
            f"{size:,} bytes, data apart, and this server reads {limits.statement:,} (clipql serve --max-statement)",
            code=62,
            name="SYNTAX_ERROR",
        )
    return size


def cleaned(sql: str) -> str:
    """The statement with each comment as spaces. Raises QueryError for characters that have no place in SQL.

    Whatever comes after a comment stays at its byte and in its line, so errors name the place that the sender sees.
    """
    if "\0" in sql:
        raise QueryError("the statement holds a NUL character", code=62, name="SYNTAX_ERROR")
    parts: list[str] = []
    at = 0
    odd = not sql.isascii() or _CONTROL.search(sql) is not None
    for token in read(sql).tokens:
        gap = sql[at : token.start]
        parts.append(gap if (gap.isspace() and gap.isascii()) or not gap else _blank(gap))
        if odd and token.kind not in ("string", "quoted") and (not token.text.isascii() or _CONTROL.search(token.text)):
            raise QueryError(
                f"{token.text[:20]!r} at position {_byte(sql, token.start)}: outside strings and quoted names, "
                "SQL is ASCII",
                code=62,
                name="SYNTAX_ERROR",
            )
        if token.kind == "error":
            raise QueryError(
                f"{token.text[:20]!r} at position {_byte(sql, token.start)}: ClickHouse cannot read it",
                code=62,
                name="SYNTAX_ERROR",
            )
        parts.append(token.text)
        at = token.end
    rest = sql[at:]
    words = read(sql).tokens
    data = len(words) > 3 and words[0].upper == "INSERT" and words[-2].upper == "FORMAT"
    text = "".join(parts)
    if odd and any(not c.isascii() and c.isspace() for c in _gaps(text)):
        raise QueryError("outside strings and quoted names, SQL is ASCII", code=62, name="SYNTAX_ERROR")
    return text + (rest if data else "")


def _blank(gap: str) -> str:
    """Spaces for the bytes of a gap between tokens, with its ends of lines where they were."""
    return "".join("\n" if c == "\n" else " " * len(c.encode("utf-8", "surrogatepass")) for c in gap)


def _byte(sql: str, at: int) -> int:
    """The place of a character as ClickHouse names it: its byte, from 1."""
    return len(sql[:at].encode("utf-8", "surrogatepass")) + 1


def _gaps(text: str) -> str:
    """What stands between the tokens."""
    at, found = 0, []
    for token in read(text).tokens:
        found.append(text[at : token.start])
        at = token.end
    return "".join(found)


def check_name(name: str) -> None:
    """Raise QueryError for a name that chDB might take for a file or an address."""
    if _UNSAFE_NAME.search(name):
        raise denied(f"the name {name[:60]!r} could be a file's or an address")


def check_table_name(name: str) -> None:
    """As `check_name`, for a table: chDB opens files in the server's folder by their names, with {a,b} for several."""
    check_name(name)
    if "{" in name or "}" in name:
        raise denied(f"the table's name {name[:60]!r} could be a file's")


def denied(message: str) -> QueryError:
    """The error of what the network may not do."""
    return QueryError(message, code=497, name="ACCESS_DENIED")


def with_identifiers(sql: str, params: Mapping[str, Any]) -> str:
    """The statement with each `{name:Identifier}` as the quoted name that it stands for."""
    if "Identifier" not in sql:
        return sql
    tokens, edits = read(sql).tokens, list[Edit]()
    for at in reversed(range(len(tokens) - 4)):
        a, name, colon, kind, z = tokens[at : at + 5]
        if (a.text, colon.text, kind.text, z.text) == ("{", ":", "Identifier", "}") and name.text in params:
            value = str(params[name.text])
            parts = [value] if "`" in value else value.split(".")
            if not all(parts):
                raise QueryError(f"{name.text} = {value[:60]!r} is no name", code=457, name="BAD_QUERY_PARAMETER")
            edits.append((a.start, z.end, ".".join(map(quote_name, parts))))
    return edited(sql, edits)
