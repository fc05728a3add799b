"""What the ORDER BY, LIMIT and WHERE of a SELECT say about distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipql.brief import Brief
from clipql.sql.recognition.affine import Affine, Parser
from clipql.sql.recognition.calls import Call
from clipql.syntax.lexer import Token, matching
from clipql.syntax.scopes import Scope

_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, repr=False)
class Bound(Brief):
    """A condition on a distance: `form op value`, the value being a text without columns."""

    form: Affine
    op: str
    value: str
    text: str


@dataclass(frozen=True, repr=False)
class Condition(Brief):
    """One of the conditions that WHERE and PREWHERE join by AND."""

    text: str
    start: int
    end: int
    calls: tuple[int, ...]
    bound: Bound | None


def read_order(scope: Scope, parser: Parser) -> tuple[Affine | None, bool, str | None]:
    span = scope.clauses.get("ORDER")
    if not span:
        return None, False, None
    tokens = scope.tokens
    items = scope.items("ORDER")
    if any(t.upper in ("FILL", "INTERPOLATE", "COLLATE", "NULLS") for t in scope.within("ORDER")):
        return None, False, "its ORDER BY has more than expressions and directions"
    first, last = items[0]
    descending = False
    if tokens[last - 1].upper in ("ASC", "ASCENDING", "DESC", "DESCENDING"):
        descending = tokens[last - 1].upper.startswith("DESC")
        last -= 1
    form = parser.parse(first, last)
    return (form, descending, None) if form and form.weights else (None, False, None)


def read_limit(scope: Scope) -> tuple[str | None, str | None, str | None]:
    span = scope.clauses.get("LIMIT")
    if "LIMIT 2" in scope.clauses or "FETCH" in scope.clauses:
        return None, None, "it has LIMIT BY or FETCH"
    if not span:
        return None, None, None
    words = [t.upper for t in scope.within("LIMIT")]
    if "BY" in words or "TIES" in words or "-" in words:
        return None, None, "it has LIMIT BY, WITH TIES or a negative LIMIT"
    items = [scope.text_of(*i) for i in scope.items("LIMIT")]
    if len(items) == 2:
        return items[1], items[0], None
    offset = scope.body("OFFSET")
    return items[0], offset.removesuffix("ROWS").removesuffix("ROW").strip() or None, None


def read_conditions(scope: Scope, calls: tuple[Call, ...], parser: Parser) -> tuple[Condition, ...]:
    found: list[Condition] = []
    for clause in ("PREWHERE", "WHERE"):
        span = scope.clauses.get(clause)
        for first, last in conjuncts(scope.tokens, span.first, span.last) if span else []:
            direct = [i for i, c in enumerate(calls) if first <= c.first < last]
            named = _named_calls(scope, first, last, parser, calls)
            found.append(
                Condition(
                    text=scope.text_of(first, last),
                    start=scope.tokens[first].start,
                    end=scope.tokens[last - 1].end,
                    calls=tuple(sorted({*direct, *named})),
                    bound=_bound(scope, first, last, parser),
                )
            )
    return tuple(found)


def _named_calls(scope: Scope, first: int, last: int, parser: Parser, calls: tuple[Call, ...]) -> set[int]:
    """Calls that a condition reaches through the names of expressions."""
    spans = scope.aliases
    seen: set[str] = set()
    todo = [t.name for t in scope.tokens[first:last]]
    found: set[int] = set()
    while todo:
        name = todo.pop()
        if not name or name in seen or name not in spans:
            continue
        seen.add(name)
        a, b = spans[name]
        found |= {i for i, c in enumerate(calls) if a <= c.first < b}
        todo += [t.name for t in scope.tokens[a:b]]
    return found


def conjuncts(tokens: Sequence[Token], first: int, last: int) -> list[tuple[int, int]]:
    """The conditions that AND joins, as [first, last); one where OR, or a lambda, stands at the same level."""
    parts: list[tuple[int, int]] = []
    begin = at = first
    between = False
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            at = matching(tokens, at) + 1
            continue
        joins = token.upper in ("OR", "XOR", "->", "?", "CASE")
        if joins or (token.upper == "NOT" and not _not_of_operator(tokens, at, last)):
            return [(first, last)]
        if token.upper == "BETWEEN":
            between = True
        elif token.upper == "AND":
            if between:
                between = False
            else:
                parts.append((begin, at))
                begin = at + 1
        at += 1
    return [*parts, (begin, last)] if begin < last else [(first, last)]


def _compares(token: Token) -> bool:
    """Whether a token makes a condition of what stands around it."""
    symbols = {"=", "==", "!=", "<>", "<", ">", "<=", ">=", "<=>", "?"}
    words = {"IN", "IS", "LIKE", "ILIKE", "BETWEEN", "NOT", "AND", "OR", "GLOBAL", "REGEXP"}
    return (token.kind == "symbol" and token.text in symbols) or token.upper in words


def _not_of_operator(tokens: Sequence[Token], at: int, last: int) -> bool:
    following = tokens[at + 1].upper if at + 1 < last else ""
    return following in ("IN", "LIKE", "ILIKE", "BETWEEN", "NULL") or tokens[at - 1].upper == "IS"


def _bound(scope: Scope, first: int, last: int, parser: Parser) -> Bound | None:
    tokens, at = scope.tokens, first
    while at < last:
        token = tokens[at]
        if token.kind == "symbol" and token.text in "([{":
            at = matching(tokens, at) + 1
            continue
        if token.kind == "symbol" and token.text in _FLIPPED:
            if any(_compares(t) for t in (*tokens[first:at], *tokens[at + 1 : last])):
                return None
            left, right = parser.parse(first, at), parser.parse(at + 1, last)
            text = scope.text_of(first, last)
            if left and left.weights and not (right and right.weights):
                return Bound(left, token.text, scope.text_of(at + 1, last), text)
            if right and right.weights and not (left and left.weights):
                return Bound(right, _FLIPPED[token.text], scope.text_of(first, at), text)
            return None
        at += 1
    return None
