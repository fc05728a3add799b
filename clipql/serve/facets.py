"""Facets: which values the rows of a search have, and how many rows each; numbers and dates as histograms.

Exact, by SQL over the rows that `/api/count` counts. What must stay true: every statement is one that the guard has
seen, and of a column of more values than anybody reads those are given that contain what is looked for.
"""

from __future__ import annotations

import threading
from typing import Any

from clipql.engine.quoting import quote_name, quote_string
from clipql.serve import search_request as search
from clipql.serve.column_roles import ColumnRoles, column_roles, kind
from clipql.serve.condition_errors import in_conditions
from clipql.serve.counts import Counted, counts
from clipql.serve.service import Request, Service
from clipql.serve.values import plain
from clipql.storage.catalog import Table

MOST_VALUES, LISTED, BINS = 100, 12, 24


class Facets:
    """Counts them. Call it in a thread of the pool."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[tuple[str, int, int], tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def of(self, asked: Counted) -> dict[str, Any]:
        """The counts of a search, `columns`: of each, its values or its histogram, and `many`: the names of those that
        have more values than are read. Raises ClipqlError."""
        table = self._service.table(asked.database, asked.table)
        roles = column_roles(self._service.engine, table)
        safe = roles.safe if asked.safe else None
        few, many = self._valued(table, roles)
        columns = [self._values(table, name, asked, safe) for name in few]
        ranges = [n for n in roles.plain if kind(roles.types[n]) in ("number", "date")]
        return {
            **counts(self._service, asked),
            "columns": [*columns, *self._histograms(table, roles, ranges, asked, safe)],
            "many": list(many),
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
        return list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def _valued(self, table: Table, roles: ColumnRoles) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of words and truth values that have few values in the whole table, and those of words that have
        many; found out once."""
        key = (table.id, table.rows, len(table.parts))
        with self._lock:
            if key in self._known:
                return self._known[key]
        own = {roles.caption, roles.url, roles.file}
        names = [n for n in roles.plain if kind(roles.types[n]) in ("text", "bool") and n not in own]
        few: tuple[str, ...] = ()
        many: tuple[str, ...] = ()
        if names:
            each = ", ".join(f"uniqUpTo({MOST_VALUES})({quote_name(n)})" for n in names)
            found = self._rows(f"SELECT {each} FROM {source_of(table)}", Counted(table.name, table.database, (), False))
            few = tuple(n for n, values in zip(names, found[0], strict=True) if 1 < values <= MOST_VALUES)
            many = tuple(n for n, values in zip(names, found[0], strict=True) if values > MOST_VALUES)
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if k[0] != table.id} | {key: (few, many)}
        return few, many

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


def source_of(table: Table) -> str:
    """A table's full name, as SQL."""
    return f"{quote_name(table.database)}.{quote_name(table.name)}"


def as_number(name: str, type: str) -> str:
    """A column as a Float64; of dates and times, the days since 1970 in their own time zone."""
    column = quote_name(name)
    return f"toFloat64(toInt32(toDate32({column})))" if kind(type) == "date" else f"toFloat64({column})"
