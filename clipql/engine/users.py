"""Whose queries run: chDB connections, and the SETs, databases and temporary tables that belong to one user.

What must stay true: clipql's own queries are never bent by what a user SETs; what a request sets for itself is undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryCancelled, ServerEnding

# Vector columns are ALIAS columns, so `*` must show them; mutations are waited for, so that a DELETE that has
# returned is visible to the planner; a vector or its neighbours' row numbers make long statements.
SESSION = (
    "SET asterisk_include_alias_columns = 1, mutations_sync = 1, insert_allow_materialized_columns = 1, "
    "max_query_size = 1073741824"
)


# clipql makes tables of definitions that ClickHouse has judged under the settings of the user who gave them
JUDGED = (
    ", allow_suspicious_low_cardinality_types = 1, allow_suspicious_fixed_string_types = 1, "
    "allow_suspicious_codecs = 1, allow_suspicious_indices = 1, allow_suspicious_primary_key = 1, "
    "allow_suspicious_ttl_expressions = 1, allow_suspicious_variant_types = 1, allow_experimental_object_type = 1, "
    "flatten_nested = 0"
)


class Connection:
    """One chDB connection: how many of the user's SET statements it has seen, and what a request had set besides.

    database: the one that a request asked for, None where it is in the user's own. judged: it is clipql's own.
    Errors of chDB pass through, for the engine to translate.
    """

    def __init__(self, raw: Any, tag: str, *, judged: bool = False) -> None:
        self.raw, self.tag, self.seen = raw, tag, 0
        self.settings: dict[str, str] = {}
        self.database: str | None = None
        raw.query(f"{SESSION}{JUDGED if judged else ''}, log_comment = '{tag}'")

    def prepare(self, acting: Acting) -> None:
        """Have the connection be as the request wants it; requests of one client mostly want the same."""
        run, user = self.raw.query, acting.user
        if self.settings != acting.settings and self.settings:
            run("SET " + ", ".join(f"{name} = DEFAULT" for name in self.settings))
            run(SESSION)
            self.settings, self.seen = {}, 0
        for statement in user.statements[self.seen :]:
            run(statement)
            self.seen += 1
        if self.settings != acting.settings:
            self.settings = dict(acting.settings)
            run("SET " + ", ".join(f"{name} = {quote_string(value)}" for name, value in acting.settings.items()))
        if self.database != acting.database:
            run(f"USE {quote_name(acting.database or user.database)}")
            self.database = acting.database

    def renamed(self, tag: str) -> bool:
        """Give it another tag, under which no KILL is on its way; whether it has it."""
        for _ in range(3):
            with contextlib.suppress(RuntimeError):  # the KILL may hit this statement
                self.raw.query(f"SET log_comment = '{tag}'")
                self.tag = tag
                return True
        return False

    def drained(self) -> bool:
        """Whether the connection is clean again after an error.

        chDB prefixes what a failed query had already written to the next result of the same connection, which
        would be a wrong answer; a throw-away query takes it.
        """
        with contextlib.suppress(RuntimeError):
            for _ in range(3):
                if self.raw.query("SELECT 'clipql'", "TabSeparated").bytes() == b"clipql\n":
                    return True
        return False


class EngineUser:
    """One whose SET and USE statements, and temporary tables, concern nobody else: the process, or a network session.

    statements: run on each connection before its first query. database: the current one. hidden: names of temporary
    tables, which live on one connection: a user who has them runs one statement at a time.
    """

    def __init__(self, statements: Iterable[str] = ()) -> None:
        self.statements = list(statements)
        self.database = "default"
        self.hidden: set[str] = set()
        self.idle: list[Connection] = []


@dataclass
class Acting:
    """One request of a user: settings and database for it alone, and what it runs, so that it can be cancelled.

    late: the seconds that it had, where it was cancelled because they are over. ending: it was cancelled because all
    are, as the server ends.
    """

    user: EngineUser
    settings: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None
    running: set[str] = field(default_factory=set)
    cancelled: bool = False
    late: float = 0
    ending: bool = False

    def stopped(self) -> QueryCancelled:
        """The error of a request that was cancelled."""
        if self.late:
            return QueryCancelled(f"Timeout exceeded: maximum: {self.late:.1f} s", code=159, name="TIMEOUT_EXCEEDED")
        if self.ending:
            return ServerEnding(
                "the server is ending, and the query was cut off: send it again in a moment; whether a statement that "
                "writes was carried out is not known",
                code=394,
                name="QUERY_WAS_CANCELLED",
            )
        return QueryCancelled("the query was cancelled", code=394, name="QUERY_WAS_CANCELLED")


ACTING: ContextVar[Acting | None] = ContextVar("clipql_acting", default=None)
