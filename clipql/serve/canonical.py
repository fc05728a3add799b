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


def held_out(sql: str, found: Skeleton) -> bool:
    """Whether a statement can be known by its skeleton: its literal vectors are vectors and nothing else."""
    return _NAME not in sql and certain(sql, found)


def canonical(engine: Engine, sql: str, found: Skeleton | None) -> Canonical:
    """What ClickHouse writes. found: the skeleton, where the literals are to be held out.

    Raises QueryError, a syntax error as ClickHouse words it, with places in the statement as it was given.
    """
    literals = found.literals if found else ()
    if found and literals:
        try:
            written = _written(engine, found.filled([f"{{{_NAME}{i}:Array(Float32)}}" for i in range(len(literals))]))
            if [int(m[1]) for m in _PLACE.finditer(written)] == list(range(len(literals))):
                return Canonical(written)
        except QueryError:
            pass  # said with the places of the statement as it was given
    return Canonical(_written(engine, sql))


def _written(engine: Engine, sql: str) -> str:
    try:
        return str(engine.scalar(f"SELECT formatQuerySingleLine({quote_string(sql)})"))
    except QueryError as error:
        said = str(error).partition(": In scope SELECT formatQuery")[0]
        raise QueryError(said, code=error.code, name=error.name) from error
