"""What the manifest holds, as frozen values: tables, their vector columns, segments, parts and indexes.

What must stay true: a value never changes, a change makes a new `Catalog`; a field that came later has a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipql.brief import Brief


@dataclass(frozen=True)
class Segment:
    """A run of rows of one vector column in one `.npy` file.

    file: the name within the column's folder, or an absolute path where `linked`. first: row number of its first
    row. offset: bytes before the first vector. dtype: 'float16' or 'float32', C order, little-endian.
    largest: an upper bound of the vectors' Euclidean norms. hash: xxh3-64 of the vectors' bytes.
    absent: how many of its rows have no vector; the file has zeros for them. there: the file, beside it, whose bits
    tell which rows have one, with its hash; none where all have. Where none has, there is no file at all.
    """

    file: str
    first: int
    rows: int
    dimension: int
    dtype: str
    offset: int
    largest: float
    hash: str
    linked: bool = False
    absent: int = 0
    there: str = ""
    there_hash: str = ""

    @property
    def hollow(self) -> bool:
        """Whether none of its rows has a vector."""
        return self.absent == self.rows > 0

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its own files, which lie in its column's folder."""
        return tuple(name for name in (self.file, self.there) if name and not (self.linked and name == self.file))

    @property
    def end(self) -> int:
        """Row number after the last row."""
        return self.first + self.rows


@dataclass(frozen=True, repr=False)
class VectorColumn(Brief):
    """A vector column: `dimension` is None until the first vectors fix it; `model` filled it, where that is known.

    optional: rows may come without a vector, as the column was added to a table that had rows. revision: how often
    rows that were there got other vectors.
    """

    name: str
    folder: str
    dimension: int | None = None
    model: str | None = None
    segments: tuple[Segment, ...] = ()
    optional: bool = False
    revision: int = 0

    @property
    def rows(self) -> int:
        """Rows in its segments."""
        return self.segments[-1].end if self.segments else 0

    @property
    def absent(self) -> int:
        """How many of its rows have no vector, those that were deleted among them."""
        return sum(s.absent for s in self.segments)

    @property
    def absence(self) -> str:
        """The same in words; empty where every row has a vector."""
        return f"{self.absent:,} of {self.rows:,} rows have no vector" if self.absent else ""


@dataclass(frozen=True)
class Part:
    """A LAION part that is in the table: its key (which source), its rows, and what identifies its files."""

    key: str
    first: int
    rows: int
    fingerprint: str


@dataclass(frozen=True)
class IndexEntry:
    """A vector index: what the user asked for, and what was built.

    definition: the text from TYPE on, as it was written. options: the kind's own, by name. folder: within `index/`,
    None until it is built. rows: how many it covers. recall: of 10, by kind of query, as measured at the build.
    changed: rows that were given another vector since it was built, ascending.
    """

    name: str
    column: str
    kind: str
    metric: str
    definition: str
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    rows: int = 0
    seconds: float = 0.0
    bytes: int = 0
    recall: Mapping[str, float] = field(default_factory=dict)
    changed: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowFile:
    """A copy of a table's stored columns that can be mapped: folder within `rows/`, rows up to which number it covers,
    bytes of its batches, listing of what is where, hash of what describes them.
    """

    folder: str
    rows: int
    bytes: int
    hash: str
    listing: str


@dataclass(frozen=True, repr=False)
class Table(Brief):
    """A table with vector columns. `id` names its folder and never changes; `rows` is the next row number."""

    database: str
    name: str
    id: str
    columns: tuple[VectorColumn, ...]
    rows: int = 0
    parts: tuple[Part, ...] = ()
    indexes: tuple[IndexEntry, ...] = ()
    row_file: RowFile | None = None

    @property
    def full_name(self) -> str:
        """`database.table`, as messages show it."""
        return f"{self.database}.{self.name}"

    def index(self, name: str) -> IndexEntry | None:
        """The vector index of this name, if there is one."""
        return next((i for i in self.indexes if i.name == name), None)

    def with_index(self, entry: IndexEntry) -> Table:
        """This table with the index added, or put in the place of the one of its name."""
        if self.index(entry.name) is None:
            return dataclasses.replace(self, indexes=(*self.indexes, entry))
        return dataclasses.replace(self, indexes=tuple(entry if i.name == entry.name else i for i in self.indexes))

    def column(self, name: str) -> VectorColumn | None:
        """The vector column of this name, if there is one."""
        for column in self.columns:  # a generator takes four times as long, and this is asked several times a search
            if column.name == name:
                return column
        return None


@dataclass(frozen=True, repr=False)
class Pending(Brief):
    """A change under way, written before its first step and cleared after its last, so that open can finish it.

    kind: 'insert', 'create', 'drop', 'replace', 'truncate', 'rename', 'exchange', 'alter', 'rewrite' or 'vectors'.
    before / after: the table as it was and as it shall be (None where it does not exist then). definitions: for
    'alter', the shape and the physical table as they were, as CREATE statements.
    """

    kind: str
    before: Table | None
    after: Table | None
    definitions: tuple[str, str] | None = None


@dataclass(frozen=True, repr=False)
class Catalog(Brief):
    """All tables with vector columns, and the change under way if there is one."""

    tables: tuple[Table, ...] = ()
    pending: Pending | None = None
    serial: int = 0

    def table(self, database: str, name: str) -> Table | None:
        """The table of this name, if it has vector columns."""
        return next((t for t in self.tables if t.database == database and t.name == name), None)

    def by_id(self, id: str) -> Table | None:
        """The table with this id."""
        return next((t for t in self.tables if t.id == id), None)

    def with_table(self, table: Table) -> Catalog:
        """This catalog with the table added, or put in the place of the one with its id."""
        others = tuple(t for t in self.tables if t.id != table.id)
        return dataclasses.replace(self, tables=(*others, table))

    def without(self, id: str) -> Catalog:
        """This catalog without the table of this id."""
        return dataclasses.replace(self, tables=tuple(t for t in self.tables if t.id != id))

    def with_pending(self, pending: Pending | None) -> Catalog:
        """This catalog with another change under way, or none."""
        return dataclasses.replace(self, pending=pending)
