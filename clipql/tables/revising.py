"""New versions of vectors: some rows of a table get other vectors than they had, or their first, or lose them.

A segment never changes, so each that a row of is touched is written anew, as ClickHouse's UPDATE writes a part anew.
What must stay true: the manifest goes from the old segments to the new ones in one step, after they are synced; an
index never answers with the distance of an older vector; a MATERIALIZED column is that of the vectors that are there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import QueryError, VectorError
from clipql.storage import files
from clipql.storage.catalog import Pending, Segment, Table, VectorColumn
from clipql.storage.vectors import presence, segments
from clipql.storage.vectors.scattered import ScatteredSegment
from clipql.tables import recover
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry
from clipql.tables.vector_expressions import check_kept, kept_of

# rows without vectors are given a file in pieces, as a few of many rows may come first
PIECE, MOST_PIECES = 65_536, 128
_COPIED = 16_384  # rows at once


class Revision:
    """One change of the vectors of a table; use as a context manager, and `commit` or leave nothing behind.

    Whoever uses it sees no other writer, as it holds the write lock; readers go on with the older vectors until the
    commit.
    """

    def __init__(self, registry: Registry, indexes: Indexes, table: Table) -> None:
        self._registry, self._indexes, self._table = registry, indexes, table
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> Revision:
        self._registry.write_lock.acquire()
        try:
            recover.settle(self._registry)
            self.table = self._table = self._registry.current(self._table)
        except BaseException:
            self._registry.write_lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            known, pending = self._registry.catalog.by_id(self._table.id), self._registry.catalog.pending
            kept = {
                (c.folder, name)
                for t in (known, pending.after if pending else None)
                for c in (t.columns if t else ())
                for s in c.segments
                for name in s.files
            }
            for column in self._columns.values():
                column.abandon(kept)
        finally:
            self._registry.write_lock.release()

    def put(
        self, name: str, rows: NDArray[np.int64], block: NDArray[Any], there: NDArray[np.bool_] | None = None
    ) -> None:
        """Give rows, by number, these (n, d) float16 or float32 vectors. there: bool (n,), those that get one; the
        others lose theirs. Raises VectorError for another dimension, NaN or infinity.
        """
        if not len(rows):
            return
        column = self._table.column(name)
        assert column is not None, "the caller found it"
        if name not in self._columns:
            store = self._registry.store(self._table, name)
            folder = self._registry.column_folder(self._table, name)
            files.make_folder(folder)
            self._columns[name] = _Column(column, folder, self._registry.catalog.serial, store.blocks, store.there)
        self._columns[name].put(rows, block, there, self._table)

    def clear(self, name: str) -> None:
        """Take all vectors of a column away: its rows have none, and the next one tells how many numbers it has."""
        column = self._table.column(name)
        assert column is not None, "the caller found it"
        bare = (presence.hollow(0, self._table.rows),) if self._table.rows else ()
        cleared = dataclasses.replace(column, dimension=None, model=None, segments=bare, optional=True)
        self._save({name: cleared}, None)

    def dimension(self, name: str) -> int | None:
        """How many numbers the vectors of a column have, if one is known or has come."""
        column = self._table.column(name)
        opened = self._columns.get(name)
        return opened.dimension if opened else column.dimension if column else None

    @property
    def changed(self) -> int:
        """How many rows were given another vector so far, of the column with the most."""
        return max((int(c.touched.sum()) for c in self._columns.values()), default=0)

    def commit(self, models: Mapping[str, str] | None = None) -> None:
        """Make the vectors those of the table. models: what made them, by column."""
        changed = {name: column.finish() for name, column in self._columns.items()}
        for name, model in (models or {}).items():
            column = changed.get(name) or self._table.column(name)
            if column is not None:
                changed[name] = dataclasses.replace(column, model=model)
        touched = {name: np.flatnonzero(c.touched) for name, c in self._columns.items()}
        if changed:
            self._save(changed, touched)

    def _save(self, changed: Mapping[str, VectorColumn], touched: Mapping[str, NDArray[np.int64]] | None) -> None:
        registry, before = self._registry, self._table
        columns = tuple(
            dataclasses.replace(changed[c.name], revision=c.revision + 1) if c.name in changed else c
            for c in before.columns
        )
        for name in changed:
            folder = registry.column_folder(before, name)
            files.make_folder(folder)  # which a table has with its first rows
            files.sync_folder(folder)
        after = dataclasses.replace(before, columns=columns)
        after = self._indexes.revised(after, touched if touched is not None else dict.fromkeys(changed))
        computed = kept_of(registry.engine, before, changed)
        with registry.gate.writing():
            if computed:
                self._check(after, computed)
            registry.save(registry.catalog.with_pending(Pending("vectors", before, after)))
            recover.settle(registry)
        self._indexes.reopen(before)
        self._indexes.sweep()
        self._indexes.after_insert(before.id)

    def _check(self, after: Table, computed: list[str]) -> None:
        """Raise QueryError, with nothing changed, where ClickHouse cannot compute its columns from the new vectors."""
        try:
            self._registry.publish(after)
            check_kept(self._registry, after, computed)
        except QueryError as error:
            raise QueryError(
                f"{', '.join(computed)} of {after.full_name} cannot be computed of the vectors that would be there, so "
                f"nothing was changed: {error}",
                code=error.code,
                name=error.name,
            ) from error
        finally:
            self._registry.publish(self._table)


def fill_new(
    registry: Registry,
    table: Table,
    column: VectorColumn,
    fill: Callable[[Callable[[NDArray[np.int64], NDArray[Any]], None], int | None], None],
) -> VectorColumn:
    """A column that a table does not have yet, with vectors for its rows; optional where some have none.

    fill: is given what takes rows and their vectors, as `Revision.put` does, and the numbers of a vector, None.
    """
    bare = dataclasses.replace(column, segments=(presence.hollow(0, table.rows),) if table.rows else ())
    folder = registry.folder / "vectors" / table.id / column.folder
    filling = _Column(bare, folder, registry.catalog.serial, lambda first, last: (), None)
    try:
        fill(lambda rows, block: filling.put(rows, block, None, table), None)
        filled = filling.finish()
    except BaseException:
        filling.abandon(set())
        raise
    alive, given = registry.alive(table), filling.touched
    return dataclasses.replace(filled, optional=not bool((given if alive is None else given | ~alive).all()))


class _Column:
    """The segments of one column that are being written anew."""

    def __init__(
        self,
        column: VectorColumn,
        folder: Path,
        serial: int,
        blocks: Callable[[int, int], Any],
        there: NDArray[np.bool_] | None,
    ) -> None:
        self._column, self._folder, self._serial, self._number = column, folder, serial, itertools.count()
        self._blocks, self._there, self.dimension = blocks, there, column.dimension
        self._pieces = list(_pieces(column.segments))
        self._firsts = np.array([p.first for p in self._pieces], np.int64)
        self._opened: dict[int, _Piece] = {}
        self._made: list[Segment] = []
        self.touched = np.zeros(column.rows, np.bool_)

    def put(self, rows: NDArray[np.int64], block: NDArray[Any], there: NDArray[np.bool_] | None, table: Table) -> None:
        some = there is None or bool(there.any())
        if some and self.dimension not in (None, block.shape[1]):
            raise VectorError(
                f"{self._column.name} of {table.full_name} holds {self.dimension} numbers; a vector of "
                f"{block.shape[1]} came for row {int(rows[0]):,}"
            )
        if some:
            self.dimension = block.shape[1]
        elif self.dimension is None:  # there was nothing to lose
            return
        else:
            block = np.zeros((len(rows), self.dimension), np.float16)
        which = np.searchsorted(self._firsts, rows, side="right") - 1
        for at in np.unique(which):
            mine = which == at
            values = block[mine]
            halves = values.dtype == np.float16 or segments.fits_float16(values)
            piece = self._piece(int(at), halves)
            own = rows[mine] - piece.first
            piece.segment.put(own, values)
            piece.there[own] = True if there is None else there[mine]
        self.touched[rows] = True

    def _piece(self, at: int, halves: bool) -> _Piece:
        """The piece, opened so that it holds what comes: those of halves are written anew where that does not do."""
        known, old = self._opened.get(at), self._pieces[at]
        if known is not None and (halves or known.dtype == "float32"):
            return known
        dtype = "float16" if halves and old.dtype == "float16" and known is None else "float32"
        path = self._folder / f"{old.first:012d}-{self._serial}-{next(self._number)}.npy"
        assert self.dimension is not None, "vectors have come"
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(files.new_file(path))
            segment = ScatteredSegment(file, path, old.rows, self.dimension, dtype)
            if known is not None:
                segment.copy(known.segment)
            elif not old.hollow:
                for first, part in self._blocks(old.first, old.end):
                    for a in range(0, len(part), _COPIED):
                        piece = part[a : a + _COPIED]
                        start = first - old.first + a
                        segment.put(np.arange(start, start + len(piece)), piece)
            if known is not None:
                there = known.there
                known.close()
            elif old.hollow:
                there = np.zeros(old.rows, np.bool_)
            elif self._there is None:
                there = np.ones(old.rows, np.bool_)
            else:
                there = self._there[old.first : old.end].copy()
            self._opened[at] = _Piece(stack.pop_all(), segment, there, dtype, old.first, path)
        return self._opened[at]

    def finish(self) -> VectorColumn:
        """Write everything, and return the column with its new segments."""
        for at, piece in sorted(self._opened.items()):
            with piece.stack:
                written = dataclasses.replace(piece.segment.finish(), first=piece.first)
            self._made.append(written)
            self._pieces[at] = self._made[-1] = presence.write(self._folder, written, piece.there)
            if self._pieces[at].hollow:
                files.remove(self._folder / written.file)
        self._opened.clear()
        return dataclasses.replace(
            self._column, dimension=self.dimension, segments=presence.joined_hollow(tuple(self._pieces))
        )

    def abandon(self, kept: set[tuple[str, str]]) -> None:
        """Remove what was written, but for the files that the manifest names."""
        for piece in self._opened.values():
            piece.close()
        for name in (name for s in self._made for name in s.files):
            if (self._column.folder, name) not in kept:
                files.remove(self._folder / name)


class _Abandoned(Exception):
    """Tells an open segment file that nobody will finish it."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    stack: contextlib.ExitStack
    segment: ScatteredSegment
    there: NDArray[np.bool_]
    dtype: str
    first: int
    path: Path

    def close(self) -> None:
        with contextlib.suppress(_Abandoned):
            self.stack.__exit__(_Abandoned, _Abandoned(), None)


def _pieces(run: tuple[Segment, ...]) -> list[Segment]:
    """The segments of a column, with those without vectors in pieces."""
    found: list[Segment] = []
    for segment in run:
        if not segment.hollow:
            found.append(segment)
            continue
        step = max(PIECE, -(-segment.rows // MOST_PIECES))
        found += [
            presence.hollow(at, min(step, segment.end - at), segment.dimension)
            for at in range(segment.first, segment.end, step)
        ]
    return found
