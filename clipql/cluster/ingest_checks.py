"""Parts compared with a sharded table and with each other before the first is assigned, as one database does it."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence

from clipql.cluster.placeholder import Shape
from clipql.cluster.shard_map import ShardedTable
from clipql.database import Database
from clipql.engine.quoting import quote_name
from clipql.ingest.columns import check_parts
from clipql.ingest.layout import CheckedPart
from clipql.ingest.origin import check_origins
from clipql.ingest.pipeline import new_table
from clipql.sql.session import Session
from clipql.storage.catalog import Table
from clipql.syntax.reading import read
from clipql.syntax.statements import CreateTable

SCRATCH = "clipql_parts"  # the database of the tables that parts are compared with


def check(
    db: Database, database: str, name: str, parts: Sequence[CheckedPart], model: str | None, shape: Shape | None,
    there: ShardedTable | None,
) -> None:  # fmt: skip
    """Raise IngestError for parts that do not go into a table, or not into one table.

    db: the database that merges. shape, there: the table, where it is there.
    """
    if not parts:
        return
    optional = there.optional if there else ()
    with _like(db, parts[0], there.definition if there else "") as made:
        known = shape.vectors if shape else {}
        columns = [dataclasses.replace(c, dimension=known.get(c.name, (None, None))[0],
                                       model=known.get(c.name, (None, None))[1], optional=c.name in optional)
                   for c in made.columns]  # fmt: skip
        table = dataclasses.replace(made, database=database, name=name, columns=tuple(columns))
        check_parts(db.registry.engine, table, parts)
        check_origins(table, parts, model, False)


@contextlib.contextmanager
def _like(db: Database, first: CheckedPart, definition: str) -> Iterator[Table]:
    """An empty table as defined, or as the first part makes it."""
    plain = Session(db.registry, db.indexes, db.encoders)
    own = uuid.uuid4().hex
    whole = f"{quote_name(SCRATCH)}.{quote_name(own)}"
    plain.execute(f"CREATE DATABASE IF NOT EXISTS {quote_name(SCRATCH)}", format="Null")
    try:
        if definition:
            statement = read(definition).kind
            assert isinstance(statement, CreateTable), definition
            span = statement.table
            plain.execute(f"{definition[: span.start]}{whole}{definition[span.end :]}", format="Null")
        else:
            new_table(db.registry, SCRATCH, own, first)
        found = db.registry.find(SCRATCH, own)
        assert found is not None, "it was made just now"
        yield found
    finally:
        plain.execute(f"DROP TABLE IF EXISTS {whole}", format="Null")
