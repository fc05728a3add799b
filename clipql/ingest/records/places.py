"""Which row of a table each row of files stands for, by a column that both have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipql.brief import short
from clipql.engine.quoting import quote_name
from clipql.errors import IngestError
from clipql.ingest.records.reading import read_group
from clipql.ingest.records.sources import RecordFile
from clipql.storage.catalog import Table
from clipql.tables.registry import ROW, Registry

_ROWS = 65_536


def places_by(
    registry: Registry, table: Table, rows: NDArray[np.int64], files: Sequence[RecordFile], by: str
) -> NDArray[np.int64]:
    """The row numbers of a table for the rows of files, in their order; -1 where the table has no such row.

    rows: those that are there. Raises IngestError where a value is there twice, or the table has none of them.
    """
    own = _keys_of_table(registry, table, by)
    given = pa.chunked_array([_cast(k, own.type, f, by, table) for f in files for k in _keys_of_file(f, by)], own.type)
    _check_once(own, f"{table.full_name}", by)
    found = pc.index_in(given, value_set=own)
    known = found.drop_null() if isinstance(found, pa.ChunkedArray) else found
    _check_once(given.filter(pc.is_valid(found)), "the files", by)
    if not len(known) and len(given):
        raise IngestError(
            f"{table.full_name} has none of the {len(given):,} values of {by} in the files, such as "
            f"{short(given[0].as_py())}: name a column whose values are the same in both"
        )
    at = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    places: NDArray[np.int64] = np.where(at < 0, -1, rows[at]) if len(rows) else np.full(len(at), -1, np.int64)
    return places


def _keys_of_table(registry: Registry, table: Table, by: str) -> pa.Array:
    names = registry.traits(table).stored
    if by not in names:
        raise IngestError(f"{table.full_name} has no column {by}; it has {', '.join(names)}")
    sql = f"SELECT {quote_name(by)} FROM {registry.physical(table)} WHERE {ROW} < {table.rows} ORDER BY {ROW}"
    column = registry.engine.arrow(sql).column(0).combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _keys_of_file(file: RecordFile, by: str) -> list[pa.Array]:
    if by not in file.schema.names:
        raise IngestError(f"{file.path} has no column {by}; it has {', '.join(file.schema.names)}")
    groups = range(len(file.groups))
    return [b.column(by) for g in groups for b in read_group(file, g, (), _ROWS, only=by)]


def _cast(keys: pa.Array, kind: pa.DataType, file: RecordFile, by: str, table: Table) -> pa.Array:
    try:
        plain = keys.dictionary_decode() if pa.types.is_dictionary(keys.type) else keys
        return plain if plain.type == kind else pc.cast(plain, kind)
    except pa.ArrowException as error:
        raise IngestError(
            f"{file.path}: {by} is {keys.type}, in {table.full_name} it is {kind}; they cannot be compared: {error}"
        ) from error


def _check_once(keys: pa.Array | pa.ChunkedArray, where: str, by: str) -> None:
    """Raise IngestError for a value that is there twice."""
    counted = pc.value_counts(keys)
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()
        raise IngestError(
            f"{len(twice):,} values of {by} are not there once in {where}, such as {short(first['values'])}, which "
            f"{first['counts']:,} rows have: name a column that tells rows apart"
        )
