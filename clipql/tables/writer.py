"""Rows into a table: staged where nobody sees them, then committed all at once, or not at all.

The order of a commit, each step durable before the next:
    1. vectors in segment files under their final names
    2. the manifest says that these rows are on their way
    3. the rows' other columns in MergeTree
    4. the manifest says that they are there
Whatever is cut off before 3 leaves nothing; `recover` takes 3 back or completes it with 4. So no acknowledged row is
lost, none is doubled, and none lacks its vector.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine import silent_errors
from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_name
from clipql.errors import DiskFull, QueryError, VectorError
from clipql.storage import files
from clipql.storage.catalog import Part, Pending, Segment, Table, VectorColumn
from clipql.storage.vectors import joining, presence, segments
from clipql.storage.vectors.segments import ArrayFile, SegmentWriter
from clipql.tables import parts as mergetree
from clipql.tables import recover, shape
from clipql.tables.registry import INTERNAL, ROW, Registry
from clipql.tables.rowgrowth import LEAST_ROWS, RowGrowth

DIRECT_ROWS = 50_000  # up to this many rows go into MergeTree as one block, which is atomic by itself


class _Abandoned(Exception):
    """Tells an open segment file that nobody will finish it."""


@dataclasses.dataclass(frozen=True)
class _OpenSegment:
    stack: contextlib.ExitStack
    writer: SegmentWriter
    dtype: str
    dimension: int
    path: Path
    there: list[NDArray[np.bool_] | None]
    rows: list[int]


class Insertion:
    """One insert into one table; use as a context manager, and `commit` or leave nothing behind.

    Vectors come by `copy`, `link` or `add_vectors`, the other columns by `add_rows`; the two may run in different
    threads, one thread a column. The table's writers wait for each other, its readers do not wait.
    """

    def __init__(self, registry: Registry, table_id: str) -> None:
        self._registry, self._id = registry, table_id
        self._vectors: dict[str, list[Segment]] = {}
        self._open: dict[str, _OpenSegment] = {}
        self._batches: list[pa.RecordBatch] = []
        self._rows, self._serial, self._staged = 0, itertools.count(), False
        self._computed, self._names = False, ""
        self._errors: Mapping[int, int] = {}

    def __enter__(self) -> Insertion:
        self._registry.write_lock.acquire()
        try:
            recover.settle(self._registry)
            table = self._registry.catalog.by_id(self._id)
            if table is None:
                raise VectorError("the table was dropped meanwhile")
            for column in table.columns:
                files.make_folder(self._registry.column_folder(table, column.name))
                self._vectors[column.name] = []
        except BaseException:
            self._registry.write_lock.release()
            raise
        self.table, self.first = table, table.rows
        self._growth = RowGrowth(self._registry, table)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for opened in self._open.values():
                with contextlib.suppress(_Abandoned):
                    opened.stack.__exit__(_Abandoned, _Abandoned(), None)
            for path in self._leftovers():
                path.unlink(missing_ok=True)
            known = self._registry.catalog.by_id(self._id)
            self._growth.close(known.row_file if known else None)
            if self._staged:
                with contextlib.suppress(Exception):
                    self._registry.engine.run(f"DROP TABLE IF EXISTS {self._staging} SYNC")
        finally:
            self._registry.write_lock.release()

    def _leftovers(self) -> list[Path]:
        """Segment files of ours that no row needs: neither a committed one nor one that a half-done commit may keep."""
        pending = self._registry.catalog.pending
        kept = [self._registry.catalog.by_id(self._id), pending.after if pending else None]
        known = {name for t in kept if t for c in t.columns for s in c.segments for name in s.files}
        return [
            self._registry.column_folder(self.table, column) / name
            for column, found in self._vectors.items()
            for s in found
            for name in s.files
            if name not in known
        ]

    @property
    def rows(self) -> int:
        """Rows whose other columns have come so far."""
        return self._rows

    # vectors

    def copy(self, column: str, array: ArrayFile, tick: Callable[[int], None] = lambda n: None) -> None:
        """Copy the vectors of a `.npy` file, checked and hashed on the way, in bounded memory."""
        self._check_dimension(column, array.dimension, str(array.path), 0)
        path = self._new_path(column)
        with files.new_file(path) as file:
            dtype = segments.smallest_dtype(array)
            writer = SegmentWriter(file, path, self._end(column), array.dimension, dtype)
            writer.reserve(array.rows)
            for row, block in segments.read_blocks(array):
                writer.append(block, str(array.path), row)
                tick(len(block))
            segment = writer.finish()
        self._vectors[column].append(segment)

    def link(self, column: str, array: ArrayFile, tick: Callable[[int], None] = lambda n: None) -> None:
        """Use a `.npy` file where it lies. It must stay there, unchanged, as long as the table."""
        self._check_dimension(column, array.dimension, str(array.path), 0)
        if not array.stored_as_is:
            raise VectorError(f"{array.path} holds {array.form}, which cannot be linked; ingest it without --link")
        self._vectors[column].append(segments.segment_of(array, self._end(column), str(array.path)))
        tick(array.rows)

    def add_vectors(self, column: str, block: NDArray[Any], row: int, there: NDArray[np.bool_] | None = None) -> None:
        """Append (n, d) float16 or float32 vectors, kept as float16 where that loses nothing; `row` counts within the
        insert.

        there: bool (n,), which rows have a vector, the others being zeros; only of a column that is optional.
        """
        if there is not None and not there.any():
            self.add_none(column, len(block))
            return
        self._check_dimension(column, block.shape[1], "the insert", row)
        dtype = "float16" if block.dtype == np.float16 or segments.fits_float16(block) else "float32"
        opened = self._open.get(column)
        if opened and opened.dtype == "float16" and dtype == "float32":
            self._close(column)  # what is written so far stays float16
            opened = None
        if opened is None:
            path = self._new_path(column)
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(files.new_file(path))
                writer = SegmentWriter(file, path, self._end(column), block.shape[1], dtype)
                opened = self._open[column] = _OpenSegment(stack.pop_all(), writer, dtype, block.shape[1], path, [], [])
        opened.writer.append(block, f"column {column}", row)
        opened.there.append(there)
        opened.rows.append(len(block))

    def add_none(self, column: str, rows: int) -> None:
        """Append rows without a vector, to a column that is optional."""
        if not rows:
            return
        if column in self._open:
            self._close(column)
        found, at = self._vectors[column], self._end(column)
        if found and found[-1].hollow:
            at, rows = found[-1].first, rows + found.pop().rows
        found.append(presence.hollow(at, rows))

    def _close(self, column: str) -> None:
        opened = self._open.pop(column)
        with opened.stack:
            segment = opened.writer.finish()
        there = presence.joined(opened.there, opened.rows)
        self._vectors[column].append(segment)
        if there is not None:
            self._vectors[column][-1] = presence.write(opened.path.parent, segment, there)

    def _end(self, column: str) -> int:
        """The row number that the column's next vector gets."""
        return self._vectors[column][-1].end if self._vectors[column] else self.first

    def _new_path(self, column: str) -> Path:
        folder = self._registry.column_folder(self.table, column)
        return folder / f"{self._end(column):012d}-{self._registry.catalog.serial}-{next(self._serial)}.npy"

    def _check_dimension(self, column: str, found: int, where: str, row: int) -> None:
        known = self.table.column(column)
        expected = known.dimension if known else None
        if expected is None:
            expected = next((s.dimension for s in self._vectors[column] if s.dimension), None)
        if expected is None and column in self._open:
            expected = self._open[column].dimension
        if expected is not None and expected != found:
            raise VectorError(
                f"{column} of {self.table.full_name} holds {expected} numbers; row {row:,} of {where} has {found}"
            )

    # the other columns

    def add_rows(self, batches: Iterable[pa.RecordBatch], tick: Callable[[int], None] = lambda n: None) -> None:
        """Add the other columns of rows, in the order of their vectors. Large numbers of rows are staged on disk."""
        numbered = self._all_numbered(batches, tick)
        held = sum(b.num_rows for b in self._batches)
        for batch in numbered:
            self._batches.append(batch)
            held += batch.num_rows
            if held > DIRECT_ROWS or self._staged:
                few, self._batches = self._batches, []
                self._growth.open()
                self._stage(few[0].schema, self._growth.passing(itertools.chain(few, numbered)))

    def _all_numbered(self, batches: Iterable[pa.RecordBatch], tick: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            numbered = self._numbered(batch)
            tick(numbered.num_rows)
            yield numbered

    def _numbered(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        start = self.first + self._rows
        self._rows += batch.num_rows
        numbers = arrow_numbers(np.arange(start, start + batch.num_rows, dtype=np.uint64))
        if batch.schema.names == [ROW]:
            return pa.RecordBatch.from_arrays([numbers], [ROW])
        return batch.append_column(ROW, numbers)

    @property
    def _staging(self) -> str:
        return f"{INTERNAL}.{quote_name('rows of ' + self._id)}"

    def _stage(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Put rows where nobody sees them, as one insert: ClickHouse then syncs, and later merges, few parts."""
        if not self._staged:
            run, physical = self._registry.engine.run, self._registry.physical(self.table)
            names = ", ".join(map(quote_name, schema.names))
            self._computed = shape.reads_vectors(self._registry.engine, self.table)
            run(f"DROP TABLE IF EXISTS {self._staging} SYNC")
            if self._computed:  # the vectors that it would read are published at the commit: stage just what came
                same = f"EMPTY AS SELECT {names} FROM {physical}"
                run(f"CREATE TABLE {self._staging} ENGINE = MergeTree ORDER BY {ROW} {same}")
            else:
                run(f"CREATE TABLE {self._staging} AS {physical}")
            self._staged, self._names = True, names
        self._insert(self._staging, schema, batches)

    def _insert(self, into: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        names = ", ".join(map(quote_name, schema.names))
        self._errors = silent_errors.counts(self._registry.engine)
        self._registry.engine.insert(f"INSERT INTO {into} ({names})", schema, batches)

    # the end

    def commit(self, parts: Sequence[Part] = (), models: Mapping[str, str] | None = None) -> None:
        """Make the rows part of the table. Raises VectorError, and changes nothing, where a column lacks vectors."""
        for name in list(self._open):
            self._close(name)
        for column in self.table.columns:
            got = sum(s.rows for s in self._vectors[column.name])
            if not got and column.optional:
                self.add_none(column.name, self._rows)
            elif got != self._rows:
                raise VectorError(
                    f"{column.name} of {self.table.full_name}: {got:,} vectors came for {self._rows:,} rows; "
                    "each row needs one"
                )
            files.sync_folder(self._registry.column_folder(self.table, column.name))
        if not self._rows:
            return
        if not self._staged and self._growth.behind + self._rows >= LEAST_ROWS:
            self._growth.open()
            for batch in self._batches:
                self._growth.add(batch)
        self._growth.end(self.first + self._rows)
        if self._staged:
            self._check_stored(self._staging)
        columns, merged_away = self._columns(models or {})
        after = dataclasses.replace(
            self.table, columns=columns, rows=self.first + self._rows, parts=(*self.table.parts, *parts)
        )
        registry, before = self._registry, self.table
        registry.save(registry.catalog.with_pending(Pending("insert", before, after)))
        try:
            registry.publish(after)
            self._move()
            after = dataclasses.replace(after, row_file=self._growth.result())
            registry.save(registry.catalog.with_table(after).with_pending(None))
        except BaseException:
            self._take_back(before)
            raise
        for path in merged_away:
            path.unlink(missing_ok=True)

    def _move(self) -> None:
        registry, physical = self._registry, self._registry.physical(self.table)
        if not self._staged:
            self._insert(physical, self._batches[0].schema, self._batches)
        elif self._computed:
            registry.engine.run(f"INSERT INTO {physical} ({self._names}) SELECT {self._names} FROM {self._staging}")
        else:
            self._move_partitions()
        self._check_stored(physical)

    def _check_stored(self, where: str) -> None:
        """Count the rows that came: chDB ends a streamed insert without a word where its last block was not written.

        Raises DiskFull, StorageError or QueryError.
        """
        engine = self._registry.engine
        there = engine.scalar(f"SELECT count() FROM {where} WHERE {ROW} >= {self.first}")
        if there == self._rows or self._registry.expires(self.table):
            if where == self._staging:
                mergetree.check_new(self._registry, INTERNAL, "rows of " + self._id)
            else:
                mergetree.check_new(self._registry, self.table.database, self.table.name)
            return
        code, name, why = silent_errors.since(engine, self._errors, first="NOT_ENOUGH_SPACE")
        message = f"{there:,} of {self._rows:,} rows were stored in {self.table.full_name}: {why}"
        if name == "NOT_ENOUGH_SPACE" or "No space left on device" in why:
            raise DiskFull(f"the disk is full; {message}; nothing was changed, free some room and try again")
        raise QueryError(f"{message} (ClickHouse {code} {name})", code=code, name=name)

    def _move_partitions(self) -> None:
        registry = self._registry
        name = "rows of " + self._id
        partitions = registry.engine.arrow(
            f"SELECT DISTINCT partition_id FROM system.parts WHERE active AND database = '{INTERNAL}' "
            f"AND table = {{name:String}}",
            params={"name": name},
        ).column(0)
        for partition in partitions.to_pylist():
            registry.engine.run(
                f"ALTER TABLE {self._staging} MOVE PARTITION ID '{partition}' TO TABLE {registry.physical(self.table)}"
            )

    def _take_back(self, before: Table) -> None:
        """Remove rows of a commit that failed half-way; what cannot be removed now, the next open removes."""
        with contextlib.suppress(Exception):
            recover.take_back_rows(self._registry, before)
            self._registry.publish(before)
            self._registry.save(self._registry.catalog.with_table(before).with_pending(None))

    def _columns(self, models: Mapping[str, str]) -> tuple[tuple[VectorColumn, ...], list[Path]]:
        columns: list[VectorColumn] = []
        away: list[Path] = []
        for column in self.table.columns:
            added = self._vectors[column.name]
            dimension = column.dimension or next((s.dimension for s in added if s.dimension), None)
            kept, merged = self._merge_small(column, presence.joined_hollow((*column.segments, *added)), dimension or 0)
            away += merged
            columns.append(
                dataclasses.replace(
                    column,
                    dimension=dimension,
                    segments=kept,
                    model=column.model or models.get(column.name),
                )
            )
        return tuple(columns), away

    def _merge_small(
        self, column: VectorColumn, run: tuple[Segment, ...], dimension: int
    ) -> tuple[tuple[Segment, ...], list[Path]]:
        """Many small inserts would make many small files: join those at the end once there are enough of them."""
        first = joining.small_from(run)
        if first == len(run):
            return run, []
        folder, tail = self._registry.column_folder(self.table, column.name), run[first:]
        path = folder / f"{tail[0].first:012d}-{self._registry.catalog.serial}-{next(self._serial)}.npy"
        joined = joining.join(folder, tail, dimension, path)
        self._vectors[column.name].append(joined)
        return (*run[:first], joined), [folder / name for s in tail for name in s.files]
