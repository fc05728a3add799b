"""Changes of a table's definition on all replicas: announced in the map, carried out, finished by whoever comes next.

What must stay true: a replica is told of a change only after the map is; each may be told twice; while a change is
announced, a replica may be defined as before or as after it, and is not taken for damaged.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from clipql.cluster.quorum import UNFIT, Quorum
from clipql.cluster.shard_map import ShardedTable, TableChange
from clipql.errors import ClipqlError, ReplicaUnavailable


class TableChanges:
    """Has replicas change a table. The caller holds `changing`."""

    def __init__(self, quorum: Quorum) -> None:
        self._quorum = quorum

    def carry_out(self, after: ShardedTable, change: TableChange) -> None:
        """Change a table on all replicas. after: the table then, but for its definition.

        Raises ReplicaUnavailable unless all replicas are there, and what the first of them raises, with nothing changed
        then. Where one goes meanwhile, `finish` does the rest.
        """
        before = self._quorum.table(after.database, after.name)
        if before.change is not None:
            raise ReplicaUnavailable(
                f"{before.full_name} is being changed, which ends once all its replicas are there: try again then"
            )
        for shard, node in self._quorum.replicas_of(before):
            self._quorum.replicas.call(shard, node, "definition", before.database, before.name)
        self._quorum.commit(self._quorum.map.with_table(replace(after, change=change)))
        try:
            self._tell(after, change, 1)
        except UNFIT:  # it may have been done all the same
            raise
        except ClipqlError:
            self._quorum.commit(self._quorum.map.with_table(before))
            raise
        self._finish(replace(after, change=change))

    def finish(self) -> None:
        """Have all replicas do what was announced, where one was lost that had begun it; later where one is away."""
        for table in self._quorum.map.tables:
            if table.change is not None:
                with contextlib.suppress(*UNFIT):
                    self._finish(table)

    def _finish(self, table: ShardedTable) -> None:
        assert table.change is not None, "it was announced"
        self._tell(table, table.change)
        shown = self._quorum.call_any(0, "definition", table.database, table.name)
        now = self._quorum.table(table.database, table.name)
        self._quorum.commit(self._quorum.map.with_table(replace(now, definition=shown, change=None)))

    def _tell(self, table: ShardedTable, change: TableChange, most: int | None = None) -> None:
        for shard, node in self._quorum.replicas_of(table)[:most]:
            self._quorum.replicas.call(shard, node, change.method, *change.arguments)
