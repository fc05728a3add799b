"""Near duplicates of a table, grouped: which rows look alike, and which of each group is kept.

Rows are of one group where a chain of rows, each nearer than a bound to the next, leads from one to the other. What
must stay true: the table of the answer is there whole or not at all; the table that is looked at does not change.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.tables import chosen_rows, known_column, refuse_existing, write_rows
from clipql.errors import ClipqlError, VectorError
from clipql.index import near_duplicates
from clipql.index.near_duplicates import NearDuplicates
from clipql.index.unite import Union
from clipql.index.within import PairsWithin, Side
from clipql.storage.vectors import devices, rowwise
from clipql.storage.vectors.metrics import Metric, metric_spelled
from clipql.tables.registry import ROW

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.vectors.store import ColumnStore

# pairs of rows a second, of 512 numbers on two cores, for a forecast
PAIRS_A_SECOND = 1e8
ROWS_AT_ONCE = 16_384
_KEEP = re.compile(r"\s*(max|min)\s*\((.+)\)\s*\Z", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, repr=False)
class Duplicates(Brief):
    """rows: looked at. groups: of two rows or more. duplicates: rows in them that are not kept. recall: the share of
    true pairs of sample rows that the search finds, 1 where all pairs were compared; checked: how many those were.
    """

    rows: int
    groups: int
    duplicates: int
    seconds: float
    recall: float
    checked: int


@dataclass(frozen=True, repr=False)
class Forecast(Brief):
    """What it will take: rows, pairs that are compared, seconds on two cores, bytes of memory."""

    rows: int
    pairs: float
    seconds: float
    bytes: float


def forecast(db: Database, table: str, column: str, rows: int | None = None) -> Forecast:
    """A forecast for a table, or for one of so many rows like it. Raises UnknownTable or VectorError."""
    known, store = known_column(db, table, column)
    n = known.rows if rows is None else rows
    told = near_duplicates.forecast(n, store.dimension or 512, PAIRS_A_SECOND)
    return Forecast(n, told["pairs"], told["seconds"], told["bytes"])


def dedup(
    db: Database,
    table: str,
    *,
    into: str,
    within: float,
    column: str = "image_embedding",
    metric: str = "cosineDistance",
    keep: str = f"min({ROW})",
    id: str = "id",
    where: str | None = None,
    recall: float = 0.999,
    device: str = devices.CPU,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Duplicates:
    """Make the table `into` of (id, group, kept, distance): a row for each that has duplicates.

    within: the bound, which a pair must be nearer than (for dotProduct: above). keep: `max(expression)` or
    `min(expression)`, which chooses the row of a group that is kept; of equal ones, the first. distance: to that row.
    id: the column, or expression, that names a row. where: the rows that are looked at. recall: the share of the pairs
    to find, 1 for a comparison of all. device: cpu, a GPU by PyTorch's name, or auto. Raises UnknownTable, VectorError,
    QueryError, DeviceError or ClipqlError.
    """
    began = time.perf_counter()
    known, store = known_column(db, table, column)
    measured, chooses = metric_spelled(metric), _KEEP.match(keep)
    if measured is None:
        raise VectorError(f"{metric} is no distance; known are {', '.join(m.value for m in Metric)}")
    if chooses is None:
        raise ClipqlError(f"keep is {keep!r}; expected max(expression) or min(expression), as max(similarity)")
    refuse_existing(db, into)
    engine, physical = db.registry.engine, db.registry.physical(known)
    # which tells what is wrong with them
    engine.query(f"DESCRIBE TABLE (SELECT {id} AS clipql_id, {chooses[2]} AS clipql_key FROM {physical})", user=True)
    with db.registry.gate.reading():
        side = Side(store, known.rows, chosen_rows(db, known, where, column))
        if not PairsWithin(measured, side, side, within).possible:
            raise VectorError(f"{column} of {table} holds numbers too large for this search")
        on = devices.chosen(devices.checked(device), len(side) ** 2 / 2 * store.dimension)
        search = NearDuplicates(measured, side, within, recall, progress, engine.check_cancelled, on)
        union = Union(known.rows)
        for left, right in search.pairs():
            union.add(left, right)
        rows, groups = _grouped(union.components())
        kept = _kept(db, physical, rows, groups, chooses[1].lower(), chooses[2])
        progress("distances", 0, len(rows))
        members = pa.table(
            {
                "row": pa.array(rows.astype(np.uint64)),
                "group": pa.array(groups.astype(np.uint64)),
                "kept": pa.array(rows == kept[groups]),
                "distance": pa.array(_distances(store, measured, rows, kept[groups]).astype(np.float32)),
            }
        )
        write_rows(db, physical, members, id, into)
    db.registry.changes += 1
    db.registry.announce()
    count = len(kept)
    seconds = time.perf_counter() - began
    return Duplicates(len(side), count, len(rows) - count, seconds, search.recall, search.checked)


def _grouped(components: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that are not alone, by group and number, and the numbers of their groups from 0."""
    sizes = np.bincount(components, minlength=len(components))
    rows = np.flatnonzero(sizes[components] > 1)
    _, groups = np.unique(components[rows], return_inverse=True)
    order = np.lexsort((rows, groups))
    return rows[order], groups[order].astype(np.int64)


def _kept(
    db: Database, physical: str, rows: NDArray[np.int64], groups: NDArray[np.int64], which: str, by: str
) -> NDArray[np.int64]:
    """The row that each group keeps; of equal ones, and where there is only NULL or NaN to choose by, the first."""
    found = groups[np.concatenate([[True], groups[1:] != groups[:-1]])] if len(groups) else groups
    kept = rows[np.searchsorted(groups, found)]
    if not len(rows):
        return kept
    members = pa.table({"row": pa.array(rows.astype(np.uint64)), "group": pa.array(groups.astype(np.uint64))})
    # an alias hides a column of its name, so these are names that no column has
    arg = (
        f"argMax(t.{ROW}, (t.clipql_key, -toInt64(t.{ROW})))"
        if which == "max"
        else f"argMin(t.{ROW}, (t.clipql_key, t.{ROW}))"
    )
    values = f"SELECT {ROW}, {by} AS clipql_key FROM {physical} WHERE {ROW} IN (SELECT row FROM Python(members))"
    sql = (
        f"SELECT m.`group`, {arg} FROM Python(members) AS m INNER JOIN ({values}) AS t ON t.{ROW} = m.row "
        "WHERE t.clipql_key = t.clipql_key GROUP BY 1"  # which is not so of NULL and NaN
    )
    chosen = db.registry.engine.query(sql, tables={"members": members}, user=True).arrow()
    kept[chosen.column(0).to_numpy().astype(np.int64)] = chosen.column(1).to_numpy().astype(np.int64)
    return kept


def _distances(
    store: ColumnStore, metric: Metric, rows: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.float64]:
    out = np.empty(len(rows))
    for at in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        out[part] = rowwise.of_pairs(metric, store.take(rows[part]), store.take(others[part]))
    return out
