"""chDB's exceptions as clipql's own: the one place that reads their text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clipql.errors import (
    EncodeError,
    ModelError,
    PictureError,
    QueryCancelled,
    QueryError,
    UnknownColumn,
    UnknownTable,
)

_BY_CODE: Mapping[int, type[QueryError]] = {
    60: UnknownTable,
    81: UnknownTable,
    47: UnknownColumn,
    16: UnknownColumn,
    394: QueryCancelled,
    159: QueryCancelled,
}


# what chDB raises; the second where its message quotes bytes that are no UTF-8
CHDB_ERRORS = (RuntimeError, UnicodeDecodeError)
# how chDB reports an exception of a Python function
_UDF = re.compile(
    r"Python UDF '_clipql_encode_\w+' raised an exception at row \d+: (?:[\w.]*\.)?(\w+): (.*?)\s*(?:At:|\Z)", re.DOTALL
)
# how ClickHouse refuses what one of the encoding functions got: they are made of its own
_GOT = re.compile(
    r"to function 'base64Encode'\. Expected: String or FixedString, got: (.+?): In scope .*?_clipql_(encode_\w+)\(",
    re.DOTALL,
)
_ENCODING: Mapping[str, type[EncodeError]] = {k.__name__: k for k in (EncodeError, ModelError, PictureError)}
_CANCELLED = QueryCancelled.__name__


def translate(error: BaseException) -> QueryError | EncodeError:
    """chDB's exception as one of ours, with ClickHouse's code and name. The caller raises it `from` the original."""
    text = error.object.decode("utf-8", "replace") if isinstance(error, UnicodeDecodeError) else str(error)
    ours = _UDF.search(text)
    if ours and ours[1] == _CANCELLED:
        return QueryCancelled(ours[2].strip(), code=394, name="QUERY_WAS_CANCELLED")
    if ours:
        return _ENCODING.get(ours[1], EncodeError)(ours[2].strip())
    match = re.search(r"Code: (\d+)\. DB::Exception: (.*?)(?:\s*\(([A-Z_0-9]+)\))?\s*\Z", text, re.DOTALL)
    if not match:
        return QueryError(text)
    code, message, name = int(match[1]), match[2].strip(), match[3] or ""
    got = _GOT.search(message)
    if got:
        message = f"{got[2]} got {got[1]}; expected text"
    message = re.sub(r"^(Code: \d+\. DB::Exception: )+|\s*\(version [\d.]+[^)]*\)$", "", message)
    kind = _BY_CODE.get(code, QueryError)
    return kind(f"{message} (ClickHouse {code} {name})".rstrip(), code=code, name=name)
