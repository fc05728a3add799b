"""The rule for `FROM connectedComponents((SELECT a, b …))`: which things hang together by pairs of them.

    SELECT component, groupArray(id) FROM connectedComponents((SELECT a.id, b.id FROM laion a, laion b WHERE …))
    GROUP BY component

The pairs are read as a stream and united. The answer is a table of `id`, each thing in a pair once, and `component`,
the smallest of those that it hangs together with. What must stay true: it is carried out wherever it stands, planned or
not, as ClickHouse has no such function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipql.engine.embedded import Engine
from clipql.errors import QueryError
from clipql.index.unite import components
from clipql.sql.recognition.plan import NOT_CHOSEN
from clipql.storage.catalog import VectorColumn
from clipql.syntax.edits import Edit
from clipql.syntax.lexer import matching
from clipql.syntax.scopes import Scope
from clipql.syntax.sources import Entry
from clipql.tables.indexes import Chosen

NAME = "connectedComponents"


@dataclass(frozen=True)
class Components:
    """A SELECT that reads the components of the pairs of another."""

    pairs: str
    kind: str = "components"
    why: str = "connectedComponents of the pairs of a SELECT"
    chosen: Chosen = NOT_CHOSEN
    columns: tuple[VectorColumn, ...] = ()

    @property
    def searched(self) -> str:
        """What it reads, in words."""
        return "pairs of a SELECT"


def recognise_components(scope: Scope) -> list[tuple[Entry, Components]]:
    """The calls in the FROM of a SELECT, with the SELECT of the pairs. Raises QueryError where there is none."""
    found = []
    for entry in scope.sources.entries:
        if entry.kind != "function" or entry.name != NAME or entry.database is not None:
            continue
        inside = scope.tokens[entry.first + 2 : _closing(scope, entry)]
        if len(inside) < 4 or inside[0].text != "(" or inside[-1].text != ")":
            raise QueryError(f"expected {NAME}((SELECT a, b FROM …)): a SELECT of pairs in brackets of its own")
        found.append((entry, Components(scope.text[inside[1].start : inside[-2].end])))
    return found


def _closing(scope: Scope, entry: Entry) -> int:
    return matching(scope.tokens, entry.first + 1)


def edit(scope: Scope, entry: Entry, name: str) -> Edit:
    """The edit that reads an Arrow table in the place of a call."""
    tokens = scope.tokens
    return tokens[entry.first].start, tokens[_closing(scope, entry)].end, f"Python({name})"


def united(engine: Engine, pairs: str, params: dict[str, Any], tables: dict[str, pa.Table]) -> pa.Table:
    """Carry the SELECT of the pairs out and unite them. Raises QueryError where it has not two columns of one type."""
    batches = list(engine.stream(pairs, params=params, tables=tables, user=True))
    if not batches:
        described = engine.query(f"DESCRIBE TABLE ({pairs})", params=params, tables=tables, user=True).arrow()
        kinds = described.column(1).to_pylist()
        _check(len(kinds), kinds)
        empty = engine.query(f"SELECT * FROM ({pairs}) LIMIT 0", params=params, tables=tables, user=True).arrow()
        type_ = empty.schema.field(0).type if empty.num_columns else pa.uint64()
        return pa.table({"id": pa.array([], type_), "component": pa.array([], type_)})
    both = pa.Table.from_batches(batches)
    _check(both.num_columns, both.schema.types)
    ids = pa.chunked_array([*both.column(0).chunks, *both.column(1).chunks])
    if ids.null_count:
        raise QueryError(f"{NAME}: a pair holds NULL")
    known = pc.unique(ids)
    known = known.take(pc.sort_indices(known))
    left, right = (pc.index_in(both.column(i), known).to_numpy().astype(np.int64) for i in (0, 1))
    first: NDArray[np.int64] = components(len(known), left, right)
    return pa.table({"id": known, "component": known.take(pa.array(first))})


def _check(columns: int, kinds: list[Any]) -> None:
    if columns != 2 or str(kinds[0]) != str(kinds[1]):
        raise QueryError(
            f"{NAME}: the SELECT gives {columns} columns ({', '.join(map(str, kinds))}); expected two of one type, the "
            "things that each pair holds"
        )
