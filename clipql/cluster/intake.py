"""Taking parts in: dealt to shards in their order, taken by every copy of a shard, one after the other.

What must stay true: every step can be done twice; a part is `taken` once a copy has it, and copies that were away take
it before they are asked again; a part that cannot be taken leaves the map as though it had never been dealt.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipql.cluster.holder import Hello
from clipql.cluster.indexing import Indexing
from clipql.cluster.office import UNFIT, Office
from clipql.cluster.placing import PartSpec, dealt
from clipql.cluster.shards import ShardedTable, ShardPart
from clipql.errors import ClipqlError, HolderGone, IngestError
from clipql.ingest.pipeline import IngestReport


class Intake:
    """Takes parts in."""

    def __init__(self, office: Office, indexing: Indexing) -> None:
        self._office, self._indexing = office, indexing

    def ingest(self, database: str, name: str, specs: Sequence[PartSpec], count: int | None = None) -> IngestReport:
        """Deal parts to shards and have them taken in; what is there already is skipped.

        count: shards of a table that is made by it. Raises IngestError for a part that cannot be taken; parts before it
        are in the table then. The same call again goes on where one was cut short.
        """
        began = time.perf_counter()
        with self._office.changing:
            known = self._office.map.table(database, name)
            table = known or self._office.new(database, name, count)
            table = self._settled(table, {s.fingerprint for s in specs})
            new = [s for s in specs if (found := table.place(s.fingerprint)) is None or not found[1].taken]
            table = dealt(table, new)
            if not new:
                if not table.definition:  # an earlier run was cut short just before it
                    self.define(database, name, next(i for i, parts in enumerate(table.shards) if parts))
                self._indexing.build(table, None)
                return IngestReport(0, 0, len(specs), time.perf_counter() - began)
            self._office.commit(self._office.map.with_table(table))
            try:
                if not table.definition:
                    self._first(database, name)
                self._take_all(database, name)
            except IngestError:
                self._withdraw(database, name)
                raise
            self._indexing.build(self._office.table(database, name), None)
            rows = sum(s.rows for s in new)
            return IngestReport(rows, len(new), len(specs) - len(new), time.perf_counter() - began)

    def progress(self, database: str, name: str) -> tuple[int, int, int]:
        """Parts taken in, their rows, and the rows of all that were dealt, of a table."""
        table = self._office.map.table(database, name)
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
        for node in self._office.map.nodes[shard]:
            with contextlib.suppress(*UNFIT):
                hello: Hello = self._office.copies.call(shard, node, "hello")
                if part.fingerprint in hello.ledgers.get(table.full_name, ()):
                    return True
        return False

    def _first(self, database: str, name: str) -> None:
        """Have the first part make the table, and make it so on all other copies."""
        table = self._office.table(database, name)
        shard = next(i for i, parts in enumerate(table.shards) if parts)
        self._take_next(database, name, shard)
        self.define(database, name, shard)

    def define(self, database: str, name: str, shard: int) -> None:
        """Have all copies of a table be as those of a shard that has a part."""
        shown = self._office.ask(shard, "definition", database, name)
        table = replace(self._office.table(database, name), definition=shown)
        for other, node in self._office.holders(table):
            with contextlib.suppress(*UNFIT):
                self._office.copies.call(other, node, "define", shown, database, name)
        self._office.commit(self._office.map.with_table(table))

    def _take_all(self, database: str, name: str) -> None:
        count = len(self._office.table(database, name).shards)
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
        table = self._office.table(database, name)
        parts = table.shards[shard]
        part = next((p for p in parts if not p.taken), None)
        if part is None:
            return False
        before = [p.fingerprint for p in parts if p.taken]
        have: list[str] = []
        why: ClipqlError | None = None
        for node in self._office.map.nodes[shard]:
            try:
                part = self._office.copies.take(shard, node, database, name, part, before, have[0] if have else None)
                have.append(node)
            except UNFIT as error:  # it catches up later
                why = error
        if not have:
            raise why or HolderGone(f"shard {shard} has no copy")
        with self._office.mapping:
            now = self._office.table(database, name)
            changed = [part if p.fingerprint == part.fingerprint else p for p in now.shards[shard]]
            self._office.commit(self._office.map.with_table(now.with_parts(shard, changed)))
        return True

    def _withdraw(self, database: str, name: str) -> None:
        """Take parts that were dealt and not taken out of the map; and a table that none were taken into."""
        table = self._settled(self._office.table(database, name), set())
        empty = not any(table.shards) and not table.definition
        self._office.commit(self._office.map.without(table) if empty else self._office.map.with_table(table))
