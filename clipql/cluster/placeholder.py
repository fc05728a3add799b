"""Placeholders for a sharded table in the database that merges: its columns, over which ClickHouse reads statements.

There are two: an empty table, over which normal forms are made, and a view of the table's own name, which DESCRIBE and
EXISTS find. What must stay true: reading the view is an error, so that no statement that was not split can answer as if
the table were empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import ClusterError
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import ROW

DATABASE = "clipql_shards"


@dataclass(frozen=True)
class Shape:
    """A sharded table as a statement may use it: columns of `*` and those besides, names and ClickHouse types.

    vectors: length (None before the first row) and model of each vector column.
    """

    database: str
    name: str
    listed: tuple[tuple[str, str], ...]
    unlisted: tuple[tuple[str, str], ...] = ()
    vectors: Mapping[str, tuple[int | None, str | None]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """`database.table`, as messages show it."""
        return f"{self.database}.{self.name}"

    @property
    def table(self) -> Table:
        """The table as the readers of statements know one."""
        columns = tuple(VectorColumn(n, n, d, m) for n, (d, m) in self.vectors.items())
        return Table(self.database, self.name, f"shards of {self.full_name}", columns)

    @property
    def analysed(self) -> str:
        """The quoted name of the empty table."""
        return f"{DATABASE}.{quote_name(self.full_name)}"


def one_shape(found: Sequence[Shape]) -> Shape:
    """What all shards agree on of a table. Raises ClusterError where they do not."""
    first = found[0]
    vectors = dict(first.vectors)
    for shard, shape in enumerate(found):
        if (shape.listed, shape.unlisted) != (first.listed, first.unlisted):
            a, b = (", ".join(f"{n} {t}" for n, t in (*s.listed, *s.unlisted)) for s in (first, shape))
            raise ClusterError(f"{first.full_name} has other columns on shard 0 ({a}) than on shard {shard} ({b})")
        for name, (dimension, model) in shape.vectors.items():
            known, by = vectors[name]
            if dimension and known and dimension != known:
                raise ClusterError(
                    f"{name} of {first.full_name} holds {known} numbers on one shard and {dimension} on shard {shard}"
                )
            if model and by and model != by:
                raise ClusterError(
                    f"{name} of {first.full_name} was made by {by} on one shard and by {model} on shard {shard}: "
                    "vectors of two models cannot be compared"
                )
            vectors[name] = (known or dimension, by or model)
    return Shape(first.database, first.name, first.listed, first.unlisted, vectors)


def declare(engine: Engine, shape: Shape) -> None:
    """Make both, in the place of what was there under these names."""
    engine.run(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    engine.run(f"CREATE DATABASE IF NOT EXISTS {quote_name(shape.database)}")
    listed = [f"{quote_name(n)} {t}" for n, t in shape.listed]
    unlisted = [
        f"{quote_name(n)} {t} MATERIALIZED defaultValueOfTypeName({quote_string(t)})" for n, t in shape.unlisted
    ]
    row = f"{ROW} UInt64 MATERIALIZED 0"
    columns = ", ".join([*listed, *unlisted, row])
    engine.run(f"CREATE OR REPLACE TABLE {shape.analysed} ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    shown = ", ".join(f"defaultValueOfTypeName({quote_string(t)}) AS {quote_name(n)}" for n, t in shape.listed)
    reason = quote_string(f"{shape.full_name} lies in shards, and this statement reads it in a way that is not split")
    engine.run(
        f"CREATE OR REPLACE VIEW {quote_name(shape.database)}.{quote_name(shape.name)} AS "
        f"SELECT {shown} FROM system.one WHERE throwIf(dummy = 0, {reason})"
    )


def forget(engine: Engine, shape: Shape) -> None:
    """Take both away."""
    engine.run(f"DROP VIEW IF EXISTS {quote_name(shape.database)}.{quote_name(shape.name)}")
    engine.run(f"DROP TABLE IF EXISTS {shape.analysed}")
