"""Opening a database, once ClickHouse has its folder open: an interrupted change is finished, and both halves agree."""

from __future__ import annotations

from clipql.tables import recover, schema
from clipql.tables.registry import INTERNAL, Registry


def settle(registry: Registry) -> None:
    """Bring a database, or a reader's snapshot of one, to its last commit. Raises DatabaseDamaged."""
    engine = registry.engine
    engine.run(f"CREATE DATABASE IF NOT EXISTS {INTERNAL}")
    if recover.await_mutations(engine):
        registry.announce()
    recover.settle(registry)
    for table in registry.catalog.tables:
        if table.database == INTERNAL:  # a rewrite that never took its place
            schema.drop(registry, table)
    recover.check_agreement(registry)
    recover.sweep(registry)
