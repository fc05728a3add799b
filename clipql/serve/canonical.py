"""A statement as ClickHouse itself writes it out (formatQuerySingleLine): one spelling for everything, names decoded.

What must stay true: the text that comes out is what is checked and what runs; a literal vector in it is the user's own,
letter for letter. Vectors are held out of the text meanwhile, so that a statement that comes again with another vector
has the same text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_string
from clipql.errors import QueryError
from clipql.syntax.reading import read
from clipql.syntax.skeleton import Skeleton, certain

_NAME = "clipql_literal_"
_PLACE = re.compile(rf"\{{{_NAME}(\d+):Array\(Float32\)\}}")


@dataclass(frozen=True)
class Canonical:
    """text: the statement, with a parameter in the place of each literal vector."""

    text: str

    def filled(self, literals: Sequence[str]) -> str:
        """The statement with these vectors in their places."""
        return _PLACE.sub(lambda place: literals[int(place[1])], self.text) if literals else self.text


def held_out(sql: str, found: Skeleton) -> str | None:
    """The statement with a parameter in the place of each literal vector; None where one may be something else."""
    if _NAME in sql or not certain(sql, found) or read(sql).tokens[0].upper == "INSERT":
        return None
    return found.filled([f"{{{_NAME}{i}:Array(Float32)}}" for i in range(len(found.literals))])


def whole(written: Canonical, literals: Sequence[str]) -> bool:
    """Whether each literal that was held out has its place."""
    return [int(place[1]) for place in _PLACE.finditer(written.text)] == list(range(len(literals)))


def canonical(engine: Engine, sql: str) -> Canonical:
    """What ClickHouse writes. Raises QueryError, a syntax error as ClickHouse words it, with places in this text."""
    return Canonical(_written(engine, sql))


def _written(engine: Engine, sql: str) -> str:
    try:
        return str(engine.scalar(f"SELECT formatQuerySingleLine({quote_string(sql)})"))
    except QueryError as error:
        said = str(error).partition(": In scope SELECT formatQuery")[0]
        raise QueryError(said, code=error.code, name=error.name) from error
