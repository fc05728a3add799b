"""The SELECTs of a statement, nested ones too, each with the places of its clauses.

A scope says where things are in the text and decides nothing. A SELECT whose shape is not fully understood gets no
scope, and so is left to ClickHouse as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from clipql.syntax import names as syntax_names
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.names import FunctionCall
from clipql.syntax.once import once
from clipql.syntax.operands import Operands
from clipql.syntax.sources import Sources, read_sources

# what may open a clause of a SELECT, in the order that ClickHouse takes them
_CLAUSES = ("FROM", "PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "OFFSET", "FETCH",
            "SETTINGS", "FORMAT", "INTO")  # fmt: skip
# after FROM, where that is the name of a column
_AFTER_NAME = {"FROM", "AS", "AND", "OR", "IN", "NOT", "IS", "LIKE", "ILIKE", "BETWEEN", "DIV", "MOD"}
_SET_OPERATORS = ("UNION", "INTERSECT", "EXCEPT")


@dataclass(frozen=True)
class Span:
    """A run of tokens, [first, last), and its place in the text."""

    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True)
class Scope:
    """One SELECT. What it reads, names and calls is found when it is first asked for, and kept.

    clauses: the body of each clause by its keyword, 'SELECT' and 'WITH' included (LIMIT may occur twice: the second
    is 'LIMIT 2'). withs: the WITH clauses in force, outermost first, as texts. names: what they define as tables.
    """

    tokens: Sequence[Token]
    text: str
    whole: Span
    clauses: Mapping[str, Span]
    withs: tuple[str, ...]
    names: frozenset[str]
    nested: bool

    def __repr__(self) -> str:
        text = self.text[self.whole.start : self.whole.end]
        return f"Scope({(text if len(text) <= 120 else text[:119] + '…')!r}, {', '.join(self.clauses)})"

    def body(self, clause: str) -> str:
        """The text of a clause without its keyword; empty where there is none."""
        span = self.clauses.get(clause)
        return self.text[span.start : span.end] if span else ""

    def within(self, clause: str) -> Sequence[Token]:
        """The tokens of a clause without its keyword."""
        span = self.clauses.get(clause)
        return self.tokens[span.first : span.last] if span else []

    def items(self, *clauses: str) -> list[tuple[int, int]]:
        """The items between commas of some clauses, as token ranges."""
        spans = (self.clauses.get(c) for c in clauses)
        return [item for span in spans if span for item in split_list(self.tokens, span.first, span.last)]

    def text_of(self, first: int, last: int) -> str:
        """The text of the tokens [first, last)."""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    @once
    def sources(self) -> Sources:
        """What FROM reads."""
        span = self.clauses.get("FROM")
        return read_sources(self.tokens, span.first, span.last) if span else Sources()

    @once
    def aliases(self) -> Mapping[str, tuple[int, int]]:
        """Names that SELECT and WITH give to expressions, with the places of the expressions."""
        return MappingProxyType(syntax_names.given_names(self.tokens, self.items("WITH", "SELECT")))

    @once
    def calls(self) -> tuple[FunctionCall, ...]:
        """All calls in it, those of SELECTs inside it too, in the order of the text."""
        return tuple(syntax_names.calls_in(self.tokens, self.whole.first, self.whole.last))

    @once
    def lambda_arguments(self) -> frozenset[str]:
        """Names that stand for the arguments of lambdas somewhere in it."""
        return syntax_names.lambda_arguments(self.tokens, self.whole.first, self.whole.last)

    @once
    def inner_names(self) -> frozenset[str]:
        """Names given inside an expression, as in `length(w AS v)`, and used elsewhere in it."""
        span, whole = self.clauses.get("FROM"), self.whole
        source = (span.first, span.last) if span else (0, 0)
        return syntax_names.inner_names(self.tokens, whole.first, whole.last, self.items("WITH", "SELECT"), source)


def scopes(text: str, tokens: Sequence[Token]) -> list[Scope]:
    """Every SELECT of a statement, outer ones before inner ones. Rules take them of `reading.read`."""
    found: list[Scope] = []
    _collect(text, tokens, 0, len(tokens), (), frozenset(), False, found)
    return found


def _collect(
    text: str,
    tokens: Sequence[Token],
    first: int,
    last: int,
    withs: tuple[str, ...],
    names: frozenset[str],
    nested: bool,
    found: list[Scope],
) -> None:
    at, began = first, len(found)
    while at < last:
        # what follows the first of several SELECTs that are united has its WITH, too
        given = _given_to_the_rest(found[began:][:1], tokens, at) if at > first else None
        around = (*withs, *given[0]) if given else withs
        known = names | given[1] if given else names
        if _begins(tokens, at):
            end = _end_of_select(tokens, at, last)
            scope = _scope(text, tokens, at, end, around, known, nested)
            inner_withs, inner_names = around, known
            if scope:
                found.append(scope)
                inner_withs, inner_names = scope.withs, scope.names
            _inside(text, tokens, at, end, inner_withs, inner_names, found)
            at = end
        elif tokens[at].upper == "(":
            close = matching(tokens, at)
            _collect(text, tokens, at + 1, min(close, last), around, known, nested or at > first, found)
            at = close + 1
        else:
            at += 1


def _given_to_the_rest(
    first: Sequence[Scope], tokens: Sequence[Token], at: int
) -> tuple[tuple[str, ...], frozenset[str]] | None:
    """The WITH that the first of united SELECTs gives to the one that begins here, and the tables that it names.

    One that has a WITH of its own gets the expressions, but not the tables.
    """
    if not first or "WITH" not in first[0].clauses:
        return None
    if tokens[at].upper != "WITH":
        return (first[0].body("WITH"),), _tables_of(tokens, first[0].clauses["WITH"])
    items = first[0].items("WITH")
    texts = tuple(first[0].text_of(a, b) for a, b in items if tokens[b - 1].text != ")")
    return texts, frozenset()


def _inside(
    text: str,
    tokens: Sequence[Token],
    first: int,
    last: int,
    withs: tuple[str, ...],
    names: frozenset[str],
    found: list[Scope],
) -> None:
    """Look for SELECTs in the brackets of a SELECT."""
    at = first
    while at < last:
        if tokens[at].text == "(" and tokens[at].kind == "symbol":
            close = min(matching(tokens, at), last)
            if at + 1 < close and (tokens[at + 1].text == "(" or _begins(tokens, at + 1)):
                _collect(text, tokens, at + 1, close, withs, names, True, found)
            else:
                _inside(text, tokens, at + 1, close, withs, names, found)
            at = close + 1
        else:
            at += 1


def _begins(tokens: Sequence[Token], at: int) -> bool:
    """Whether SELECT or WITH begins a query here, and is no name."""
    following = tokens[at + 1].text if at + 1 < len(tokens) else ""
    return tokens[at].upper in ("SELECT", "WITH") and following not in (".", ",", ")", "::", "=")


def _end_of_select(tokens: Sequence[Token], at: int, last: int) -> int:
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            at = matching(tokens, at) + 1
            continue
        if token.upper in _SET_OPERATORS and at + 1 < last:
            following = tokens[at + 1].upper
            if at + 2 >= last:
                return last
            if token.upper == "EXCEPT" and following == "(" and tokens[at + 2].upper not in ("SELECT", "WITH"):
                at += 1
                continue
            if following in ("ALL", "DISTINCT", "SELECT", "WITH", "("):
                return at
        if token.text == ";" and token.kind == "symbol":
            return at
        at += 1
    return last


def _scope(
    text: str,
    tokens: Sequence[Token],
    first: int,
    last: int,
    withs: tuple[str, ...],
    names: frozenset[str],
    nested: bool,
) -> Scope | None:
    opened: list[tuple[str, int, int]] = []  # clause, place of its keyword, place of its body
    at, operands = first, Operands()
    while at < last:
        word = tokens[at].upper
        after_dot = at > first and tokens[at - 1].text == "."
        name, width = "", 1
        if word == "WITH" and at == first:
            name = word
        elif word == "SELECT" and not after_dot and not (opened and tokens[at - 1].upper == "AS"):
            if any(c == "SELECT" for c, _, _ in opened):
                return None
            name = word
        elif word == "FROM" and not after_dot and _ambiguous(tokens, at):
            return None
        elif word in _CLAUSES and not after_dot and _opens(tokens, at, last, opened, operands):
            name, width = word, 2 if word in ("GROUP", "ORDER") else 1
            if any(c == word for c, _, _ in opened):
                name = word + " 2"
        if name:
            opened.append((name, at, at + width))
            operands.clause()
            at += width
        else:
            if word == "BY" and [c for c, _, _ in opened[-2:]] == ["LIMIT", "OFFSET"]:  # LIMIT n OFFSET m BY key
                opened.pop()
            at = operands.step(tokens, at)
    if operands.unsure or not any(c == "SELECT" for c, _, _ in opened):
        return None
    clauses: dict[str, Span] = {}
    for i, (name, _, body) in enumerate(opened):
        end = opened[i + 1][1] if i + 1 < len(opened) else last
        if name in clauses or body >= end:
            return None
        clauses[name] = Span(body, end, tokens[body].start, tokens[end - 1].end)
    own = clauses.get("WITH")
    return Scope(
        tokens=tokens,
        text=text,
        whole=Span(first, last, tokens[first].start, tokens[last - 1].end),
        clauses=MappingProxyType(clauses),
        withs=(*withs, text[own.start : own.end]) if own else withs,
        names=names | _tables_of(tokens, own) if own else names,
        nested=nested,
    )


def _ambiguous(tokens: Sequence[Token], at: int) -> bool:
    """Whether FROM follows a comma too many, or is the name of a function: `SELECT a, FROM (b, c)`."""
    return [t.upper for t in tokens[at - 1 : at + 2 : 2]] == [",", "("]


def _opens(tokens: Sequence[Token], at: int, last: int, opened: list[tuple[str, int, int]], operands: Operands) -> bool:
    """Whether a clause word opens a clause here, and is not a name or a part of another clause."""
    if at + 1 >= last or not any(c == "SELECT" for c, _, _ in opened):
        return False
    word, following, before = tokens[at].upper, tokens[at + 1], tokens[at - 1]
    if word == "FROM" and before.upper == "FILL" and tokens[at - 2].upper == "WITH":
        return False
    if word == "FROM" and before.text == "," and opened[-1][0] == "SELECT":  # after a comma too many
        return following.upper not in _AFTER_NAME and (following.kind != "symbol" or following.text in "({")
    if word in ("GROUP", "ORDER"):
        return following.upper == "BY"
    if operands.expected or following.text in (",", ")", ".", "="):
        return False
    if word == "OFFSET" and opened[-1][0] == "FROM":
        ratio = at - 3 if tokens[at - 2].text == "/" else at - 1
        return tokens[ratio - 1].upper != "SAMPLE"
    if word == "SETTINGS":
        return at + 2 < last and tokens[at + 2].text in ("=", ".")
    if word == "INTO":
        return following.upper == "OUTFILE"
    if word == "FETCH":
        return following.upper in ("FIRST", "NEXT")
    if word == "FORMAT":
        return following.kind == "word"
    return True


def _tables_of(tokens: Sequence[Token], span: Span) -> frozenset[str]:
    """Names that a WITH clause defines as subqueries: `name AS (SELECT …)`."""
    return frozenset(
        name
        for i in range(span.first, span.last - 2)
        if (name := tokens[i].name) and tokens[i + 1].upper == "AS" and tokens[i + 2].text == "("
    )
