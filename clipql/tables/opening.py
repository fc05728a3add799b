"""Opening a database, once ClickHouse has its folder open: an interrupted change is finished, and both halves agree."""

from __future__ import annotations

from pathlib import Path

from clipql.engine.embedded import Engine
from clipql.storage import files
from clipql.storage.catalog import Catalog
from clipql.tables import recover, schema
from clipql.tables.registry import INTERNAL, Registry


def opened(path: Path, engine: Engine, found: Catalog, *, fresh: bool = False) -> Registry:
    """The tables of a database folder that ClickHouse has open, at its last commit. Raises DatabaseDamaged.

    fresh: ClickHouse had no folder there before, so that it has neither tables nor parts.
    """
    # ClickHouse makes it at the first DROP, which on a full disk would then fail
    with files.translated(path, "opening"):
        (path / "engine" / "metadata_dropped").mkdir(exist_ok=True)
    if fresh and not found.tables and found.pending is None:
        engine.run(f"CREATE DATABASE IF NOT EXISTS {INTERNAL}")
        registry = Registry(path, engine, found)
        recover.sweep(registry)
        return registry
    recover.verify_vectors(path, found)
    recover.check_parts(engine, unsettled=found.pending is not None)
    registry = Registry(path, engine, found)
    settle(registry)
    return registry


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
