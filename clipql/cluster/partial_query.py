"""What a shard is asked, and what it answers, as values that travel.

A partial query is what each shard does of a SELECT, over its own rows: clause by clause, with the vectors encoded and
the parameters settled. What must stay true: it means the same on every shard; only the numbers of the rows differ, and
those are sent beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from clipql.engine.quoting import quote_name
from clipql.errors import ClusterError, ReplicaUnavailable
from clipql.index.base import Route
from clipql.syntax.edits import edited
from clipql.syntax.reading import read
from clipql.tables.registry import ROW

# in a partial query: the number of a row among those of all shards, and the first row of the part that it came with
GLOBAL_ROW, PART_ROW = "_clipql_row", "_clipql_part"


@dataclass(frozen=True)
class PartialQuery:
    """The SELECT of one shard. alias: what its columns are qualified with. where: conditions joined by AND, any OR in
    brackets. tail: all that follows WHERE.

    bounds: of the numbers of rows that WHERE leaves, the first and the one after the last, where it names them.
    settings: clipql's own. statements: ClickHouse's SETs of whoever asks. routes: lists of ivf indexes, ranked for it.
    """

    database: str
    table: str
    alias: str
    select: str
    prewhere: str = ""
    where: str = ""
    tail: str = ""
    bounds: tuple[int, int | None] = (0, None)
    params: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    statements: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Run:
    """Rows that lie side by side: `rows` of them from number `local` in a shard, `first` among those of all shards."""

    local: int
    first: int
    rows: int


@dataclass(frozen=True)
class Snapshot:
    """The rows of a shard that a query sees, in order: what is taken in meanwhile is not among them.

    mark: of the parts that they came with, by which a replica that has others is told.
    """

    runs: tuple[Run, ...] = ()
    mark: str = ""

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(r.rows for r in self.runs)

    def before(self, row: int) -> int:
        """How many of them come before a row, by its number among those of all shards."""
        return sum(min(max(row - r.first, 0), r.rows) for r in self.runs)


def mark_of(fingerprints: Sequence[str]) -> str:
    """What stands for these parts in this order."""
    return xxhash.xxh3_128_hexdigest(" ".join(fingerprints).encode())


def statement(query: PartialQuery, snapshot: Snapshot, rows: int) -> str:
    """The partial query as a statement for a shard with `rows` rows. Raises ReplicaUnavailable where it lacks some."""
    if rows < snapshot.rows:
        raise ReplicaUnavailable(
            f"this replica has {rows:,} rows of {query.database}.{query.table} and should have {snapshot.rows:,}"
        )
    row = f"{query.alias}.{ROW}"
    low, high = query.bounds
    first, last = snapshot.before(low), snapshot.rows if high is None else snapshot.before(high)
    conditions = [f"{row} >= {first}"] if first else []
    conditions += [f"{row} < {last}"] if last < rows else []
    where = " AND ".join([*conditions, *([query.where] if query.where else [])])
    text = f"SELECT {query.select} FROM {quote_name(query.database)}.{quote_name(query.table)} AS {query.alias}"
    text += f" PREWHERE {query.prewhere}" if query.prewhere else ""
    text += f" WHERE {where}" if where else ""
    return _numbered(f"{text} {query.tail}".rstrip(), row, snapshot.runs)


def _numbered(text: str, row: str, runs: Sequence[Run]) -> str:
    if GLOBAL_ROW not in text and PART_ROW not in text:
        return text
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last and run.first - run.local == last.first - last.local:
            merged[-1] = Run(last.local, last.first, last.rows + run.rows)
        else:
            merged.append(run)
    spelled = {
        GLOBAL_ROW: _looked_up(row, merged, [r.first - r.local for r in merged], f"{row} + "),
        PART_ROW: _looked_up(row, runs, [r.first for r in runs], ""),
    }
    found = (t for t in read(text).tokens if t.text in spelled and t.kind == "word")
    return edited(text, [(t.start, t.end, spelled[t.text]) for t in found])


def _looked_up(row: str, runs: Sequence[Run], values: Sequence[int], before: str) -> str:
    """The value of the run that a row lies in, with something before it, as UInt64."""
    if len(runs) < 2:
        return f"toUInt64({before}{values[0] if values else 0})"
    ends = ", ".join(str(r.local + r.rows) for r in runs)
    run = f"arrayFirstIndex(_clipql_end -> {row} < _clipql_end, [{ends}])"
    return f"toUInt64({before}[{', '.join(map(str, values))}][{run}])"


@dataclass(frozen=True)
class Rows:
    """Rows as RowBinaryWithNamesAndTypes: head are the names and types, body the rows."""

    head: bytes
    body: bytes

    @property
    def data(self) -> bytes:
        """Both."""
        return self.head + self.body

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Names and ClickHouse types."""
        texts, at = [], 0
        count, at = _varint(self.head, at)
        for _ in range(2 * count):
            size, at = _varint(self.head, at)
            texts.append(self.head[at : at + size].decode())
            at += size
        return tuple(zip(texts[:count], texts[count:], strict=True))


def rows_of(data: bytes) -> Rows:
    """A result as ClickHouse wrote it. Raises ClusterError for one that is cut short."""
    try:
        count, at = _varint(data, 0)
        for _ in range(2 * count):
            size, at = _varint(data, at)
            at += size
    except IndexError:
        at = len(data) + 1
    if at > len(data):
        raise ClusterError(f"a shard's answer of {len(data)} bytes is cut short: ask again")
    return Rows(data[:at], data[at:])


def joined(answers: Sequence[Rows], table: str) -> Rows:
    """The rows of several shards, one after the other. Raises ClusterError where their columns differ."""
    first = answers[0]
    for answer in answers[1:]:
        if answer.head != first.head:
            a, b = (", ".join(f"{n} {t}" for n, t in r.columns) for r in (first, answer))
            raise ClusterError(
                f"shards of {table} have different columns: one gives {a}, another {b}; "
                "see that all run one version of clipql and that nobody altered a shard by itself"
            )
    return Rows(first.head, b"".join(a.body for a in answers))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
