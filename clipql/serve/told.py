"""Modest answers for what tools ask of a server: clusters, processes, users, grants, the log of queries.

ClickHouse's own tables of these names tell of the process and are not read for the network. A statement that reads one
of them gets a table of literals in its place before the guard looks at it: what the server itself knows and may tell.
What must stay true: nothing of ClickHouse's is read for it; whoever is told of a query might have asked it, as all who
bring the token are one user.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clipql.engine.quoting import quote_string
from clipql.serve.allowed import words
from clipql.serve.progress import Counts
from clipql.sql.definitions.introspection import too_often
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read

# queries that are told of, and letters of each; how often a statement may name these tables, as each is written out
MOST_QUERIES, MOST_LETTERS, MOST_PLACES = 100, 300, 16
_NAMED = re.compile(r"system|show", re.I)
_READING = ("FROM", "JOIN", ",")
_AFTER_TABLE = words(
    "FINAL SAMPLE ARRAY LEFT RIGHT INNER FULL CROSS OUTER JOIN GLOBAL ANY ALL SEMI ANTI ASOF PREWHERE WHERE GROUP "
    "HAVING WINDOW QUALIFY ORDER LIMIT OFFSET UNION EXCEPT INTERSECT SETTINGS FORMAT INTO ON USING"
)
_COLUMNS = {
    "clusters": (
        "cluster String, shard_num UInt32, shard_weight UInt32, replica_num UInt32, host_name String, "
        "host_address String, port UInt16, is_local UInt8, user String, default_database String, errors_count UInt32"
    ),
    "macros": "macro String, substitution String",
    "users": "name String, storage String, auth_type String, default_roles_all UInt8, default_database String",
    "grants": (
        "user_name Nullable(String), role_name Nullable(String), access_type String, database Nullable(String), "
        "table Nullable(String), column Nullable(String), is_partial_revoke UInt8, grant_option UInt8"
    ),
    "processes": (
        "is_initial_query UInt8, user String, query_id String, initial_query_id String, elapsed Float64, "
        "read_rows UInt64, read_bytes UInt64, total_rows_approx UInt64, memory_usage Int64, query String, "
        "current_database String"
    ),
    "query_log": (
        "type String, event_date Date, event_time DateTime, query_start_time DateTime, query_duration_ms UInt64, "
        "read_rows UInt64, result_rows UInt64, memory_usage UInt64, current_database String, query String, "
        "exception_code Int32, exception String, is_initial_query UInt8, user String, query_id String, "
        "initial_query_id String, interface UInt8"
    ),
}
_PROCESSES: tuple[tuple[str, ...], ...] = (("SHOW", "PROCESSLIST"), ("SHOW", "FULL", "PROCESSLIST"))
_READS, _WRITES = ("SHOW", "SELECT"), ("INSERT", "ALTER", "CREATE", "DROP", "TRUNCATE", "OPTIMIZE")
_POLICIES: tuple[tuple[str, ...], ...] = (("SHOW", "POLICIES"), ("SHOW", "ROW", "POLICIES"))


@dataclass(frozen=True)
class Asked:
    """A query that ended. code: of its error, 0 without one. began: seconds since 1970."""

    query_id: str
    sql: str
    database: str
    began: float
    seconds: float
    code: int
    read_rows: int = 0
    result_rows: int = 0


class Told:
    """The tables. running: gives the id and the text of each query that runs, since when (time.time), and what it has
    read."""

    def __init__(self, write: bool, running: Callable[[], Iterable[tuple[str, str, float, Counts]]]) -> None:
        self._write, self._running = write, running
        self._ended: deque[Asked] = deque(maxlen=MOST_QUERIES)

    def ended(self, asked: Asked) -> None:
        """A query is over."""
        self._ended.append(asked)

    def rewritten(self, sql: str) -> str:
        """The statement with a table of literals in the place of each of these. Raises QueryError for very many."""
        if not _NAMED.search(sql):
            return sql
        tokens = read(sql).words
        spelled = tuple(t.upper for t in tokens[:3])
        if spelled[:1] == ("SHOW",):
            return self._show(sql, tokens, spelled)
        if not tokens or tokens[0].upper not in ("SELECT", "WITH", "FROM", "(", "EXPLAIN"):
            return sql
        edits, texts = list[Edit](), dict[str, str]()
        for at in range(len(tokens) - 2):
            table = tokens[at + 2].name or ""
            if table not in _COLUMNS or tokens[at].name != "system" or tokens[at + 1].text != ".":
                continue
            following = tokens[at + 3] if at + 3 < len(tokens) else None
            if at and tokens[at - 1].upper in _READING and (following is None or following.text not in (".", "(")):
                if len(edits) == MOST_PLACES:
                    raise too_often(f"system.{table} and its like", MOST_PLACES)
                named = following is not None and following.name and following.upper not in _AFTER_TABLE
                text = texts[table] = texts.get(table) or self._table(table)
                edits.append((tokens[at].start, tokens[at + 2].end, text + ("" if named else f" AS {table}")))
        return edited(sql, edits)

    def _show(self, sql: str, tokens: Sequence[Token], spelled: tuple[str, ...]) -> str:
        rest = next((sql[t.start :] for t in tokens if t.upper in ("FORMAT", "SETTINGS")), "")
        for begin in _POLICIES:
            if spelled[: len(begin)] == begin:
                return f"SELECT '' AS name WHERE 0 {rest}"
        if any(spelled[: len(begin)] == begin for begin in _PROCESSES):
            return f"SELECT * FROM {self._table('processes')} {rest}"
        if spelled[:2] == ("SHOW", "GRANTS") and (len(tokens) == 2 or rest):
            rights = ", ".join(self._rights())
            return f"SELECT {quote_string(f'GRANT {rights} ON *.* TO default')} AS GRANTS {rest}"
        return sql

    def _table(self, name: str) -> str:
        told = {
            "users": self._users,
            "grants": self._grants,
            "processes": self._processes,
            "query_log": self._query_log,
        }
        rows = told[name]() if name in told else []
        columns = _COLUMNS[name]
        if rows:
            return f"(SELECT * FROM values({quote_string(columns)}, {', '.join(rows)}))"
        names = [c.split(" ", 1) for c in columns.split(", ")]
        return f"(SELECT {', '.join(f'CAST(NULL, {quote_string(_nullable(t))}) AS {n}' for n, t in names)} WHERE 0)"

    def _rights(self) -> tuple[str, ...]:
        return (
            "SHOW",
            "SELECT",
            *(("INSERT", "ALTER", "CREATE", "DROP", "TRUNCATE", "OPTIMIZE") if self._write else ()),
        )

    def _users(self) -> list[str]:
        return ["('default', 'clipql', 'plaintext_password', 1, 'default')"]

    def _grants(self) -> list[str]:
        return [f"('default', NULL, '{right}', NULL, NULL, NULL, 0, 0)" for right in self._rights()]

    def _processes(self) -> list[str]:
        now = time.time()
        return [
            f"(1, 'default', {_text(id)}, {_text(id)}, {now - began:.6f}, {read.rows}, {read.size}, {read.total_rows}, "
            f"0, {_text(sql)}, 'default')"
            for id, sql, began, read in self._running()
        ]

    def _query_log(self) -> list[str]:
        return [
            f"('{'ExceptionWhileProcessing' if a.code else 'QueryFinish'}', toDate({int(a.began + a.seconds)}), "
            f"{int(a.began + a.seconds)}, {int(a.began)}, {int(a.seconds * 1000)}, {a.read_rows}, {a.result_rows}, 0, "
            f"{_text(a.database)}, {_text(a.sql)}, {a.code}, '', 1, 'default', "
            f"{_text(a.query_id)}, {_text(a.query_id)}, 2)"
            for a in self._ended
        ]


def _text(text: str) -> str:
    return quote_string(text[:MOST_LETTERS].encode("utf-8", "replace").decode())


def _nullable(type: str) -> str:
    return type if type.startswith("Nullable") else f"Nullable({type})"
