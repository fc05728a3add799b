"""What a statement that changes definitions would do to tables with vectors, by ClickHouse's own reading of it.

ClickHouse writes the statement out anew (formatQuerySingleLine, 1 ms), with every name decoded, every optional word
there and every change of an ALTER in brackets, so that nothing can be said in a way that is not seen here.
What must stay true: a statement changes both halves of a table or neither; what cannot be carried out so is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipql.engine import formatting
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError, UnsupportedStatement
from clipql.sql.joins.components import NAME as CONNECTED
from clipql.sql.joins.near_any import NAME as NEAR_ANY
from clipql.sql.numbers.heads import NAMES as HEADS
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read
from clipql.syntax.statements import CreateTable, OnDatabase, OnTable
from clipql.tables.registry import FUNCTION, INTERNAL, Registry

_MADE = {"CREATE", "REPLACE", "ATTACH", "ALTER"}
_CHANGES = _MADE | {"DROP", "TRUNCATE", "DETACH", "UNDROP", "RENAME", "EXCHANGE", "OPTIMIZE", "DELETE", "UPDATE"}
# these leave a temporary table of the name alone
_PAST_TEMPORARY = {"RENAME", "EXCHANGE", "DELETE", "UPDATE"}
# engines that pass on to another table what is done to theirs
_PASSING = {"ALIAS", "BUFFER"}
_BY_INSERT = "rows come into a table with vectors by INSERT INTO it, not through a view or another table"


# functions that are written out by the planner, in small letters
_OWN = (NEAR_ANY.lower(), CONNECTED.lower(), *(name.lower() for name in HEADS))


@dataclass(frozen=True)
class Ruling:
    """A statement to go on with. replaced: the table that it puts something else in the place of, which then goes;
    emptied: the tables that it empties among others.
    """

    text: str
    replaced: Table | None = None
    emptied: tuple[Table, ...] = ()


class Safeguard:
    """Rules on the statements of one user. held: tables of clipql's own database that are there to be read."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.held: set[str] = set()

    def rule(self, sql: str) -> Ruling:
        """What to do with a statement. Raises UnsupportedStatement, or QueryError where it cannot be read."""
        head = read(sql[:4096]).tokens
        word = head[0].upper if head else ""
        if word == "WITH" and any(t.upper == "INSERT" for t in head):
            return Ruling(self._written(sql) or sql)
        if word in ("INSERT", "USE"):
            self._check_internal(_until_data(head))
        if word not in _CHANGES and word != "EXECUTE" and not any(t.upper == "PARALLEL" for t in head):
            return Ruling(sql)
        ours = ("_clipql", INTERNAL, *_OWN)
        if not self._registry.catalog.tables and not any(name in sql.lower() for name in ours):
            return Ruling(sql)
        text = self._written(sql)
        if text is None:
            return Ruling(sql)
        tokens = read(text).tokens
        self._check_internal(tokens)
        self._check_several(tokens)
        ruling = self._verdict(text, tokens) if word in _CHANGES else None
        return ruling or Ruling(text if self._clearer(sql, text) else sql)

    def _written(self, sql: str) -> str | None:
        """The statement as ClickHouse writes it; None where a definition may have a spelling of ours in it."""
        try:
            return formatting.written(lambda query, format: self._registry.engine.query(query, format).data, sql)
        except QueryError as error:
            if error.name != "SYNTAX_ERROR" or read(sql).tokens[0].upper in _MADE | {"EXECUTE", "WITH", "INSERT"}:
                return None
            raise

    def _clearer(self, sql: str, text: str) -> bool:
        """Whether ClickHouse's text shows a table of ours, or a change of it, that the user's own does not."""
        mine, theirs = read(sql).kind, read(text).kind
        if isinstance(theirs, OnTable) and theirs.verb == "ALTER":
            return not any(t.upper == "INDEX" for t in read(sql).tokens)  # a vector index is shown as it was written
        if type(mine) is not type(theirs):
            return True
        if isinstance(mine, OnTable) and isinstance(theirs, OnTable):
            return [(t.database, t.name) for t in mine.tables] != [(t.database, t.name) for t in theirs.tables]
        if isinstance(mine, CreateTable) and isinstance(theirs, CreateTable):
            return (mine.table.database, mine.table.name) != (theirs.table.database, theirs.table.name)
        return isinstance(mine, OnDatabase) and mine != theirs

    # what is refused wherever it stands

    def _check_internal(self, tokens: Sequence[Token]) -> None:
        named = any(
            (t.name == INTERNAL and not (i + 2 < len(tokens) and tokens[i + 2].name in self.held))
            or (t.kind == "string" and INTERNAL in t.said)
            for i, t in enumerate(tokens)
        )
        if named or self._registry.database == INTERNAL:
            raise UnsupportedStatement(f"the database {INTERNAL} is clipql's own: use another")

    def _check_several(self, tokens: Sequence[Token]) -> None:
        words = [t.upper for t in tokens]
        table = next(iter(self._mentioned(tokens)), None)
        if table is None:
            return
        pairs = set(itertools.pairwise(words))
        if ("PARALLEL", "WITH") in pairs or words[0] == "EXECUTE":
            raise UnsupportedStatement(f"a statement about {table.full_name}, which has vectors, must stand alone")
        if ("ON", "CLUSTER") in pairs:
            raise UnsupportedStatement(
                f"{table.full_name} has vectors, which are on this machine alone: leave ON CLUSTER out"
            )

    def _mentioned(self, tokens: Sequence[Token]) -> list[Table]:
        """The tables of ours that tokens may name."""
        found = []
        for i, token in enumerate(tokens):
            if token.kind == "string":
                database, _, name = token.said.rpartition(".")
                table = self._registry.catalog.table(database or self._registry.database, name)
            elif token.name and not (i and tokens[i - 1].text == "."):
                path = _path(tokens, i)
                table = self._find(*path[:2]) if path else None
            else:
                table = None
            if table:
                found.append(table)
        return found

    def _find(self, database: str | None, name: str) -> Table | None:
        """The table of ours of a name, whatever temporary table hides it."""
        return self._registry.catalog.table(database or self._registry.database, name)

    # by what is changed

    def _verdict(self, text: str, tokens: Sequence[Token]) -> Ruling | None:
        verb = tokens[0].upper
        at = 1
        replaces = verb == "REPLACE"
        if [t.upper for t in tokens[1:3]] == ["OR", "REPLACE"]:
            replaces, at = True, 3
        temporary = False
        while at < len(tokens) and tokens[at].upper in ("TEMPORARY", "MATERIALIZED", "LIVE", "WINDOW"):
            temporary, at = temporary or tokens[at].upper == "TEMPORARY", at + 1
        if verb in ("DELETE", "UPDATE", "EXCHANGE", "RENAME"):
            self._check_hidden(verb, tokens)
        kind = tokens[at].upper if at < len(tokens) else ""
        named = _path(tokens, _past_conditions(tokens, at + 1))
        target = self._find(*named[:2]) if named and not temporary else None
        if verb == "TRUNCATE" and kind in ("ALL", "TABLES"):
            return self._emptying(text, tokens, at)
        if kind == "FUNCTION":
            self._check_function(tokens, at)
        elif kind == "INDEX":
            self._check_index(verb, tokens, at)
        elif kind == "DATABASE" and verb == "RENAME":
            self._check_databases(tokens, at)
        elif verb == "ALTER" and temporary:
            hidden = named is not None and named[1] in self._registry.hidden
            if not hidden and named and self._find(*named[:2]):
                raise UnsupportedStatement(f"{named[1]} is no temporary table: leave TEMPORARY out")
        elif verb in ("CREATE", "REPLACE", "ATTACH") and named:
            self._check_made(kind, tokens, named[2])
            if target and replaces:
                if kind == "DICTIONARY":
                    raise UnsupportedStatement(
                        f"{target.full_name} has vectors: DROP it before a dictionary of its name"
                    )
                if target.name in self._registry.hidden and named[0] is None:
                    self._ambiguous(target)
                if kind == "VIEW":
                    return Ruling(text, replaced=target)
        elif verb == "RENAME" and kind == "TABLE":
            self._check_chain(tokens, at)
        return None

    def _check_hidden(self, verb: str, tokens: Sequence[Token]) -> None:
        for i, token in enumerate(tokens):
            if token.name in self._registry.hidden and tokens[i - 1].text != ".":
                path = _path(tokens, i)
                table = self._find(*path[:2]) if path and path[0] is None else None
                if table and verb in _PAST_TEMPORARY:
                    self._ambiguous(table)

    def _ambiguous(self, table: Table) -> None:
        raise UnsupportedStatement(
            f"{table.name} is a temporary table, and {table.full_name} has vectors: write the database if that is meant"
        )

    def _check_function(self, tokens: Sequence[Token], at: int) -> None:
        named = _path(tokens, _past_conditions(tokens, at + 1))
        if named and (named[1].lower().startswith(FUNCTION.lower()) or named[1].lower() in _OWN):
            raise UnsupportedStatement(f"the function {named[1]} is clipql's own: take another name")

    def _check_index(self, verb: str, tokens: Sequence[Token], at: int) -> None:
        where = next((i for i in range(at, len(tokens)) if tokens[i].upper == "ON"), None)
        named = _path(tokens, where + 1) if where else None
        table = self._find(*named[:2]) if named else None
        if table:
            change = "ADD INDEX name column TYPE …" if verb == "CREATE" else "DROP INDEX name"
            raise UnsupportedStatement(
                f"{verb} INDEX is not carried out on {table.full_name}: write ALTER TABLE {table.full_name} {change}"
            )

    def _check_databases(self, tokens: Sequence[Token], at: int) -> None:
        for table in self._registry.catalog.tables:
            if any(t.name == table.database for t in tokens[at + 1 :]):
                raise UnsupportedStatement(
                    f"RENAME DATABASE is not carried out on {table.database}, which holds {table.full_name} with its "
                    "vectors: move its tables by RENAME TABLE"
                )

    def _check_made(self, kind: str, tokens: Sequence[Token], at: int) -> None:
        """Refuse what would write to a table of ours past its vectors: a view TO it, an Alias, a Buffer."""
        while at < len(tokens) and tokens[at].upper != "AS":
            if tokens[at].kind == "symbol" and tokens[at].text == "(":
                at = matching(tokens, at)
            elif kind == "VIEW" and tokens[at].upper == "TO":
                named = _path(tokens, at + 1)
                table = self._find(*named[:2]) if named else None
                if table:
                    raise UnsupportedStatement(f"{table.full_name}: {_BY_INSERT}")
            elif tokens[at].upper == "ENGINE" and at + 3 < len(tokens) and tokens[at + 2].upper in _PASSING:
                inside = tokens[at + 3 : matching(tokens, at + 3) + 1] if tokens[at + 3].text == "(" else []
                self._check_passing(tokens[at + 2].text, inside)
            at += 1

    def _check_passing(self, engine: str, inside: Sequence[Token]) -> None:
        names = [t.said for t in inside]
        for table in self._registry.catalog.tables:
            here = table.database in names or self._registry.database == table.database or "currentDatabase" in names
            if (table.name in names and here) or table.full_name in names:
                raise UnsupportedStatement(f"{engine} of {table.full_name}: {_BY_INSERT}")

    def _check_chain(self, tokens: Sequence[Token], at: int) -> None:
        """Refuse RENAME a TO b, b TO c, where a is ours: where it is afterwards could not be told after a crash."""
        names: list[tuple[str, str]] = []
        at = _past_conditions(tokens, at + 1)
        while (path := _path(tokens, at)) is not None:
            names.append((path[0] or self._registry.database, path[1]))
            at = path[2] + 1
        old, new = names[::2], names[1::2]
        for was, becomes in zip(old, new, strict=False):
            table = self._registry.catalog.table(*was)
            if table and becomes in old:
                raise UnsupportedStatement(f"{table.full_name} has vectors: rename it in a statement of its own")

    def _emptying(self, text: str, tokens: Sequence[Token], at: int) -> Ruling | None:
        """TRUNCATE ALL TABLES FROM database [[NOT] LIKE '…']."""
        at += next((i for i, t in enumerate(tokens[at:]) if t.upper == "FROM"), 0) + 1
        named = _path(tokens, _past_conditions(tokens, at))
        if named is None:
            return None
        database, like = named[1], text[tokens[named[2]].start :] if named[2] < len(tokens) else ""
        words = [t.upper for t in tokens[named[2] :]]
        like = f"AND name {like}" if {"LIKE", "ILIKE"} & set(words) else ""
        found = self._registry.engine.arrow(
            f"SELECT name FROM system.tables WHERE database = {quote_string(database)} {like}"
        )
        tables = [self._registry.catalog.table(database, name) for name in found.column(0).to_pylist()]
        return Ruling(text, emptied=tuple(t for t in tables if t))


def with_names(sql: str, params: Mapping[str, Any]) -> str:
    """The statement with each `{name:Identifier}` as the name that it stands for."""
    if "Identifier" not in sql or "{" not in sql:
        return sql
    tokens, edits = read(sql).tokens, list[Edit]()
    for i in range(len(tokens) - 4):
        run = [t.text for t in tokens[i : i + 5]]
        value = params.get(run[1])
        if i + 5 < len(tokens) and tokens[i + 5].text == "(":
            continue  # ClickHouse takes no parameter for the name of a function
        if (run[0], run[2], run[3], run[4]) == ("{", ":", "Identifier", "}") and isinstance(value, str):
            edits.append((tokens[i].start, tokens[i + 4].end, quote_name(value)))
    return edited(sql, edits)


def _path(tokens: Sequence[Token], at: int) -> tuple[str | None, str, int] | None:
    """The database and name that begin at a token, and the place behind them."""
    if at >= len(tokens) or tokens[at].name is None:
        return None
    if at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].name is not None:
        return tokens[at].name, tokens[at + 2].name or "", at + 3
    return None, tokens[at].name or "", at + 1


def _past_conditions(tokens: Sequence[Token], at: int) -> int:
    while at < len(tokens) and tokens[at].upper in ("IF", "NOT", "EXISTS", "EMPTY"):
        at += 1
    return at


def _until_data(tokens: Sequence[Token]) -> Sequence[Token]:
    """The tokens of an INSERT before what is inserted."""
    ends = (i for i, t in enumerate(tokens) if t.upper in ("VALUES", "FORMAT", "SELECT", "WITH"))
    return tokens[: next(ends, len(tokens))]
