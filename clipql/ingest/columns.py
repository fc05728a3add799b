"""The columns of a part's metadata against the columns of a table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipql.brief import Brief
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import IngestError, QueryError
from clipql.ingest.layout import CheckedPart
from clipql.storage.catalog import Table
from clipql.tables.registry import INTERNAL

_FLOATS = {"Float32", "Float64", "BFloat16"}


@dataclass(frozen=True, repr=False)
class Incoming(Brief):
    """What is compared with a table. name: of all its files together; schema: of the columns that are no vectors;
    vectors: of each vector column the file and how many numbers a vector has.
    """

    path: Path
    name: str
    schema: pa.Schema
    vectors: Mapping[str, tuple[Path, int]]


def column_types(engine: Engine, path: Path, schema: pa.Schema) -> dict[str, str]:
    """ClickHouse's types for the columns of a file, by name, in the file's order. Raises IngestError."""
    if not schema.names:  # ClickHouse takes no file without columns
        return {}
    # an empty file of the same columns, in the statement itself: file() would take { and * in the path as wildcards
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.Table.from_batches([], schema.remove_metadata()), sink)
    except pa.ArrowException as error:
        raise IngestError(f"{path}: its columns cannot be taken: {error}") from error
    content = sink.getvalue().to_pybytes().hex()
    try:
        found = engine.arrow(
            f"DESCRIBE TABLE format('Parquet', unhex('{content}')) SETTINGS print_pretty_type_names = 0"
        )
    except QueryError as error:
        raise IngestError(f"{path}: ClickHouse cannot take its columns: {error}") from error
    return dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))


def check_parts(engine: Engine, table: Table, parts: Sequence[CheckedPart]) -> None:
    """Compare parts with the table they shall go into, one after the other. Raises IngestError as `check_columns`."""
    for part in parts:
        vectors = {name: (array.path, array.dimension) for name, array in part.vectors.items()}
        table = check_columns(engine, table, Incoming(part.files.metadata, part.files.name, part.schema, vectors))


def check_columns(engine: Engine, table: Table, part: Incoming) -> Table:
    """Compare a part, or a file, with the table it shall go into; returns the table as it is for the next one.

    Raises IngestError, naming file and column: a column is missing on either side, has another type, or the vectors
    have another length.
    """
    path = part.path
    given = column_types(engine, path, part.schema)
    wanted = _columns(engine, table)
    vectors = {c.name: c for c in table.columns}
    for name, (file, dimension) in part.vectors.items():
        if name not in vectors:
            raise IngestError(f"{file}: {table.full_name} has no vector column {name}; it has {', '.join(vectors)}")
        expected = vectors[name].dimension
        if expected is not None and dimension != expected:
            raise IngestError(
                f"{file} has vectors of {dimension} numbers; {name} of {table.full_name} holds {expected}"
            )
    for name, column in vectors.items():
        if name not in part.vectors and not column.optional:
            raise IngestError(f"{part.name} has no vectors for {name}, which each row of {table.full_name} needs")
    for name, (kind, default) in wanted.items():
        if name in vectors or name in given or default or (name == "id" and kind.startswith(("UInt", "Int"))):
            continue
        raise IngestError(
            f"{path} has no column {name}, which {table.full_name} has; its columns are {', '.join(given)}"
        )
    for name, kind in given.items():
        if name not in wanted:
            index = re.fullmatch(r"__index_level_\d+__", name)  # as pandas calls an index that has no name
            other = ", or write the file without pandas' index, by to_parquet(…, index=False)" if index else ""
            raise IngestError(
                f"{path} has a column {name} that {table.full_name} lacks, and no column is dropped silently: "
                f"add it with ALTER TABLE {table.full_name} ADD COLUMN {quote_name(name)} {kind}{other}"
            )
        if not _fits(kind, wanted[name][0]):
            raise IngestError(f"{path}: column {name} is {kind}; in {table.full_name} it is {wanted[name][0]}")
    columns = (
        dataclasses.replace(c, dimension=part.vectors[c.name][1]) if c.name in part.vectors else c
        for c in table.columns
    )
    return dataclasses.replace(table, columns=tuple(columns))


def nested(schema: pa.Schema) -> list[list[str]]:
    """The columns of lists with one name before the first dot, which to ClickHouse are one Nested."""
    found: dict[str, list[str]] = {}
    for field in schema:
        if "." in field.name and (pa.types.is_list(field.type) or pa.types.is_large_list(field.type)):
            found.setdefault(field.name.partition(".")[0], []).append(field.name)
    return [names for names in found.values() if len(names) > 1]


def check_nested(path: Path, batch: pa.RecordBatch, first: int, groups: Sequence[Sequence[str]]) -> None:
    """Raise IngestError for a row whose lists of one Nested are not as long as each other. first: the batch's row."""
    for names in groups:
        lengths = [pc.fill_null(pc.list_value_length(batch.column(name)), 0) for name in names]
        for name, other in zip(names[1:], lengths[1:], strict=True):
            row = pc.index(pc.not_equal(lengths[0], other), True).as_py()
            if row >= 0:
                raise IngestError(
                    f"{path}: row {first + row:,} has {lengths[0][row]} values in {names[0]} and {other[row]} in "
                    f"{name}, which are one Nested to ClickHouse, so must be as many; rename one, such as "
                    f"{name.replace('.', '_')}"
                )


def _columns(engine: Engine, table: Table) -> dict[str, tuple[str, bool]]:
    found = engine.arrow(
        f"SELECT name, type, default_kind != '' FROM system.columns WHERE database = '{INTERNAL}' "
        f"AND table = {quote_string(table.id)} AND default_kind NOT IN ('ALIAS', 'MATERIALIZED', 'EPHEMERAL') "
        "ORDER BY position"
    )
    return {n: (t, bool(d)) for n, t, d in zip(*(c.to_pylist() for c in found.columns), strict=True)}


def _plain(kind: str) -> str:
    while match := re.fullmatch(r"(?:Nullable|LowCardinality)\((.*)\)", kind):
        kind = match[1]
    return kind


def _fits(given: str, wanted: str) -> bool:
    """Whether values of one type go into a column of another without changing what they say.

    A float may lose digits in a narrower float, as in ClickHouse's own INSERT; an integer must fit whole.
    """
    given, wanted = _plain(given), _plain(wanted)
    if given == wanted or (given in _FLOATS and wanted in _FLOATS):
        return True
    a, b = re.fullmatch(r"(U?)Int(\d+)", given), re.fullmatch(r"(U?)Int(\d+)", wanted)
    if a and b:
        bits, room = int(a[2]), int(b[2])
        return room > bits if a[1] and not b[1] else room >= bits and a[1] == b[1]
    return bool(a) and int(a[2] if a else 0) <= 32 and wanted == "Float64"
