"""What stands in a FROM clause: tables, table functions and SELECTs, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipql.syntax.lexer import Token, matching

# words that follow a table or stand between two, and so are no alias
_WORDS = {"JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "ANY", "ASOF", "SEMI", "ANTI", "ALL", "GLOBAL", "LOCAL",
          "PASTE", "NATURAL", "ARRAY", "OUTER", "ONLY", "ON", "USING", "FINAL", "SAMPLE", "STREAM"}  # fmt: skip


# what the brackets of a query begin with
_QUERIES = {"SELECT", "WITH", "FROM", "EXPLAIN", "VALUES"}


@dataclass(frozen=True)
class Entry:
    """One table, table function or SELECT of a FROM clause.

    kind: 'table', 'function' or 'select'. name: of the table or function. whole: its tokens [first, last), with its
    alias, FINAL and SAMPLE. plain: whether the alias, if any, names no columns. modified: by FINAL or SAMPLE.
    bracketed: whether it stands in brackets with what it is joined to. inner: what the brackets of a SELECT hold.
    """

    kind: str
    database: str | None
    name: str
    alias: str | None
    first: int
    last: int
    plain: bool = True
    modified: bool = False
    bracketed: bool = False
    inner: tuple[int, int] = (0, 0)

    @property
    def called(self) -> str:
        """The name that the SELECT calls it by; empty where it has none."""
        return self.alias or (self.name if self.kind == "table" else "")

    def is_called(self, path: tuple[str, ...]) -> bool:
        """Whether `path` before a dot means this one."""
        if self.alias is not None or self.kind != "table":
            return path == (self.alias,)
        if self.database is None and len(path) == 2:
            return path[1] == self.name
        return path in ((self.name,), (self.database, self.name))


@dataclass(frozen=True)
class Sources:
    """entries: in the order of the text. words: how they are joined, as capitals: 'USING', 'ARRAY', 'NATURAL', …"""

    entries: tuple[Entry, ...] = ()
    words: frozenset[str] = frozenset()

    @property
    def alone(self) -> bool:
        """Whether FROM is one thing, neither joined nor in brackets of its own."""
        return len(self.entries) == 1 and not self.words


class _Found:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.words: set[str] = set()
        self.depth = 0


def read_sources(tokens: Sequence[Token], first: int, last: int) -> Sources:
    """The sources that the tokens of a FROM clause name."""
    found = _Found()
    _read(tokens, first, last, found)
    return Sources(tuple(found.entries), frozenset(found.words))


def _read(tokens: Sequence[Token], at: int, last: int, found: _Found) -> None:
    expect, array = True, False
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{" and not expect:
            at = matching(tokens, at) + 1
        elif token.upper in _WORDS and tokens[at - 1].text != "." and (not expect or _begins_array_join(tokens, at)):
            found.words.add(token.upper)
            if token.upper == "ARRAY":
                array = True
            elif token.upper == "JOIN":
                array = tokens[at - 1].upper == "ARRAY"
                expect = not array
            at += 1
        elif token.text == "," and token.kind == "symbol":
            if not array:
                found.words.add(",")
                expect = True
            at += 1
        elif expect:
            at, expect = _entry(tokens, at, last, found), False
        else:
            at += 1


def _begins_array_join(tokens: Sequence[Token], at: int) -> bool:
    words = [t.upper for t in tokens[at : at + 3]]
    return words[:2] == ["ARRAY", "JOIN"] or words == ["LEFT", "ARRAY", "JOIN"]


def _entry(tokens: Sequence[Token], at: int, last: int, found: _Found) -> int:
    first, token = at, tokens[at]
    database, name, kind, inner = None, "", "select", (0, 0)
    if token.text == "(":
        close = min(matching(tokens, at), last)
        if (
            at + 1 < close
            and (tokens[at + 1].upper not in _QUERIES or tokens[at + 2].text in (".", ",", ")"))
            and (_is_joined(tokens, at + 1, close))
        ):
            found.words.add("(")
            found.depth += 1
            _read(tokens, at + 1, close, found)
            found.depth -= 1
            return close + 1
        inner, at = (at + 1, close), close + 1
    elif token.name:
        name, kind, at = token.name, "table", at + 1
        if at + 1 < last and tokens[at].text == "." and tokens[at + 1].name:
            database, name, at = name, tokens[at + 1].name or "", at + 2
        if at < last and tokens[at].text == "(":
            kind, at = "function", matching(tokens, at) + 1
    elif token.kind == "string":  # which ClickHouse takes for the name of a table
        name, kind, at = token.said, "table", at + 1
    else:  # a parameter that stands for a name, or what is not understood
        kind, at = "function", matching(tokens, at) + 1
    alias, plain = None, True
    if at + 1 < last and tokens[at].upper == "AS":
        alias, at = tokens[at + 1].name, at + 2
    elif at < last and tokens[at].name and (tokens[at].kind == "quoted" or tokens[at].upper not in _WORDS):
        alias, at = tokens[at].name, at + 1
    if alias is not None and at < last and tokens[at].text == "(":
        plain, at = False, matching(tokens, at) + 1
    end = at
    if at < last and tokens[at].upper == "FINAL":
        at += 1
    if at < last and tokens[at].upper == "SAMPLE":
        at += 1
        while at < last and (tokens[at].kind == "number" or tokens[at].text == "/" or tokens[at].upper == "OFFSET"):
            at += 1
    modified, bracketed = at > end, found.depth > 0
    found.entries.append(Entry(kind, database, name, alias, first, at, plain, modified, bracketed, inner))
    return at


def _is_joined(tokens: Sequence[Token], first: int, last: int) -> bool:
    """Whether brackets hold tables that are joined, and not a SELECT in brackets of its own."""
    if tokens[first].name:
        return True
    return (
        tokens[first].text == "("
        and matching(tokens, first) + 1 < last
        and tokens[matching(tokens, first) + 1].upper not in ("UNION", "INTERSECT", "EXCEPT")
    )
