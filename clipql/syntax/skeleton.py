"""A statement without its literal vectors, by which it is known when it comes again with others.

`sql/planning/prepared.py` and `cluster/plan_cache.py` keep what they made of a statement by its skeleton, and give it
the vectors of the one at hand. What must stay true: the literals of a skeleton that `certain` has approved are literal
vectors in every statement of that skeleton, as what stands around them is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipql.syntax.reading import read

LONGEST = 1 << 20  # characters of a statement that is known again
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_VECTOR = re.compile(rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*\]", re.ASCII)
LITERAL = "clipql_literal_"  # what parameters in the places of literals are called, with a number behind
_MARK = "[\0]"


@dataclass(frozen=True)
class Skeleton:
    """text: the statement with a mark for each literal vector. literals: those, as they are written."""

    text: str
    literals: tuple[str, ...]

    @property
    def key(self) -> tuple[str, int]:
        """What statements have in common that differ in their literals alone."""
        return self.text, len(self.literals)

    def filled(self, parts: Sequence[str]) -> str:
        """The statement with these texts in the places of its literals."""
        pieces = self.text.split(_MARK)
        return "".join(p for pair in zip(pieces, [*parts, ""], strict=True) for p in pair)

    def parameters(self, kind: str) -> str:
        """The statement with a parameter of a type in the place of each literal."""
        return self.filled([f"{{{LITERAL}{i}:{kind}}}" for i in range(len(self.literals))])


def skeleton(sql: str) -> Skeleton:
    """The skeleton of a statement, found without reading it: its literals may stand in strings."""
    if "[" not in sql:
        return Skeleton(sql, ())
    literals: list[str] = []

    def marked(literal: re.Match[str]) -> str:
        literals.append(literal.group())
        return _MARK

    return Skeleton(_VECTOR.sub(marked, sql), tuple(literals))


def certain(sql: str, found: Skeleton) -> bool:
    """Whether all literals of a skeleton are literal vectors to the statement, and none is part of something else."""
    places = {m.start(): m.group() for m in _VECTOR.finditer(sql)}
    vectors = {t.start: t.text for t in read(sql).tokens if t.kind == "vector"}
    return found.text.count(_MARK) == len(found.literals) and all(vectors.get(at) == t for at, t in places.items())
