"""VALUES whose rows hold more than literals: parameters and calls, as `VALUES ({id:UInt32}, now())`.

Such rows become the SELECT that says the same, so that the guard looks at each expression as at any other. Rows of
literals stay data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read

# rows and bytes up to which expressions are looked for: what is longer is data that a program wrote
MOST_ROWS, MOST_BYTES = 1_000, 1 << 16
_LITERAL_WORDS = frozenset(["NULL", "TRUE", "FALSE", "NAN", "INF", "DEFAULT"])
_LITERAL_SIGNS = frozenset("[](),-+:;")


def as_select(data: str) -> str | None:
    """A SELECT of the rows; None where they are literals, or not rows of expressions."""
    if len(data) > MOST_BYTES:
        return None
    tokens = read(data).tokens
    if all(map(_is_literal, tokens)):
        return None
    rows: list[str] = []
    at = 0
    while at < len(tokens) and tokens[at].text == "(" and len(rows) < MOST_ROWS:
        end = matching(tokens, at)
        if end >= len(tokens) or end == at + 1 or _has_default(tokens[at:end]):
            return None
        rows.append(data[tokens[at].end : tokens[end].start])
        at = end + 1
        if at < len(tokens) and tokens[at].text == ",":
            at += 1
    while at < len(tokens) and tokens[at].text == ";":
        at += 1
    return " UNION ALL ".join(f"SELECT {row}" for row in rows) if rows and at == len(tokens) else None


def _is_literal(token: Token) -> bool:
    if token.kind == "symbol":
        return token.text in _LITERAL_SIGNS
    return token.kind in ("number", "string", "vector") or token.upper in _LITERAL_WORDS


def _has_default(tokens: Sequence[Token]) -> bool:
    """Whether a value is DEFAULT, which no SELECT has."""
    return any(b.upper == "DEFAULT" and a.text in ("(", ",") for a, b in itertools.pairwise(tokens))
