"""The one that changes the shard map: deals parts to shards, has copies take them in, brings copies back, moves shards.

There is one foreman a cluster, wherever it runs. What must stay true: a change is made once more than half of the nodes
have the new map, so that of any such half one knows it; every step can be done twice; a part is `taken` once a copy has
it, and copies that were away take it before they are asked again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from clipql import __version__
from clipql.cluster import shards
from clipql.cluster.holder import Hello
from clipql.cluster.placing import PartSpec, dealt, next_move
from clipql.cluster.shards import ShardedTable, ShardMap, ShardPart
from clipql.errors import ClipqlError, ClusterError, HolderGone, IngestError
from clipql.ingest.pipeline import IngestReport

# maps that one foreman may make
TERM = 1_000_000
STATUS_SECONDS = 10.0


class Copies(Protocol):
    """The copies of shards, wherever they run, by shard and node."""

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Have a copy do something. Raises HolderGone where it cannot be reached, and what it raises."""

    def take(self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
             source: str | None) -> ShardPart:  # fmt: skip
        """Have a copy take a part in, from the copy on the node `source`, or from where its files lie."""

    def start(self, shard: int, node: str) -> None:
        """Start a copy on a node, unless it runs. Raises HolderGone where the node is not there."""

    def stop(self, shard: int, node: str) -> None:
        """Stop a copy."""

    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are there."""


@dataclass(frozen=True)
class Status:
    """A copy as `status` tells of it: 'ready', 'away' or 'behind', and why."""

    shard: int
    node: str
    state: str
    why: str = ""


class Foreman:
    """Owns the map. Thread-safe: one change after the other."""

    def __init__(self, copies: Copies, map: ShardMap) -> None:
        self._copies, self._map = copies, map
        self._changing, self._mapping = threading.RLock(), threading.Lock()
        # a map that an earlier foreman could not put in force may lie on a few nodes: ours outnumber it
        self._serial = (map.serial // TERM + 1) * TERM

    @property
    def map(self) -> ShardMap:
        """The map in force."""
        return self._map

    def announce(self) -> None:
        """Put the map in force once more, under a number of this foreman's."""
        with self._changing:
            self._commit(self._map)

    def _commit(self, map: ShardMap) -> None:
        """Put a new map in force. Raises ClusterError where too few nodes take it."""
        self._serial += 1
        map = replace(map, serial=self._serial)
        content = shards.encoded(map)
        with ThreadPoolExecutor(8) as pool:
            stored = list(
                pool.map(lambda c: self._stored(c[0], c[1], content), sorted({*map.holders(), *self._map.holders()}))
            )
        nodes = {n for pair in map.nodes for n in pair}
        have = {n for n in stored if n in nodes}
        if len(have) <= len(nodes) // 2:
            raise ClusterError(
                f"{len(have)} of {len(nodes)} nodes can be reached ({', '.join(sorted(have)) or 'none'}), and more "
                "than half must know of a change: bring the others back, or start with --without those that are lost"
            )
        self._map = map

    def _stored(self, shard: int, node: str, content: bytes) -> str | None:
        try:
            self._copies.call(shard, node, "store_map", content)
        except HolderGone:
            return None
        return node

    # tables

    def create(self, database: str, name: str, definition: str, count: int | None = None) -> None:
        """Make a table over the first `count` shards (all of them by default). Raises QueryError and its like."""
        with self._changing:
            if self._map.table(database, name) is not None:
                raise ClusterError(f"{database}.{name} is there already: DROP TABLE it first")
            table = self._new(database, name, count)
            try:
                for shard, node in self._holders(table):
                    with contextlib.suppress(HolderGone):
                        self._copies.call(shard, node, "define", definition, database, name)
                shown = self._ask(0, "definition", database, name)
                self._commit(self._map.with_table(replace(table, definition=shown)))
            except BaseException:
                for shard, node in self._holders(table):
                    with contextlib.suppress(ClipqlError):
                        self._copies.call(shard, node, "drop", database, name)
                raise

    def drop(self, database: str, name: str) -> None:
        """Drop a table on all its shards."""
        with self._changing:
            table = self._table(database, name)
            self._commit(self._map.without(table))
            for shard, node in self._holders(table):
                with contextlib.suppress(HolderGone):
                    self._copies.call(shard, node, "drop", database, name)

    def _new(self, database: str, name: str, count: int | None) -> ShardedTable:
        count = count or len(self._map.nodes)
        if count > len(self._map.nodes):
            raise ClusterError(f"{count} shards for {database}.{name}, and the cluster has {len(self._map.nodes)}")
        return ShardedTable(database, name, ((),) * count)

    def _table(self, database: str, name: str) -> ShardedTable:
        found = self._map.table(database, name)
        if found is None:
            known = ", ".join(t.full_name for t in self._map.tables) or "none"
            raise ClusterError(f"there is no table {database}.{name} in the cluster; there are: {known}")
        return found

    def _holders(self, table: ShardedTable) -> list[tuple[int, str]]:
        return [(s, n) for s, n in self._map.holders() if s < len(table.shards)]

    def _ask(self, shard: int, method: str, *arguments: Any) -> Any:
        """Have any copy of a shard do something. Raises HolderGone where none can be reached."""
        why: HolderGone | None = None
        for node in self._map.nodes[shard]:
            try:
                return self._copies.call(shard, node, method, *arguments)
            except HolderGone as error:
                why = error
        raise why or HolderGone(f"shard {shard} has no copy")

    # taking parts in

    def ingest(self, database: str, name: str, specs: Sequence[PartSpec], count: int | None = None) -> IngestReport:
        """Deal parts to shards and have them taken in; what is there already is skipped.

        count: shards of a table that is made by it. Raises IngestError for a part that cannot be taken; parts before it
        are in the table then. The same call again goes on where one was cut short.
        """
        began = time.perf_counter()
        with self._changing:
            known = self._map.table(database, name)
            table = known or self._new(database, name, count)
            table = self._settled(table, {s.fingerprint for s in specs})
            new = [s for s in specs if (found := table.place(s.fingerprint)) is None or not found[1].taken]
            table = dealt(table, new)
            if not new:
                return IngestReport(0, 0, len(specs), time.perf_counter() - began)
            self._commit(self._map.with_table(table))
            try:
                if not table.definition:
                    self._first(database, name)
                self._take_all(database, name)
            except IngestError:
                self._withdraw(database, name)
                raise
            rows = sum(s.rows for s in new)
            return IngestReport(rows, len(new), len(specs) - len(new), time.perf_counter() - began)

    def progress(self, database: str, name: str) -> tuple[int, int, int]:
        """Parts taken in, their rows, and the rows of all that were dealt, of a table."""
        table = self._map.table(database, name)
        parts = [p for held in table.shards for p in held] if table is not None else []
        return sum(p.taken for p in parts), sum(p.rows for p in parts if p.taken), sum(p.rows for p in parts)

    def _settled(self, table: ShardedTable, wanted: set[str]) -> ShardedTable:
        """The table without parts that an earlier run dealt and never took; those that a copy has are finished."""
        for shard, parts in enumerate(table.shards):
            kept = [p for p in parts if p.taken or p.fingerprint in wanted or self._somewhere(table, shard, p)]
            if len(kept) < len(parts):
                table = table.with_parts(shard, kept)
        return table

    def _somewhere(self, table: ShardedTable, shard: int, part: ShardPart) -> bool:
        for node in self._map.nodes[shard]:
            with contextlib.suppress(HolderGone):
                hello: Hello = self._copies.call(shard, node, "hello")
                if part.fingerprint in hello.ledgers.get(table.full_name, ()):
                    return True
        return False

    def _first(self, database: str, name: str) -> None:
        """Have the first part make the table, and make it so on all other copies."""
        table = self._table(database, name)
        shard = next(i for i, parts in enumerate(table.shards) if parts)
        self._take_next(database, name, shard)
        self._define(database, name, shard)

    def _define(self, database: str, name: str, shard: int) -> None:
        shown = self._ask(shard, "definition", database, name)
        table = replace(self._table(database, name), definition=shown)
        for other, node in self._holders(table):
            with contextlib.suppress(HolderGone):
                self._copies.call(other, node, "define", shown, database, name)
        self._commit(self._map.with_table(table))

    def _take_all(self, database: str, name: str) -> None:
        count = len(self._table(database, name).shards)
        stop = threading.Event()

        def run(shard: int) -> None:
            try:
                while not stop.is_set() and self._take_next(database, name, shard):
                    pass
            except BaseException:
                stop.set()
                raise

        # the map changes under this lock, which the thread that waits here holds for the ingest as a whole
        with ThreadPoolExecutor(count) as pool:
            for future in [pool.submit(run, shard) for shard in range(count)]:
                future.result()

    def _take_next(self, database: str, name: str, shard: int) -> bool:
        """Have the copies of a shard take in its next part; whether there was one."""
        table = self._table(database, name)
        parts = table.shards[shard]
        part = next((p for p in parts if not p.taken), None)
        if part is None:
            return False
        before = [p.fingerprint for p in parts if p.taken]
        have: list[str] = []
        for node in self._map.nodes[shard]:
            try:
                part = self._copies.take(shard, node, database, name, part, before, have[0] if have else None)
                have.append(node)
            except (HolderGone, ClusterError) as error:
                if not isinstance(error, HolderGone) and "catch up" not in str(error):
                    raise
        if not have:
            raise HolderGone(f"no copy of shard {shard} can be reached: parts of it wait until one is back")
        with self._mapping:
            now = self._table(database, name)
            changed = [part if p.fingerprint == part.fingerprint else p for p in now.shards[shard]]
            self._commit(self._map.with_table(now.with_parts(shard, changed)))
        return True

    def _withdraw(self, database: str, name: str) -> None:
        """Take parts that were dealt and not taken out of the map; and a table that none were taken into."""
        table = self._settled(self._table(database, name), set())
        for shard, parts in enumerate(table.shards):
            table = table.with_parts(shard, [p for p in parts if p.taken])
        empty = not any(table.shards) and not table.definition
        self._commit(self._map.without(table) if empty else self._map.with_table(table))

    # copies that come and go

    def heal(self) -> list[Status]:
        """Start the copies that are not there on nodes that are, and have those that are behind catch up."""
        there = set(self._copies.nodes())
        found = []
        for shard, node in self._map.holders():
            if node not in there:
                found.append(Status(shard, node, "away", f"node {node} is not there"))
                continue
            try:
                self._copies.start(shard, node)
                with self._changing:
                    self._catch_up(shard, node)
                found.append(Status(shard, node, "ready"))
            except HolderGone as error:
                found.append(Status(shard, node, "away", str(error)))
            except ClipqlError as error:
                found.append(Status(shard, node, "behind", str(error)))
        return found

    def _catch_up(self, shard: int, node: str, map: ShardMap | None = None) -> None:
        """Give a copy what it lacks, from the other copies. Raises ClusterError where its files are not the map's."""
        map = map or self._map
        hello: Hello = self._copies.call(shard, node, "hello")
        if hello.version != __version__:
            raise ClusterError(
                f"shard {shard} on {node} runs clipql {hello.version}, this is {__version__}: install one version "
                "on all"
            )
        for table in map.tables:
            self._check_definition(table, hello)
        known = hello.map is not None and shards.decoded(hello.map, node).serial == map.serial
        if known and node in map.nodes[shard] and all(self._complete(t, shard, hello) for t in map.tables):
            return
        for table in map.tables:
            if shard < len(table.shards):
                self._give(table, shard, node, hello)
        self._copies.call(shard, node, "store_map", shards.encoded(map))

    @staticmethod
    def _complete(table: ShardedTable, shard: int, hello: Hello) -> bool:
        if shard >= len(table.shards):
            return True
        taken = tuple(p.fingerprint for p in table.shards[shard] if p.taken)
        return hello.ledgers.get(table.full_name, ())[: len(taken)] == taken

    @staticmethod
    def _check_definition(table: ShardedTable, hello: Hello) -> None:
        shown = hello.definitions.get(table.full_name)
        if table.definition and shown is not None and shown != table.definition:
            raise ClusterError(
                f"{table.full_name} of shard {hello.shard} on {hello.node} is defined as {shown}, and in the shard map "
                f"as {table.definition}: remove its folder there, and the copy is made anew from another node"
            )

    def _give(self, table: ShardedTable, shard: int, node: str, hello: Hello) -> None:
        has = hello.ledgers.get(table.full_name, ())
        taken = [p for p in table.shards[shard] if p.taken]
        if has[: len(taken)] != tuple(p.fingerprint for p in taken[: len(has)]):
            raise ClusterError(
                f"shard {shard} on {node} has other parts of {table.full_name} than the shard map says: remove its "
                "folder there, and the copy is made anew from another node"
            )
        self._copies.call(shard, node, "check", table.full_name, taken[: len(has)])
        if table.definition and table.full_name not in hello.definitions:
            self._copies.call(shard, node, "define", table.definition, table.database, table.name)
        for i in range(len(has), len(taken)):
            before = [p.fingerprint for p in taken[:i]]
            self._from_another(table, shard, node, taken[i], before)

    def _from_another(self, table: ShardedTable, shard: int, node: str, part: ShardPart, before: list[str]) -> None:
        others = [n for n in self._map.nodes[shard] if n != node]
        why: ClipqlError = HolderGone(f"no other copy of shard {shard} has it")
        for other in others:
            try:
                self._copies.take(shard, node, table.database, table.name, part, before, other)
                return
            except HolderGone as error:
                why = error
        raise why

    def status(self) -> list[Status]:
        """How each copy is, with nothing changed."""
        there, found = set(self._copies.nodes()), []
        for shard, node in self._map.holders():
            try:
                if node not in there:
                    raise HolderGone(f"node {node} is not there")
                hello: Hello = self._copies.call(shard, node, "hello", seconds=STATUS_SECONDS)
                complete = all(self._complete(t, shard, hello) for t in self._map.tables)
                found.append(Status(shard, node, "ready" if complete else "behind"))
            except HolderGone as error:
                found.append(Status(shard, node, "away", str(error)))
        return found

    def watch(self, stop: threading.Event, seconds: float) -> None:
        """Heal every so many seconds, until told to stop."""
        while not stop.wait(seconds):
            # what is wrong with a copy is told to who asks for the state of the cluster
            with contextlib.suppress(ClipqlError):
                self.heal()

    def move(self, shard: int, source: str | None, target: str) -> None:
        """Make a copy of a shard on the node `target`, and give up the one on `source` if named; queries go on."""
        with self._changing:
            nodes = self._map.nodes[shard]
            if (source is not None and source not in nodes) or target in nodes:
                raise ClusterError(
                    f"shard {shard} lies on {', '.join(nodes)}: a copy cannot go from {source or 'there'} to {target}"
                )
            self._copies.start(shard, target)
            self._catch_up(shard, target)
            pair = (*nodes, target) if source is None else tuple(target if n == source else n for n in nodes)
            changed = tuple(pair if i == shard else p for i, p in enumerate(self._map.nodes))
            self._commit(replace(self._map, nodes=changed))
            if source is not None:
                self._copies.stop(shard, source)

    def rebalance(self) -> list[tuple[int, str, str]]:
        """Move copies to nodes that have fewer, until none has two more than another; the moves that were made."""
        moves = []
        with self._changing:
            while (move := next_move(self._map, self._copies.nodes())) is not None:
                self.move(*move)
                moves.append(move)
        return moves


def begun(copies: Copies, map: ShardMap) -> Foreman:
    """The foreman of a map, with its copies started where their nodes are there. Raises ClusterError."""
    found = Foreman(copies, map)
    for shard, node in map.holders():
        with contextlib.suppress(HolderGone):
            copies.start(shard, node)
    found.announce()
    found.heal()
    return found
