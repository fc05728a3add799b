"""Which columns of a file hold vectors, and the table that they make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyarrow as pa

from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, IngestError
from clipql.ingest.columns import Incoming, column_types
from clipql.ingest.layout import DAMAGED
from clipql.ingest.records import vectors
from clipql.ingest.records.reading import parse_vectors, read_group
from clipql.ingest.records.sources import CSV, TSV, RecordFile
from clipql.storage.catalog import Table
from clipql.tables import schema
from clipql.tables.registry import Registry

_LOOKED_AT = 1_024  # rows that show how long vectors are


def vector_columns(file: RecordFile, table: Table | None, named: Sequence[str]) -> tuple[str, ...]:
    """The columns of a file that hold vectors: those named, or those of the table, or those that look so.

    Raises IngestError, with what the columns hold, where there is none.
    """
    if named:
        for name in named:
            if name not in file.schema.names:
                raise IngestError(f"{file.path} has no column {name}; its columns are {_listed(file)}")
        return tuple(dict.fromkeys([*named, *([file.beside_name] if file.beside else [])]))
    if table is not None:
        return tuple(c.name for c in table.columns if c.name in file.schema.names)
    seen = first_rows(file, ())
    found = [f.name for f in file.schema if seen and _looks_like_vectors(file, seen, f)]
    if not found:
        raise IngestError(
            f"{file.path} has no column of vectors, which are lists of one length; its columns are {_listed(file)}: "
            "name the columns that hold vectors (--vector-column), or put their .npy file beside it"
        )
    return tuple(found)


def _listed(file: RecordFile) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in file.schema) or "none"


def _looks_like_vectors(file: RecordFile, seen: pa.RecordBatch, field: pa.Field) -> bool:
    column = seen.column(field.name)
    if vectors.holds_floats(field.type):
        return vectors.have_one_length(column)
    if file.form not in (CSV, TSV) or not pa.types.is_string(field.type):
        return False
    texts = column.drop_null()
    if not len(texts) or not texts[0].as_py().lstrip().startswith("["):
        return False
    try:
        return vectors.have_one_length(parse_vectors(texts))
    except DAMAGED:
        return False


def first_rows(file: RecordFile, names: Sequence[str]) -> pa.RecordBatch | None:
    """Some rows of a file; None where it has none. names: columns of vectors that are written as text."""
    groups = range(len(file.groups))
    batches = itertools.chain.from_iterable(read_group(file, g, names, _LOOKED_AT) for g in groups)
    return next((b for b in batches if b.num_rows), None)


def incoming(file: RecordFile, names: Sequence[str], known: Table | None) -> Incoming | None:
    """A file as it is compared with a table; None where it has no rows.

    Raises IngestError for a column that cannot hold vectors.
    """
    seen = first_rows(file, names)
    if seen is None:
        return None
    found = {}
    for name in names:
        column = seen.column(name)
        if refused := vectors.refusal(column.type):
            raise IngestError(f"{file.path}: column {name} {refused}")
        own = known.column(name) if known else None
        dimension = vectors.dimension_of(column) or (own.dimension if own else None)
        if not dimension:
            raise IngestError(f"{file.path}: none of its first {seen.num_rows:,} rows has a vector in {name}")
        path = file.beside.path if file.beside and name == file.beside_name else file.path
        found[name] = path, dimension
    return Incoming(file.path, str(file.path), plain_schema(file, names), found)


def plain_schema(file: RecordFile, names: Sequence[str]) -> pa.Schema:
    """The columns of a file that are no vectors."""
    return pa.schema([f for f in file.schema if f.name not in names]).remove_metadata()


def make_table(registry: Registry, database: str, name: str, file: RecordFile, names: Sequence[str]) -> Table:
    """A table with the columns of a file, in their order. Raises IngestError where there is another of the name."""
    full = f"{quote_name(database)}.{quote_name(name)}"
    if registry.engine.scalar(f"EXISTS TABLE {full}"):
        raise IngestError(f"{full} is a table without vector columns; name another with --table")
    types = column_types(registry.engine, file.path, plain_schema(file, names))
    columns = [f"{quote_name(n)} {types.get(n, 'Array(Float32)')}" for n in file.schema.names]
    if "id" not in file.schema.names:
        columns.insert(0, "id UInt64")
    order = "id" if types.get("id", "UInt64").startswith(("UInt", "Int", "String")) else "tuple()"
    table = schema.create(registry, database, name, f"({', '.join(columns)}) ENGINE = MergeTree ORDER BY {order}")
    if table is None:
        raise ClipqlError(f"{full} was made without vector columns")
    return table
