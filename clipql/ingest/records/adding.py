"""`clipql ingest --add-column`: a vector column for a table that has rows, filled from files in one step.

What must stay true: each row of the table gets one vector, its own, or the column does not come about; the rows do not
change meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.quoting import quote_name
from clipql.errors import IngestError, UnknownTable
from clipql.ingest.pipeline import IngestProgress, IngestReport
from clipql.ingest.records import vectors
from clipql.ingest.records.columns import first_rows, vector_columns
from clipql.ingest.records.places import places_by
from clipql.ingest.records.reading import read_group
from clipql.ingest.records.sources import RecordFile, find_files
from clipql.storage import files
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.scattered import ScatteredSegment
from clipql.tables import recover, schema, shape
from clipql.tables.open_database import OpenDatabase
from clipql.tables.registry import Registry

_ROWS = 4_096


def add_column(
    db: OpenDatabase,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    table: str,
    add_column: str,
    by: str | None = None,
    vector_column: str | Sequence[str] = (),
    model: str | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
    foretold: object = None,
) -> IngestReport:
    """Add a vector column to a table that has rows, with the vectors of files, one for each row.

    add_column: its name, or that of an Array(Float32) column that is empty in each row. by: a column that both the
    files and the table have, whose values say which vector is whose; without it, the vectors are those of the table's
    rows in their order. vector_column: the column of the files that holds the vectors, by default the only one that
    looks so. model: what made them, remembered with the column. Raises IngestError, and leaves the table as it was,
    where a row would have no vector or two, or a vector is not usable. In the report, rows_left_out are rows of the
    files that the table does not have.
    """
    began = time.perf_counter()
    registry = db.registry
    database, _, name = table.rpartition(".")
    named = (vector_column,) if isinstance(vector_column, str) else tuple(vector_column)
    if len(named) > 1:
        raise IngestError(f"{add_column} is one column, and {', '.join(named)} are {len(named)}: name one at a time")
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    with registry.write_lock:
        recover.settle(registry)
        known = registry.find(database or None, name)
        if known is None:
            there = ", ".join(t.full_name for t in registry.catalog.tables) or "none yet"
            raise UnknownTable(f"there is no table {table} to add a column to; there are: {there}")
        empty = _is_empty(registry, known, add_column)
        found = find_files(sources, named or [add_column])
        filling = _Filling(registry, known, found, _column_of(found, named, add_column), by, progress, began)
        column = schema.new_column(registry, known, add_column)
        try:
            filled = dataclasses.replace(filling.fill(column), model=model)
            schema.add_filled(registry, known, filled, replaces=empty)
        finally:
            recover.sweep(registry)
    seconds = time.perf_counter() - began
    groups = sum(len(f.groups) for f in found)
    units = {f.unit for f in found}
    unit = units.pop() if len(units) == 1 else "row group"
    return IngestReport(filling.filled, groups, 0, seconds, filling.beyond, unit=unit)


def _is_empty(registry: Registry, table: Table, name: str) -> bool:
    """Whether the column is there, as ALTER TABLE … ADD COLUMN made it, with an empty array in each row; False where
    there is none of the name. Raises IngestError for another column.
    """
    columns = registry.engine.arrow(f"DESCRIBE TABLE {registry.shape(table)}").column(0).to_pylist()
    if name not in columns and name != "_row":
        return False
    may_be = {c.name for c in shape.vector_columns(registry.engine, table.id) or ()} - {c.name for c in table.columns}
    given = 0
    if name in may_be:
        given = registry.engine.scalar(f"SELECT countIf(notEmpty({quote_name(name)})) FROM {registry.physical(table)}")
        if not given:
            return True
    why = f", with values in {given:,} rows" if given else ""
    raise IngestError(
        f"{table.full_name} has a column {name}{why}: name another, or drop that one first, by ALTER TABLE "
        f"{table.full_name} DROP COLUMN {quote_name(name)}"
    )


def _column_of(found: Sequence[RecordFile], named: Sequence[str], add_column: str) -> str:
    """The column of the files that holds the vectors. Raises IngestError."""
    if not found:
        raise IngestError("no files of rows are named")
    if not named and add_column in found[0].schema.names:
        return add_column
    if found[0].beside and not named:
        return found[0].beside_name
    chosen = vector_columns(found[0], None, named)
    if len(chosen) > 1:
        raise IngestError(
            f"{found[0].path} has {len(chosen)} columns of vectors, {', '.join(chosen)}: say which (--vector-column)"
        )
    return chosen[0]


class _Filling:
    """The vectors of files on their way into a new column of a table, whose write lock is held.

    filled: rows that got a vector; beyond: rows of the files that the table does not have.
    """

    def __init__(
        self,
        registry: Registry,
        table: Table,
        found: Sequence[RecordFile],
        column: str,
        by: str | None,
        progress: Callable[[IngestProgress], None] | None,
        began: float,
    ) -> None:
        self._registry, self._table, self._files, self._column, self._by = registry, table, found, column, by
        self._progress, self._began = progress or (lambda p: None), began
        alive = registry.alive(table)
        self._rows = np.arange(table.rows, dtype=np.int64) if alive is None else np.flatnonzero(alive)
        self.filled = self.beyond = 0

    def fill(self, column: VectorColumn) -> VectorColumn:
        """Write the segment, and return the column with it."""
        dimension, dtype = self._kind()
        if self._by is not None:
            places = places_by(self._registry, self._table, self._rows, self._files, self._by)
        else:
            self._check_count()
            places = self._rows
        self.beyond = int((places < 0).sum())
        folder = self._registry.folder / "vectors" / self._table.id / column.folder
        path = folder / f"{0:012d}-{self._registry.catalog.serial}-0.npy"
        at = 0
        with files.new_file(path) as file:
            segment = ScatteredSegment(file, path, self._table.rows, dimension, dtype)
            for block in self._blocks(dimension):
                if at + len(block) > len(places):
                    raise IngestError(self._counted(f"more than {len(places):,}"))
                own = places[at : at + len(block)]
                there = own >= 0
                segment.put(own[there], block if there.all() else block[there])
                at += len(block)
            if at != len(places):
                raise IngestError(self._counted(f"{at:,}"))
            written = segment.finish()
        self.filled = len(self._rows)
        return dataclasses.replace(column, dimension=dimension, segments=(written,))

    def _kind(self) -> tuple[int, str]:
        """How many numbers a vector has, and what holds them. Raises IngestError."""
        dimension, halves = None, True
        for file in self._files:
            if self._column not in file.schema.names:
                raise IngestError(f"{file.path} has no column {self._column}; it has {', '.join(file.schema.names)}")
            seen = first_rows(file, [self._column])
            if seen is None:
                continue
            kind = seen.column(self._column).type
            if refused := vectors.refusal(kind):
                raise IngestError(f"{file.path}: column {self._column} {refused}")
            own = vectors.dimension_of(seen.column(self._column))
            if own is not None and dimension not in (None, own):
                raise IngestError(f"{file.path} has vectors of {own} numbers; the files before it have {dimension}")
            dimension, halves = dimension or own, halves and bool(pa.types.is_float16(kind.value_type))
        if not dimension:
            raise IngestError(f"there is no vector in {self._column} of {', '.join(str(f.path) for f in self._files)}")
        return dimension, "float16" if halves else "float32"

    def _check_count(self) -> None:
        if all(None not in f.groups for f in self._files):
            rows = sum(n or 0 for f in self._files for n in f.groups)
            if rows != len(self._rows):
                raise IngestError(self._counted(f"{rows:,}"))

    def _counted(self, rows: str) -> str:
        return (
            f"the files have {rows} rows and {self._table.full_name} has {len(self._rows):,}: without a column that "
            "says which vector is whose (--by id) there must be one for each row, in their order"
        )

    def _blocks(self, dimension: int) -> Iterator[NDArray[Any]]:
        done = 0
        for number, file in enumerate(self._files, 1):
            for group in range(len(file.groups)):
                first = 0
                for batch in read_group(file, group, [self._column], _ROWS, self._own_column(file)):
                    column = batch.column(self._column)
                    found = vectors.vectors_of(column, dimension)
                    if found.bad is not None:
                        row = int(np.flatnonzero(found.bad)[0])
                        why = vectors.what_is_wrong(column, row, dimension)
                        raise IngestError(
                            f"{file.where(group, first + row)} {why} in {self._column}; each row of "
                            f"{self._table.full_name} needs a vector: mend the file"
                        )
                    yield found.values
                    first, done = first + batch.num_rows, done + batch.num_rows
                    self._tell(file, number, done)
        self._tell(self._files[-1], len(self._files), done, finished=True)

    def _own_column(self, file: RecordFile) -> str | None:
        """The column to read; None where the vectors lie beside the file, whose rows must be counted all the same."""
        return None if file.beside else self._column

    def _tell(self, file: RecordFile, number: int, done: int, *, finished: bool = False) -> None:
        seconds, total = time.perf_counter() - self._began, max(done, len(self._rows))
        self._progress(
            IngestProgress(file.path.name, number, len(self._files), done, total, seconds, finished, False, "file")
        )
