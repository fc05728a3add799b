"""Checks of clipql's own files against the manifest, which need no ClickHouse: every byte is read and hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipql.care.report import Finding
from clipql.errors import ClipqlError
from clipql.index import folder as index_folder
from clipql.storage.catalog import Catalog, IndexEntry, Segment, Table, VectorColumn
from clipql.storage.vectors import segments
from clipql.tables.rowfile import RowReader


@dataclass
class Tally:
    """Files and bytes that were read; findings so far. tick: told of each file before it is read."""

    tick: Callable[[str], None] = lambda what: None
    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def reading(self, path: Path) -> None:
        self.tick(str(path))
        if path.is_file():
            self.files += 1
            self.bytes += path.stat().st_size

    def add(self, what: str, table: str, problem: str, statement: str | None = None) -> None:
        """Note a damage; of one thing only the first is told."""
        found = Finding(what, table, problem, statement)
        if found not in self.findings:
            self.findings.append(found)


def check_files(folder: Path, catalog: Catalog, tally: Tally, *, deep: bool) -> None:
    """All files of all tables."""
    for table in catalog.tables:
        for column in table.columns:
            _check_column(folder, table, column, tally, deep=deep)
        for entry in table.indexes:
            if entry.folder:
                _check_index(folder, table, entry, tally, deep=deep)
        if table.row_file:
            _check_row_file(folder, table, tally)


def _check_column(folder: Path, table: Table, column: VectorColumn, tally: Tally, *, deep: bool) -> None:
    place = folder / "vectors" / table.id / column.folder
    end = 0
    for segment in column.segments:
        if segment.first != end:
            tally.add(
                "manifest", table.full_name, f"{column.name} lacks the vectors of rows {end:,} to {segment.first - 1:,}"
            )
        end = segment.end
        if segment.dimension != column.dimension and not segment.hollow:
            tally.add(
                "segment",
                table.full_name,
                f"{segment.file} holds {segment.dimension} numbers a vector, {column.name} has {column.dimension}",
            )
        for name in filter(None, (segment.file, segment.there)):
            tally.reading(place / name)
        try:
            segments.verify(place, segment)
            if deep:
                _check_numbers(place, segment)
        except (ClipqlError, OSError) as error:
            tally.add("segment", table.full_name, str(error))
    if end != table.rows:
        tally.add("manifest", table.full_name, f"{column.name} has {end:,} vectors for {table.rows:,} rows")


def _check_numbers(place: Path, segment: Segment) -> None:
    """Raise VectorError for numbers that are not finite, ClipqlError for a norm beyond the manifest's."""
    found = segments.map_segment(place, segment)
    step = max(1, segments.BLOCK_BYTES // max(1, segment.dimension * found.itemsize))
    for row in range(0, len(found), step):
        largest = segments.check_finite(found[row : row + step], row, str(place / segment.file))
        if largest > segment.largest * (1 + 1e-6):
            raise ClipqlError(f"{segment.file} holds a vector of norm {largest}, the manifest says {segment.largest}")


def rebuild_index(table: Table, entry: IndexEntry) -> str:
    """The statement that builds an index anew."""
    return f"ALTER TABLE {table.full_name} MATERIALIZE INDEX {entry.name}"


def rebuild_rows(table: Table) -> str:
    """The statement that writes a row file anew."""
    return f"OPTIMIZE TABLE {table.full_name}"


def _check_index(folder: Path, table: Table, entry: IndexEntry, tally: Tally, *, deep: bool) -> None:
    place = folder / "index" / (entry.folder or "")
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        tally.reading(path)
    try:
        index_folder.verify(place)
        meta = index_folder.read_meta(place)
        rows = meta.get("rows", entry.rows)
        if meta.get("covered", rows) != entry.rows:
            raise ClipqlError(f"{place} covers {rows:,} rows, the manifest says {entry.rows:,}")
        for name in ("rows.npy",) if deep else ():
            if name in meta["files"]:
                _check_permutation(place / name, rows)
    except (ClipqlError, OSError, ValueError, TypeError) as error:
        tally.add("index", table.full_name, f"{entry.name}: {error}", rebuild_index(table, entry))


def _check_permutation(path: Path, rows: int) -> None:
    """Raise where an array does not name each row once."""
    found = np.load(path, mmap_mode="r", allow_pickle=False).reshape(-1)
    if len(found) != rows or found.dtype.kind not in "iu":
        return  # another layout: what it means is known to the index alone
    seen = np.zeros(rows, np.bool_)
    for at in range(0, rows, 1 << 20):
        block = found[at : at + (1 << 20)]
        if len(block) and (int(block.min()) < 0 or int(block.max()) >= rows):
            raise ClipqlError(f"{path} names row {int(block.max()):,} of {rows:,}")
        seen[block] = True
    if not seen.all():
        raise ClipqlError(f"{path} leaves out {rows - int(seen.sum()):,} of {rows:,} rows")


def _check_row_file(folder: Path, table: Table, tally: Tally) -> None:
    entry = table.row_file
    assert entry is not None, "the caller has looked"
    place = folder / "rows" / entry.folder
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        tally.reading(path)
    for error in row_file_errors(place, table):
        tally.add("row file", table.full_name, error, rebuild_rows(table))


def row_file_errors(place: Path, table: Table) -> Iterator[str]:
    """What is wrong with a row file, all of whose batches and columns are read."""
    entry = table.row_file
    assert entry is not None, "the caller has looked"
    try:
        RowReader(place, entry).verify()
    except ClipqlError as error:
        yield str(error)
