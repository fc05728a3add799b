"""Indexes of shards: built once on one copy of each shard, and copied from there file by file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from clipql.catalog import IndexEntry
from clipql.cluster.holder import Hello
from clipql.cluster.office import UNFIT, Office
from clipql.cluster.shards import ShardedTable
from clipql.errors import ClipqlError


class Indexing:
    """Builds and copies indexes."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def build(self, table: ShardedTable, index: str | None) -> None:
        """Build an index, or all that have fallen behind: on one copy of each shard, from which the others copy it."""

        def build(shard: int) -> None:
            self._office.ask(shard, "build_indexes", table.database, table.name, index)
            self.even_out(shard)

        with ThreadPoolExecutor(len(table.shards)) as pool:
            for future in [pool.submit(build, shard) for shard in range(len(table.shards))]:
                future.result()

    def even_out(self, shard: int, also: Sequence[str] = ()) -> None:
        """Have the copies of a shard, and those on nodes `also`, copy what another of them has built over more rows."""
        hellos: dict[str, Hello] = {}
        for node in (*self._office.map.nodes[shard], *also):
            with contextlib.suppress(*UNFIT):
                hellos[node] = self._office.copies.call(shard, node, "hello")
        for table in self._office.map.tables:
            for name in {i.name for h in hellos.values() for i in h.indexes.get(table.full_name, ())}:
                built = {n: e for n, h in hellos.items() if (e := _index_of(h, table, name)) is not None}
                source = max(built, key=lambda n: built[n].rows)
                for node, entry in built.items():
                    if entry.rows < built[source].rows:
                        # without it, a copy is slower and not wrong
                        with contextlib.suppress(ClipqlError):
                            self._office.copies.adopt(shard, node, table.database, table.name, built[source], source)


def _index_of(hello: Hello, table: ShardedTable, name: str) -> IndexEntry | None:
    return next((i for i in hello.indexes.get(table.full_name, ()) if i.name == name), None)
