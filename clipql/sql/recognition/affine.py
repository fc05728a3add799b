"""Expressions that are a weighted sum of distances and numbers: `1 - cosineDistance(v, q)`, `2*d1 + d2`.

Only + - * / with numbers, brackets and names of such expressions; anything else is not affine, and so not planned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clipql.syntax.lexer import Token

_OF_ANOTHER_BASE = re.compile(r"0[xXbB]")


@dataclass(frozen=True)
class Affine:
    """constant + the sum of weight × call, calls by their number."""

    weights: Mapping[int, float]
    constant: float = 0.0

    def plus(self, other: Affine, sign: float = 1.0) -> Affine:
        """This plus (or, with sign -1, minus) another."""
        weights = dict(self.weights)
        for call, weight in other.weights.items():
            weights[call] = weights.get(call, 0.0) + sign * weight
        return Affine({c: w for c, w in weights.items() if w}, self.constant + sign * other.constant)

    def times(self, factor: float) -> Affine:
        """This, scaled."""
        return Affine({c: w * factor for c, w in self.weights.items() if w * factor}, self.constant * factor)


def _plain(form: Affine) -> bool:
    """Whether rounding leaves the distances' order alone: 1e17 + d is the same number for every small d."""
    weights = [abs(w) for w in form.weights.values()]
    return not weights or (abs(form.constant) <= 1e3 and min(weights) >= 1e-3 and max(weights) <= 1e3)


class _NotAffine(Exception):
    pass


Resolve = Callable[[Token], "tuple[int, int] | None"]


class Parser:
    """Reads affine expressions from tokens.

    calls: the number of the distance call that begins at a token place, and the place after it.
    resolve: the place of the expression that a name stands for, as [first, last), or None.
    """

    def __init__(self, tokens: Sequence[Token], calls: Mapping[int, tuple[int, int]], resolve: Resolve) -> None:
        self._tokens, self._calls, self._resolve = tokens, calls, resolve
        self._at, self._last, self._depth = 0, 0, 0

    def parse(self, first: int, last: int) -> Affine | None:
        """The expression in tokens [first, last), or None where it is not affine."""
        saved = self._at, self._last
        self._at, self._last = first, last
        self._depth += 1
        try:
            if self._depth > 20 or first >= last:
                return None
            value = self._sum()
            return value if self._at == last and _plain(value) else None
        except _NotAffine:
            return None
        finally:
            self._at, self._last = saved
            self._depth -= 1

    def _peek(self) -> str:
        return self._tokens[self._at].upper if self._at < self._last else ""

    def _sum(self) -> Affine:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self._at += 1
            value = value.plus(self._product(), sign)
        return value

    def _product(self) -> Affine:
        value = self._factor()
        while self._peek() in ("*", "/"):
            divide = self._peek() == "/"
            self._at += 1
            other = self._factor()
            if divide:
                if other.weights or not other.constant:
                    raise _NotAffine
                value = value.times(1 / other.constant)
            elif not other.weights:
                value = value.times(other.constant)
            elif not value.weights:
                value = other.times(value.constant)
            else:
                raise _NotAffine
        return value

    def _factor(self) -> Affine:
        if self._at >= self._last:
            raise _NotAffine
        place, token = self._at, self._tokens[self._at]
        self._at += 1
        if token.upper == "-":
            return self._factor().times(-1)
        if token.text == "(" and token.kind == "symbol":
            value = self._sum()
            if self._peek() != ")":
                raise _NotAffine
            self._at += 1
            return value
        if token.kind == "number" and not _OF_ANOTHER_BASE.match(token.text):
            return Affine({}, float(token.text))
        if place in self._calls:
            number, self._at = self._calls[place]
            return Affine({number: 1.0})
        span = self._resolve(token) if token.name and self._peek() not in (".", "(") else None
        inner = self.parse(*span) if span else None
        if inner is None:
            raise _NotAffine
        return inner
