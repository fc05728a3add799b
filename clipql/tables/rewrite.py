"""A new table in the place of an old one: OPTIMIZE TABLE … FINAL, and CREATE OR REPLACE.

The new one is made, and filled, in the internal database under the name `rewrite of <id>`; one EXCHANGE then makes it
the table that the user sees. Until then nothing of the old one has changed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from clipql.engine.quoting import quote_name
from clipql.storage.catalog import Pending, Table
from clipql.tables import parts, recover, schema, shape
from clipql.tables.index_entries import unbuilt
from clipql.tables.indexes import Indexes
from clipql.tables.registry import INTERNAL, ROW, Registry
from clipql.tables.writer import Insertion


def optimize(registry: Registry, indexes: Indexes, table: Table, statement: str, *, final: bool) -> None:
    """OPTIMIZE TABLE; its indexes then cover all rows. With FINAL, the vectors of deleted rows go, and the rows are
    numbered anew.
    """
    with registry.write_lock:
        recover.settle(registry)
        table = registry.current(table)
        registry.engine.run(statement, user=True)
        parts.check_changed(registry, table)
        alive = registry.alive(table) if final else None
        if alive is not None:
            _rewrite(registry, table, alive)
            table = registry.catalog.table(table.database, table.name) or table
            indexes.sweep()
        for entry in table.indexes:
            if entry.rows < table.rows:
                indexes.build(table, entry.name)
        indexes.rows.build(table)


def _rewrite(registry: Registry, table: Table, alive: NDArray[np.bool_]) -> None:
    """Copy the rows that are there into a new table, then put it in the place of the old one."""
    fresh = Table(
        INTERNAL, "rewrite of " + table.id, schema.new_id(registry, table.name), table.columns, 0, table.parts
    )
    fresh = dataclasses.replace(
        fresh, columns=tuple(dataclasses.replace(c, segments=()) for c in table.columns), indexes=unbuilt(table)
    )
    run = registry.engine.run
    run(f"CREATE TABLE {registry.shape(fresh)} AS {registry.shape(table)}")
    registry.save(registry.catalog.with_pending(Pending("create", None, fresh)))
    registry.publish(fresh)
    run(shape.physical_definition(registry.engine, fresh, registry.physical(fresh)))
    registry.save(registry.catalog.with_table(fresh).with_pending(None))
    try:
        _copy_rows(registry, table, fresh, np.flatnonzero(alive))
        take_place(registry, table, fresh)
    except BaseException:
        schema.drop_if_there(registry, fresh)
        raise


def take_place(registry: Registry, table: Table, fresh: Table) -> None:
    """Put a table of the internal database in the place of another, which goes."""
    with registry.write_lock, registry.gate.writing():
        fresh = registry.current(fresh)
        after = dataclasses.replace(fresh, database=table.database, name=table.name)
        registry.save(registry.catalog.with_pending(Pending("rewrite", table, after)))
        registry.engine.run(f"EXCHANGE TABLES {registry.physical(table)} AND {registry.physical(fresh)}")
        recover.settle(registry)


def _copy_rows(registry: Registry, table: Table, fresh: Table, rows: NDArray[np.int64]) -> None:
    with Insertion(registry, fresh.id) as insertion:
        for column in table.columns:
            store, step = registry.store(table, column.name), max(1, (8 << 20) // (4 * max(column.dimension or 1, 1)))
            for at in range(0, len(rows), step):
                part = rows[at : at + step]
                there = None if store.there is None else store.there[part]
                insertion.add_vectors(column.name, store.take(part), at, there)
        names = ", ".join(quote_name(n) for n, _ in shape.insertable(registry.engine, table) if table.column(n) is None)
        # MATERIALIZED columns are computed again, which gives what they were unless their expression changed since
        insertion.add_rows(registry.engine.stream(f"SELECT {names} FROM {registry.physical(table)} ORDER BY {ROW}"))
        insertion.commit()
