"""The projections of a server's tables: fitted in the background when a map is first looked at, kept, and told of.

PCA comes first, within a second or two, and is shown; UMAP, where the server has it, takes its place when it is done. A
server that may write keeps both in the database's folder, any other in memory. What must stay true: a projection is
shown only with the vectors that it was fitted to; what goes on here ends before the database is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.engine.arrow import numpy_numbers
from clipql.engine.python_values import python_values
from clipql.engine.quoting import quote_name
from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError
from clipql.projection import fitting, stored
from clipql.projection.fitting import PCA, UMAP, Projection, Reduced
from clipql.projection.labels import MOST_CAPTIONS, labels
from clipql.serve.layout import LEAST_POINTS
from clipql.serve.service import Service
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.background import Background, Key, Stage
from clipql.tables.registry import ROW

LOG = logging.getLogger("clipql.serve")
MOST_KNOWN = 32  # in memory, of 3 MB at most


@dataclass(frozen=True)
class _Read:
    """What a projection is made of. at: which of the vectors the captions are of."""

    table: Table
    column: VectorColumn
    given: Reduced
    captions: list[str | None]
    at: NDArray[np.int64]


class Maps:
    """Those of all tables. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[tuple[str, str, str], Projection] = {}
        self._failed: dict[tuple[str, str, str], str] = {}  # by method, the witness of what it failed for
        self._lock = threading.Lock()
        self._acting = Acting(EngineUser())
        self._background, self._layouts = Background(self._fit), Background(self._lay_out)  # one waits for no other
        service.ending.append(self.close)

    def of(self, table: Table, column: VectorColumn) -> tuple[Projection | None, Stage | None]:
        """The best there is of a column, and how far a better one is; None where none is under way.

        Call it in a thread of the pool. Raises ClipqlError where none can be had.
        """
        key = (table.id, column.name)
        found = self._known_of(table, column, UMAP) or self._known_of(table, column, PCA)
        if found is None and (told := self._failed.pop((*key, PCA), None)) is not None:
            raise ClipqlError(told)  # who asks again has it tried again
        stage = None
        for background, wanted in ((self._background, self._lacks_pca), (self._layouts, self._lacks_layout)):
            if background.stage(key) is None and wanted(table, column):
                background.want(key)
            stage = stage or background.stage(key)
        if found is None:
            return None, stage or Stage()
        store, there = self._service.registry.store(table, column.name), self._there(table, column)
        whole = fitting.grown(found, store, table.rows, there)
        with self._lock:
            self._known[(*key, found.method)] = whole
        return whole, stage

    def _known_of(self, table: Table, column: VectorColumn, method: str) -> Projection | None:
        """The one by a method, where it is of the vectors that there are."""
        key = (table.id, column.name, method)
        found = self._known.get(key) or stored.read(self._folder(), table, column, method)
        if found is None or not fitting.is_of(found, self._service.registry.store(table, column.name)):
            self._known.pop(key, None)
            return None
        self._known[key] = found
        return found

    def _lacks_pca(self, table: Table, column: VectorColumn) -> bool:
        known = self._known_of(table, column, PCA)
        if known is None:
            return self._known_of(table, column, UMAP) is None
        return _outgrown(known, table)

    def _lacks_layout(self, table: Table, column: VectorColumn) -> bool:
        if self._service.options.layout is None:
            return False
        simple, known = self._known_of(table, column, PCA), self._known_of(table, column, UMAP)
        if known is not None:
            return _outgrown(known, table)
        enough = simple is not None and len(simple.rows) >= LEAST_POINTS
        return enough and self._failed.get((table.id, column.name, UMAP)) != (simple.witness if simple else None)

    def _folder(self) -> Path:
        registry = self._service.registry
        return registry.reads_of or registry.folder

    def _there(self, table: Table, column: VectorColumn) -> NDArray[np.bool_] | None:
        return self._service.registry.present(table, [column.name])

    def close(self) -> None:
        """End what goes on."""
        self._service.engine.cancel(self._acting)
        for background in (self._background, self._layouts):
            background.close()

    # in the threads of the backgrounds

    def _fit(self, key: Key, again: bool) -> None:
        """By PCA."""
        tell = self._background.tell
        try:
            with self._service.engine.act(self._acting):
                read = self._read(key, self._lacks_pca, tell)
                if read is not None:
                    self._take(read, fitting.by_pca(read.given), tell)
        except (ClipqlError, MemoryError, OSError, ValueError) as error:
            LOG.warning("no map", extra={"fields": {"table": key[0], "column": key[1], "error": str(error)[:300]}})
            self._failed[(*key, PCA)] = f"no map of {key[1]} could be made: {error}"

    def _lay_out(self, key: Key, again: bool) -> None:
        """By whoever lays points out; where that fails, PCA's stays."""
        tell, layout = self._layouts.tell, self._service.options.layout
        assert layout is not None, "it was asked for"
        witness = ""
        try:
            with self._service.engine.act(self._acting):
                read = self._read(key, self._lacks_layout, tell)
                if read is not None:
                    witness = read.given.witness
                    places = layout.lay_out(read.given.values, tell)
                    self._take(read, fitting.by_layout(read.given, places), tell)
        except (ClipqlError, MemoryError, OSError, ValueError) as error:
            LOG.warning("no layout", extra={"fields": {"table": key[0], "column": key[1], "error": str(error)[:300]}})
            self._failed[(*key, UMAP)] = witness

    def _read(self, key: Key, lacks: Callable[[Table, VectorColumn], bool], tell: fitting.Tell) -> _Read | None:
        """What a projection is made of; None where there is nothing to do any more."""
        service = self._service
        with service.moment():
            table = service.registry.catalog.by_id(key[0])
            column = table.column(key[1]) if table is not None else None
            if table is None or column is None or not lacks(table, column):
                return None
            store, there = service.registry.store(table, column.name), self._there(table, column)
            step = fitting.sample(table.rows)
            rows = fitting.numbers(0, table.rows, step, there)
            given = fitting.reduced(store, rows, table.rows, step, tell)
            captions, at = self._captions(table, rows, step)
            return _Read(table, column, given, captions, at)

    def _captions(self, table: Table, rows: NDArray[np.int64], step: int) -> tuple[list[str | None], NDArray[np.int64]]:
        """The captions of some of the rows, and which of the rows these are."""
        service = self._service
        roles = service.roles[table]
        if roles.caption is None or not len(rows):
            return [], np.empty(0, np.int64)
        every = step * fitting.sample(len(rows), MOST_CAPTIONS)
        # what is not safe has no word in what everybody reads
        where = " AND ".join([f"{ROW} % {every} = 0", f"{ROW} < {table.rows}", *([roles.safe] if roles.safe else [])])
        found = service.engine.arrow(
            f"SELECT {ROW}, toString({quote_name(roles.caption)}) FROM {service.registry.physical(table)} "
            f"WHERE {where} ORDER BY {ROW}"
        )
        numbers = numpy_numbers(found.column(0)).astype(np.int64)
        at = np.searchsorted(rows, numbers)
        has = (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == numbers)
        return [_text(value) for value in python_values(found.column(1).filter(has))], at[has]

    def _take(self, read: _Read, made: Projection, tell: fitting.Tell) -> None:
        """Name its regions, and keep it."""
        table, column, service = read.table, read.column, self._service
        named = (
            labels(made.places[read.at], read.captions, lambda: tell("naming regions", 0, 0)) if len(read.at) else ()
        )
        made = dataclasses.replace(made, labels=named)
        with self._lock:
            self._failed.pop((table.id, column.name, made.method), None)
            self._known[(table.id, column.name, made.method)] = made
            while len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
        if not service.options.write or service.registry.reads_of:
            return
        with contextlib.suppress(ClipqlError):  # a full disk: it is in memory, and derived
            current = service.registry.catalog.by_id(table.id)
            if current is not None and current.column(column.name) is not None:
                stored.keep(service.registry.folder, table, column, made)


def _outgrown(known: Projection, table: Table) -> bool:
    return table.rows > fitting.GROWN * max(1, known.covered)


def _text(value: object) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
