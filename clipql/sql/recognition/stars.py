"""`*`, `t.*`, `COLUMNS('…')` and `IN t` spelled out, so that a table with vectors has its columns in the user's order.

ClickHouse gives ALIAS columns, which vector columns are to it, behind all others, and COLUMNS('…') our hidden `_row`.
Which columns a star stands for, and in which order, is asked of the table's shape, which has the user's own definition;
the star becomes `COLUMNS(t.a, t.b)`, which keeps the order of its list and takes EXCEPT, REPLACE and APPLY as a star
does. Where no list can say it (JOIN … USING), the table becomes a SELECT that has its columns in order. Stars of tables
without vectors are spelled out too where these have ALIAS columns, which their stars do not stand for.
What must stay true: no star over a table of ours reaches ClickHouse, in a view neither; what cannot be spelled out is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError, UnsupportedStatement
from clipql.sql.recognition.aliased import AliasedTable, AliasedTables
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.syntax.select_first import select_first
from clipql.syntax.sources import Entry, Sources
from clipql.syntax.stars import Star, is_star, stars_in
from clipql.tables.registry import Registry

_MAY = re.compile(r"\*|\bcolumns\b|\bin\b|\bfrom\b", re.IGNORECASE)
# settings that say what a star stands for
_SETTING = re.compile(r"asterisk_include_\w+\s*=\s*\w+")
# joins whose `*` is one table's columns after the other's
_PLAIN_JOINS = {"JOIN", ",", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "OUTER", "ON", "ANY", "ALL", "FINAL", "SAMPLE",
                "GLOBAL", "SEMI", "ANTI", "ASOF"}  # fmt: skip
# table functions that read other tables by their names
_READERS = {"merge", "remote", "remotesecure", "cluster", "clusterallreplicas", "loop", "viewifpermitted"}


class Stars:
    """Spells statements out over the tables of a registry. Thread-safe: what two threads find out is the same."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._aliased = registry, AliasedTables(registry)
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def spelled(self, sql: str) -> str:
        """The statement with each star over a table of ours spelled out, and SELECT before FROM.

        Raises UnsupportedStatement where one cannot be.
        """
        if not _MAY.search(sql):
            return sql
        sql = self._inserted(select_first(sql))
        tokens, found = read(sql).tokens, read(sql).selects
        if not any(t.text == "*" or t.upper in ("COLUMNS", "IN") for t in tokens):
            return sql
        self._check_understood(tokens, found)
        settings = _SETTING.findall(sql)
        inner = [(s.whole.first, s.whole.last) for s in found]
        edits: list[Edit] = []
        for scope in found:
            nested = [span for span in inner if scope.whole.first < span[0] and span[1] <= scope.whole.last]
            edits += _ScopeStars(self, scope, nested, ", ".join(settings)).edits()
        return edited(sql, edits)

    def find(self, database: str | None, name: str) -> Table | None:
        return self._registry.find(database, name)

    def spells(self, database: str | None, name: str) -> Table | AliasedTable | None:
        """The table of this name if its stars may have to be spelled out."""
        return self.find(database, name) or self._aliased.find(database, name)

    def tables(self) -> tuple[Table, ...]:
        return tuple(self._registry.catalog.tables)

    def _check_understood(self, tokens: Sequence[Token], found: Sequence[Scope]) -> None:
        """Refuse a star beside a SELECT whose shape is not understood: it could be that one's."""
        known = {s.clauses["SELECT"].first - 1 for s in found}
        missed = [
            i for i, t in enumerate(tokens) if t.upper == "SELECT" and tokens[i - 1].text != "." and i not in known
        ]
        if not missed or tokens[0].upper in ("GRANT", "REVOKE"):
            return
        for i, token in enumerate(tokens[missed[0] :], missed[0]):
            path = _named(tokens, i) if token.name and tokens[i - 1].text != "." else None
            table = self.find(*path[:2]) if path else None
            if table and any(is_star(tokens, at, len(tokens)) for at, t in enumerate(tokens) if t.text == "*"):
                begins = " ".join(t.text for t in tokens[missed[0] :][:6])
                raise UnsupportedStatement(
                    f"{begins} … could not be read, so its * over {table.full_name} might give the columns in another "
                    "order: name the columns"
                )

    def columns(self, table: Table | AliasedTable, star: str = "*", settings: str = "") -> tuple[str, ...]:
        """What a star, or COLUMNS(…), of a table called t stands for, in the order of its definition."""
        acting = self._registry.engine.acting
        context = (settings, *acting.user.statements, *acting.settings.items())
        ours = isinstance(table, Table)
        version = self._registry.version(table.id) if ours else self._registry.changes
        key = (table.id, version, star, context)
        known = self._known.get(key)
        if known is None:
            if len(self._known) > 1000:
                self._known.clear()
            source = self._registry.shape(table) if isinstance(table, Table) else table.id
            text = f"DESCRIBE TABLE (SELECT {star} FROM {source} AS t)"
            try:
                text += " SETTINGS asterisk_include_alias_columns = 0" + (f", {settings}" if settings else "")
                described = self._registry.engine.query(text, user=True).arrow()
                known = tuple(described.column(0).to_pylist())
            except QueryError as error:
                if error.name != "EMPTY_LIST_OF_COLUMNS_QUERIED":
                    raise
                known = ()
            self._known[key] = known
        return known

    def in_order(self, table: Table | AliasedTable, settings: str) -> bool:
        """Whether ClickHouse's own `*` of the physical table is right."""
        if not isinstance(table, Table):
            return False
        acting = self._registry.engine.acting
        if settings or _SETTING.search(str((acting.user.statements, acting.settings))):
            return False
        columns = self.columns(table)
        vectors = [c for c in columns if table.column(c)]
        kinds = self._kinds(table)
        if vectors != [c.name for c in table.columns]:  # one was added in front of another
            return False
        return columns[len(columns) - len(vectors) :] == tuple(vectors) and "ALIAS" not in kinds

    def _kinds(self, table: Table) -> tuple[str, ...]:
        key = (table.id, self._registry.version(table.id))
        known = self._known.get(key)
        if known is None:
            found = self._registry.engine.arrow(
                "SELECT DISTINCT default_kind FROM system.columns WHERE database = 'clipql_internal' "
                f"AND table = {quote_string(table.id)}"
            )
            known = self._known[key] = tuple(found.column(0).to_pylist())
        return known

    def computed(self, table: Table | AliasedTable) -> tuple[str, ...]:
        """The columns of a table that are no part of its `*`."""
        star = self.columns(table)
        return tuple(c for c in self.columns(table, "COLUMNS('')") if c not in star)

    def is_column(self, scope: Scope, name: str) -> bool:
        """Whether a SELECT has a column of this name to offer."""
        prefix = f"WITH {', '.join(scope.withs)} " if scope.withs else ""
        text = f"DESCRIBE TABLE ({prefix}SELECT {quote_name(name)} FROM {scope.body('FROM')})"
        try:
            self._registry.engine.query(text, user=True)
        except QueryError:
            return False
        return True

    def _inserted(self, sql: str) -> str:
        """INSERT INTO t (* EXCEPT a) with its columns by name."""
        tokens = read(sql).tokens
        if not tokens or tokens[0].upper != "INSERT":
            return sql
        at = 1
        while at < len(tokens) and tokens[at].upper in ("INTO", "TABLE"):
            at += 1
        entry = _named(tokens, at)
        if entry is None:
            return sql
        database, name, opening = entry
        table = self.find(database, name)
        if table is None or opening >= len(tokens) or tokens[opening].text != "(":
            return sql
        close = matching(tokens, opening)
        inside = tokens[opening + 1 : close]
        if not inside or not any(t.text == "*" or t.upper == "COLUMNS" for t in inside):
            return sql
        start, end = inside[0].start, inside[-1].end
        return edited(sql, [(start, end, ", ".join(map(quote_name, self.columns(table, sql[start:end]))))])


def _named(tokens: Sequence[Token], at: int) -> tuple[str | None, str, int] | None:
    if at >= len(tokens) or not tokens[at].name:
        return None
    if at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].name:
        return tokens[at].name, tokens[at + 2].name or "", at + 3
    return None, tokens[at].name or "", at + 1


class _ScopeStars:
    """The stars of one SELECT. nested: the SELECTs within it, as token runs, which are no part of it."""

    def __init__(self, stars: Stars, scope: Scope, nested: list[tuple[int, int]], settings: str) -> None:
        self._settings = settings
        self._stars, self._scope, self._tokens = stars, scope, scope.tokens
        self._skip = dict(sorted(nested, reverse=True))
        self._sources: Sources = scope.sources
        self._tables: Mapping[int, Table | AliasedTable] = {}

    def edits(self) -> list[Edit]:
        edits = [edit for at in self._members() if (edit := self._member(at))]
        found = list(stars_in(self._scope, self._walk()))
        if not found:
            return edits
        for entry in self._sources.entries:
            self._check_function(entry)
        self._tables = {
            i: table
            for i, e in enumerate(self._sources.entries)
            if e.kind == "table"
            and not (e.database is None and e.name in self._scope.names)
            and (table := self._stars.spells(e.database, e.name))
        }
        wrapped = False
        for star in found:
            if not self._tables or (star.is_list and not star.path):
                continue
            changed = self._qualified(star) if star.path else self._bare(star)
            if changed is None:
                wrapped = True
            else:
                edits += changed
        return edits + (self._wrapped(found) if wrapped else [])

    # finding

    def _walk(self) -> list[int]:
        """The places of the tokens of this SELECT outside FROM and outside the SELECTs within it."""
        span = self._scope.clauses.get("FROM")
        at, places = self._scope.whole.first, []
        while at < self._scope.whole.last:
            if at in self._skip:
                at = self._skip[at]
            elif span and at == span.first:
                at = span.last
            else:
                places.append(at)
                at += 1
        return places

    # spelling out

    def _list(self, entry: Entry, table: Table | AliasedTable, star: str) -> str | None:
        columns = self._stars.columns(table, star, self._settings)
        if not columns:
            return None
        before = quote_name(entry.called)
        if entry.alias is None and entry.database is not None:
            before = f"{quote_name(entry.database)}.{before}"
        return "COLUMNS(" + ", ".join(f"{before}.{quote_name(c)}" for c in columns) + ")"

    def _edit(self, star: Star, last: int, text: str) -> Edit:
        return self._tokens[star.first].start, self._tokens[last - 1].end, text

    def _leave(self, star: Star, tables: list[Table | AliasedTable]) -> bool:
        """Whether ClickHouse gives the right columns by itself."""
        return star.text == "*" and all(self._stars.in_order(t, self._settings) for t in tables)

    def _qualified(self, star: Star) -> list[Edit] | None:
        """The edits for a star of one table; None where the tables must change instead."""
        owners = [i for i, e in enumerate(self._sources.entries) if e.is_called(star.path)]
        if not owners or owners[0] not in self._tables:
            return []
        entry, table = self._sources.entries[owners[0]], self._tables[owners[0]]
        if len(owners) > 1:
            raise UnsupportedStatement(
                f"{'.'.join(star.path)}.{star.text}: two tables are called so; give them aliases"
            )
        if self._leave(star, [table]):
            return []
        if "ARRAY" in self._sources.words:
            return None  # t.a is then an element, and the a of t.* is not
        text = self._list(entry, table, f"t.{star.text}")
        return [self._edit(star, star.last, text or "COLUMNS('^$')")]

    def _bare(self, star: Star) -> list[Edit] | None:
        """The edits for a star without qualifier; None where the tables must change instead."""
        entries = self._sources.entries
        if self._leave(star, list(self._tables.values())):
            return []
        if len(entries) == 1:
            text = self._list(entries[0], self._tables[0], star.text)
            return [self._edit(star, star.last, text or "COLUMNS('^$')")]
        called = [e.called for e in entries]
        rest = self._tokens[star.last : star.end]
        if (
            self._sources.words - _PLAIN_JOINS
            or len(set(called)) < len(called)
            or not all(called)
            or any(t.upper == "STRICT" for t in rest)
        ):
            return None
        changes = f" {self._scope.text[rest[0].start : rest[-1].end]}" if rest else ""
        parts = [
            self._list(e, self._tables[i], star.text) if i in self._tables else f"{quote_name(e.called)}.{star.text}"
            for i, e in enumerate(entries)
        ]
        return [self._edit(star, star.end, ", ".join(p + changes for p in parts if p))]

    def _wrapped(self, found: list[Star]) -> list[Edit]:
        """Tables as SELECTs that have their columns in order, and nothing else."""
        edits = []
        for i, table in self._tables.items():
            entry = self._sources.entries[i]
            hidden = self._stars.computed(table)
            names = {t.name for t in self._tokens[self._scope.whole.first : self._scope.whole.last]}
            asked = next((n for n in (*hidden, "_part", "_row", "_partition_id") if n in names), None)
            regex = next((s for s in found if s.text != "*" and hidden), None)
            if asked or regex or not entry.plain:
                what = asked or (regex.text if regex else "the aliases of columns")
                raise UnsupportedStatement(
                    f"* in a JOIN beside {what} of {table.full_name} would not give the columns in their order: name "
                    "the columns"
                )
            listed = ", ".join(
                f"{quote_name(entry.called)}.{quote_name(c)}"
                for c in self._stars.columns(table, settings=self._settings)
            )
            source = self._scope.text[self._tokens[entry.first].start : self._tokens[entry.last - 1].end]
            text = f"(SELECT {listed} FROM {source}) AS {quote_name(entry.called)}"
            edits.append((self._tokens[entry.first].start, self._tokens[entry.last - 1].end, text))
        return edits

    def _check_function(self, entry: Entry) -> None:
        """Refuse a star over a table function that reads a table of ours by its name."""
        if entry.kind != "function" or entry.name.lower() not in _READERS:
            return
        names = {t.said for t in self._tokens[entry.first + 1 : entry.last]}
        for table in self._stars.tables():
            if table.name in names or any(_matches(n, table.name) for n in names if entry.name.lower() == "merge"):
                raise UnsupportedStatement(
                    f"* of {entry.name}(…) over {table.full_name} would leave its vectors out: name the columns"
                )

    # IN t

    def _members(self) -> list[int]:
        """The places of names after IN, which may be tables."""
        tokens, last = self._tokens, self._scope.whole.last
        return [at + 1 for at in self._walk() if tokens[at].upper == "IN" and at + 1 < last and tokens[at + 1].name]

    def _member(self, at: int) -> Edit | None:
        found = _named(self._tokens, at)
        if found is None:
            return None
        database, name, end = found
        table = None if database is None and name in self._scope.names else self._stars.spells(database, name)
        if table is None or (end < len(self._tokens) and self._tokens[end].text == "("):
            return None
        if database is None and self._stars.is_column(self._scope, name):
            return None
        text = self._scope.text[self._tokens[at].start : self._tokens[end - 1].end]
        listed = ", ".join(map(quote_name, self._stars.columns(table)))
        return self._tokens[at].start, self._tokens[end - 1].end, f"(SELECT {listed} FROM {text})"


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
