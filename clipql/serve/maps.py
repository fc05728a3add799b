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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.engine.arrow import numpy_numbers
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
METHODS = (UMAP, PCA)  # the better first
MOST_KNOWN = 32  # in memory, of 3 MB at most


class Maps:
    """Those of all tables. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[tuple[str, str, str], Projection] = {}
        self._failed: dict[tuple[str, str, str], str] = {}  # by method, the witness of what it failed for
        self._lock = threading.Lock()
        self._acting = Acting(EngineUser())
        self._background = Background(self._work)
        service.ending.append(self.close)

    def of(self, table: Table, column: VectorColumn) -> tuple[Projection | None, Stage | None]:
        """The best there is of a column, and how far a better one is; None where none is under way.

        Call it in a thread of the pool. Raises ClipqlError where none can be had.
        """
        key = (table.id, column.name)
        found = self._best(table, column)
        if found is None and (told := self._failed.pop((*key, PCA), None)) is not None:
            raise ClipqlError(told)  # who asks again has it tried again
        if self._background.stage(key) is None and self._wants_more(table, column, found):
            self._background.want(key)
        stage = self._background.stage(key)
        if found is None:
            return None, stage or Stage()
        store, there = self._service.registry.store(table, column.name), self._there(table, column)
        whole = fitting.grown(found, store, table.rows, there)
        with self._lock:
            self._known[(*key, found.method)] = whole
        return whole, stage

    def _best(self, table: Table, column: VectorColumn) -> Projection | None:
        store = self._service.registry.store(table, column.name)
        for method in METHODS:
            key = (table.id, column.name, method)
            found = self._known.get(key)
            if found is None and (found := stored.read(self._folder(), table, column, method)) is not None:
                self._known[key] = found
            if found is not None and fitting.is_of(found, store):
                return found
            self._known.pop(key, None)
        return None

    def _wants_more(self, table: Table, column: VectorColumn, found: Projection | None) -> bool:
        if found is None:
            return True
        if table.rows > fitting.GROWN * max(1, found.covered):
            return True
        better = self._service.options.layout is not None and found.method != UMAP and len(found.rows) >= LEAST_POINTS
        return better and self._failed.get((table.id, column.name, UMAP)) != found.witness

    def _folder(self) -> Path:
        registry = self._service.registry
        return registry.reads_of or registry.folder

    def _there(self, table: Table, column: VectorColumn) -> NDArray[np.bool_] | None:
        return self._service.registry.present(table, [column.name])

    def close(self) -> None:
        """End what goes on."""
        self._service.engine.cancel(self._acting)
        self._background.close()

    # in the background's thread

    def _work(self, key: Key, again: bool) -> None:
        service = self._service
        try:
            with service.engine.act(self._acting):
                with service.moment():
                    table = service.registry.catalog.by_id(key[0])
                    column = table.column(key[1]) if table is not None else None
                    if table is None or column is None:
                        return
                    if not self._wants_more(table, column, self._best(table, column)):
                        return  # it was done while this was waiting
                    given, captions, at = self._read(table, column)
                self._fit(table, column, given, captions, at)
        except (ClipqlError, MemoryError, OSError, ValueError) as error:
            LOG.warning("no map", extra={"fields": {"table": key[0], "column": key[1], "error": str(error)[:300]}})
            self._failed[(*key, PCA)] = f"no map of {key[1]} could be made: {error}"

    def _read(self, table: Table, column: VectorColumn) -> tuple[Reduced, list[str | None], NDArray[np.int64]]:
        """The vectors of a column, the captions of some of its rows, and which of the vectors these are of."""
        store, there = self._service.registry.store(table, column.name), self._there(table, column)
        step = fitting.sample(table.rows)
        rows = fitting.numbers(0, table.rows, step, there)
        given = fitting.reduced(store, rows, table.rows, step, self._background.tell)
        roles = self._service.roles[table]
        if roles.caption is None or not len(rows):
            return given, [], np.empty(0, np.int64)
        every = step * fitting.sample(len(rows), MOST_CAPTIONS)
        # what is not safe has no word in what everybody reads
        where = " AND ".join([f"{ROW} % {every} = 0", f"{ROW} < {table.rows}", *([roles.safe] if roles.safe else [])])
        found = self._service.engine.arrow(
            f"SELECT {ROW}, toString({quote_name(roles.caption)}) FROM {self._service.registry.physical(table)} "
            f"WHERE {where} ORDER BY {ROW}"
        )
        numbers = numpy_numbers(found.column(0)).astype(np.int64)
        at = np.searchsorted(rows, numbers)
        has = (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == numbers)
        texts = [_text(value) for value in found.column(1).filter(has).to_pylist()]
        return given, texts, at[has]

    def _fit(
        self, table: Table, column: VectorColumn, given: Reduced, captions: list[str | None], at: NDArray[np.int64]
    ) -> None:
        def check() -> None:
            self._background.tell("naming regions", 0, 0)

        def done(made: Projection) -> None:
            named = labels(made.places[at], captions, check) if len(at) else ()
            self._take(table, column, dataclasses.replace(made, labels=named))

        done(fitting.by_pca(given))
        layout = self._service.options.layout
        if layout is None or len(given.rows) < LEAST_POINTS:
            return
        try:
            places = layout.lay_out(given.values, self._background.tell)
        except (ClipqlError, OSError) as error:  # PCA's stays
            LOG.warning("no layout", extra={"fields": {"table": table.full_name, "error": str(error)[:300]}})
            self._failed[(table.id, column.name, UMAP)] = given.witness
            return
        done(fitting.by_layout(given, places))

    def _take(self, table: Table, column: VectorColumn, made: Projection) -> None:
        with self._lock:
            self._failed.pop((table.id, column.name, PCA), None)
            self._known[(table.id, column.name, made.method)] = made
            while len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
        service = self._service
        if not service.options.write or service.registry.reads_of:
            return
        with contextlib.suppress(ClipqlError):  # a full disk: it is in memory, and derived
            current = service.registry.catalog.by_id(table.id)
            if current is not None and current.column(column.name) is not None:
                stored.keep(service.registry.folder, table, column, made)


def _text(value: object) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
