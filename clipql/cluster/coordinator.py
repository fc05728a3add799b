"""The coordinator, which alone changes the cluster: tables, ingests, index builds, and where replicas lie.

A cluster has one coordinator, on any node. Where it dies, the next one continues what it began.
"""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipql.cluster.index_builds import IndexBuilds
from clipql.cluster.ingestion import Ingestion
from clipql.cluster.quorum import UNFIT, Quorum, Replicas
from clipql.cluster.rebalance import Rebalancer
from clipql.cluster.shard_map import ShardMap, TableChange
from clipql.cluster.table_changes import TableChanges
from clipql.errors import ClipqlError, ClusterError, QueryError, VectorIndexError
from clipql.syntax.lexer import matching, split_list
from clipql.syntax.reading import read

# replicas that are started side by side
STARTING = 8


class Coordinator:
    """Thread-safe: one change after the other."""

    def __init__(self, replicas: Replicas, map: ShardMap) -> None:
        self._quorum = Quorum(replicas, map)
        self._index_builds = IndexBuilds(self._quorum)
        self._changes = TableChanges(self._quorum)
        ingestion = Ingestion(self._quorum, self._index_builds)
        rebalancer = Rebalancer(self._quorum, self._index_builds, self._changes)
        self.ingest, self.progress, self._define = ingestion.ingest, ingestion.progress, ingestion.define
        self.heal, self.status, self.watch = rebalancer.heal, rebalancer.status, rebalancer.watch
        self.move, self.rebalance = rebalancer.move, rebalancer.rebalance

    @property
    def map(self) -> ShardMap:
        """The map in force."""
        return self._quorum.map

    def begin(self) -> None:
        """Start the replicas, and put the map in force once more. Raises ClusterError where too few are there."""

        def start(replica: tuple[int, str]) -> None:
            with contextlib.suppress(ClipqlError):  # heal tells
                self._quorum.replicas.start(*replica)

        with ThreadPoolExecutor(STARTING) as pool:
            list(pool.map(start, self.map.replicas()))
        self._quorum.announce()
        for table in self.map.tables:
            filled = next((i for i, parts in enumerate(table.shards) if any(p.taken for p in parts)), None)
            if not table.definition and filled is not None:  # the map was made again, or an ingest was cut short
                with contextlib.suppress(*UNFIT):
                    self._define(table.database, table.name, filled)

    def create(self, database: str, name: str, definition: str, count: int | None = None) -> None:
        """Make a table over the first `count` shards (all of them by default). Raises QueryError and its like."""
        with self._quorum.changing:
            if self._quorum.map.table(database, name) is not None:
                raise ClusterError(f"{database}.{name} is there already: DROP TABLE it first")
            table = self._quorum.new(database, name, count)
            try:
                for shard, node in self._quorum.replicas_of(table):
                    with contextlib.suppress(*UNFIT):
                        self._quorum.replicas.call(shard, node, "define", definition, database, name)
                shown = self._quorum.call_any(0, "definition", database, name)
                self._quorum.commit(self._quorum.map.with_table(replace(table, definition=shown)))
            except BaseException:
                for shard, node in self._quorum.replicas_of(table):
                    with contextlib.suppress(ClipqlError):
                        self._quorum.replicas.call(shard, node, "drop", database, name)
                raise

    def drop(self, database: str, name: str) -> None:
        """Drop a table on all its shards."""
        with self._quorum.changing:
            table = self._quorum.table(database, name)
            self._quorum.commit(self._quorum.map.without(table))
            for shard, node in self._quorum.replicas_of(table):
                with contextlib.suppress(*UNFIT):
                    self._quorum.replicas.call(shard, node, "drop", database, name)

    def alter(self, database: str, name: str, statement: str, index: str, there: bool, lenient: bool = False) -> None:
        """Add an index to every replica of a table, or drop it (`there` False).

        lenient: no error where that is so already.

        Raises ReplicaUnavailable unless all replicas are there, and VectorIndexError.
        """
        with self._quorum.changing:
            self._changes.finish()
            table = self._quorum.table(database, name)
            known = _indexes(table.definition)
            if (index in known) == there:
                if lenient:
                    return
                raise VectorIndexError(
                    f"{table.full_name} has an index {index} already" if there
                    else f"{table.full_name} has no index {index}; it has {', '.join(known) or 'none'}"
                )  # fmt: skip
            change = TableChange("alter", (statement, database, name, index, there))
            self._changes.carry_out(table if there else table.with_model(index, None), change)

    def add_column(self, database: str, name: str, statement: str, column: str, lenient: bool = False) -> None:
        """Add a column of vectors to every replica of a table; where it has rows, they have no vector in it.

        lenient: no error where it is there already. Raises ReplicaUnavailable unless all replicas are there, and
        QueryError.
        """
        with self._quorum.changing:
            self._changes.finish()
            table = self._quorum.table(database, name)
            known = _columns(table.definition)
            if column in known:
                if lenient:
                    return
                raise QueryError(
                    f"{table.full_name} has a column {column} already; it has {', '.join(known)}",
                    code=44, name="ILLEGAL_COLUMN",
                )  # fmt: skip
            optional = table.rows > 0
            after = replace(table, optional=(*table.optional, column)) if optional else table
            self._changes.carry_out(after, TableChange("add_column", (statement, database, name, column, optional)))

    def build(self, database: str, name: str, index: str) -> None:
        """Build an index again on each shard. Raises VectorIndexError."""
        with self._quorum.changing:
            self._index_builds.build(self._quorum.table(database, name), index)


def _indexes(definition: str) -> list[str]:
    """The names of the indexes in a CREATE TABLE."""
    return [b.name for a, b in itertools.pairwise(read(definition).tokens) if a.upper == "INDEX" and b.name is not None]


def _columns(definition: str) -> list[str]:
    """The names of the columns in a CREATE TABLE."""
    tokens = read(definition).tokens
    first = next((i for i, t in enumerate(tokens) if t.text == "("), None)
    if first is None:
        return []
    named = (tokens[a] for a, _ in split_list(tokens, first + 1, matching(tokens, first)))
    return [t.name for t in named if t.name is not None and t.upper not in ("INDEX", "CONSTRAINT", "PROJECTION")]


def started(replicas: Replicas, map: ShardMap) -> Coordinator:
    """The coordinator of a map, with its replicas started where their nodes are there. Raises ClusterError."""
    found = Coordinator(replicas, map)
    found.begin()
    return found
