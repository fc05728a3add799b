"""What is taken in, and so by which way: LAION parts, files whose rows hold their vectors, or a column's vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clipql.errors import IngestError
from clipql.ingest.pipeline import ingest
from clipql.ingest.records.sources import are_records
from clipql.tables.open_database import OpenDatabase

_OF_FILES = ("vector_column", "skip_bad")
_OF_PARTS = ("parts", "link", "first_id", "skip_bad")
_OF_ADDRESSES = ("vector_column", "model", "skip_bad", "room", "rate", "patience", "progress", "fetching")


def take_in(
    db: OpenDatabase,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    table: str,
    options: Mapping[str, Any],
) -> Any:
    """Take a source in by the way that it needs. options: of that way. Raises IngestError for those of another."""
    way: Callable[..., Any] = ingest
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    given = [n for n, v in options.items() if v is not None and v is not False and v not in ([], ())]
    if "by" in given and "add_column" not in given:
        raise IngestError("by says which vector is whose in a new column: name that too (add_column)")
    if "add_column" in given:
        _refuse(given, _OF_PARTS, "a new column, which all rows of the files fill")
        from clipql.ingest.records.adding import add_column  # each way is loaded when it is gone

        way = add_column
    elif "parts" not in given and sources and all(isinstance(s, str) and _is_address(s) for s in sources):
        from clipql.ingest.records.from_address import ingest_addresses

        odd = [n for n in given if n not in (*_OF_ADDRESSES, "foretold")]
        _refuse(odd, odd, "files with vectors at an address; of LAION parts at one, also say which (parts)")
        way, given = ingest_addresses, [n for n in given if n in _OF_ADDRESSES]
    elif isinstance(source, str) and _is_address(source):
        from clipql.ingest.stream import ingest_from

        _refuse(given, _OF_FILES, "LAION parts from an address")
        return ingest_from(db, source, table=table, **options)
    elif options.get("vector_column") or are_records(sources):
        from clipql.ingest.records.taking import ingest_files

        way = ingest_files
    else:
        _refuse(given, _OF_FILES, "LAION parts, but for files whose rows hold their vectors")
    return way(db, source, table=table, **{n: options[n] for n in given})


def _is_address(source: str) -> bool:
    if ":" not in source:
        return False
    from clipql.ingest.fetch.source import is_address  # loads an HTTP client

    return is_address(source)


def _refuse(given: Sequence[str], refused: Sequence[str], what: str) -> None:
    if odd := [n for n in given if n in refused]:
        raise IngestError(f"{', '.join(odd)} {'is' if len(odd) == 1 else 'are'} not for {what}: leave it out")
