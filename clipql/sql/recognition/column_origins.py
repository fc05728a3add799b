"""Where columns of a result come from: the table whose column a SELECT gives as it is, through whatever renames it.

What must stay true: where it is told, each value is what that table holds in that column, in one row of it, and columns
of one source are of the same row. What is not fully understood, and what a row may lack its partner for, is not told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipql.sql.recognition.inline import DEEPEST, Finder, cte
from clipql.sql.recognition.stars import Stars
from clipql.storage.catalog import Table
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.names import given_names
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.syntax.sources import Entry
from clipql.syntax.stars import stars_in
from clipql.syntax.statements import Select

_SET_OPERATORS = ("UNION", "INTERSECT", "EXCEPT")
# in GROUP BY and ORDER BY: what makes rows that no table has
_MAKES_ROWS = {"ROLLUP", "CUBE", "GROUPING", "FILL"}
# joins whose `*` is one source's columns after the other's
_PLAIN_JOINS = {"JOIN", ",", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "OUTER", "ON", "ALL", "FINAL", "SAMPLE"}


@dataclass(frozen=True)
class Origin:
    """A column of a table. source: the place that the statement reads it at; equal for columns of the same row."""

    source: tuple[Any, ...]
    table: Table
    column: str


@dataclass(frozen=True)
class _Given:
    """A column that a SELECT gives. name: empty where it cannot be told."""

    name: str
    origin: Origin | None = None


@dataclass(frozen=True)
class _Columns:
    """What a SELECT gives, in order. whole: whether these are all; otherwise more follow that are not known."""

    given: tuple[_Given, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class _Source:
    """One thing that FROM reads. columns: by name; None where they are not known. star: what `*` stands for, None where
    that is not known. sure: whether each row has one of its rows."""

    entry: Entry
    columns: Mapping[str, Origin | None] | None
    star: tuple[_Given, ...] | None
    sure: bool


class ColumnOrigins:
    """Finds them. find: what is asked of the database."""

    def __init__(self, stars: Stars, find: Finder) -> None:
        self._stars, self._find = stars, find

    def of(self, sql: str) -> tuple[Origin | None, ...]:
        """The origin of each column that a SELECT gives; fewer than it gives where the rest are not known.

        sql: with stars spelled out, without FORMAT.
        """
        reading = read(sql)
        if not isinstance(reading.kind, Select) or not reading.readable:
            return ()
        found = self._query(reading.selects, reading.words, 0, len(reading.words), None, 0)
        return tuple(column.origin for column in found.given)

    # SELECTs

    def _query(
        self, selects: Sequence[Scope], tokens: Sequence[Token], first: int, last: int, around: Scope | None, depth: int
    ) -> _Columns:
        """What the tokens of a query give: a SELECT, or several that are united. around: whose WITH is in force."""
        by_place = {scope.whole.first: scope for scope in selects}
        found: list[_Columns] = []
        at = first
        while at < last and depth <= DEEPEST:
            if tokens[at].text == "(":
                close = matching(tokens, at)
                found.append(self._query(selects, tokens, at + 1, close, around, depth + 1))
                at = close + 1
            elif at in by_place:
                found.append(self._select(by_place[at], around, depth))
                at = by_place[at].whole.last
            else:
                return _Columns()
            if at >= last:
                return _united(found)
            if tokens[at].upper not in _SET_OPERATORS:
                return _Columns()
            at += 2 if tokens[at + 1].upper in ("ALL", "DISTINCT") else 1
        return _Columns()

    def _select(self, scope: Scope, around: Scope | None, depth: int) -> _Columns:
        if around is not None:
            scope = replace(scope, withs=(*around.withs, *scope.withs), names=around.names | scope.names)
        sources = self._sources(scope, around, depth)
        made = any(t.upper in _MAKES_ROWS for clause in ("GROUP", "ORDER") for t in scope.within(clause))
        named = _Names(scope, sources)
        given: list[_Given] = []
        for first, last in named.items:
            item = named.item(first, last)
            if item is None:
                return _Columns(tuple(given))
            given += [_Given(one.name) for one in item] if made else item
        return _Columns(tuple(given), whole=True)

    # what FROM reads

    def _sources(self, scope: Scope, around: Scope | None, depth: int) -> list[_Source]:
        entries = scope.sources.entries
        sure = _sure(entries, scope.sources.words)
        found = []
        for i, entry in enumerate(entries):
            columns, star = self._read(scope, entry, around, depth) if entry.plain else (None, None)
            found.append(_Source(entry, columns, star, i in sure))
        return found

    def _read(
        self, scope: Scope, entry: Entry, around: Scope | None, depth: int
    ) -> tuple[Mapping[str, Origin | None] | None, tuple[_Given, ...] | None]:
        """The columns of one of them by name, and those of its `*`."""
        if entry.kind == "function" or depth > DEEPEST:
            return None, None
        if entry.kind == "select":
            # SELECTs have the WITH that stand around them in their own text
            selects = read(scope.text).selects
            return _as_source(entry, self._query(selects, scope.tokens, *entry.inner, around, depth + 1))
        if entry.database is None and entry.name in scope.names:
            text = cte(scope, entry.name)
            return _as_source(entry, self._text(text, scope, depth) if text else _Columns())
        table = self._find.table(entry.database, entry.name)
        if table is not None:
            _, every = self._find.columns(table)
            columns = {name: Origin((entry.first,), table, name) for name in every}
            star = tuple(_Given(name, columns.get(name)) for name in self._stars.columns(table))
            return columns, star
        if entry.database is None and self._find.temporary(entry.name):
            return None, None
        view = self._find.view(entry.database, entry.name)
        if view is None:
            plain = self._find.plain(entry.database, entry.name)
            return dict.fromkeys(plain) if plain else None, None
        text, names = view
        inner = self._text(text, None, depth)
        if not inner.whole or len(inner.given) != len(names):
            return dict.fromkeys(names), tuple(_Given(name) for name in names)
        renamed = tuple(replace(one, name=name) for one, name in zip(inner.given, names, strict=True))
        return _as_source(entry, _Columns(renamed, whole=True))

    def _text(self, text: str, around: Scope | None, depth: int) -> _Columns:
        words = read(text).words
        return self._query(read(text).selects, words, 0, len(words), around, depth + 1)


class _Names:
    """What names and stars mean in one SELECT."""

    def __init__(self, scope: Scope, sources: list[_Source]) -> None:
        self._scope, self._sources, self._tokens = scope, sources, scope.tokens
        self._words, whole = scope.sources.words, scope.whole
        self._nested = [s.whole for s in read(scope.text).selects if whole.first < s.whole.first < whole.last]
        self.items = [self._without_distinct(*item) for item in scope.items("SELECT")]
        self._given = given_names(scope.tokens, [*scope.items("WITH"), *self.items])
        self._named = {place: name for name, place in self._given.items()}
        self._hidden = _named_around(scope) | self._inside()
        self._of_from = {t.name for t in scope.within("FROM")}

    def _without_distinct(self, first: int, last: int) -> tuple[int, int]:
        if self._tokens[first].upper == "DISTINCT" and first + 1 < last:
            first += 1
            if self._tokens[first].upper == "ON" and self._tokens[first + 1].text == "(":
                first = min(matching(self._tokens, first + 1) + 1, last - 1)
        return first, last

    def _own(self, first: int, last: int) -> list[int]:
        """The places in [first, last) that are in none of the SELECTs within this one."""
        return [i for i in range(first, last) if not any(s.first <= i < s.last for s in self._nested)]

    def _inside(self) -> frozenset[str]:
        """Names that AS gives in the SELECT itself, but for those of its items and of its sources."""
        tokens, whole, source = self._tokens, self._scope.whole, self._scope.clauses.get("FROM")
        ends = {last for _, last in self._given.values()}
        return frozenset(
            tokens[i + 1].name or ""
            for i in self._own(whole.first, whole.last - 1)
            if tokens[i].upper == "AS" and i not in ends and not (source and source.first <= i < source.last)
        )

    def item(self, first: int, last: int) -> list[_Given] | None:
        """What one item of SELECT gives; None where it is not known how many columns that is."""
        own = self._own(first, last)
        star = next(iter(stars_in(self._scope, own)), None)
        if star is not None:
            whole = star.first == first and star.last == last
            return self._star(star.path, first, last, is_list=star.is_list) if whole else None
        if any(self._tokens[i].upper in ("COLUMNS", "APPLY", "UNTUPLE") for i in own):
            return None
        expression = next(((a, b) for a, b in self._named if a == first and b <= last), (first, last))
        path = _path(self._tokens, *expression)
        name = self._named.get(expression) or (path[-1] if path else "")
        return [_Given(name, self._column(path) if path else None)]

    def _star(self, path: tuple[str, ...], first: int, last: int, *, is_list: bool) -> list[_Given] | None:
        if is_list:
            opening = next(i for i in range(first, last) if self._tokens[i].text == "(")
            paths = [_path(self._tokens, a, b) for a, b in split_list(self._tokens, opening + 1, last - 1)]
            return [_Given(p[-1], self._column(p)) if p else _Given("") for p in paths]
        if self._tokens[last - 1].text != "*" or "ARRAY" in self._words:
            return None
        if path:
            meant = [s for s in self._sources if s.entry.is_called(path)]
        else:
            meant = [] if len(self._sources) > 1 and self._words - _PLAIN_JOINS else self._sources
        if not meant or (path and len(meant) > 1):
            return None
        found: list[_Given] = []
        for source in meant:
            if source.star is None:
                return None
            found += source.star if source.sure else [_Given(one.name) for one in source.star]
        return found

    def _column(self, path: tuple[str, ...]) -> Origin | None:
        """The column that a name means, with what stands before it."""
        name = path[-1]
        if "ARRAY" in self._words and name in self._of_from:
            return None  # the elements of an array
        if path[0] in self._hidden:
            return None
        given = self._given.get(path[0])
        if given is None:
            return self._of_sources(path)
        meant = _path(self._tokens, *given)
        if len(path) > 1 or meant is None:
            return None
        # a setting says whether an alias hides a column
        found = self._of_sources(path)
        return found if found == self._of_sources(meant) else None

    def _of_sources(self, path: tuple[str, ...]) -> Origin | None:
        sources, name = self._sources, path[-1]
        if any(s.columns is None for s in sources):
            return None
        if len(path) > 1:
            owners = [s for s in sources if s.entry.is_called(path[:-1])]
            if len(owners) != 1 or any(path[0] in (s.columns or {}) for s in sources):
                return None
        else:
            owners = [s for s in sources if name in (s.columns or {})]
            if len(owners) > 1 and ("USING" not in self._words or self._words & {"RIGHT", "FULL"}):
                return None
            if len(sources) > 1 and "NATURAL" in self._words:
                return None
        if not owners or not owners[0].sure:
            return None
        return (owners[0].columns or {}).get(name)


def _path(tokens: Sequence[Token], first: int, last: int) -> tuple[str, ...] | None:
    """The names of a column's path, where these tokens are one and nothing else."""
    names = [tokens[i].name for i in range(first, last, 2)]
    if not names or (last - first) % 2 == 0 or any(tokens[i].text != "." for i in range(first + 1, last, 2)):
        return None
    return tuple(n for n in names if n) if all(names) else None


def _named_around(scope: Scope) -> frozenset[str]:
    """The names that WITH clauses give to expressions."""
    found: set[str] = set()
    for text in scope.withs:
        tokens = read(text).tokens
        found |= given_names(tokens, split_list(tokens, 0, len(tokens))).keys()
    return frozenset(found)


def _sure(entries: Sequence[Entry], words: Iterable[str]) -> set[int]:
    """Which of joined sources have a row for each row of the join: outer joins make rows without a partner."""
    joined, last = set(words), len(entries) - 1
    if any(e.bracketed for e in entries) or "FULL" in joined:
        return set()
    if "RIGHT" in joined:
        return {last} if last == 1 and not joined & {"LEFT", "ARRAY"} else set()
    if joined & {"LEFT", "ANTI", "SEMI"}:
        return {0}
    return set(range(len(entries)))


def _as_source(entry: Entry, columns: _Columns) -> tuple[Mapping[str, Origin | None] | None, tuple[_Given, ...] | None]:
    """What a SELECT gives as what another reads. A name that is given twice means neither."""
    if not columns.whole:
        return None, None
    star = tuple(_Given(c.name, c.origin and _within(entry.first, c.origin)) for c in columns.given)
    found: dict[str, Origin | None] = {}
    for column in star:
        found[column.name] = None if column.name in found else column.origin
    return found, star


def _within(place: int, origin: Origin) -> Origin:
    return replace(origin, source=(place, *origin.source))


def _united(parts: Sequence[_Columns]) -> _Columns:
    """What SELECTs give together: a column has an origin where it has the same one in each."""
    if len(parts) == 1:
        return parts[0]
    whole = all(p.whole for p in parts) and len({len(p.given) for p in parts}) == 1
    given = []
    for columns in zip(*(p.given for p in parts), strict=False):  # of those that are known in each
        origins = [c.origin for c in columns]
        same = len({(o.table.id, o.column) for o in origins if o}) == 1 and all(origins)
        source = ("united", *(o.source for o in origins if o))
        given.append(_Given(columns[0].name, replace(origins[0], source=source) if same and origins[0] else None))
    return _Columns(tuple(given), whole)
