"""Facets: which values the rows of a search have, and how many rows each; numbers and dates as histograms.

Exact, by SQL over the rows that `/api/count` counts. What must stay true: every statement is one that the guard has
seen, and of a column of more values than anybody reads those are given that contain what is looked for. A column that
only numbers the rows has no histogram: all its bars would be equally high.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from clipql.engine.python_values import python_columns
from clipql.engine.quoting import quote_name, quote_string
from clipql.serve import search_request as search
from clipql.serve.column_roles import ColumnRoles, column_roles, kind
from clipql.serve.condition_errors import in_conditions
from clipql.serve.counts import Counted, counts
from clipql.serve.service import Request, Service
from clipql.serve.values import plain
from clipql.storage.catalog import Table

MOST_VALUES, LISTED, BINS = 100, 12, 24
NEARLY = 0.97  # ClickHouse's uniq is off by less
NUMBERING = re.compile(r"(?i:(?:^|_)(?:id|uid|key|hash|index|idx|row|number)$)|[a-z](?:Id|ID|Key|Hash|Index)$")


@dataclass(frozen=True)
class Valued:
    """What a table's columns hold, as a whole. few: the columns of words and truth values of few values; many: those of
    words of many. numbering: the columns of numbers that tell rows apart and say nothing else of them."""

    few: tuple[str, ...]
    many: tuple[str, ...]
    numbering: frozenset[str]


class Facets:
    """Counts them. Call it in a thread of the pool."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[tuple[str, int, int], Valued] = {}
        self._lock = threading.Lock()

    def of(self, asked: Counted) -> dict[str, Any]:
        """The counts of a search, `columns`: of each, its values or its histogram, and `many`: the names of those that
        have more values than are read. Raises ClipqlError."""
        table = self._service.table(asked.database, asked.table)
        roles = column_roles(self._service.engine, table)
        safe = roles.safe if asked.safe else None
        valued = self._valued(table, roles)
        columns = [self._values(table, name, asked, safe) for name in valued.few]
        ranges = [n for n in roles.plain if kind(roles.types[n]) in ("number", "date") and n not in valued.numbering]
        return {
            **counts(self._service, asked),
            "columns": [*columns, *self._histograms(table, roles, ranges, asked, safe)],
            "many": list(valued.many),
        }

    def within(self, asked: Counted, name: str, part: str) -> dict[str, Any]:
        """The values of a column that contain a text, in whatever case, as `of` gives them. Raises ClipqlError."""
        table = self._service.table(asked.database, asked.table)
        roles = column_roles(self._service.engine, table)
        if name not in roles.plain or kind(roles.types[name]) != "text":
            raise search.wrong(f"values_of: {name[:60]!r} is no column of text")
        has = f"positionCaseInsensitiveUTF8(toString({quote_name(name)}), {quote_string(part)}) > 0"
        found = self._values(table, name, asked, roles.safe if asked.safe else None, has)
        return {"columns": [found]}

    def _rows(self, sql: str, asked: Counted) -> list[tuple[Any, ...]]:
        with in_conditions(sql, asked.where):
            found = self._service.run(Request(sql), self._service.engine.acting).output.arrow()
        return list(zip(*python_columns(found, {}), strict=True))

    def _valued(self, table: Table, roles: ColumnRoles) -> Valued:
        """What the columns of a table hold; found out once."""
        key = (table.id, table.rows, len(table.parts))
        with self._lock:
            if key in self._known:
                return self._known[key]
        own = {roles.caption, roles.url, roles.file}
        names = [n for n in roles.plain if kind(roles.types[n]) in ("text", "bool") and n not in own]
        numbers = [n for n in roles.plain if kind(roles.types[n]) == "number"]
        words = [f"uniqUpTo({MOST_VALUES})({quote_name(n)})" for n in names]
        spans = [f"(uniq({x}), min({x}), max({x}))" for x in map(quote_name, numbers)]
        valued = Valued((), (), frozenset())
        if names or numbers:
            sql = f"SELECT count(), {', '.join([*words, *spans])} FROM {source_of(table)}"
            rows, *found = self._rows(sql, Counted(table.name, table.database, (), False))[0]
            values = dict(zip(names, found, strict=False))
            valued = Valued(
                tuple(n for n in names if 1 < values[n] <= MOST_VALUES),
                tuple(n for n in names if values[n] > MOST_VALUES),
                frozenset(
                    name
                    for name, span in zip(numbers, found[len(names) :], strict=True)
                    if _numbers_rows(name, roles.types[name], rows, *span.values())
                ),
            )
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if k[0] != table.id} | {key: valued}
        return valued

    def _values(
        self, table: Table, name: str, asked: Counted, safe: str | None, also: str | None = None
    ) -> dict[str, Any]:
        """The values of a column that most rows have, first; `others`: how many more there are."""
        where = search.where_sql(asked.where, safe, also)
        column = quote_name(name)
        sql = f"SELECT {column} AS value, count() AS rows FROM {source_of(table)}{where} GROUP BY value"
        found = self._rows(f"{sql} ORDER BY rows DESC, value LIMIT {MOST_VALUES + 1}", asked)
        listed = [{"value": plain(value), "rows": rows} for value, rows in found[:LISTED]]
        return {"name": name, "values": listed, "others": len(found) - len(listed), "more": len(found) > MOST_VALUES}

    def _histograms(
        self, table: Table, roles: ColumnRoles, names: list[str], asked: Counted, safe: str | None
    ) -> list[dict[str, Any]]:
        if not names:
            return []
        numbers = {n: as_number(n, roles.types[n]) for n in names}
        each = ", ".join(f"minIf({x}, isFinite({x})), maxIf({x}, isFinite({x}))" for x in numbers.values())
        bounds = self._rows(f"SELECT {each} FROM {source_of(table)}{search.where_sql(asked.where, safe)}", asked)[0]
        made = []
        for i, (name, number) in enumerate(numbers.items()):
            least, most = bounds[2 * i], bounds[2 * i + 1]
            if least is None or most is None or not least < most:
                continue
            width = (most - least) / BINS
            place = f"least({BINS - 1}, toInt32(floor(({number} - ({least!r})) / {width!r})))"
            where = search.where_sql(asked.where, safe, f"isFinite({number})")
            bins = [0] * BINS
            sql = f"SELECT {place} AS place, count() FROM {source_of(table)}{where} GROUP BY place"
            for at, rows in self._rows(sql, asked):
                bins[at] = rows
            made.append({"name": name, "least": least, "most": most, "bins": bins})
        return made


def _numbers_rows(name: str, type: str, rows: int, values: int, least: Any, most: Any) -> bool:
    """Whether a column only tells rows apart: it has a value for each, without gaps or under a name that says so."""
    if rows < 2 or least is None or values < NEARLY * rows:
        return False
    whole = isinstance(least, int) and isinstance(most, int)  # one of 128 bits and more comes as bytes
    return NUMBERING.search(name) is not None or (whole and "Int" in type and most - least + 1 <= rows / NEARLY)


def source_of(table: Table) -> str:
    """A table's full name, as SQL."""
    return f"{quote_name(table.database)}.{quote_name(table.name)}"


def as_number(name: str, type: str) -> str:
    """A column as a Float64; of dates and times, the days since 1970 in their own time zone."""
    column = quote_name(name)
    return f"toFloat64(toInt32(toDate32({column})))" if kind(type) == "date" else f"toFloat64({column})"
