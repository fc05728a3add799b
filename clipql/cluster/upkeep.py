"""Copies that come and go: started, brought up to the map, moved between nodes.

What must stay true: a copy is only given what the map says, from another copy, checked by hashes; one whose files,
parts or definitions are not the map's is named and left alone; a shard moves before the map says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from clipql.cluster import shards
from clipql.cluster.holder import Hello
from clipql.cluster.indexing import Indexing
from clipql.cluster.office import Office
from clipql.cluster.placing import next_copy, next_move
from clipql.cluster.shards import ShardedTable, ShardMap, ShardPart
from clipql.errors import ClipqlError, ClusterError, CopyDamaged, HolderGone
from clipql.storage.catalog import IndexEntry
from clipql.tables.indexes import recall_text
from clipql.version import __version__

STATUS_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """A copy as `status` tells of it: 'ready', 'away' or 'behind', and why; the indexes of its tables."""

    shard: int
    node: str
    state: str
    why: str = ""
    indexes: Mapping[str, tuple[IndexEntry, ...]] = field(default_factory=dict)


class Upkeep:
    """Keeps the copies what the map says."""

    def __init__(self, office: Office, indexing: Indexing) -> None:
        self._office, self._indexing = office, indexing

    def heal(self) -> list[Status]:
        """Start the copies that are not there on nodes that are, and have those that are behind catch up."""
        there = set(self._office.copies.nodes())
        found = []
        for shard, node in self._office.map.holders():
            if node not in there:
                found.append(Status(shard, node, "away", f"node {node} is not there"))
                continue
            try:
                self._ready(shard, node)
                found.append(Status(shard, node, "ready"))
            except HolderGone as error:
                found.append(Status(shard, node, "away", str(error)))
            except ClipqlError as error:
                found.append(Status(shard, node, "behind", str(error)))
        with self._office.changing:
            for shard in range(len(self._office.map.nodes)):
                self._indexing.even_out(shard)
            self._indexing.finish()
        return found

    def _ready(self, shard: int, node: str) -> None:
        """Start a copy, check its files where it was not there, and have it catch up. Raises ClipqlError."""
        started = self._office.copies.start(shard, node)
        try:
            for table in self._office.map.tables if started else ():
                if shard < len(table.shards):
                    taken = [p for p in table.shards[shard] if p.taken]
                    self._office.copies.call(shard, node, "check", table.full_name, taken)
            with self._office.changing:
                self._catch_up(shard, node)
        except CopyDamaged as error:
            self._office.copies.call(shard, node, "quarantine", str(error))
            raise

    def _catch_up(self, shard: int, node: str, map: ShardMap | None = None) -> None:
        """Give a copy what it lacks, from the other copies. Raises ClusterError where its files are not the map's."""
        map = map or self._office.map
        hello: Hello = self._office.copies.call(shard, node, "hello")
        if hello.version != __version__:
            raise ClusterError(
                f"shard {shard} on {node} runs clipql {hello.version}, this is {__version__}: install one version "
                "on all"
            )
        if hello.quarantined:
            raise ClusterError(hello.quarantined)
        for table in map.tables:
            self._check_definition(table, hello)
        known = hello.map is not None and shards.decoded(hello.map, node).serial == map.serial
        if known and node in map.nodes[shard] and all(self._complete(t, shard, hello) for t in map.tables):
            return
        self._office.copies.call(shard, node, "store_map", shards.encoded(map))
        for table in map.tables:
            if shard < len(table.shards):
                self._give(table, shard, node, hello)

    @staticmethod
    def _complete(table: ShardedTable, shard: int, hello: Hello) -> bool:
        if shard >= len(table.shards):
            return True
        if table.definition and table.full_name not in hello.definitions:
            return False
        taken = tuple(p.fingerprint for p in table.shards[shard] if p.taken)
        return hello.ledgers.get(table.full_name, ())[: len(taken)] == taken

    @staticmethod
    def _check_definition(table: ShardedTable, hello: Hello) -> None:
        shown = hello.definitions.get(table.full_name)
        if table.definition and shown is not None and shown != table.definition:
            raise CopyDamaged(
                f"{table.full_name} of shard {hello.shard} on {hello.node} is defined as {shown}, and in the shard map "
                f"as {table.definition}: remove its folder there, and the copy is made anew from another node"
            )

    def _give(self, table: ShardedTable, shard: int, node: str, hello: Hello) -> None:
        has = hello.ledgers.get(table.full_name, ())
        taken = [p for p in table.shards[shard] if p.taken]
        if has[: len(taken)] != tuple(p.fingerprint for p in taken[: len(has)]):
            raise CopyDamaged(
                f"shard {shard} on {node} has other parts of {table.full_name} than the shard map says: remove its "
                "folder there, and the copy is made anew from another node"
            )
        if table.definition and table.full_name not in hello.definitions:
            self._office.copies.call(shard, node, "define", table.definition, table.database, table.name)
        for i in range(len(has), len(taken)):
            before = [p.fingerprint for p in taken[:i]]
            self._from_another(table, shard, node, taken[i], before)

    def _from_another(self, table: ShardedTable, shard: int, node: str, part: ShardPart, before: list[str]) -> None:
        why: ClipqlError = HolderGone(f"no other copy of shard {shard} has it")
        for other in (n for n in self._office.map.nodes[shard] if n != node):
            try:
                self._office.copies.take(shard, node, table.database, table.name, part, before, other)
                return
            except HolderGone as error:
                why = error
        raise why

    def status(self) -> list[Status]:
        """How each copy is, with nothing changed."""
        there, found = set(self._office.copies.nodes()), []
        for shard, node in self._office.map.holders():
            try:
                if node not in there:
                    raise HolderGone(f"node {node} is not there")
                hello: Hello = self._office.copies.call(shard, node, "hello", False, seconds=STATUS_SECONDS)
                complete = (
                    all(self._complete(t, shard, hello) for t in self._office.map.tables) and not hello.quarantined
                )
                state = "ready" if complete else "behind"
                found.append(Status(shard, node, state, hello.quarantined, hello.indexes))
            except HolderGone as error:
                found.append(Status(shard, node, "away", str(error)))
            except ClipqlError as error:
                found.append(Status(shard, node, "behind", str(error)))
        return found

    def watch(self, stop: threading.Event, seconds: float) -> None:
        """Heal now and every so many seconds, until told to stop."""
        while True:
            # what is wrong with a copy is told to who asks for the state of the cluster
            with contextlib.suppress(ClipqlError):
                self.heal()
            if stop.wait(seconds):
                return

    def move(self, shard: int, source: str | None, target: str) -> None:
        """Make a copy of a shard on the node `target`, and give up the one on `source` if named; queries go on."""
        with self._office.changing:
            if not 0 <= shard < len(self._office.map.nodes):
                raise ClusterError(f"there is no shard {shard}; the shards are 0 to {len(self._office.map.nodes) - 1}")
            if target not in (there := self._office.copies.nodes()):
                raise ClusterError(f"there is no node {target}; there are {', '.join(sorted(there))}")
            nodes = self._office.map.nodes[shard]
            if (source is not None and source not in nodes) or target in nodes:
                raise ClusterError(
                    f"shard {shard} lies on {', '.join(nodes)}: a copy cannot go from {source or 'there'} to {target}"
                )
            self._office.copies.start(shard, target)
            self._catch_up(shard, target)
            self._indexing.even_out(shard, also=[target])
            pair = (*nodes, target) if source is None else tuple(target if n == source else n for n in nodes)
            changed = tuple(pair if i == shard else p for i, p in enumerate(self._office.map.nodes))
            self._office.commit(replace(self._office.map, nodes=changed))
            if source is not None:
                self._office.copies.stop(shard, source)

    def rebalance(self) -> list[tuple[int, str | None, str]]:
        """Make copies of shards that have fewer than others, and move copies to nodes that have fewer, until none has
        two more than another; shard, from (None for a new copy) and to of each.
        """
        moves: list[tuple[int, str | None, str]] = []
        with self._office.changing:
            while (copy := next_copy(self._office.map, self._office.copies.nodes())) is not None:
                self.move(copy[0], None, copy[1])
                moves.append((copy[0], None, copy[1]))
            while (move := next_move(self._office.map, self._office.copies.nodes())) is not None:
                self.move(*move)
                moves.append(move)
        return moves


def index_listing(found: Sequence[Status]) -> pa.Table:
    """The indexes of copies, one a row."""
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
