"""How many rows a search is about: all, those that its conditions leave, and those that safety hides.

Words and pictures only order rows, so the count is one of conditions. What must stay true: it is the count of the same
conditions that the search runs with, by a statement that the guard has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipql.engine.quoting import quote_name
from clipql.serve import search_request as search
from clipql.serve.condition_errors import in_conditions
from clipql.serve.service import Request, Service

KEYS = frozenset({"table", "database", "where", "safe"})


@dataclass(frozen=True)
class Counted:
    """What is asked: a table, its conditions, and whether what is not safe is hidden."""

    table: str
    database: str | None
    where: tuple[str, ...]
    safe: bool

    @classmethod
    def read(cls, given: Any) -> Counted:
        """The request in parsed JSON. Raises QueryError."""
        search.check_keys(given, KEYS)
        table = search.text(given, "table")
        if not table:
            raise search.wrong("table: expected the name of a table")
        return cls(table, search.text(given, "database"), search.conditions(given), search.flag(given, "safe", True))


def counts(service: Service, asked: Counted) -> Mapping[str, int]:
    """rows: of the table; matching: those that a search goes through; hidden: those that meet its conditions and are
    not safe. Call it in a thread of the pool. Raises ClipqlError."""
    table = service.table(asked.database, asked.table)
    roles = service.roles[table]
    hides = asked.safe and roles.safe is not None
    source = f"{quote_name(table.database)}.{quote_name(table.name)}"
    # what is not known to be safe is hidden too, NULL among it
    safe = f"countIf({roles.safe})" if hides else "count()"
    sql = f"SELECT count(), {safe} FROM {source}{search.where_sql(asked.where)}"
    with in_conditions(sql, asked.where):
        found = service.run(Request(sql), service.engine.acting).output.arrow()
    met, matching = (int(column[0].as_py()) for column in found.columns)
    return {"rows": table.rows, "matching": matching, "hidden": met - matching}
