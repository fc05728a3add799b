"""Tables without vectors whose ALIAS columns a star would give, as clipql has stars give ALIAS columns.

What must stay true: what is known of ClickHouse's own tables holds as long as the process lives, of others until a
definition may have changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from clipql.engine.quoting import quote_name, quote_string
from clipql.storage.catalog import Catalog
from clipql.tables.registry import Registry

# whether tables of a database are such, as of which definitions: sessions come and go
_KNOWN: WeakKeyDictionary[Registry, tuple[Catalog, int, dict[tuple[str, str], bool]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class AliasedTable:
    """One of them."""

    database: str
    name: str

    @property
    def id(self) -> str:
        """Its quoted name, which no id of a table with vectors is like."""
        return f"{quote_name(self.database)}.{quote_name(self.name)}"

    @property
    def full_name(self) -> str:
        """Its name for people."""
        return f"{self.database}.{self.name}"

    def column(self, name: str) -> None:
        """It has no vector columns."""


class AliasedTables:
    """Those of a database. Thread-safe: what two threads find at the same time is the same."""

    _system: ClassVar[frozenset[str] | None] = None

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def find(self, database: str | None, name: str) -> AliasedTable | None:
        """The table of this name if it is one; `database` None means the current one."""
        if database is None and name in self._registry.hidden:
            return None
        place = database or self._registry.database
        if place == "system":
            return AliasedTable(place, name) if name in self._of_system() else None
        catalog, changes = self._registry.catalog, self._registry.changes
        kept = _KNOWN.get(self._registry)
        if kept is None or kept[0] is not catalog or kept[1] != changes:
            kept = _KNOWN[self._registry] = (catalog, changes, {})
        known, key = kept[2], (place, name)
        if key not in known:
            known[key] = self._has(f"database = {quote_string(place)} AND table = {quote_string(name)}")
        return AliasedTable(place, name) if known[key] else None

    def _has(self, where: str) -> bool:
        return bool(
            self._registry.engine.scalar(
                f"SELECT count() FROM (SELECT 1 FROM system.columns WHERE {where} AND default_kind = 'ALIAS' LIMIT 1)"
            )
        )

    def _of_system(self) -> frozenset[str]:
        if AliasedTables._system is None:
            found = self._registry.engine.arrow(
                "SELECT DISTINCT table FROM system.columns WHERE database = 'system' AND default_kind = 'ALIAS'"
            )
            AliasedTables._system = frozenset(map(str, found.column(0).to_pylist()))
        return AliasedTables._system
