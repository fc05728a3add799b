"""`clipql ingest --add-column`: a vector column for a table that has rows, filled from files, for some rows or all.

What must stay true: a row gets its own vector or none; a run changes all rows that it has vectors for, or nothing; the
rows do not change meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.encode.names import canonical
from clipql.engine.quoting import quote_name
from clipql.errors import IngestError, UnknownTable
from clipql.ingest.pipeline import IngestProgress, IngestReport
from clipql.ingest.records import vectors
from clipql.ingest.records.columns import first_rows, vector_columns
from clipql.ingest.records.places import places_by
from clipql.ingest.records.reading import read_group
from clipql.ingest.records.sources import RecordFile, find_files
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables import recover, schema, shape
from clipql.tables.open_database import OpenDatabase
from clipql.tables.registry import Registry
from clipql.tables.revising import Revision, fill_new

_ROWS = 4_096
Put = Callable[[NDArray[np.int64], NDArray[Any]], None]


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
    """Add a vector column to a table that has rows, with the vectors of files, or fill one whose rows may lack them.

    add_column: its name. A column that ALTER TABLE … ADD COLUMN made, or a run before this one, gets the vectors of
    these files in the place of what their rows have; other rows keep theirs. by: a column that both the files and the
    table have, whose values say which vector is whose; without it, the vectors are those of the table's rows in their
    order, one for each. NULL and an empty list are no vector. vector_column: the column of the files that holds the
    vectors, by default the only one that looks so. model: what made them, remembered with the column. Raises
    IngestError, and leaves the table as it was, where a row would have two vectors, or a vector is not usable. In the
    report, rows are those that got a vector, and rows_left_out rows of the files that the table does not have.
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
        column = _fillable(known, add_column)
        empty = False if column else _is_empty(registry, known, add_column)
        found = find_files(sources, named or [add_column])
        filling = _Filling(registry, known, found, _column_of(found, named, add_column), by, progress, began)
        if column:
            _check_model(known, column, model)
            with Revision(registry, db.indexes, known) as revision:
                filling.fill(partial(revision.put, add_column), column.dimension)
                revision.commit({add_column: model} if model and filling.filled else None)
        else:
            fresh = schema.new_column(registry, known, add_column)
            try:
                filled = dataclasses.replace(fill_new(registry, known, fresh, filling.fill), model=model)
                schema.add_filled(registry, known, filled, replaces=empty)
            finally:
                recover.sweep(registry)
    seconds = time.perf_counter() - began
    groups = sum(len(f.groups) for f in found)
    units = {f.unit for f in found}
    unit = units.pop() if len(units) == 1 else "row group"
    return IngestReport(filling.filled, groups, 0, seconds, filling.beyond, unit=unit)


def _fillable(table: Table, name: str) -> VectorColumn | None:
    """The column, if the table has it and its rows may lack vectors. Raises IngestError for one that needs them all."""
    column = table.column(name)
    if column is None or column.optional:
        return column
    raise IngestError(
        f"{table.full_name} has a column {name}, in which each row has a vector: name another, or drop that one first, "
        f"by ALTER TABLE {table.full_name} DROP COLUMN {quote_name(name)}; ALTER TABLE … UPDATE gives rows others"
    )


def _check_model(table: Table, column: VectorColumn, model: str | None) -> None:
    """Raise IngestError where vectors of another model are there."""
    known = column.model if column.absent < column.rows else None
    if known and model and canonical(known) != canonical(model):
        raise IngestError(
            f"{column.name} of {table.full_name} was filled by the model {known}, and --model says {model}: vectors of "
            "two models cannot be compared, name another column"
        )


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

    def fill(self, put: Put, known: int | None) -> None:
        """Give each row of the table that the files have a vector for its own. known: how many numbers it must have."""
        dimension = self._dimension()
        if known is not None and known != dimension:
            raise IngestError(
                f"{self._files[0].path} has vectors of {dimension} numbers; the column of {self._table.full_name} "
                f"holds {known}"
            )
        if self._by is not None:
            places = places_by(self._registry, self._table, self._rows, self._files, self._by)
        else:
            self._check_count()
            places = self._rows
        self.beyond = int((places < 0).sum())
        at = 0
        for block, given in self._blocks(dimension):
            if at + len(block) > len(places):
                raise IngestError(self._counted(f"more than {len(places):,}"))
            own = places[at : at + len(block)]
            there = own >= 0 if given is None else (own >= 0) & given
            put(own[there], block if there.all() else block[there])
            self.filled += int(np.count_nonzero(there))
            at += len(block)
        if at != len(places):
            raise IngestError(self._counted(f"{at:,}"))

    def _dimension(self) -> int:
        """How many numbers a vector has. Raises IngestError."""
        dimension = None
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
            dimension = dimension or own
        if not dimension:
            raise IngestError(f"there is no vector in {self._column} of {', '.join(str(f.path) for f in self._files)}")
        return dimension

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

    def _blocks(self, dimension: int) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        """Vectors of rows that follow each other, and which of these have one; None for all."""
        done = 0
        for number, file in enumerate(self._files, 1):
            for group in range(len(file.groups)):
                first = 0
                for batch in read_group(file, group, [self._column], _ROWS, self._own_column(file)):
                    column = batch.column(self._column)
                    found = vectors.vectors_of(column, dimension)
                    none = vectors.absent(column) if found.bad is not None else None
                    wrong = found.bad & ~none if found.bad is not None and none is not None else None
                    if wrong is not None and wrong.any():
                        row = int(np.flatnonzero(wrong)[0])
                        why = vectors.what_is_wrong(column, row, dimension)
                        raise IngestError(
                            f"{file.where(group, first + row)} {why} in {self._column}: mend the file, or put NULL for "
                            "what has no vector"
                        )
                    yield found.values, None if none is None else ~none
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
