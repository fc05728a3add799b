"""`clipql embed --into`: captions or pictures that a table has, as vectors of those of its rows that have none.

What must stay true: a row gets the vector of its own caption or picture, and keeps one that it has; what was committed
stays, so a run that is cut off goes on by being called again.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.encode.base import Encoder, Picture
from clipql.encode.embed.captions import CAPTION_NAMES, caption_name
from clipql.encode.names import canonical
from clipql.encode.service import looks_like_picture
from clipql.engine.quoting import quote_name
from clipql.errors import IngestError, UnknownTable
from clipql.storage.catalog import Table
from clipql.storage.vectors import presence
from clipql.tables import recover, schema
from clipql.tables.open_database import OpenDatabase
from clipql.tables.registry import ROW, Registry
from clipql.tables.revising import PIECE, Revision

# rows without vectors are given a file in pieces, so that many rows are written in one step; what was encoded for so
# long is written in any case
COMMIT_SECONDS = 60.0
PICTURE_NAMES = ("image", "jpg", "png", "webp", "picture", "image_path", "path", "file")
EXAMPLES = 3


@dataclass(frozen=True)
class FillProgress:
    """How far a run is, in rows: looked at so far, those that it is about, those with an error; seconds so far."""

    rows: int
    rows_total: int
    errors: int
    seconds: float


@dataclass(frozen=True, repr=False)
class FillReport(Brief):
    """What a run made. rows: that got a vector; there: that had one; empty: without a caption or picture; errors: whose
    picture could not be read, with the first of them as examples.
    """

    model: str
    rows: int
    there: int
    empty: int
    errors: int
    seconds: float
    examples: tuple[str, ...] = ()


def embed_into(
    db: OpenDatabase,
    into: str,
    *,
    encoder: Encoder,
    column: str | None = None,
    pictures: bool = False,
    batch: int | None = None,
    progress: Callable[[FillProgress], None] = lambda p: None,
) -> FillReport:
    """Fill a vector column for the rows that have no vector in it; the column is added where the table has none.

    into: `table.column`. column: of the table, that holds captions, or pictures as bytes or as paths; by default one of
    a usual name. batch: how many go through the model at once. The model is remembered with the column. Raises
    UnknownTable, IngestError for columns that cannot be used or another model than the column's, ModelError.
    """
    name, _, target = into.rpartition(".")
    if not name:
        raise IngestError(f"--into {into}: expected TABLE.COLUMN, such as laion.siglip")
    database, _, plain = name.rpartition(".")
    registry = db.registry
    known = registry.find(database or None, plain)
    if known is None:
        there = ", ".join(t.full_name for t in registry.catalog.tables) or "none yet"
        raise UnknownTable(f"there is no table {name} to fill a column of; there are: {there}")
    source = _source(registry, known, column, pictures)
    known = _with_column(registry, known, target, encoder.model)
    size = batch or int(getattr(encoder, "picture_batch" if pictures else "text_batch", 16 if pictures else 256))
    return _Run(db, known, target, source, encoder, pictures, size, progress).all()


def _source(registry: Registry, table: Table, column: str | None, pictures: bool) -> str:
    """The column of captions or pictures. Raises IngestError."""
    stored = list(registry.traits(table).stored)
    what, usual = ("pictures", PICTURE_NAMES) if pictures else ("captions", CAPTION_NAMES)
    if column is None and pictures:
        found = next((n for n in usual if n in stored), None)
    else:
        found = caption_name(stored, column)
    if found is None:
        raise IngestError(
            f"{table.full_name} has no column {column or f'of {what} that has a usual name'}: say which one "
            f"(--column); it has {', '.join(stored)}"
        )
    return found


def _with_column(registry: Registry, table: Table, target: str, model: str) -> Table:
    """The table with the column that is to be filled. Raises IngestError where it cannot be."""
    own = table.column(target)
    with registry.write_lock:
        recover.settle(registry)
        table = registry.current(table)
        if own is None:
            fresh = schema.new_column(registry, table, target)
            segments = (presence.hollow(0, table.rows),) if table.rows else ()
            fresh = dataclasses.replace(fresh, segments=segments, optional=True)
            schema.add_filled(registry, table, fresh)
            return registry.current(table)
    if own.model and own.absent < own.rows and canonical(own.model) != canonical(model):
        raise IngestError(
            f"{target} of {table.full_name} was filled by the model {own.model}, and {model} is to fill the rest: "
            f"vectors of two models cannot be compared, use --model {own.model} or another column"
        )
    return table


class _Run:
    """One call of `embed_into`."""

    def __init__(
        self,
        db: OpenDatabase,
        table: Table,
        target: str,
        source: str,
        encoder: Encoder,
        pictures: bool,
        batch: int,
        progress: Callable[[FillProgress], None],
    ) -> None:
        self._db, self._registry, self._table, self._target = db, db.registry, table, target
        self._source, self._encoder, self._pictures = source, encoder, pictures
        self._batch, self._progress, self._began = batch, progress, time.perf_counter()
        self._rows = self._empty = self._errors = self._seen = self._total = 0
        self._examples: list[str] = []
        self._held: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._written = time.monotonic()

    def all(self) -> FillReport:
        """Encode what has no vector yet."""
        registry, table = self._registry, self._table
        alive, there = registry.alive(table), registry.store(table, self._target).there
        lacking = np.zeros(table.rows, np.bool_) if there is None else ~there[: table.rows]
        count = table.rows if alive is None else int(np.count_nonzero(alive))
        wanted = np.flatnonzero(lacking if alive is None else lacking & alive)
        self._total = len(wanted)
        for start in range(0, table.rows, PIECE):
            self._some(wanted[(wanted >= start) & (wanted < start + PIECE)])
            self._write()
        seconds = time.perf_counter() - self._began
        return FillReport(
            self._encoder.model, self._rows, count - self._total, self._empty, self._errors, seconds,
            tuple(self._examples),
        )  # fmt: skip

    def _some(self, rows: NDArray[np.int64]) -> None:
        for numbers, values in self._values(rows):
            given = [(n, v) for n, v in zip(numbers.tolist(), values, strict=True) if v]
            self._empty += len(numbers) - len(given)
            for at in range(0, len(given), self._batch):
                self._encode(given[at : at + self._batch])
            self._seen += len(numbers)
            self._tell()
            if time.monotonic() - self._written > COMMIT_SECONDS:
                self._write()

    def _values(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], list[Any]]]:
        """The captions or pictures of rows, some at a time, with the rows' numbers."""
        step = self._batch if self._pictures else max(self._batch, 1024)
        name = quote_name(self._source)
        for at in range(0, len(rows), step):
            numbers = ", ".join(map(str, rows[at : at + step].tolist()))
            text = f"toString({name})" if not self._pictures else name
            found = self._registry.engine.arrow(
                f"SELECT {ROW}, {text} AS given FROM {self._registry.physical(self._table)} "
                f"WHERE {ROW} IN ({numbers}) ORDER BY {ROW} SETTINGS output_format_arrow_string_as_string = 0"
            )
            yield found.column(0).to_numpy().astype(np.int64), found.column(1).to_pylist()

    def _encode(self, given: list[tuple[int, Any]]) -> None:
        rows = np.array([n for n, _ in given], np.int64)
        if not self._pictures:
            texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for _, v in given]
            self._held.append((rows, self._encoder.encode_texts(texts)))
            return
        encoded = self._encoder.encode_pictures([_picture(v) for _, v in given])
        good = np.array([error is None for error in encoded.errors], np.bool_)
        for (row, _), error in zip(given, encoded.errors, strict=True):
            if error is not None:
                self._errors += 1
                if len(self._examples) < EXAMPLES:
                    self._examples.append(f"row {row:,} of {self._table.full_name}: {error}")
        self._held.append((rows[good], encoded.vectors[good]))

    def _write(self) -> None:
        """Commit what was encoded. Raises IngestError where the rows have other numbers by now."""
        self._written = time.monotonic()
        if not any(len(rows) for rows, _ in self._held):
            return
        with Revision(self._registry, self._db.indexes, self._table) as revision:
            if revision.table.id != self._table.id or revision.table.column(self._target) is None:
                raise IngestError(f"{self._table.full_name} was rewritten meanwhile: run the same again, it goes on")
            for rows, vectors in self._held:
                revision.put(self._target, rows, vectors)
            revision.commit({self._target: self._encoder.model})
        self._rows += sum(len(rows) for rows, _ in self._held)
        self._held.clear()

    def _tell(self) -> None:
        self._progress(FillProgress(self._seen, self._total, self._errors, time.perf_counter() - self._began))


def _picture(value: bytes | str) -> Picture:
    """The bytes of a picture as they are; what is none is taken for a path."""
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return data if looks_like_picture(data) or b"\0" in data else Path(os.fsdecode(data)).expanduser()
