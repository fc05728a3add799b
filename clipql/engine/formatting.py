"""A statement as ClickHouse writes it out: every name decoded, every optional word there, in one line."""

from __future__ import annotations

from collections.abc import Callable

from clipql.engine.quoting import quote_string, with_bytes
from clipql.errors import QueryError


def written(query: Callable[[str, str], bytes], sql: str) -> str:
    """What formatQuerySingleLine gives, with bytes that are no UTF-8 as escapes. query: runs SQL, in a format.

    Raises QueryError, a syntax error as ClickHouse words it, with places in this text.
    """
    try:
        found = query(f"SELECT formatQuerySingleLine({quote_string(sql)})", "RawBLOB")
    except QueryError as error:
        said = str(error).partition(": In scope SELECT formatQuery")[0]
        raise QueryError(said, code=error.code, name=error.name) from error
    return with_bytes(found.decode("utf-8", "surrogateescape"))
