"""UPDATE of vectors: `ALTER TABLE … UPDATE v = … WHERE …`, and `UPDATE t SET v = … WHERE …`.

ClickHouse computes the new vectors as it would in its own UPDATE, of the rows as they are; they become another version
of those rows' vectors (`revising`). What must stay true: all columns that a statement assigns to change together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipql.engine.arrow import numpy_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import UnsupportedStatement
from clipql.storage.catalog import Table
from clipql.storage.vectors import segments
from clipql.syntax.lexer import Token, split_list
from clipql.tables.indexes import Indexes
from clipql.tables.list_columns import as_matrix, check_there
from clipql.tables.registry import ROW, Registry
from clipql.tables.revising import Revision

# what a user SETs to cut a result short must not cut this one
_WHOLE = "limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"
_CHANGES = {"ADD", "CLEAR", "COMMENT", "DELETE", "DROP", "MATERIALIZE", "MODIFY", "RENAME", "UPDATE"}


@dataclass(frozen=True)
class Assignments:
    """What an UPDATE assigns, by column, as places of tokens [first, last); condition: what stands after WHERE."""

    values: tuple[tuple[str, int, int], ...]
    condition: tuple[int, int]

    def vectors(self, table: Table) -> list[str]:
        """The vector columns that it assigns to."""
        return [name for name, _, _ in self.values if table.column(name)]


def assignments(tokens: Sequence[Token]) -> Assignments | None:
    """What an UPDATE assigns: tokens of `UPDATE a = …, b = … WHERE …`, or of `UPDATE t SET a = … WHERE …`.

    None where it is none, or not understood: ClickHouse will say what is wrong.
    """
    if not tokens or tokens[0].upper != "UPDATE":
        return None
    sets = [i for i, t in enumerate(tokens) if t.upper == "SET"]
    first = sets[0] + 1 if sets and sets[0] <= 4 and tokens[2].text != "=" else 1
    end, depth = len(tokens), 0
    for at in range(first, len(tokens)):
        depth += (tokens[at].text in ("(", "[", "{")) - (tokens[at].text in (")", "]", "}"))
        if not depth and tokens[at].upper == "WHERE":
            end = at
            break
    values = [
        (tokens[a].name or "", a + 2, b)
        for a, b in split_list(tokens, first, end)
        if b - a > 2 and tokens[a + 1].text == "="
    ]
    last = next((i for i in range(end, len(tokens)) if tokens[i].upper == "SETTINGS"), len(tokens))
    return Assignments(tuple(values), (end + 1, last)) if values and end < last else None


def update(
    registry: Registry,
    indexes: Indexes,
    table: Table,
    tokens: Sequence[Token],
    sql: str,
    params: Mapping[str, Any],
) -> bool:
    """Carry out an UPDATE if it assigns to vector columns; whether it does. sql: what the tokens are of.

    Raises UnsupportedStatement where it assigns to other columns too; VectorError for what is no vector of the column;
    then nothing has changed.
    """
    found = assignments(tokens)
    names = found.vectors(table) if found else []
    if found is None or not names:
        return False
    if len(names) < len(found.values) or len(set(names)) < len(names):
        raise UnsupportedStatement(
            f"{', '.join(dict.fromkeys(names))} of {table.full_name} lies outside ClickHouse: update vectors in one "
            "statement, and other columns in another"
        )
    if any(t.upper == "PARTITION" and tokens[i - 1].upper == "IN" for i, t in enumerate(tokens) if i):
        raise UnsupportedStatement("vectors are not updated IN PARTITION: name the rows by WHERE")

    def text(first: int, last: int) -> str:
        return sql[tokens[first].start : tokens[last - 1].end]

    given = [f"CAST(({text(a, b)}), 'Array(Float32)') AS {quote_name(f'{ROW} {n}')}" for n, a, b in found.values]
    select = f"SELECT {', '.join([ROW, *given])} FROM {registry.physical(table)} WHERE ({text(*found.condition)})"
    own = text(found.condition[1] + 1, len(tokens)) + ", " if found.condition[1] + 1 < len(tokens) else ""
    with Revision(registry, indexes, table) as revision:
        for batch in registry.engine.stream(f"{select} SETTINGS {own}{_WHOLE}", params=params, user=True):
            rows = numpy_numbers(batch.column(0)).astype(np.int64)
            for at, name in enumerate(names, 1):
                _put(revision, name, rows, batch.column(at))
        revision.commit()
    return True


def _put(revision: Revision, name: str, rows: Any, column: Any) -> None:
    table = revision.table
    values, there = as_matrix(table, name, column, 0, "the UPDATE", revision.dimension(name))
    if there is not None:
        check_there(table, name, there, 0, "the UPDATE")
    segments.check_finite(values, 0, f"column {name}, the UPDATE")
    revision.put(name, rows, values, there)


def check_clear(tokens: Sequence[Token], name: str) -> None:
    """Raise UnsupportedStatement for a CLEAR COLUMN of some rows."""
    if any(t.upper == "PARTITION" for t in tokens):
        raise UnsupportedStatement(
            f"{name} is a vector column: clear all of it, or set it to [] for some rows by UPDATE … WHERE"
        )


def changes_only_vectors(table: Table, tokens: Sequence[Token]) -> bool:
    """Whether one change of a statement does nothing but update vectors."""
    found = assignments(tokens)
    # a column of such a name is taken for another change, which does no harm
    begun = sum(t.upper in _CHANGES for t in tokens)
    return found is not None and bool(found.vectors(table)) and begun == 1
