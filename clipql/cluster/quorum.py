"""The shard map in force, and the replicas that know it: what every change of the map goes through.

What must stay true: a map is in force once more than half of its nodes have it, so that any such half has a node that
knows it. Whoever changes the map holds `changing`; the threads that it has started hold `mapping` as well.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from clipql.cluster import shard_map
from clipql.cluster.shard_map import ShardedTable, ShardMap, ShardPart, TrainedModel
from clipql.cluster.training import Draw
from clipql.errors import ClipqlError, ClusterError, ReplicaUnavailable, StorageError
from clipql.storage.catalog import IndexEntry

# maps that one coordinator may make
TERM = 1_000_000
# what keeps one replica from doing its part: another may do it
UNFIT = (ReplicaUnavailable, StorageError)


class Replicas(Protocol):
    """The replicas of shards, wherever they run, by shard and node."""

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Have a replica do something. Raises ReplicaUnavailable where it cannot be reached, and what it raises."""

    def take(self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
             source: str | None) -> ShardPart:  # fmt: skip
        """Have a replica take a part in, from the replica on the node `source`, or from where its files lie."""

    def adopt(self, shard: int, node: str, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """Have a replica take over an index that the replica on the node `source` has built."""

    def train(
        self, shard: int, node: str, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]
    ) -> str:
        """Have a replica learn the lists of an index from rows of all shards; the identity of what it learnt."""

    def build(
        self, shard: int, node: str, database: str, name: str, rows: int, model: TrainedModel, source: tuple[int, str]
    ) -> None:
        """Have a replica build an index with a model that the replica `source`, of a shard on a node, has."""

    def start(self, shard: int, node: str) -> bool:
        """Start a replica on a node, unless it runs; whether it was started.

        Raises ReplicaUnavailable for a node that is away.
        """

    def stop(self, shard: int, node: str) -> None:
        """Stop a replica."""

    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are there."""


class Quorum:
    """Owns the map."""

    def __init__(self, replicas: Replicas, map: ShardMap) -> None:
        self.replicas, self.map = replicas, map
        self.changing, self.mapping = threading.RLock(), threading.Lock()
        # a map that an earlier coordinator could not put in force may lie on a few nodes: ours outnumber it
        self._serial = (map.serial // TERM + 1) * TERM

    def announce(self) -> None:
        """Put the map in force once more, under a number of this coordinator's."""
        with self.changing:
            self.commit(self.map)

    def commit(self, map: ShardMap) -> None:
        """Put a new map in force. Raises ClusterError where too few nodes take it."""
        self._serial += 1
        map = replace(map, serial=self._serial)
        content = shard_map.encoded(map)
        with ThreadPoolExecutor(8) as pool:
            stored = list(
                pool.map(lambda c: self._stored(c[0], c[1], content), sorted({*map.replicas(), *self.map.replicas()}))
            )
        nodes = {n for pair in map.nodes for n in pair}
        have = {n for n in stored if n in nodes}
        if len(have) <= len(nodes) // 2:
            raise ClusterError(
                f"{len(have)} of {len(nodes)} nodes can be reached ({', '.join(sorted(have)) or 'none'}), and more "
                "than half must know of a change: bring the others back, or start with --without those that are lost"
            )
        self.map = map

    def _stored(self, shard: int, node: str, content: bytes) -> str | None:
        try:
            self.replicas.call(shard, node, "store_map", content)
        except UNFIT:
            return None
        return node

    def new(self, database: str, name: str, count: int | None) -> ShardedTable:
        """A table over the first `count` shards, by default all. Raises ClusterError for more than there are."""
        count = count or len(self.map.nodes)
        if count > len(self.map.nodes):
            raise ClusterError(f"{count} shards for {database}.{name}, and the cluster has {len(self.map.nodes)}")
        return ShardedTable(database, name, ((),) * count)

    def table(self, database: str, name: str) -> ShardedTable:
        """A table of the map. Raises ClusterError."""
        found = self.map.table(database, name)
        if found is None:
            known = ", ".join(t.full_name for t in self.map.tables) or "none"
            raise ClusterError(f"there is no table {database}.{name} in the cluster; there are: {known}")
        return found

    def replicas_of(self, table: ShardedTable) -> list[tuple[int, str]]:
        """Every replica of a table: shard and node."""
        return [(s, n) for s, n in self.map.replicas() if s < len(table.shards)]

    def call_any(self, shard: int, method: str, *arguments: Any) -> Any:
        """Have any replica of a shard do something. Raises ReplicaUnavailable or StorageError where none can."""
        why: ClipqlError | None = None
        for node in self.map.nodes[shard]:
            try:
                return self.replicas.call(shard, node, method, *arguments)
            except UNFIT as error:
                why = error
        raise why or ReplicaUnavailable(f"shard {shard} has no replica")
