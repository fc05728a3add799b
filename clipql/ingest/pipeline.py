"""Takes parts in: each one whole, or not at all, and none twice.

Both vector columns and the metadata of a part are read, checked and written side by side, in blocks, so memory does
not grow with the part. What must stay true: all headers are checked before the first byte is written; a part that fails
leaves the database as it was; a part that is in the table already is skipped, wherever its files lie now.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.arrow import arrow_numbers
from clipql.engine.priority import lower_priority
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import ClipqlError, IngestError, VectorError
from clipql.ingest.columns import check_nested, check_parts, column_types, nested
from clipql.ingest.forecast import IngestForecast, check_room, forecast
from clipql.ingest.layout import DAMAGED, IMAGE, TEXT, CheckedPart, check_part, find_parts, parse_numbers
from clipql.ingest.origin import check_origins, rows_with_vectors
from clipql.storage.catalog import Part, Table
from clipql.storage.vectors import segments
from clipql.tables import schema
from clipql.tables.open_database import OpenDatabase
from clipql.tables.registry import Registry
from clipql.tables.writer import Insertion

if TYPE_CHECKING:
    from clipql.ingest.fetch.parts import Lost

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class IngestProgress:
    """How far a run is: rows over all its parts. finished: this part is committed, or was skipped. unit: what
    part_number counts, parts or files.
    """

    part: str
    part_number: int
    parts: int
    rows_done: int
    rows_total: int
    seconds: float
    finished: bool = False
    skipped: bool = False
    unit: str = "part"


@dataclass(frozen=True, repr=False)
class IngestReport(Brief):
    """What a run took in. rows counts those of the parts taken, not of the skipped ones.

    rows_left_out: of the parts taken, rows that have no vectors: those that `clipql embed` gave an error, or those of
    files that were left out as asked; left_out: which and why, of the first ten of the latter. lost: of parts from an
    address, those that could not be had or taken in, with the reason. rows_skipped: of what is in the table already,
    all rows; with rows and rows_left_out it is what was there. unit: what parts are: of files, their row groups.
    """

    rows: int
    parts_taken: int
    parts_skipped: int
    seconds: float
    rows_left_out: int = 0
    lost: tuple[Lost, ...] = ()
    rows_skipped: int = 0
    unit: str = "part"
    left_out: tuple[str, ...] = ()


class _Stopped(Exception):
    """Another thread of the same part failed."""


def ingest(
    db: OpenDatabase,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    table: str = "laion",
    parts: str | None = None,
    link: bool = False,
    model: str | None = None,
    first_id: int | None = None,
    indexes: bool = True,
    progress: Callable[[IngestProgress], None] | None = None,
    foretold: Callable[[IngestForecast], None] | None = None,
) -> IngestReport:
    """Take LAION parts into a table, which is made from the first part's columns if it is not there.

    source: folders or files. parts: numbers such as '0-9,12'. link: use the `.npy` files where they lie, for good.
    model: the model that made the vectors, remembered with the columns; parts of `clipql embed` name it themselves.
    first_id: the id of the first row of the first part, where the table gives ids, as those of a shard must go on from
    those of another; by default they go on from the table's own. indexes: build those that have fallen behind.
    foretold: is told once, before a million rows or more, what they will take.
    Raises IngestError, naming file and row, and leaves the parts before it in the table.
    """
    began = time.perf_counter()
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    for each in sources:
        if isinstance(each, str) and "://" in each:
            raise IngestError(f"{each} is an address: --from takes one, as does `ingest` where it is the only source")
    found = find_parts(sources, parse_numbers(parts) if parts is not None else None)
    checked = [check_part(p) for p in found]
    run = _Run(db, table, link, model, first_id, checked, began, progress or (lambda p: None), foretold)
    report, id = run.all()
    if indexes:
        db.indexes.after_insert(id)
    return report


def take_part(
    db: OpenDatabase, part: CheckedPart, *, table: str, model: str | None, progress: Callable[[IngestProgress], None]
) -> tuple[IngestReport, str]:
    """Take in one part of a run that sees to the indexes itself, at its end; returns the id of the table too.

    Raises as `ingest`.
    """
    return _Run(db, table, False, model, None, [part], time.perf_counter(), progress).all()


class _Run:
    """One call of `ingest`."""

    def __init__(
        self,
        db: OpenDatabase,
        table: str,
        link: bool,
        model: str | None,
        first_id: int | None,
        parts: list[CheckedPart],
        began: float,
        progress: Callable[[IngestProgress], None],
        foretold: Callable[[IngestForecast], None] | None = None,
    ) -> None:
        self._foretold = foretold
        self._db, self._registry, self._parts, self._link, self._model = db, db.registry, parts, link, model
        self._began, self._progress, self._id = began, progress, first_id
        database, _, self._name = table.rpartition(".")
        self._database = database or self._registry.database
        self._total = sum(p.rows for p in parts)
        self._done = 0

    def all(self) -> tuple[IngestReport, str]:
        """Take every part in, in the order of their numbers; returns the id of the table too."""
        table, made = self._table()
        taken = skipped = rows = left_out = rows_skipped = 0
        try:
            known = {p.fingerprint for p in table.parts}
            new = [p for p in self._parts if p.fingerprint not in known]
            check_parts(self._registry.engine, table, new)
            check_origins(table, new, self._model, self._link)
            self._weigh(new)
            for number, part in enumerate(self._parts, 1):
                table = self._registry.current(table)
                if any(p.fingerprint == part.fingerprint for p in table.parts):
                    skipped, rows_skipped = skipped + 1, rows_skipped + part.rows
                    self._done += part.rows
                    self._tell(part, number, finished=True, skipped=True)
                    continue
                left_out += part.failed
                if part.failed and part.failed == part.rows:
                    self._done += part.rows
                    self._tell(part, number, finished=True, skipped=True)
                    continue
                try:
                    _OnePart(self, table, part, number).take()
                except VectorError as error:
                    raise IngestError(str(error)) from error
                taken, rows = taken + 1, rows + part.rows - part.failed
                self._done += part.rows
                self._tell(part, number, finished=True)
        except BaseException:
            if made and not taken:
                schema.drop(self._registry, self._registry.catalog.by_id(table.id) or table)
            raise
        seconds = time.perf_counter() - self._began
        return IngestReport(rows, taken, skipped, seconds, left_out, rows_skipped=rows_skipped), table.id

    def _weigh(self, new: list[CheckedPart]) -> None:
        """Tell what the parts will take, and refuse what cannot fit."""
        needed = forecast(new, self._registry.folder, link=self._link)
        check_room(needed, self._registry.folder)
        if needed.seconds and self._foretold:
            self._foretold(needed)

    def _tell(
        self, part: CheckedPart, number: int, rows: int = 0, *, finished: bool = False, skipped: bool = False
    ) -> None:
        seconds = time.perf_counter() - self._began
        name = part.files.metadata.name
        self._progress(
            IngestProgress(name, number, len(self._parts), self._done + rows, self._total, seconds, finished, skipped)
        )

    def _table(self) -> tuple[Table, bool]:
        """The table, and whether it was made just now."""
        known = self._registry.find(self._database, self._name)
        if known:
            return known, False
        return new_table(self._registry, self._database, self._name, self._parts[0]), True


def new_table(registry: Registry, database: str, name: str, first: CheckedPart) -> Table:
    """A table with the columns of a part. Raises IngestError where there is another of the name."""
    full = f"{quote_name(database)}.{quote_name(name)}"
    if registry.engine.scalar(f"EXISTS TABLE {full}"):
        raise IngestError(
            f"{full} is a table without vector columns; name another, or make it with Array(Float32) columns "
            f"{IMAGE} and {TEXT}"
        )
    types = column_types(registry.engine, first.files.metadata, first.schema)
    columns = [f"{quote_name(n)} {t}" for n, t in types.items()]
    if "id" not in types:
        columns.insert(0, "id UInt64")
    columns += [f"{quote_name(n)} Array(Float32)" for n in (IMAGE, TEXT) if n in first.vectors]
    order = "id" if not types.get("id", "").startswith("Nullable") else "tuple()"
    table = schema.create(registry, database, name, f"({', '.join(columns)}) ENGINE = MergeTree ORDER BY {order}")
    if table is None:
        raise ClipqlError(f"{full} was made without vector columns")
    return table


class _OnePart:
    """One part on its way in: a thread for each vector column and one for the metadata."""

    def __init__(self, run: _Run, table: Table, part: CheckedPart, number: int) -> None:
        self._run, self._table, self._part, self._number = run, table, part, number
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._kept = rows_with_vectors(part)
        self._rows: dict[str, int] = dict.fromkeys((*part.vectors, "metadata"), 0)
        self._told = 0.0

    def take(self) -> None:
        """Read, write and commit the part."""
        registry = self._run._registry
        with (
            Insertion(registry, self._table.id) as insertion,
            ThreadPoolExecutor(max(1, len(self._part.vectors)), initializer=lower_priority) as of_vectors,
            ThreadPoolExecutor(1) as of_metadata,
        ):
            try:
                first_id = self._first_id(registry, insertion)
                work = [of_vectors.submit(self._vectors, insertion, c) for c in self._part.vectors]
                work.append(of_metadata.submit(self._metadata, insertion, first_id))
                while not all(f.done() for f in work):
                    wait_for(work, timeout=0.2)
                    self._show()
                errors = [e for e in (f.exception() for f in work) if e is not None]
                for error in sorted(errors, key=lambda e: isinstance(e, _Stopped)):
                    raise error
            except BaseException:
                self._stop.set()
                raise
            key = self._part.fetched_from or f"{self._part.files.metadata.resolve()}"
            part = Part(key, insertion.first, insertion.rows, self._part.fingerprint)
            model = self._part.model or self._run._model
            insertion.commit([part], dict.fromkeys(self._part.vectors, model) if model else {})

    def _show(self) -> None:
        self._run._tell(self._part, self._number, min(self._rows.values()))

    def _tick(self, what: str) -> Callable[[int], None]:
        def tick(rows: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            self._rows[what] += rows

        return tick

    def _vectors(self, insertion: Insertion, column: str) -> None:
        try:
            if self._kept is not None:
                self._vectors_kept(insertion, column, self._kept)
                return
            add = insertion.link if self._run._link else insertion.copy
            add(column, self._part.vectors[column], self._tick(column))
        except BaseException:
            self._stop.set()
            raise

    def _vectors_kept(self, insertion: Insertion, column: str, kept: NDArray[np.bool_]) -> None:
        """The vectors of the rows that have any: a zero vector would be near to much by L2Distance."""
        array, tick = self._part.vectors[column], self._tick(column)
        for row, block in segments.read_blocks(array):
            insertion.add_vectors(column, block[kept[row : row + len(block)]].astype(np.float32), row)
            tick(len(block))

    def _metadata(self, insertion: Insertion, first_id: int | None) -> None:
        try:
            insertion.add_rows(self._batches(first_id), self._tick("metadata"))
        except BaseException:
            self._stop.set()
            raise

    def _batches(self, first_id: int | None) -> Iterator[pa.RecordBatch]:
        path, row, read = self._part.files.metadata, 0, 0
        groups = nested(self._part.schema)
        try:
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    check_nested(path, batch, read, groups)
                    read, batch = read + batch.num_rows, self._without_gaps(batch, read)
                    if first_id is not None:
                        ids = np.arange(first_id + row, first_id + row + batch.num_rows, dtype=np.uint64)
                        batch = batch.append_column("id", arrow_numbers(ids))
                    row += batch.num_rows
                    yield batch
        except DAMAGED as error:
            raise IngestError(f"{path} cannot be read beyond row {read:,} ({error}); fetch it again") from error
        if read != self._part.rows:
            raise IngestError(f"{path} announces {self._part.rows:,} rows and has {read:,}; fetch it again")

    def _without_gaps(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        return batch if self._kept is None else batch.filter(pa.array(self._kept[first : first + batch.num_rows]))

    def _first_id(self, registry: Registry, insertion: Insertion) -> int | None:
        found = next_id(registry, insertion, self._part.schema.names)
        if found is not None and self._run._id is not None:
            found, self._run._id = self._run._id, None
        return found


def next_id(registry: Registry, insertion: Insertion, names: Sequence[str]) -> int | None:
    """The id of the first row that comes, above all ids there are; None where the rows bring their own, or have none.

    names: the columns that come.
    """
    if "id" in names:
        return None
    where = f"table = {quote_string(insertion.table.id)} AND name = 'id' AND default_kind = ''"
    kind = registry.engine.arrow(f"SELECT type FROM system.columns WHERE database = 'clipql_internal' AND {where}")
    if not kind.num_rows:
        return None
    if not insertion.first:
        return 0
    top = registry.engine.scalar(f"SELECT max(id) FROM {registry.physical(insertion.table)}")
    return max(insertion.first, int(top or 0) + 1)
