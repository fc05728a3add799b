"""The stars of a SELECT: `*`, `t.*` and COLUMNS(…), told from multiplications, with their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipql.syntax.lexer import Token, matching
from clipql.syntax.scopes import Scope

# tokens that end the item that a star begins, or that change the star
_AFTER = {",", ")", "]", ";", "FROM", "PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER",
          "LIMIT", "OFFSET", "FETCH", "SETTINGS", "FORMAT", "INTO", "UNION", "INTERSECT", "EXCEPT", "REPLACE", "APPLY",
          "LIKE", "ILIKE", "NOT"}  # fmt: skip
_BEFORE = {"SELECT", "DISTINCT", "ALL", "BY", "WHERE", "PREWHERE", "HAVING", "QUALIFY", "AND",
           "OR", "NOT", "ON", "CASE", "WHEN", "THEN", "ELSE",
           "LIMIT", "OFFSET", "DIV", "MOD", "LIKE", "BETWEEN", "IN"}  # fmt: skip


@dataclass(frozen=True)
class Star:
    """A star or COLUMNS(…) in the tokens: [first, last) with its qualifier; end: of the item, with EXCEPT and such."""

    first: int
    last: int
    end: int
    path: tuple[str, ...]
    text: str

    @property
    def is_list(self) -> bool:
        """Whether it lists columns by name, as COLUMNS(a, b)."""
        return self.text[-1] == ")" and "'" not in self.text


def stars_in(scope: Scope, places: Iterable[int]) -> list[Star]:
    """The stars of a SELECT. places: of the tokens to look at."""
    tokens, found, last = scope.tokens, list[Star](), scope.whole.last
    for at in places:
        token = tokens[at]
        end = at + 1
        if token.upper == "COLUMNS" and end < last and tokens[end].text == "(":
            end = matching(tokens, end) + 1
        elif token.text != "*" or token.kind != "symbol" or not is_star(tokens, at, last):
            continue
        if tokens[at - 1].text == "(" and at > 1 and tokens[at - 2].upper == "COUNT" and token.text == "*":
            continue
        first = at
        path: list[str] = []
        while first - 2 >= scope.whole.first and tokens[first - 1].text == "." and tokens[first - 2].name:
            path.insert(0, tokens[first - 2].name or "")
            first -= 2
        text = scope.text[token.start : tokens[end - 1].end]
        if end + 1 < last and tokens[end].upper in ("LIKE", "ILIKE") and token.text == "*":
            text += f" {tokens[end].text} {tokens[end + 1].text}"
            end += 2
        found.append(Star(first, end, _item_end(scope, end), tuple(path), text))
    return found


def _item_end(scope: Scope, at: int) -> int:
    tokens = scope.tokens
    while at < scope.whole.last:
        if tokens[at].kind == "symbol" and tokens[at].text in "([{":
            at = matching(tokens, at) + 1
            continue
        word = tokens[at].upper
        if word in _AFTER and word not in ("EXCEPT", "REPLACE", "APPLY", "NOT"):
            break
        at += 1
    return at


def is_star(tokens: Sequence[Token], at: int, last: int) -> bool:
    """Whether `*` stands for columns, and is no multiplication."""
    following = tokens[at + 1] if at + 1 < last else None
    before = tokens[at - 1]
    if before.text == "*" and before.kind == "symbol":  # a product with the columns
        return not is_star(tokens, at - 1, last)
    if before.kind == "symbol" and before.text not in (")", "]", "}"):
        return True
    if before.upper in _BEFORE and tokens[at - 2].text != ".":
        return True
    return _after_head(tokens, at) and (following is None or (following.upper in _AFTER and following.upper != "NOT"))


def _after_head(tokens: Sequence[Token], at: int) -> bool:
    """Whether `SELECT TOP 3`, `SELECT TOP 3 WITH TIES` or `SELECT DISTINCT ON (a)` ends here."""
    before = tokens[at - 1]
    if before.kind == "number":
        return tokens[at - 2].upper == "TOP"
    if before.text == ")" and before.kind == "symbol":
        opening = next((i for i in range(at - 1, -1, -1) if matching(tokens, i) == at - 1), at)
        return tokens[opening - 1].upper in ("ON", "TOP")
    return before.upper == "TIES"
