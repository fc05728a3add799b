"""Query vectors that a statement brings along, as one side of a nearest-neighbour join.

    SELECT q.n, l.url, cosineDistance(l.image_embedding, q.v) AS distance
    FROM (SELECT arrayJoin(arrayEnumerate({Q:Array(Array(Float32))})) AS n, {Q:Array(Array(Float32))}[n] AS v) AS q
    CROSS JOIN laion AS l ORDER BY q.n, distance LIMIT 10 BY q.n

They may come by a SELECT of any kind, a name in WITH, a table function or a table without vector columns. ClickHouse
gives their rows once; the search and the join are of those. What must stay true: each column has the type that it had;
what is no plain list of vectors of one length is left to ClickHouse, which says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.storage.catalog import Table, VectorColumn
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.syntax.sources import Entry
from clipql.tables.registry import ROW, Registry

# vectors that one statement brings along at most; more are left to ClickHouse
MOST = 100_000
_KEPT = re.compile(r"(Nullable\()?(U?Int(8|16|32|64)|Float(32|64)|String|Bool)\)?\Z|Array\(Float(32|64)\)\Z")
_PARAMETER = re.compile(r"\{\s*(\w+)\s*:\s*Array\s*\(\s*Array\s*\(\s*Float32\s*\)\s*\)\s*\}")
_VECTORS = "Array(Float32)"
_WHOLE = "limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0"


@dataclass(frozen=True, repr=False)
class Given(Brief):
    """A side of a join whose rows are given. sql: the SELECT of them, without WHERE; types: of its columns by name.

    Once they are there: name: of the Arrow table that holds them, with their number in `_row`; vectors: float32 (n, d).
    """

    sql: str
    types: Mapping[str, str]
    name: str = ""
    rows: pa.Table | None = None
    vectors: NDArray[np.float32] | None = None

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of these rows, as a store gives them."""
        if self.vectors is None:
            raise QueryError("the query vectors are not there yet")
        return self.vectors[rows]

    def stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The same."""
        return self.take(rows)

    @property
    def source(self) -> str:
        """What FROM reads them from, with their numbers."""
        casts = [f"CAST({quote_name(n)}, {quote_string(t)}) AS {quote_name(n)}" for n, t in self.types.items()]
        return f"(SELECT {', '.join([*casts, ROW])} FROM Python({self.name}))"


def typical(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the same types, without what is in arrays: what a column is called or is does not depend on it."""
    return {name: [] if isinstance(value, (list, np.ndarray)) else value for name, value in params.items()}


def described(
    scope: Scope, entry: Entry, registry: Registry, params: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> tuple[Table, Given] | None:
    """An entry of FROM as a table of query vectors, as far as its types say; None where it is none."""
    withs = f"WITH {', '.join(scope.withs)} " if scope.withs else ""
    text = f"SELECT * FROM {scope.text_of(entry.first, entry.last)}"
    try:
        sql = f"DESCRIBE TABLE ({withs}{text})"
        found = registry.engine.query(sql, params=typical(params), tables=tables, user=True).arrow()
    except QueryError:
        return None
    types = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
    if ROW in types or len(types) < len(found) or not all(_KEPT.match(t) for t in types.values()):
        return None
    columns = tuple(VectorColumn(name, "") for name, type in types.items() if type == _VECTORS)
    return (Table("", entry.called, "", columns), Given(f"{withs}{text}", types)) if columns else None


def fetched(
    given: Given,
    column: str,
    dimension: int | None,
    condition: str | None,
    registry: Registry,
    params: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    name: str,
    settings: str,
) -> Given | str:
    """The rows themselves, in an Arrow table of this name; or why they are left to ClickHouse. Raises QueryError."""
    where = f" WHERE {condition}" if condition else ""
    sql, arrays = _with_tables(f"{given.sql}{where} LIMIT {MOST + 1} SETTINGS {settings}{_WHOLE}", params, name)
    rows = registry.engine.query(sql, params=params, tables={**tables, **arrays}, user=True).arrow()
    if rows.num_rows > MOST:
        return f"it brings more than {MOST:,} query vectors along"
    lists = rows.column(column).combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    lengths = np.diff(lists.offsets.to_numpy()) if rows.num_rows else np.empty(0, np.int64)
    if lists.null_count or not np.all(lengths == dimension):
        return f"not all its query vectors have {dimension} numbers"
    if not np.isfinite(flat).all():
        return "one of its query vectors is not finite"
    numbered = rows.append_column(ROW, pa.array(np.arange(rows.num_rows, dtype=np.uint64)))
    return replace(given, name=name, rows=numbered, vectors=flat.reshape(rows.num_rows, -1 if len(flat) else 0))


def _with_tables(sql: str, params: Mapping[str, Any], name: str) -> tuple[str, dict[str, pa.Table]]:
    """A statement that reads arrays of vectors from Arrow tables, not from parameters, which ClickHouse parses: 1,000
    vectors of 512 numbers take 0.01 s instead of 2 to 6. name: what the tables' names begin with.
    """
    changed, tables = list[Edit](), dict[str, pa.Table]()
    tokens = read(sql).tokens
    for at, token in enumerate(tokens):
        if token.text != "{" or token.kind != "symbol":
            continue
        close = matching(tokens, at)
        if close >= len(tokens):
            break
        found = _PARAMETER.fullmatch(sql[token.start : tokens[close].end])
        table = tables.get(f"{name}_{found[1]}") if found else None
        if found and table is None and (array := _array(params.get(found[1]))) is not None:
            table = pa.table({"clipql_value": array})
        if found and table is not None:
            tables[f"{name}_{found[1]}"] = table
            changed.append((token.start, tokens[close].end, f"(SELECT clipql_value FROM Python({name}_{found[1]}))"))
    return edited(sql, changed), tables


def _array(value: Any) -> pa.Array | None:
    """A parameter's value as one Array(Array(Float32)); None where ClickHouse had better say what it is."""
    try:
        rows = json.loads(value) if isinstance(value, str) else value
        if isinstance(rows, np.ndarray) and (rows.ndim != 2 or rows.dtype.kind not in "fiu"):
            return None
        found = pa.array([[*rows]], pa.list_(pa.list_(pa.float32())))
    except (ValueError, TypeError, pa.ArrowException):
        return None
    lists = found.flatten()
    return None if lists.null_count or lists.flatten().null_count or not len(lists) else found
