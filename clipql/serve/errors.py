"""Errors as HTTP has them: ClickHouse's statuses by its codes, and its way to write them."""

from __future__ import annotations

import re

from clipql.errors import (
    ClipqlError,
    ModelError,
    PictureError,
    QueryCancelled,
    QueryError,
    ServerEnding,
    UnsupportedStatement,
    VectorError,
)

# as ClickHouse's HTTP handler answers; what is not here is 500
_BY_CODE = {
    **dict.fromkeys((516, 193, 194, 192), 401),
    497: 403,
    164: 403,
    344: 400,
    291: 403,
    452: 403,
    **dict.fromkeys((60, 81, 46, 47, 41, 115, 53, 179, 73, 43, 42, 70, 6, 27, 26, 72, 62, 36, 456, 457, 349, 117, 33, 8,
                     16, 10, 15, 44, 50, 57, 80, 82, 130, 137, 138, 184, 215, 407, 386, 69, 113, 37, 38, 1, 48, 168,
                     167, 374, 306, 354, 271, 89, 59, 34, 35, 63, 125, 190, 207, 321, 352, 403, 427, 20), 400),
    **dict.fromkeys((60, 81, 46, 47, 372), 404),
    159: 408,
    307: 413,
    **dict.fromkeys((202, 203), 429),
    373: 423,
    **dict.fromkeys((241, 396, 158), 507),
}  # fmt: skip
# clipql's own errors, which have no code of ClickHouse's
_OWN: tuple[tuple[type[ClipqlError], int, str, int], ...] = (
    (VectorError, 36, "BAD_ARGUMENTS", 400),
    (ModelError, 668, "INVALID_STATE", 503),
    (PictureError, 36, "BAD_ARGUMENTS", 400),
    (UnsupportedStatement, 48, "NOT_IMPLEMENTED", 400),
    (QueryCancelled, 394, "QUERY_WAS_CANCELLED", 500),
    (QueryError, 36, "BAD_ARGUMENTS", 400),
    (ClipqlError, 36, "BAD_ARGUMENTS", 400),
)


def error_status(error: ClipqlError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, ServerEnding):
        return 503
    code = getattr(error, "code", 0)
    if code:
        return _BY_CODE.get(code, 500)
    return next(status for kind, _, _, status in _OWN if isinstance(error, kind))


def error_headers(error: ClipqlError) -> dict[str, str]:
    """What the head of a reply says of an error: when to ask again, where that may do."""
    return {"Retry-After": "1"} if isinstance(error, ServerEnding) else {}


def let_go(error: BaseException | None) -> None:
    """An error was told of: forget where it was raised, there and in what caused it.

    A future that failed has its error, which has the frames that it went through, one of which has the future: with
    the request and all that it held, they would stay until somebody looks for garbage.
    """
    left = [error]
    while left:
        each = left.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]


def error_code(error: ClipqlError) -> tuple[int, str]:
    """ClickHouse's number and name of an error, or those nearest to what clipql says."""
    code, name = getattr(error, "code", 0), getattr(error, "name", "")
    if code:
        return code, name
    return next((number, text) for kind, number, text, _ in _OWN if isinstance(error, kind))


def error_message(error: ClipqlError) -> str:
    """What an error says, with its name, as ClickHouse writes it."""
    code, name = error_code(error)
    message = re.sub(rf" \(ClickHouse {code}(?: {re.escape(name)})?\)\Z", "", str(error)).rstrip(". ")
    return f"DB::Exception: {message}. ({name})"


def error_text(error: ClipqlError, version: str) -> str:
    """The error as ClickHouse writes it, which its clients take apart."""
    return f"Code: {error_code(error)[0]}. {error_message(error)} (version {version})\n"
