"""Takes files of rows in, vectors and all in one pass: a row group whole or not at all, and none twice.

What must stay true: all headers are checked before the first byte is written; memory does not grow with a file; what
was committed stays, and another run goes on with the row groups that are not in the table.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clipql.encode.names import canonical
from clipql.errors import DiskFull, IngestError, VectorError
from clipql.ingest.columns import Incoming, check_columns
from clipql.ingest.pipeline import IngestProgress, IngestReport
from clipql.ingest.records.columns import incoming, make_table, plain_schema, vector_columns
from clipql.ingest.records.rows import Rows
from clipql.ingest.records.sources import RecordFile, find_files
from clipql.storage.catalog import Part, Table
from clipql.tables import schema
from clipql.tables.open_database import OpenDatabase
from clipql.tables.writer import Insertion

# rows that are committed at once, where row groups are smaller: each commit waits for the disk
AT_ONCE = 262_144


@dataclass(frozen=True)
class _Group:
    """A row group of a file; number: of the file in the run."""

    file: RecordFile
    index: int
    number: int

    @property
    def rows(self) -> int:
        return self.file.weight(self.index)


def ingest_files(
    db: OpenDatabase,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    table: str = "laion",
    vector_column: str | Sequence[str] = (),
    model: str | None = None,
    first_id: int | None = None,
    skip_bad: bool = False,
    indexes: bool = True,
    parts: str | None = None,
    link: bool = False,
    progress: Callable[[IngestProgress], None] | None = None,
    foretold: object = None,
) -> IngestReport:
    """Take files whose rows hold their vectors into a table, made from the first file's columns if it is not there.

    source: Parquet, Arrow, JSON lines and CSV files, or folders of them; a `.npy` of a file's name has the vectors of
    its rows. vector_column: the columns that hold vectors, by default those of the table, or lists of floats that are
    all of one length. model: the model that made the vectors, remembered with the columns. first_id: the id of the
    first row, where the table gives ids. skip_bad: leave out, and count, rows without a usable vector instead of
    refusing the file. indexes: build those that have fallen behind. parts, link: refused, as they are
    for LAION parts; foretold: is not called. Raises IngestError, naming file, row group and row, and leaves the row
    groups before it in the table; DiskFull before it begins where the rows cannot fit.
    """
    if parts is not None or link:
        raise IngestError(
            f"{'parts' if parts is not None else 'link'} is for LAION parts; of files with vectors, all that are named "
            "are taken in and copied: leave it out"
        )
    began = time.perf_counter()
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    named = (vector_column,) if isinstance(vector_column, str) else tuple(vector_column)
    database, _, name = table.rpartition(".")
    registry = db.registry
    known = registry.find(database or registry.database, name)
    files = find_files(sources, named or [c.name for c in known.columns] if known else named)
    if not files:
        raise IngestError(f"no files of rows in {', '.join(map(str, sources))}")
    report, id = take_files(
        db, files, table, named=named, model=model, first_id=first_id, skip_bad=skip_bad, progress=progress, began=began
    )
    if indexes:
        db.indexes.after_insert(id)
    return report


def take_files(
    db: OpenDatabase,
    files: list[RecordFile],
    table: str,
    *,
    named: Sequence[str],
    model: str | None,
    first_id: int | None = None,
    skip_bad: bool,
    progress: Callable[[IngestProgress], None] | None,
    began: float,
) -> tuple[IngestReport, str]:
    """Take files that are open into a table, whose id is returned too; its indexes are not built. As `ingest_files`."""
    database, _, name = table.rpartition(".")
    place = database or db.registry.database, name
    run = _Run(db, files, place, named, model, first_id, skip_bad, progress, began)
    return run.all(db.registry.find(*place))


class _Run:
    """One call of `ingest_files`."""

    def __init__(
        self,
        db: OpenDatabase,
        files: list[RecordFile],
        table: tuple[str, str],
        named: Sequence[str],
        model: str | None,
        first_id: int | None,
        skip_bad: bool,
        progress: Callable[[IngestProgress], None] | None,
        began: float,
    ) -> None:
        self._registry, self._files, self._name, self._named = db.registry, files, table, named
        self._model, self._id, self._skip_bad, self._began = model, first_id, skip_bad, began
        self._progress = progress or (lambda p: None)
        self._groups = [_Group(f, i, n) for n, f in enumerate(files, 1) for i in range(len(f.groups))]
        self._total, self._done = sum(g.rows for g in self._groups), 0
        self._vectors: dict[Path, tuple[str, ...]] = {}
        self._dimensions: dict[str, int] = {}
        self._left_out: list[str] = []
        self._rows = self._taken = self._skipped = self._skipped_rows = self._bad = 0

    def all(self, known: Table | None) -> tuple[IngestReport, str]:
        """Take in what is not there yet, in the order of the files; returns the id of the table too."""
        new = self._new(known)
        checked = self._checked(known, new)
        made = known is None
        table = known or make_table(self._registry, *self._name, self._files[0], self._vectors[self._files[0].path])
        try:
            self._check(table, checked)
            for together in self._bundles(table):
                self._take(table, together)
        except BaseException:
            if made and not self._rows:
                schema.drop(self._registry, self._registry.catalog.by_id(table.id) or table)
            raise
        seconds = time.perf_counter() - self._began
        units = {f.unit for f in self._files}
        report = IngestReport(
            self._rows,
            self._taken,
            self._skipped,
            seconds,
            self._bad,
            rows_skipped=self._skipped_rows,
            unit=units.pop() if len(units) == 1 else "row group",
            left_out=tuple(self._left_out),
        )
        return report, table.id

    def _new(self, known: Table | None) -> list[RecordFile]:
        there = _taken(known) if known else set()
        return [f for f in self._files if any((f.digest, i) not in there for i in range(len(f.groups)))]

    def _checked(self, known: Table | None, new: Sequence[RecordFile]) -> list[Incoming]:
        """The files that are to be taken in, each with its vectors' dimensions."""
        first = vector_columns(self._files[0], known, self._named)
        found = []
        for file in self._files:
            own = first if file is self._files[0] else vector_columns(file, known, self._named or first)
            self._vectors[file.path] = own
            told = incoming(file, own, known) if file in new else None
            if told is not None:
                found.append(told)
        return found

    def _check(self, table: Table, files: Sequence[Incoming]) -> None:
        """Compare all files with the table, and what they need with the disk, before anything is written."""
        for column in table.columns:
            if column.dimension:
                self._dimensions[column.name] = column.dimension
            if self._model and column.model and canonical(self._model) != canonical(column.model):
                raise IngestError(
                    f"column {column.name} of {table.full_name} was filled by {column.model}, and --model says "
                    f"{self._model}: vectors of two models cannot be compared, name another table"
                )
        for file in files:
            table = check_columns(self._registry.engine, table, file)
            for name, (_, dimension) in file.vectors.items():
                self._dimensions.setdefault(name, dimension)
        for name in dict.fromkeys(n for own in self._vectors.values() for n in own):
            if name not in self._dimensions:
                raise IngestError(
                    f"no file of these has a row, so how many numbers a vector of {name} has is not known: name files "
                    "that have rows"
                )
        there, folder = _taken(table), self._registry.folder
        needed = sum(g.file.bytes[g.index] for g in self._groups if (g.file.digest, g.index) not in there)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskFull(
                f"the files need about {needed / 1e9:,.2f} GB of disk; {folder} has {free / 1e9:,.2f} GB free: free "
                "some room, or take fewer files"
            )

    def _bundles(self, table: Table) -> Iterator[list[_Group]]:
        """Row groups that are committed together: of one set of columns, and not too many rows."""
        there, together = _taken(table), list[_Group]()
        for group in self._groups:
            if (group.file.digest, group.index) in there:
                self._skipped, self._skipped_rows = self._skipped + 1, self._skipped_rows + group.rows
                self._tell(group, group.rows, skipped=True)
                continue
            there.add((group.file.digest, group.index))
            full = sum(g.rows for g in together) + group.rows > AT_ONCE
            if together and (full or not self._alike(together[0].file, group.file)):
                yield together
                together = []
            together.append(group)
        if together:
            yield together

    def _alike(self, one: RecordFile, other: RecordFile) -> bool:
        plain = [plain_schema(f, self._vectors[f.path]) for f in (one, other)]
        return plain[0].equals(plain[1]) and self._vectors[one.path] == self._vectors[other.path]

    def _take(self, table: Table, groups: Sequence[_Group]) -> None:
        """Take row groups in, as one commit."""
        names = self._vectors[groups[0].file.path]
        done = self._done
        with Insertion(self._registry, table.id) as insertion:
            with Rows(self._registry, insertion, names, self._dimensions, self._skip_bad) as rows:
                insertion.add_rows(self._read(rows, groups), lambda n: None)
                rows.finish()
            parts = _parts(groups, rows.counts, insertion.first)
            model = self._model
            insertion.commit(parts, dict.fromkeys(names, model) if model else {})
        if insertion.rows:
            self._id = None
        self._rows, self._bad = self._rows + insertion.rows, self._bad + rows.bad
        self._left_out = [*self._left_out, *rows.left_out][:10]
        self._taken += len(groups)
        self._done = done
        for group in groups:
            self._tell(group, group.rows)

    def _read(self, rows: Rows, groups: Sequence[_Group]) -> Iterator[pa.RecordBatch]:
        try:
            for group in groups:
                for batch in rows.of_group(group.file, group.index, self._id):
                    yield batch
                    self._tell(group, batch.num_rows, finished=False)
            yield from rows.rest()
        except VectorError as error:
            raise IngestError(str(error)) from error

    def _tell(self, group: _Group, rows: int, *, finished: bool = True, skipped: bool = False) -> None:
        self._done += rows
        seconds, many = time.perf_counter() - self._began, len(self._files)
        self._progress(
            IngestProgress(
                group.file.path.name, group.number, many, self._done, max(self._total, self._done), seconds,
                finished, skipped, "file",
            )
        )  # fmt: skip


def _taken(table: Table) -> set[tuple[str, int]]:
    """The row groups that are in a table: the digest of the file and the number of the group."""
    found = set()
    for part in table.parts:
        digest, _, groups = part.fingerprint.partition(":")
        if groups:
            first, _, last = groups.partition("-")
            found |= {(digest, i) for i in range(int(first), int(last) + 1)}
    return found


def _parts(groups: Sequence[_Group], counts: Sequence[int], first: int) -> list[Part]:
    """What the table remembers of row groups, those that follow each other in a file as one. counts: rows of each."""
    parts: list[tuple[_Group, int, int, int]] = []
    for group, rows in zip(groups, counts, strict=True):
        before = parts[-1] if parts else None
        if before and before[0].file is group.file and before[1] + 1 == group.index:
            parts[-1] = before[0], group.index, before[2], before[3] + rows
        else:
            parts.append((group, group.index, first, rows))
        first += rows
    return [Part(_key(g, last), at, rows, f"{g.file.digest}:{g.index}-{last}") for g, last, at, rows in parts]


def _key(group: _Group, last: int) -> str:
    file = group.file
    if file.origin:
        return f"{file.origin}#{group.index}-{last}/{len(file.groups)}"
    first = group.index if file.fragment is None else file.fragment.id
    return f"{file.path.resolve()}#{first}-{last if file.fragment is None else first}"


def rows_of(table: Table, digest: str) -> int | None:
    """The rows of a file from an address that is in a table as a whole; None where it is not. digest: of the file."""
    groups: set[int] = set()
    rows, total = 0, 0
    for part in table.parts:
        own, _, span = part.fingerprint.partition(":")
        of = re.search(r"#\d+-\d+/(\d+)\Z", part.key)
        if own == digest and of:
            first, _, last = span.partition("-")
            groups |= set(range(int(first), int(last) + 1))
            rows, total = rows + part.rows, int(of[1])
    return rows if total and len(groups) == total else None
