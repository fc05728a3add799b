"""Replicas are started, brought up to date with the map, and moved between nodes.

What must stay true: a replica gets only what the map says, from another replica, checked by hashes; a replica whose
files, parts or definitions differ from the map is named and left alone; a shard moves before the map says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from clipql.cluster import shard_map
from clipql.cluster.index_builds import IndexBuilds
from clipql.cluster.placement import next_copy, next_move
from clipql.cluster.quorum import Quorum
from clipql.cluster.replica import ReplicaInfo
from clipql.cluster.shard_map import ShardedTable, ShardMap, ShardPart
from clipql.cluster.table_changes import TableChanges
from clipql.errors import ClipqlError, ClusterError, ReplicaDamaged, ReplicaUnavailable
from clipql.storage.catalog import IndexEntry
from clipql.tables.index_entries import recall_text
from clipql.version import __version__

STATUS_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """A replica as `status` shows it: 'ready', 'away' or 'behind', and why; the indexes of its tables."""

    shard: int
    node: str
    state: str
    why: str = ""
    indexes: Mapping[str, tuple[IndexEntry, ...]] = field(default_factory=dict)


class Rebalancer:
    """Heals and moves replicas, so that they are what the map says."""

    def __init__(self, quorum: Quorum, indexing: IndexBuilds, changes: TableChanges) -> None:
        self._quorum, self._index_builds, self._changes = quorum, indexing, changes

    def heal(self) -> list[Status]:
        """Start the replicas that are not there on nodes that are, and have those that are behind catch up."""
        there = set(self._quorum.replicas.nodes())
        found = []
        for shard, node in self._quorum.map.replicas():
            if node not in there:
                found.append(Status(shard, node, "away", f"node {node} is not there"))
                continue
            try:
                self._ready(shard, node)
                found.append(Status(shard, node, "ready"))
            except ReplicaUnavailable as error:
                found.append(Status(shard, node, "away", str(error)))
            except ClipqlError as error:
                found.append(Status(shard, node, "behind", str(error)))
        with self._quorum.changing:
            self._changes.finish()
            for shard in range(len(self._quorum.map.nodes)):
                self._index_builds.even_out(shard)
            self._index_builds.finish()
        return found

    def _ready(self, shard: int, node: str) -> None:
        """Start a replica, check its files where it was not there, and have it catch up. Raises ClipqlError."""
        started = self._quorum.replicas.start(shard, node)
        try:
            for table in self._quorum.map.tables if started else ():
                if shard < len(table.shards):
                    taken = [p for p in table.shards[shard] if p.taken]
                    self._quorum.replicas.call(shard, node, "check", table.full_name, taken)
            with self._quorum.changing:
                self._catch_up(shard, node)
        except ReplicaDamaged as error:
            self._quorum.replicas.call(shard, node, "quarantine", str(error))
            raise

    def _catch_up(self, shard: int, node: str, map: ShardMap | None = None) -> None:
        """Give a replica what it lacks, from the others. Raises ClusterError where its files are not the map's."""
        map = map or self._quorum.map
        info: ReplicaInfo = self._quorum.replicas.call(shard, node, "info")
        if info.version != __version__:
            raise ClusterError(
                f"shard {shard} on {node} runs clipql {info.version}, this is {__version__}: install one version on all"
            )
        if info.quarantined:
            raise ClusterError(info.quarantined)
        for table in map.tables:
            self._check_definition(table, info)
        known = info.map is not None and shard_map.decoded(info.map, node).serial == map.serial
        if known and node in map.nodes[shard] and all(self._complete(t, shard, info) for t in map.tables):
            return
        self._quorum.replicas.call(shard, node, "store_map", shard_map.encoded(map))
        for table in map.tables:
            if shard < len(table.shards):
                self._give(table, shard, node, info)

    @staticmethod
    def _complete(table: ShardedTable, shard: int, info: ReplicaInfo) -> bool:
        if shard >= len(table.shards):
            return True
        if table.definition and table.full_name not in info.definitions:
            return False
        taken = tuple(p.fingerprint for p in table.shards[shard] if p.taken)
        return info.ledgers.get(table.full_name, ())[: len(taken)] == taken

    @staticmethod
    def _check_definition(table: ShardedTable, info: ReplicaInfo) -> None:
        shown = info.definitions.get(table.full_name)
        if table.definition and shown is not None and shown != table.definition and table.change is None:
            raise ReplicaDamaged(
                f"{table.full_name} of shard {info.shard} on {info.node} is defined as {shown}, and in the shard map "
                f"as {table.definition}: remove its folder there, and the replica is made again from another node"
            )

    def _give(self, table: ShardedTable, shard: int, node: str, info: ReplicaInfo) -> None:
        has = info.ledgers.get(table.full_name, ())
        taken = [p for p in table.shards[shard] if p.taken]
        if has[: len(taken)] != tuple(p.fingerprint for p in taken[: len(has)]):
            raise ReplicaDamaged(
                f"shard {shard} on {node} has other parts of {table.full_name} than the shard map says: remove its "
                "folder there, and the replica is made again from another node"
            )
        if table.definition and (table.full_name not in info.definitions or table.optional):
            named = table.definition, table.database, table.name
            self._quorum.replicas.call(shard, node, "define", *named, table.optional)
        for i in range(len(has), len(taken)):
            before = [p.fingerprint for p in taken[:i]]
            self._from_another(table, shard, node, taken[i], before)

    def _from_another(self, table: ShardedTable, shard: int, node: str, part: ShardPart, before: list[str]) -> None:
        why: ClipqlError = ReplicaUnavailable(f"no other replica of shard {shard} has it")
        for other in (n for n in self._quorum.map.nodes[shard] if n != node):
            try:
                self._quorum.replicas.take(shard, node, table.database, table.name, part, before, other)
                return
            except ReplicaUnavailable as error:
                why = error
        raise why

    def status(self) -> list[Status]:
        """How each replica is, with nothing changed."""
        there, found = set(self._quorum.replicas.nodes()), []
        for shard, node in self._quorum.map.replicas():
            try:
                if node not in there:
                    raise ReplicaUnavailable(f"node {node} is not there")
                info: ReplicaInfo = self._quorum.replicas.call(shard, node, "info", False, seconds=STATUS_SECONDS)
                complete = all(self._complete(t, shard, info) for t in self._quorum.map.tables) and not info.quarantined
                state = "ready" if complete else "behind"
                found.append(Status(shard, node, state, info.quarantined, info.indexes))
            except ReplicaUnavailable as error:
                found.append(Status(shard, node, "away", str(error)))
            except ClipqlError as error:
                found.append(Status(shard, node, "behind", str(error)))
        return found

    def watch(self, stop: threading.Event, seconds: float) -> None:
        """Heal now and every so many seconds, until told to stop."""
        while True:
            # what is wrong with a replica is told to who asks for the state of the cluster
            with contextlib.suppress(ClipqlError):
                self.heal()
            if stop.wait(seconds):
                return

    def move(self, shard: int, source: str | None, target: str) -> None:
        """Make a replica of a shard on the node `target`, and give up the one on `source` if named; queries go on."""
        with self._quorum.changing:
            if not 0 <= shard < len(self._quorum.map.nodes):
                raise ClusterError(f"there is no shard {shard}; the shards are 0 to {len(self._quorum.map.nodes) - 1}")
            if target not in (there := self._quorum.replicas.nodes()):
                raise ClusterError(f"there is no node {target}; there are {', '.join(sorted(there))}")
            nodes = self._quorum.map.nodes[shard]
            if (source is not None and source not in nodes) or target in nodes:
                raise ClusterError(
                    f"shard {shard} lies on {', '.join(nodes)}: a replica cannot go from "
                    f"{source or 'there'} to {target}"
                )
            self._quorum.replicas.start(shard, target)
            self._catch_up(shard, target)
            self._index_builds.even_out(shard, also=[target])
            pair = (*nodes, target) if source is None else tuple(target if n == source else n for n in nodes)
            changed = tuple(pair if i == shard else p for i, p in enumerate(self._quorum.map.nodes))
            self._quorum.commit(replace(self._quorum.map, nodes=changed))
            if source is not None:
                self._quorum.replicas.stop(shard, source)

    def rebalance(self) -> list[tuple[int, str | None, str]]:
        """Make replicas of shards that have fewer than others, and move replicas to nodes that have fewer, until no
        node has two more than another; shard, from (None for a new replica) and to of each.
        """
        moves: list[tuple[int, str | None, str]] = []
        with self._quorum.changing:
            while (replica := next_copy(self._quorum.map, self._quorum.replicas.nodes())) is not None:
                self.move(replica[0], None, replica[1])
                moves.append((replica[0], None, replica[1]))
            while (move := next_move(self._quorum.map, self._quorum.replicas.nodes())) is not None:
                self.move(*move)
                moves.append(move)
        return moves


def index_listing(found: Sequence[Status]) -> pa.Table:
    """The indexes of replicas, one a row."""
    rows: list[dict[str, Any]] = []
    for status in found:
        for full_name, entries in status.indexes.items():
            database, _, name = full_name.partition(".")
            rows += [
                {"shard": status.shard, "node": status.node, "database": database, "table": name, "name": e.name,
                 "column": e.column, "type": e.kind, "metric": e.metric, "rows_covered": e.rows, "bytes": e.bytes,
                 "build_seconds": e.seconds, "recall": recall_text(e),
                 "state": "in use" if e.folder else "exact scan" if e.kind == "flat" else "not built"}
                for e in entries
            ]  # fmt: skip
    text, count = pa.string(), pa.uint64()
    fields = [("shard", count), ("node", text), ("database", text), ("table", text), ("name", text),
              ("column", text), ("type", text), ("metric", text), ("rows_covered", count), ("bytes", count),
              ("build_seconds", pa.float64()), ("recall", text), ("state", text)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))
