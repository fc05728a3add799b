"""The one that changes the cluster: makes tables, has parts taken in and indexes built, keeps the copies.

There is one foreman a cluster, wherever it runs; what it has begun, another one can go on with.
"""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipql.cluster.indexing import Indexing
from clipql.cluster.intake import Intake
from clipql.cluster.office import UNFIT, Copies, Office
from clipql.cluster.shards import ShardMap
from clipql.cluster.upkeep import Upkeep
from clipql.errors import ClipqlError, ClusterError, VectorIndexError
from clipql.syntax.lexer import tokenize

# copies that are started side by side
STARTING = 8


class Foreman:
    """Thread-safe: one change after the other."""

    def __init__(self, copies: Copies, map: ShardMap) -> None:
        self._office = Office(copies, map)
        self._indexing = Indexing(self._office)
        intake, upkeep = Intake(self._office, self._indexing), Upkeep(self._office, self._indexing)
        self.ingest, self.progress, self._define = intake.ingest, intake.progress, intake.define
        self.heal, self.status, self.watch = upkeep.heal, upkeep.status, upkeep.watch
        self.move, self.rebalance = upkeep.move, upkeep.rebalance

    @property
    def map(self) -> ShardMap:
        """The map in force."""
        return self._office.map

    def begin(self) -> None:
        """Start the copies, and put the map in force once more. Raises ClusterError where too few are there."""

        def start(copy: tuple[int, str]) -> None:
            with contextlib.suppress(ClipqlError):  # heal tells
                self._office.copies.start(*copy)

        with ThreadPoolExecutor(STARTING) as pool:
            list(pool.map(start, self.map.holders()))
        self._office.announce()
        for table in self.map.tables:
            filled = next((i for i, parts in enumerate(table.shards) if any(p.taken for p in parts)), None)
            if not table.definition and filled is not None:  # the map was made anew, or an ingest was cut short
                with contextlib.suppress(*UNFIT):
                    self._define(table.database, table.name, filled)

    def create(self, database: str, name: str, definition: str, count: int | None = None) -> None:
        """Make a table over the first `count` shards (all of them by default). Raises QueryError and its like."""
        with self._office.changing:
            if self._office.map.table(database, name) is not None:
                raise ClusterError(f"{database}.{name} is there already: DROP TABLE it first")
            table = self._office.new(database, name, count)
            try:
                for shard, node in self._office.holders(table):
                    with contextlib.suppress(*UNFIT):
                        self._office.copies.call(shard, node, "define", definition, database, name)
                shown = self._office.ask(0, "definition", database, name)
                self._office.commit(self._office.map.with_table(replace(table, definition=shown)))
            except BaseException:
                for shard, node in self._office.holders(table):
                    with contextlib.suppress(ClipqlError):
                        self._office.copies.call(shard, node, "drop", database, name)
                raise

    def drop(self, database: str, name: str) -> None:
        """Drop a table on all its shards."""
        with self._office.changing:
            table = self._office.table(database, name)
            self._office.commit(self._office.map.without(table))
            for shard, node in self._office.holders(table):
                with contextlib.suppress(*UNFIT):
                    self._office.copies.call(shard, node, "drop", database, name)

    def alter(self, database: str, name: str, statement: str, index: str, there: bool, lenient: bool = False) -> None:
        """Add an index to every copy of a table, or (`there` False) drop it. lenient: where it is so, that is no error.

        Raises HolderGone unless all copies are there, and VectorIndexError.
        """
        with self._office.changing:
            table = self._office.table(database, name)
            known = _indexes(table.definition)
            if (index in known) == there:
                if lenient:
                    return
                raise VectorIndexError(
                    f"{table.full_name} has an index {index} already" if there
                    else f"{table.full_name} has no index {index}; it has {', '.join(known) or 'none'}"
                )  # fmt: skip
            for shard, node in self._office.holders(table):  # before the first is changed
                self._office.copies.call(shard, node, "definition", database, name)
            for shard, node in self._office.holders(table):
                self._office.copies.call(shard, node, "alter", statement, database, name, index, there)
            shown = self._office.ask(0, "definition", database, name)
            table = replace(table, definition=shown)
            self._office.commit(self._office.map.with_table(table if there else table.with_model(index, None)))

    def build(self, database: str, name: str, index: str) -> None:
        """Build an index anew on each shard. Raises VectorIndexError."""
        with self._office.changing:
            self._indexing.build(self._office.table(database, name), index)


def _indexes(definition: str) -> list[str]:
    """The names of the indexes in a CREATE TABLE."""
    return [b.name for a, b in itertools.pairwise(tokenize(definition)) if a.upper == "INDEX" and b.name is not None]


def begun(copies: Copies, map: ShardMap) -> Foreman:
    """The foreman of a map, with its copies started where their nodes are there. Raises ClusterError."""
    found = Foreman(copies, map)
    found.begin()
    return found
