"""The rule that merges a view, subquery or CTE that only picks, renames and filters columns into the SELECT over it.

    SELECT id FROM (SELECT id, image_embedding AS e FROM laion WHERE width > 500) ORDER BY L2Distance(e, q) LIMIT 10
    SELECT id FROM laion WHERE (width > 500) ORDER BY L2Distance(image_embedding, q) LIMIT 10

What must stay true: the merged statement gives the rows, and the names of columns, that the original gives. Only what
is fully understood is merged; where a name could mean two things, nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql.recognition.calls import FindTable
from clipql.storage.catalog import Table
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope

# a view by its name: its SELECT and the names of its columns
FindView = Callable[[str | None, str], tuple[str, tuple[str, ...]] | None]
# the names of the columns that a SELECT gives
Describe = Callable[[str], list[str]]
# the columns of a table: those of `*`, in that order, and all there are
Columns = Callable[[Table], tuple[list[str], frozenset[str]]]

_INNER = {"WITH", "SELECT", "FROM", "WHERE"}
DEEPEST = 8


@dataclass(frozen=True)
class Simple:
    """A source that is a table seen through names: columns maps each name to the table's column.

    every: all columns of the table. conditions: texts over its own columns, none of them qualified.
    """

    table: Table
    columns: Mapping[str, str]
    every: frozenset[str]
    conditions: tuple[str, ...] = ()

    @property
    def renamed(self) -> dict[str, str]:
        return {name: column for name, column in self.columns.items() if name != column}


@dataclass(frozen=True)
class Finder:
    """What rules ask of the database. plain: the columns of any table. temporary: whether a session has made a table of
    this name for itself."""

    table: FindTable
    view: FindView
    columns: Columns
    describe: Describe
    plain: Callable[[str | None, str], tuple[str, ...]]
    temporary: Callable[[str], bool]


@dataclass(frozen=True)
class _Named:
    """What a FROM names: a table, view or CTE by name, or the SELECT of a subquery; and the alias it is given."""

    database: str | None
    name: str | None
    select: str | None
    alias: str | None


def inline(scope: Scope, find: Finder) -> list[Edit]:
    """The edits that merge what a SELECT with a distance reads into it; none where it reads a table, or cannot be."""
    if not _has_distance(scope) or "PREWHERE" in scope.clauses:
        return []
    named = _source(scope)
    if named is None or (named.name and named.name not in scope.names and find.table(named.database, named.name)):
        return []
    simple = _simple(named, scope, find, 0)
    if simple is None or not any(simple.table.column(c) for c in simple.columns.values()):
        return []
    qualifier = named.alias or named.name
    if not _safe(scope, simple):
        return []
    edits = _substitutions(scope, simple, qualifier)
    items = _items(scope, simple, edits, find.describe)
    if edits is None or items is None:
        return []
    table = f"{quote_name(simple.table.database)}.{quote_name(simple.table.name)}"
    source = scope.clauses["FROM"]
    merged = [
        *((a, b, t) for a, b, t in edits if not any(i <= a and b <= j for i, j, _ in items)),
        *items,
        (source.start, source.end, table + (f" AS {quote_name(qualifier)}" if qualifier else "")),
    ]
    if named.name and named.database is None and named.name in scope.names:
        merged += _unused(scope, named.name)
    return merged + _where(scope, simple, edits)


def _has_distance(scope: Scope) -> bool:
    """Whether a SELECT itself, not one inside it, computes a distance."""
    return any(
        t.kind == "word" and scope.tokens[i + 1].text == "(" and metric_named(t.text) is not None
        for i, t in _own(scope, ("WITH", "SELECT", "WHERE", "GROUP", "HAVING", "ORDER"))
        if i + 1 < len(scope.tokens)
    )


def _own(scope: Scope, clauses: tuple[str, ...]) -> Iterator[tuple[int, Token]]:
    """The tokens of some clauses that are not of a SELECT inside them, nor a parameter."""
    tokens = scope.tokens
    for clause in clauses:
        span = scope.clauses.get(clause)
        at = span.first if span else 0
        while span and at < span.last:
            inner = tokens[at].text == "(" and at + 1 < span.last and tokens[at + 1].upper in ("SELECT", "WITH", "(")
            inner = inner and _selects(tokens, at + 1)
            if tokens[at].kind == "symbol" and (tokens[at].text == "{" or inner):
                at = matching(tokens, at) + 1
                continue
            yield at, tokens[at]
            at += 1


def _selects(tokens: Sequence[Token], at: int) -> bool:
    while at < len(tokens) and tokens[at].text == "(":
        at += 1
    return at < len(tokens) and tokens[at].upper in ("SELECT", "WITH")


def _source(scope: Scope) -> _Named | None:
    """What FROM reads, where that is one thing without modifiers."""
    if not scope.sources.alone:
        return None
    (entry,) = scope.sources.entries
    if entry.kind == "function" or entry.modified or not entry.plain or entry.last < scope.clauses["FROM"].last:
        return None
    if entry.kind == "table":
        return _Named(entry.database, entry.name, None, entry.alias)
    first, last = entry.inner
    return _Named(None, None, scope.text[scope.tokens[first - 1].end : scope.tokens[last].start], entry.alias)


def _simple(named: _Named, scope: Scope, find: Finder, depth: int) -> Simple | None:
    """What a FROM names, as a table seen through names; None where it is more than that."""
    if depth > DEEPEST:
        return None
    if named.select is not None:
        return _of_select(named.select, scope, find, depth)
    name = named.name or ""
    if named.database is None and name in scope.names:
        text = cte(scope, name)
        return _of_select(text, scope, find, depth) if text else None
    table = find.table(named.database, name)
    if table:
        shown, every = find.columns(table)
        return Simple(table, {c: c for c in shown}, every)
    view = find.view(named.database, name)
    if view is None:
        return None
    text, columns = view
    inner = _of_select(text, None, find, depth)
    if inner is None or not set(columns) <= set(inner.columns):
        return None
    return Simple(inner.table, {c: inner.columns[c] for c in columns}, inner.every, inner.conditions)


def cte(scope: Scope, name: str) -> str | None:
    """The SELECT that a WITH in force gives a name to; None where several do."""
    found = []
    for text in scope.withs:
        tokens = read(text).tokens
        for first, last in split_list(tokens, 0, len(tokens)):
            if tokens[first].name == name and last - first > 3 and tokens[first + 1].upper == "AS":
                if tokens[first + 2].text != "(" or matching(tokens, first + 2) != last - 1:
                    return None
                found.append(text[tokens[first + 2].end : tokens[last - 1].start])
    return found[0] if len(found) == 1 else None


def _of_select(text: str, around: Scope | None, find: Finder, depth: int) -> Simple | None:
    found = read(text).selects
    if not found or found[0].whole.first != 0 or found[0].whole.last != len(found[0].tokens):
        return None
    scope = found[0]
    if set(scope.clauses) - _INNER or "WITH" in scope.clauses or "FROM" not in scope.clauses:
        return None
    if around is not None:  # the names that are in force there
        scope = replace(scope, withs=around.withs, names=around.names, nested=True)
    named = _source(scope)
    inner = _simple(named, scope, find, depth + 1) if named else None
    if named is None or inner is None:
        return None
    qualifier = named.alias or named.name
    columns = _columns(scope, inner, qualifier)
    condition = _condition(scope, inner, qualifier, columns) if columns else None
    if columns is None or condition is None:
        return None
    return Simple(inner.table, columns, inner.every, (*inner.conditions, *([condition] if condition else [])))


def _columns(scope: Scope, inner: Simple, qualifier: str | None) -> dict[str, str] | None:
    """The names that the items of a SELECT give to columns; None where one is more than a column, or names another."""
    given_names = scope.aliases
    found: dict[str, str] = {}
    tokens = scope.tokens
    for first, last in scope.items("SELECT"):
        if last - first == 1 and tokens[first].text == "*":
            given = dict(inner.columns)
        else:
            at = first
            if last - first > 2 and tokens[first].name == qualifier and tokens[first + 1].text == ".":
                at = first + 2
            column, rest = tokens[at].name, tokens[at + 1 : last]
            if rest and rest[0].upper == "AS":
                rest = rest[1:]
            name = rest[0].name if rest else column
            if column in given_names and name != column:  # an alias hides a column
                return None
            if not column or column not in inner.columns or len(rest) > 1 or (rest and not rest[0].name):
                return None
            given = {(rest[0].name if rest else column) or "": inner.columns[column]}
        if given.keys() & found.keys():
            return None
        found |= given
    return found


def _condition(scope: Scope, inner: Simple, qualifier: str | None, columns: Mapping[str, str]) -> str | None:
    """WHERE over the table's own columns; None where it cannot be told, empty where there is none."""
    span = scope.clauses.get("WHERE")
    if span is None:
        return ""
    tokens = scope.within("WHERE")
    if any(t.upper in ("SELECT", "WITH", "ARRAYJOIN", "OVER", "->") for t in tokens):
        return None
    # an alias of this SELECT hides a column in its WHERE
    given = {name for name, column in columns.items() if inner.columns.get(name) != column}
    if any(t.name in given or t.upper == "AS" for t in tokens):
        return None
    edits = _renamed(tokens, inner, qualifier, keep=None)
    return None if edits is None else edited(scope.text, edits, span.start, span.end)


def _renamed(tokens: Sequence[Token], simple: Simple, qualifier: str | None, keep: str | None) -> list[Edit] | None:
    """The edits that give columns their names in the table; None where a column is named that is not there.

    keep: the qualifier to leave before them, None to take it away.
    """
    known, edits = set(simple.columns), list[Edit]()
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == "symbol" and token.text == "{":
            at = matching(tokens, at) + 1
            continue
        called = at + 1 < len(tokens) and tokens[at + 1].text == "("
        if token.name and not called:
            dotted = at + 2 < len(tokens) and tokens[at + 1].text == "."
            if dotted and token.name == qualifier and tokens[at + 2].name:
                column = tokens[at + 2].name or ""
                if column not in known:
                    return None
                text = quote_name(simple.columns[column])
                edits.append((token.start, tokens[at + 2].end, f"{quote_name(keep)}.{text}" if keep else text))
                at += 3
                continue
            if token.name in known:
                if simple.columns[token.name] != token.name:
                    edits.append((token.start, token.end, quote_name(simple.columns[token.name])))
            elif token.name in simple.every:
                return None
            if dotted and token.kind != "number":  # t.column of another name, or the element of a tuple
                return None
        at += 1
    return edits


def _safe(scope: Scope, simple: Simple) -> bool:
    """Whether no name in the SELECT can come to mean another column of the table than it meant before."""
    words = {t.name for condition in simple.conditions for t in read(condition).tokens if t.name}
    columns = set(simple.columns) | simple.every
    given = set(scope.aliases) | scope.lambda_arguments
    if (given | _given_inside(scope)) & (words | columns):
        return False
    renamed = simple.renamed
    own = {i for i, _ in _own(scope, tuple(scope.clauses))}
    source, with_ = scope.clauses["FROM"], scope.clauses.get("WITH")
    for i in range(scope.whole.first, scope.whole.last):
        outside = source.first <= i < source.last or (with_ is not None and with_.first <= i < with_.last)
        if i not in own and not outside and scope.tokens[i].name in renamed:
            return False  # in a SELECT inside this one, which may mean its own
    select = [t.upper for t in scope.within("SELECT")]
    return not {"COLUMNS", "APPLY", "EXCEPT", "REPLACE"} & set(select)


def _given_inside(scope: Scope) -> frozenset[str]:
    """Names given by AS anywhere in the SELECT itself."""
    tokens = scope.tokens
    own = _own(scope, tuple(c for c in scope.clauses if c != "FROM"))
    return frozenset(tokens[i + 1].name or "" for i, t in own if t.upper == "AS" and i + 1 < len(tokens))


def _unused(scope: Scope, name: str) -> list[Edit]:
    """The edit that takes away a CTE which only FROM named: its names could be taken for others."""
    tokens, source, items = scope.tokens, scope.clauses["FROM"], scope.items("WITH")
    at = next((n for n, (a, _) in enumerate(items) if tokens[a].name == name), None)
    if at is None:
        return []
    first, last = items[at]
    for i in range(scope.whole.first, scope.whole.last):
        here = first <= i < last or source.first <= i < source.last
        if tokens[i].name == name and not here and tokens[i + 1].text != ".":
            return []
    if len(items) == 1:
        return [(scope.whole.start, tokens[scope.clauses["SELECT"].first - 1].start, "")]
    if at + 1 < len(items):
        return [(tokens[first].start, tokens[items[at + 1][0]].start, "")]
    return [(tokens[first - 1].start, tokens[last - 1].end, "")]


def _substitutions(scope: Scope, simple: Simple, qualifier: str | None) -> list[Edit] | None:
    clauses = tuple(c for c in scope.clauses if c not in ("FROM", "SETTINGS", "FORMAT", "INTO"))
    return _renamed([t for _, t in _own(scope, clauses)], simple, qualifier, keep=qualifier)


def _items(scope: Scope, simple: Simple, edits: list[Edit] | None, describe: Describe) -> list[Edit] | None:
    """The items of SELECT as they are written anew, with the names that they had; None where those cannot be told."""
    if edits is None:
        return None
    tokens, named, items = scope.tokens, scope.aliases, scope.items("SELECT")
    if tokens[items[0][0]].upper == "DISTINCT":
        return None
    found: list[Edit] = []
    asked: list[str] | None = None
    starred = any(last - first == 1 and tokens[first].text == "*" for first, last in items)
    for n, (first, last) in enumerate(items):
        start, end = tokens[first].start, tokens[last - 1].end
        text = edited(scope.text, edits, start, end)
        if last - first == 1 and tokens[first].text == "*":
            names = [(quote_name(c), quote_name(name)) for name, c in simple.columns.items()]
            found.append((start, end, ", ".join(c if c == name else f"{c} AS {name}" for c, name in names)))
        elif any(tokens[i].text == "*" and tokens[i - 1].text == "." for i in range(first + 1, last)):
            return None
        elif text != scope.text[start:end] and tokens[last - 1].name not in named:
            if last - first == 1:
                name = tokens[first].name or ""
            else:
                if asked is None and not starred:
                    asked = _described(scope, describe)
                if asked is None or len(asked) != len(items):
                    return None
                name = asked[n]
            found.append((start, end, f"{text} AS {quote_name(name)}"))
    return found


def _described(scope: Scope, describe: Describe) -> list[str] | None:
    end = next((scope.clauses[c] for c in ("SETTINGS", "FORMAT", "INTO") if c in scope.clauses), None)
    text = scope.text[scope.whole.start : scope.tokens[end.first - 1].start if end else scope.whole.end]
    outer = scope.withs[:-1] if "WITH" in scope.clauses else scope.withs
    if outer and "WITH" in scope.clauses:
        text = f"WITH {', '.join(outer)}, {text[4:]}"
    elif outer:
        text = f"WITH {', '.join(outer)} {text}"
    try:
        return describe(text)
    except QueryError:
        return None


def _where(scope: Scope, simple: Simple, edits: list[Edit] | None) -> list[Edit]:
    """The edits that add the conditions of what was merged to WHERE."""
    if not simple.conditions:
        return []
    joined = " AND ".join(f"({c})" for c in simple.conditions)
    span, source = scope.clauses.get("WHERE"), scope.clauses["FROM"]
    if span is None:
        return [(source.end, source.end, f" WHERE {joined}")]
    return [(span.start, span.start, f"{joined} AND ("), (span.end, span.end, ")")]
