"""The shard map in force, and the copies that know it: what every change of the map goes through.

What must stay true: a map is in force once more than half of its nodes have it, so that of any such half one knows it;
who changes it holds `changing`, and the threads that he has started `mapping` besides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from clipql.cluster import shards
from clipql.cluster.shards import ShardedTable, ShardMap, ShardPart, TrainedModel
from clipql.cluster.training import Draw
from clipql.errors import ClipqlError, ClusterError, HolderGone, StorageError
from clipql.storage.catalog import IndexEntry

# maps that one office may make
TERM = 1_000_000
# what keeps one copy from doing its part: another may do it
UNFIT = (HolderGone, StorageError)


class Copies(Protocol):
    """The copies of shards, wherever they run, by shard and node."""

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Have a copy do something. Raises HolderGone where it cannot be reached, and what it raises."""

    def take(self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
             source: str | None) -> ShardPart:  # fmt: skip
        """Have a copy take a part in, from the copy on the node `source`, or from where its files lie."""

    def adopt(self, shard: int, node: str, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """Have a copy take over an index that the copy on the node `source` has built."""

    def train(
        self, shard: int, node: str, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]
    ) -> str:
        """Have a copy learn the lists of an index from rows of all shards; the identity of what it learnt."""

    def build(
        self, shard: int, node: str, database: str, name: str, rows: int, model: TrainedModel, source: tuple[int, str]
    ) -> None:
        """Have a copy build an index with a model that the copy `source`, of a shard on a node, has."""

    def start(self, shard: int, node: str) -> bool:
        """Start a copy on a node, unless it runs; whether it was started. Raises HolderGone for a node that is away."""

    def stop(self, shard: int, node: str) -> None:
        """Stop a copy."""

    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are there."""


class Office:
    """Owns the map."""

    def __init__(self, copies: Copies, map: ShardMap) -> None:
        self.copies, self.map = copies, map
        self.changing, self.mapping = threading.RLock(), threading.Lock()
        # a map that an earlier office could not put in force may lie on a few nodes: ours outnumber it
        self._serial = (map.serial // TERM + 1) * TERM

    def announce(self) -> None:
        """Put the map in force once more, under a number of this office's."""
        with self.changing:
            self.commit(self.map)

    def commit(self, map: ShardMap) -> None:
        """Put a new map in force. Raises ClusterError where too few nodes take it."""
        self._serial += 1
        map = replace(map, serial=self._serial)
        content = shards.encoded(map)
        with ThreadPoolExecutor(8) as pool:
            stored = list(
                pool.map(lambda c: self._stored(c[0], c[1], content), sorted({*map.holders(), *self.map.holders()}))
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
            self.copies.call(shard, node, "store_map", content)
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

    def holders(self, table: ShardedTable) -> list[tuple[int, str]]:
        """Every copy of a table: shard and node."""
        return [(s, n) for s, n in self.map.holders() if s < len(table.shards)]

    def ask(self, shard: int, method: str, *arguments: Any) -> Any:
        """Have any copy of a shard do something. Raises HolderGone or StorageError where none can."""
        why: ClipqlError | None = None
        for node in self.map.nodes[shard]:
            try:
                return self.copies.call(shard, node, method, *arguments)
            except UNFIT as error:
                why = error
        raise why or HolderGone(f"shard {shard} has no copy")
