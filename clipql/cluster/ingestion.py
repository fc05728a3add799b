"""Ingest: parts are assigned to shards in their order, and every replica of a shard takes them, one after the other.

What must stay true: every step can be done twice; a part is `taken` once a replica has it, and replicas that were away
take it before they get queries again; a part that cannot be taken leaves the map as it was before it was assigned.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipql.cluster.index_builds import IndexBuilds
from clipql.cluster.placement import PartSpec, assigned
from clipql.cluster.quorum import UNFIT, Quorum
from clipql.cluster.replica import ReplicaInfo
from clipql.cluster.shard_map import ShardedTable, ShardPart
from clipql.errors import ClipqlError, IngestError, ReplicaUnavailable
from clipql.ingest.pipeline import IngestReport


class Ingestion:
    """Takes parts in."""

    def __init__(self, quorum: Quorum, indexing: IndexBuilds) -> None:
        self._quorum, self._index_builds = quorum, indexing

    def ingest(self, database: str, name: str, specs: Sequence[PartSpec], count: int | None = None) -> IngestReport:
        """Assign parts to shards and have them taken in; what is there already is skipped.

        count: shards of a table that is made by it. Raises IngestError for a part that cannot be taken; parts before it
        are in the table then. The same call again goes on where one was cut short.
        """
        began = time.perf_counter()
        with self._quorum.changing:
            known = self._quorum.map.table(database, name)
            table = known or self._quorum.new(database, name, count)
            table = self._settled(table, {s.fingerprint for s in specs})
            new = [s for s in specs if (found := table.place(s.fingerprint)) is None or not found[1].taken]
            table = assigned(table, new)
            if not new:
                if not table.definition:  # an earlier run was cut short just before it
                    self.define(database, name, next(i for i, parts in enumerate(table.shards) if parts))
                self._index_builds.build(table, None)
                return IngestReport(0, 0, len(specs), time.perf_counter() - began)
            self._quorum.commit(self._quorum.map.with_table(table))
            try:
                if not table.definition:
                    self._first(database, name)
                self._take_all(database, name)
            except IngestError:
                self._withdraw(database, name)
                raise
            self._index_builds.build(self._quorum.table(database, name), None)
            rows = sum(s.rows for s in new)
            return IngestReport(rows, len(new), len(specs) - len(new), time.perf_counter() - began)

    def progress(self, database: str, name: str) -> tuple[int, int, int]:
        """Parts taken in, their rows, and the rows of all that were assigned, of a table."""
        table = self._quorum.map.table(database, name)
        parts = [p for held in table.shards for p in held] if table is not None else []
        return sum(p.taken for p in parts), sum(p.rows for p in parts if p.taken), sum(p.rows for p in parts)

    def _settled(self, table: ShardedTable, wanted: set[str]) -> ShardedTable:
        """The table without parts that an earlier run assigned and no replica took; what a replica has is finished."""
        for shard, parts in enumerate(table.shards):
            kept = [p for p in parts if p.taken or p.fingerprint in wanted or self._somewhere(table, shard, p)]
            if len(kept) < len(parts):
                table = table.with_parts(shard, kept)
        return table

    def _somewhere(self, table: ShardedTable, shard: int, part: ShardPart) -> bool:
        for node in self._quorum.map.nodes[shard]:
            with contextlib.suppress(*UNFIT):
                info: ReplicaInfo = self._quorum.replicas.call(shard, node, "info")
                if part.fingerprint in info.ledgers.get(table.full_name, ()):
                    return True
        return False

    def _first(self, database: str, name: str) -> None:
        """Have the first part make the table, and make it so on all other replicas."""
        table = self._quorum.table(database, name)
        shard = next(i for i, parts in enumerate(table.shards) if parts)
        self._take_next(database, name, shard)
        self.define(database, name, shard)

    def define(self, database: str, name: str, shard: int) -> None:
        """Have all replicas of a table be as those of a shard that has a part."""
        shown = self._quorum.call_any(shard, "definition", database, name)
        table = self._quorum.table(database, name)
        info: ReplicaInfo = self._quorum.call_any(shard, "info")
        table = replace(table, definition=shown, optional=info.optional.get(table.full_name, table.optional))
        for other, node in self._quorum.replicas_of(table):
            with contextlib.suppress(*UNFIT):
                self._quorum.replicas.call(other, node, "define", shown, database, name, table.optional)
        self._quorum.commit(self._quorum.map.with_table(table))

    def _take_all(self, database: str, name: str) -> None:
        count = len(self._quorum.table(database, name).shards)
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
        """Have the replicas of a shard take in its next part; whether there was one."""
        table = self._quorum.table(database, name)
        parts = table.shards[shard]
        part = next((p for p in parts if not p.taken), None)
        if part is None:
            return False
        before = [p.fingerprint for p in parts if p.taken]
        have: list[str] = []
        why: ClipqlError | None = None
        for node in self._quorum.map.nodes[shard]:
            try:
                part = self._quorum.replicas.take(shard, node, database, name, part, before, have[0] if have else None)
                have.append(node)
            except UNFIT as error:  # it catches up later
                why = error
        if not have:
            raise why or ReplicaUnavailable(f"shard {shard} has no replica")
        with self._quorum.mapping:
            now = self._quorum.table(database, name)
            changed = [part if p.fingerprint == part.fingerprint else p for p in now.shards[shard]]
            self._quorum.commit(self._quorum.map.with_table(now.with_parts(shard, changed)))
        return True

    def _withdraw(self, database: str, name: str) -> None:
        """Take parts that were assigned and not taken out of the map; and a table that none were taken into."""
        table = self._settled(self._quorum.table(database, name), set())
        empty = not any(table.shards) and not table.definition
        self._quorum.commit(self._quorum.map.without(table) if empty else self._quorum.map.with_table(table))
