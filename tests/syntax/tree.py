"""What ClickHouse reads in a SELECT, told by EXPLAIN AST and formatQuery, beside what our reading says of it.

`(a JOIN b)` in FROM is to ClickHouse a SELECT of its own, `SELECT * FROM a JOIN b`; it is put back here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from spelled import MARK

from clipql.syntax.reading import Statement, read
from clipql.syntax.scopes import Scope
from clipql.syntax.stars import stars_in

_LINE = re.compile(r"( *)(\S+)(?: (.*?))??(?: \(alias ([^\n]*?)\))?(?: \(children (\d+)\))?", re.DOTALL)
# in the text that ClickHouse writes
_WRITTEN = re.compile(rb"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[A-Za-z_][\w$]*", re.DOTALL)
_ESCAPES = {b"b": b"\b", b"f": b"\f", b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}
_STAR = re.compile(r"(Qualified)?(Asterisk|Columns\w+Matcher)")
_BEFORE_ORDER = ("PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER")
_LISTS = {"WITH", "SELECT", "GROUP", "WINDOW", "ORDER"}


class Broken(Exception):
    """Names break the lines of the tree, so that it cannot be read."""


@dataclass
class Node:
    """A line of EXPLAIN AST."""

    kind: str
    name: str
    alias: str | None
    children: list[Node] = field(default_factory=list)

    def all(self) -> Iterator[Node]:
        """It and all below it."""
        yield self
        for child in self.children:
            yield from child.all()

    def own(self) -> Iterator[Node]:
        """It and all below it but other SELECTs and FROM."""
        yield self
        for child in self.children:
            if child.kind not in ("SelectQuery", "TablesInSelectQuery"):
                yield from child.own()

    @property
    def arguments(self) -> list[Node]:
        """What a function is called with."""
        return self.children[0].children if self.children else []


def tree(text: str) -> Node:
    """The first node of EXPLAIN AST."""
    path: list[tuple[int, Node]] = []
    counts: list[tuple[Node, int]] = []
    for line in text.split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None or (path and not match[1]):
            if counts and line.startswith(("Identifier", "Literal", "Set", " Set")):  # FORMAT, INTO OUTFILE, SETTINGS
                continue
            raise Broken(line)
        depth = len(match[1]) if path else -1
        node = Node(match[2], match[3] or "", match[4])
        counts.append((node, int(match[5] or 0)))
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            path[-1][1].children.append(node)
        path.append((depth, node))
    if not counts or any(len(node.children) != count for node, count in counts):
        raise Broken(text)
    return counts[0][0]


def bracketed(expression: Node) -> Node | None:
    """The SELECT that ClickHouse makes of tables joined in brackets."""
    node = expression.children[0]
    if node.kind != "Subquery" or node.alias or node.children[0].kind != "SelectWithUnionQuery":
        return None
    (united, *rest) = node.children[0].children
    query = united.children[0]
    if rest or len(united.children) > 1 or query.kind != "SelectQuery" or len(query.children) != 2:
        return None
    items, tables = query.children
    star = [n.kind for n in items.children] == ["Asterisk"] and not items.children[0].children
    return query if star and tables.kind == "TablesInSelectQuery" and len(_expressions(tables)) > 1 else None


def _expressions(tables: Node) -> list[Node]:
    return [e.children[0] for e in tables.children if e.children[0].kind == "TableExpression"]


def selects(root: Node) -> list[Node]:
    """ClickHouse's SELECTs in the order of the text."""
    made = {id(q) for n in root.all() if n.kind == "TableExpression" and (q := bracketed(n))}
    return [n for n in root.all() if n.kind == "SelectQuery" and id(n) not in made]


def _their_sources(tables: Node) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for expression in _expressions(tables):
        node, inner = expression.children[0], bracketed(expression)
        if inner:
            found += _their_sources(inner.children[1])
        else:
            found.append(("(select)" if node.kind == "Subquery" else node.name, node.alias))
    return found


def differences(select: Scope, query: Node) -> list[str]:
    """In what our reading of one SELECT differs from ClickHouse's."""
    found: list[str] = []

    def same(what: str, mine: object, their: object) -> None:
        if mine != their:
            found.append(f"{what}: ours {mine}, ClickHouse's {their}")

    mine, their = _our_clauses(select), _their_clauses(query)
    if len(select.withs) > ("WITH" in select.clauses) and mine != their:
        their = _without_given(their, mine)
    same("clauses", mine, their)
    if found:
        return found
    heads = query.children[:2] if "WITH" in select.clauses else query.children[:1]
    given = {n.alias for head in heads for n in head.children if n.alias is not None}
    if len(select.withs) > ("WITH" in select.clauses):
        given &= select.aliases.keys()
    same("aliases", set(select.aliases), given)
    tables = next((n for n in query.children if n.kind == "TablesInSelectQuery"), None)
    mine = [
        ("(select)" if e.kind == "select" else ".".join(filter(None, (e.database, e.name))), e.alias)
        for e in select.sources.entries
    ]
    same("sources", mine, _their_sources(tables) if tables else [])
    added = {id(n) for with_ in _added(query, select) for n in with_.all()}
    own = [n for n in query.own() if id(n) not in added]
    counted = {id(n) for f in own if f.kind == "Function" and f.name.lower() == "count" for n in f.arguments}
    stars = [
        n for n in own if re.fullmatch(r"(Qualified)?(Asterisk|Columns\w+Matcher)", n.kind) and id(n) not in counted
    ]
    same("stars", len(list(stars_in(select, _own_places(select)))), len(stars))
    functions = [n for n in query.all() if n.kind == "Function" and id(n) not in added]
    calls = {(n.name, len(n.arguments)) for n in functions if n.name.startswith("f" + MARK)}
    same("calls", {(c.name, len(c.arguments)) for c in select.calls if c.name.startswith("f" + MARK)}, calls)
    heads = [n.arguments[0] for n in functions if n.name == "lambda"]
    named = {n.name for head in heads for n in (head.arguments if head.kind == "Function" else [head])}
    # the tree does not show the lambda of APPLY
    applied = {b.name for a, b in zip(select.tokens, select.tokens[2:], strict=False) if a.upper == "APPLY"}
    same("lambdas", select.lambda_arguments - applied, named)
    return found


def _their_clauses(query: Node) -> list[object]:
    kinds = {"ExpressionList": "list", "TablesInSelectQuery": "from", "Set": "set"}
    return [(k, len(n.children)) if (k := kinds.get(n.kind, "one")) == "list" else k for n in query.children]


def _added(query: Node, select: Scope) -> list[Node]:
    """What ClickHouse adds of the WITH of the first of united SELECTs."""
    if len(select.withs) == ("WITH" in select.clauses):
        return []
    if "WITH" in select.clauses:
        return query.children[0].children[len(select.items("WITH")) :]
    return query.children[-1:] if len(query.children) > len(_our_clauses(select)) else []


def _without_given(their: list[object], mine: list[object]) -> list[object]:
    """The clauses without the WITH of the first of united SELECTs, which ClickHouse adds to the others."""
    if len(their) > len(mine):
        return their[:-1]
    return [*mine[:1], *their[1:]]


def _our_clauses(select: Scope) -> list[object]:
    """As the tree has them: a list with its length, or one expression."""

    def one(clause: str) -> list[object]:
        if clause not in select.clauses:
            return []
        return [("list", len(select.items(clause)))] if clause in _LISTS else ["one"]

    found = [*one("WITH"), *one("SELECT"), *(["from"] if "FROM" in select.clauses else [])]
    found += [kind for clause in _BEFORE_ORDER for kind in one(clause)]
    head = [t.upper for t in select.within("SELECT")[:2]]
    if head == ["DISTINCT", "ON"]:
        found += ["one", ("list", 1)]
    last: list[object] = []
    for clause in ("LIMIT", "LIMIT 2"):
        within = select.within(clause)
        before = [None, *within]
        words = [t.upper for a, t in zip(before, within, strict=False) if a is None or a.text != "."]
        words = ["", *words[1:]] if words else []
        count = words[: words.index("BY")] if "BY" in words else words
        numbers: list[object] = ["one"] * (1 + count.count(",") + count.count("OFFSET") if words else 0)
        if "BY" in words:
            by = len(select.items(clause)) - count.count(",")
            found += [*numbers, ("list", by)]
        else:
            last += numbers
    last += ["one"] if "OFFSET" in select.clauses else []
    last += ["one"] if "FETCH" in select.clauses else []
    last += ["one"] if head[:1] == ["TOP"] else []
    own = [c for c in select.clauses if c in ("SETTINGS", "FORMAT")]  # after FORMAT they are the statement's
    settings = ["set"] if own[:1] == ["SETTINGS"] else []
    return [*found, *last, *settings]


def _own_places(select: Scope) -> list[int]:
    """The places of its tokens outside FROM and outside the SELECTs within it."""
    source = select.clauses.get("FROM")
    skipped = {
        i
        for s in read(select.text).selects
        if select.whole.first < s.whole.first and s.whole.last <= select.whole.last
        for i in range(s.whole.first, s.whole.last)
    } | (set(range(source.first, source.last)) if source else set())
    return [i for i in range(select.whole.first, select.whole.last) if i not in skipped]


# names and strings


def our_names(statement: Statement) -> set[bytes]:
    """The marked names and strings, decoded."""
    names = (t.name.encode("utf-8", "surrogateescape") for t in statement.tokens if t.name is not None)
    return _marked([*names, *(t.value for t in statement.tokens if t.value is not None)])


def their_names(written: bytes) -> set[bytes]:
    """The same of the text that ClickHouse writes."""
    return _marked(_plain(t) if t[:1] in (b"'", b"`") else t for t in _WRITTEN.findall(written))


def _marked(found: Iterable[bytes]) -> set[bytes]:
    # what stands before and after a dot may be one name or two; an element by name is a string to ClickHouse
    return {part for f in found for part in f.split(b".") if MARK.encode() in part}


def _plain(quoted: bytes) -> bytes:
    return re.sub(rb"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), quoted[1:-1], flags=re.DOTALL)


def comparable(ast: str, statement: Statement) -> list[Node]:
    """ClickHouse's SELECTs. Raises Broken where a name breaks the tree's lines, or a SELECT looks like brackets."""
    names = [t.name or "" for t in statement.tokens]
    if any("\n" in name or "(alias" in name for name in names):
        raise Broken
    for select in statement.selects:
        plain = select.body("SELECT") == "*" and set(select.clauses) == {"SELECT", "FROM"}
        if select.nested and plain and not select.sources.alone:
            raise Broken
    return selects(tree(ast))


def left(statement: Statement) -> bool:
    """Whether a SELECT is not read."""
    known = {s.clauses["SELECT"].first - 1 for s in statement.selects}
    return any(t.upper == "SELECT" and i not in known for i, t in enumerate(statement.tokens))
