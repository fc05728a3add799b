"""Vectors as arrays, for numpy, torch and whatever else takes them: blocks of mapped rows with their numbers.

What must stay true: a block shows vectors as they are stored, without a copy where the rows lie together; only rows
that are there and meet the condition are in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.errors import DatabaseDamaged
from clipql.sql.conditions import plain_mask
from clipql.storage.catalog import Table
from clipql.tables.registry import ROW, Registry
from clipql.tables.rowfile import RowFiles

ROWS_AT_ONCE = 65_536  # of 512 numbers: 64 MB, which is copied where rows are left out
FEW_RUNS = 16  # so many runs of rows in a block are shown as they lie; more are gathered in one copy


@dataclass(frozen=True, repr=False)
class VectorBlock(Brief):
    """Some rows of a vector column. vectors: (n, d) float16 or float32, read-only; rows: (n,) int64 row numbers."""

    vectors: NDArray[Any]
    rows: NDArray[np.int64]


def vector_blocks(
    registry: Registry, row_files: RowFiles, table: Table, column: str, where: str | None
) -> Iterator[VectorBlock]:
    """The vectors of the rows that are there now and meet a condition, in the order of their numbers."""
    wanted = registry.alive(table) if where is None else _meeting(registry, row_files, table, where)
    return _blocks(registry.store(table, column).blocks(0, table.rows), wanted)


def _blocks(mapped: Any, wanted: NDArray[np.bool_] | None) -> Iterator[VectorBlock]:
    for first, whole in mapped:
        for start in range(0, len(whole), ROWS_AT_ONCE):
            vectors = whole[start : start + ROWS_AT_ONCE]
            at = first + start
            if wanted is None:
                yield VectorBlock(vectors, np.arange(at, at + len(vectors), dtype=np.int64))
            else:
                yield from _chosen(vectors, at, wanted[at : at + len(vectors)])


def _chosen(vectors: NDArray[Any], first: int, wanted: NDArray[np.bool_]) -> Iterator[VectorBlock]:
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    if len(edges) <= 2 * FEW_RUNS:
        for start, end in edges.reshape(-1, 2).tolist():
            yield VectorBlock(vectors[start:end], np.arange(first + start, first + end, dtype=np.int64))
        return
    places = np.flatnonzero(wanted)
    gathered = vectors[places]
    gathered.flags.writeable = False
    yield VectorBlock(gathered, (places + first).astype(np.int64))


def _meeting(registry: Registry, row_files: RowFiles, table: Table, where: str) -> NDArray[np.bool_]:
    """The rows that meet a condition: on mapped columns where that can be done, and else by ClickHouse."""
    reader = row_files.reader(table)
    if reader is not None and reader.rows == table.rows:
        try:
            mask = plain_mask(where, reader.columns.column, table.rows, {})
        except DatabaseDamaged as error:
            row_files.distrust(table, error)
            mask = None
        if mask is not None:
            alive = registry.alive(table)
            return mask if alive is None else mask & alive
    sql = f"SELECT {ROW} FROM {registry.physical(table)} WHERE ({where}\n)"
    rows = registry.row_numbers(sql, {})
    found = np.zeros(table.rows, np.bool_)
    found[rows[rows < table.rows]] = True
    return found
