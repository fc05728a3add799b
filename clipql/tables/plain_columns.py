"""The columns of a table that are not vectors: what a search shows and where it looks for words."""

from __future__ import annotations

from clipql.storage.catalog import Table
from clipql.syntax.reading import read
from clipql.tables import unopened
from clipql.tables.registry import INTERNAL, Registry


class PlainColumns:
    """Finds them by a table's id, and remembers them until the catalog or a definition changes. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._engine = registry, registry.engine
        self._known: dict[str, tuple[tuple[int, int], list[str]]] = {}

    def names(self, id: str) -> list[str]:
        """The names, in the order of the table's definition."""
        table, state = self._registry.catalog.by_id(id), (self._registry.catalog.serial, self._registry.changes)
        if table is not None and self._registry.reads_of:  # whose ClickHouse starts only when it must
            listed = unopened.columns(self._registry.folder / "engine", table)
            if listed is not None:
                return [name for name, _ in listed if table.column(name) is None]
        known = self._known.get(id)
        if known is None or known[0] != state:
            known = self._known[id] = state, self._listed(id, table)
        return list(known[1])

    def _listed(self, id: str, table: Table | None) -> list[str]:
        names = self._engine.arrow(
            f"SELECT name FROM system.columns WHERE database = '{INTERNAL}' AND table = {{id:String}} "
            "ORDER BY position",
            params={"id": id},
        )
        return [n for n in names.column(0).to_pylist() if table is None or table.column(n) is None]

    def worded(self, id: str) -> list[str]:
        """Those with a text index of ClickHouse's."""
        found = self._engine.arrow(
            f"SELECT expr FROM system.data_skipping_indices WHERE database = '{INTERNAL}' AND table = {{id:String}} "
            "AND type = 'text'",
            params={"id": id},
        )
        named = {t.name for expr in found.column(0).to_pylist() for t in read(expr).tokens}
        return [name for name in self.names(id) if name in named]
