"""What the catalog says of a vector index, and what follows: whether it lags behind its table, where it is built.

What must stay true: nothing here opens an index or changes the catalog.
"""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import quote

import xxhash

from clipql.errors import VectorIndexError
from clipql.index.base import Index
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.metrics import Metric

# rows that came since the build are scanned exactly: so many cost as much as the search itself
UNCOVERED = 20_000
# an index is built anew when there are so many times the rows that its codes were learnt from
LASTS, BALANCED_LASTS = 2, 4
# so many rows with other vectors than an index knows are compared beside it; with more it is built anew
MOST_CHANGED = 4_096
# so many are added to an index of any size, and no more are left to be scanned
FEWEST_ADDED, MOST_SCANNED = 4_096, 262_144


@dataclasses.dataclass(frozen=True)
class Learned:
    """rows: those that an index was built from. balanced: whether its lists grow with those that are added."""

    rows: int
    balanced: bool = False


def behind(entry: IndexEntry, rows: int, learned: Learned | None = None) -> bool:
    """Whether an index was learnt from less than half of so many rows, a quarter where its lists grow with them, and
    the others are enough to be worth it.

    learned: where rows were added to the index since.
    """
    learned = learned or Learned(entry.rows)
    times = BALANCED_LASTS if learned.balanced else LASTS
    return entry.kind != "flat" and rows - learned.rows > max(UNCOVERED, (times - 1) * learned.rows)


def lags(entry: IndexEntry, rows: int) -> bool:
    """Whether the rows that an index does not cover are worth being added to it, which rewrites its files."""
    enough = min(max(FEWEST_ADDED, entry.rows // 100), MOST_SCANNED)
    return entry.folder is not None and rows - entry.rows >= enough


def unfinished(entry: IndexEntry) -> str:
    """The folder, beside those of built indexes, in which an index is being built."""
    return f".{file_name(entry)}.building"


def file_name(entry: IndexEntry) -> str:
    """The name of an index as a part of a file's: a name may hold anything."""
    return quote(entry.name, safe="")


def identity(table: Table, entry: IndexEntry) -> str:
    """Changes whenever the vectors that an index is built from do: the hashes of their segments."""
    columns = [c for c in (table.column(entry.column), table.column("text_embedding")) if c]
    told = [[(s.first, s.rows, s.hash, s.absent, s.there_hash) for s in c.segments] for c in columns]
    return xxhash.xxh3_64_hexdigest(json.dumps([table.rows, entry.options, told]).encode())


def unbuilt(table: Table) -> tuple[IndexEntry, ...]:
    """The definitions of a table's indexes, without what was built."""
    return tuple(
        dataclasses.replace(i, folder=None, rows=0, seconds=0.0, bytes=0, recall={}, changed=()) for i in table.indexes
    )


def measured_recall(index: Index) -> dict[str, float]:
    """The recall of 10 that an index measured at its build at its default setting, by kind of query."""
    measured = getattr(index, "measured_recall", None)
    return dict(measured()) if callable(measured) else {}


def check_column(table: Table, entry: IndexEntry) -> None:
    """Raise VectorIndexError where an index is on a column that is no vector column, or of another dimension."""
    if table.column(entry.column) is None:
        raise VectorIndexError(
            f"index {entry.name}: {entry.column} is no vector column of {table.full_name}; "
            f"those are {', '.join(c.name for c in table.columns)}"
        )
    check_dimension(table, entry)


def check_dimension(table: Table, entry: IndexEntry) -> None:
    """Raise VectorIndexError where an index is for vectors of another length than its column holds."""
    column, announced = table.column(entry.column), entry.options.get("dimension")
    if column and column.dimension and announced and announced != column.dimension:
        raise VectorIndexError(
            f"index {entry.name} is for vectors of {announced} numbers; {entry.column} of {table.full_name} holds "
            f"{column.dimension}"
        )


def entry_of(table: Table, name: str) -> IndexEntry:
    """An index of a table by its name. Raises VectorIndexError."""
    entry = table.index(name)
    if entry is None:
        known = ", ".join(i.name for i in table.indexes) or "none"
        raise VectorIndexError(f"{table.full_name} has no vector index {name}; it has {known}")
    return entry


def same_order(a: Metric, b: Metric) -> bool:
    """Whether two metrics sort rows alike: L2Distance and its square do."""
    squares = {Metric.L2, Metric.L2_SQUARED}
    return a is b or (a in squares and b in squares)


def recall_text(entry: IndexEntry) -> str:
    """The recall measured at the build, by kind of query, as `clipql.indexes` shows it."""
    return ", ".join(f"{kind} {value:.3f}" for kind, value in entry.recall.items())


def absent_of(table: Table, entry: IndexEntry) -> int:
    """How many rows have no vector for an index."""
    column = table.column(entry.column)
    return column.absent if column else 0


def present(table: Table, entry: IndexEntry) -> int:
    """How many rows have one."""
    return table.rows - absent_of(table, entry)


def arrived(table: Table, entry: IndexEntry) -> int:
    """How many of those came after the rows that an index covers."""
    column = table.column(entry.column)
    later = [s for s in column.segments if s.end > entry.rows] if column else []
    return sum(min(s.rows - s.absent, s.end - entry.rows) for s in later)


def built_from(table: Table, entry: IndexEntry) -> Learned:
    """What an index was built from, where no rows were added to it since."""
    return Learned(present(table, entry) - arrived(table, entry))


def late(table: Table, entry: IndexEntry) -> bool:
    """Whether the rows that came, and have a vector, are worth being added to an index: see `lags`."""
    return lags(entry, entry.rows + arrived(table, entry))
