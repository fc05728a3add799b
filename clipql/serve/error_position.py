"""Where in a statement ClickHouse found a syntax error, counted in the text of whoever sent it.

ClickHouse counts bytes, from 1, and names a line where there are several. What is put before a statement so that it is
only looked at (`EXPLAIN AST `) is counted with it, and taken off here.
"""

from __future__ import annotations

import re

from clipql.errors import QueryError

SYNTAX_ERROR = 62
_PLACE = re.compile(r"(failed at position )(\d+)(?P<between>.*?)(?:(\(line )(\d+)(, col )(\d+)(\)))?(?=: )", re.DOTALL)


def without_prefix(error: QueryError, prefix: str) -> QueryError:
    """A syntax error in `prefix` + statement as one in the statement; any other error as it is."""
    if error.code != SYNTAX_ERROR:
        return error
    extra = len(prefix.encode())

    def moved(found: re.Match[str]) -> str:
        place = f"{found[1]}{max(1, int(found[2]) - extra)}{found['between']}"
        if found[4] is None:
            return place
        column = int(found[7]) - (extra if found[5] == "1" else 0)
        return f"{place}{found[4]}{found[5]}{found[6]}{max(1, column)}{found[8]}"

    return type(error)(_PLACE.sub(moved, str(error), count=1), code=error.code, name=error.name)
