"""Rows on their way from files into an insertion: read ahead, checked, vectors written beside the other columns.

One thread reads, one a vector column writes, and the caller's feeds ClickHouse; a few blocks wait between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine.arrow import arrow_numbers
from clipql.engine.priority import lower_priority
from clipql.errors import IngestError
from clipql.ingest.columns import check_nested, nested
from clipql.ingest.pipeline import next_id
from clipql.ingest.records import vectors
from clipql.ingest.records.reading import read_group
from clipql.ingest.records.sources import RecordFile
from clipql.storage.vectors.segments import BLOCK_BYTES
from clipql.tables.registry import ROW, Registry
from clipql.tables.writer import Insertion

_BLOCK = 8 << 20  # bytes of vectors that are read at once
_MOST_ROWS = 65_536
_AHEAD = 2
_METADATA_ROWS, _METADATA_BYTES = 65_536, 32 << 20  # handed to ClickHouse at once
_TOLD = 10


class Rows:
    """The rows of one insertion; use as a context manager.

    counts: the rows of each group that came, once all its batches have; bad: rows that were left out; left_out: why,
    for the first of them.
    """

    def __init__(
        self,
        registry: Registry,
        insertion: Insertion,
        names: Sequence[str],
        dimensions: Mapping[str, int],
        skip_bad: bool,
    ) -> None:
        self._registry, self._insertion, self._names, self._skip_bad = registry, insertion, tuple(names), skip_bad
        self._dimensions = {n: dimensions[n] for n in names}
        widest = max(self._dimensions.values()) * len(self._dimensions) * 4
        self._step = min(_MOST_ROWS, max(64, _BLOCK // widest))
        self._reader = ThreadPoolExecutor(1, "clipql-read")
        self._writers = {n: ThreadPoolExecutor(1, "clipql-vectors", lower_priority) for n in names}
        self._writing: deque[Future[None]] = deque()
        self._held: list[pa.RecordBatch] = []
        self._sent = 0
        self._id: int | None = None
        self.counts: list[int] = []
        self.bad = 0
        self.left_out: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._reader, *self._writers.values()):
            pool.shutdown(cancel_futures=True)

    def of_group(self, file: RecordFile, group: int, first_id: int | None = None) -> Iterator[pa.RecordBatch]:
        """The columns of a group's rows that are no vectors; some may come with the next group. first_id: of the
        first row of all, where another is wanted than the next of the table.
        """
        groups = nested(file.schema)
        if not self.counts and not self._sent:
            self._id = next_id(self._registry, self._insertion, file.schema.names)
            if self._id is not None and first_id is not None:
                self._id = first_id
        self.counts.append(0)
        read = 0
        for batch, checked in self._ahead(self._checked(file, group)):
            check_nested(file.path, batch, read, groups)
            kept = self._kept(file, group, read, batch, checked)
            read += batch.num_rows
            self._write(checked, kept)
            plain = self._plain(batch if kept is None else batch.filter(pa.array(kept)))
            self.counts[-1] += plain.num_rows
            yield from self._hold(plain)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """What is still held of the groups that came."""
        if self._held:
            held, self._held = self._held, []
            yield pa.concat_batches(held)

    def finish(self) -> None:
        """Wait until all vectors are written. Raises what went wrong with them."""
        self._await(0)

    def _checked(self, file: RecordFile, group: int) -> Iterator[tuple[pa.RecordBatch, dict[str, vectors.Vectors]]]:
        row_bytes = file.bytes[group] // max(1, file.weight(group))
        step = max(1, min(self._step, _METADATA_BYTES // max(1, row_bytes)))
        for batch in read_group(file, group, self._names, step):
            found = {n: vectors.vectors_of(batch.column(n), self._dimensions[n]) for n in self._names}
            yield batch, found

    def _ahead(self, items: Iterator[Any]) -> Iterator[Any]:
        """The same items, read by a thread before they are asked for."""
        waiting = deque(self._reader.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(self._reader.submit(next, items, None))
            yield item

    def _kept(
        self, file: RecordFile, group: int, first: int, batch: pa.RecordBatch, found: Mapping[str, vectors.Vectors]
    ) -> NDArray[np.bool_] | None:
        """Which rows to take; None for all. Raises IngestError for a bad one, unless those are left out."""
        wrong = [(n, v.bad) for n, v in found.items() if v.bad is not None]
        if not wrong:
            return None
        bad = np.logical_or.reduce([b for _, b in wrong])
        for row in (
            np.flatnonzero(bad)[: max(0, _TOLD - len(self.left_out))].tolist()
            if self._skip_bad
            else [int(np.flatnonzero(bad)[0])]
        ):
            name = next(n for n, b in wrong if b[row])
            why = vectors.what_is_wrong(batch.column(name), row, self._dimensions[name])
            told = f"{file.where(group, first + row)} {why} in {name}"
            if not self._skip_bad:
                raise IngestError(f"{told}; mend the file, or leave such rows out (--skip-bad-rows, skip_bad=True)")
            self.left_out.append(told)
        self.bad += int(bad.sum())
        kept: NDArray[np.bool_] = ~bad
        return kept

    def _write(self, found: Mapping[str, vectors.Vectors], kept: NDArray[np.bool_] | None) -> None:
        for name, given in found.items():
            block = given.values if kept is None else given.values[kept]
            self._writing.append(self._writers[name].submit(self._append, name, block, self._sent))
        self._await(_AHEAD * len(found))

    def _append(self, name: str, block: NDArray[Any], row: int) -> None:
        step = max(1, BLOCK_BYTES // (block.shape[1] * block.itemsize))
        for first in range(0, len(block), step):
            self._insertion.add_vectors(name, block[first : first + step], row + first)

    def _await(self, left: int) -> None:
        while len(self._writing) > left:
            self._writing.popleft().result()

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns that are no vectors, with ids where the table gives them."""
        others = [i for i, n in enumerate(batch.schema.names) if n not in self._names]
        columns, names = [batch.column(i) for i in others], [batch.schema.names[i] for i in others]
        if self._id is not None:
            first = self._id + self._sent
            columns.append(arrow_numbers(np.arange(first, first + batch.num_rows, dtype=np.uint64)))
            names.append("id")
        if not columns:  # a batch without columns would have no length
            columns, names = [pa.nulls(batch.num_rows, pa.uint64())], [ROW]
        self._sent += batch.num_rows
        return pa.RecordBatch.from_arrays(columns, names)

    def _hold(self, plain: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Batches of a size that ClickHouse likes."""
        self._held.append(plain)
        rows, size = sum(b.num_rows for b in self._held), sum(b.nbytes for b in self._held)
        if rows >= _METADATA_ROWS or size >= _METADATA_BYTES:
            yield from self.rest()
