"""What a database folder from somebody else may hold that the network must not reach: views over files or addresses,
engines that are files or other servers, dictionaries, defaults that read files.

Such an object does what its definition says for whoever asks for it. So its definition is looked at by the lists that
statements are looked at by, when the server starts. What must stay true: an object that reads one that is left out is
left out too; one whose definition is not understood is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipql.engine.embedded import Engine
from clipql.errors import ClipqlError
from clipql.serve import allowed
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL

# an object's engine that is no table's: its definition says what it reads
_VIEWS = allowed.words("view materializedview")
_DEFINED = f"""
SELECT database, name, engine, create_table_query, if(engine = 'MaterializedView', as_select, '') AS reads
FROM system.tables
WHERE NOT is_temporary AND database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema', '{INTERNAL}')
"""


@dataclass(frozen=True)
class Foreign:
    """An object that is left out. why: what about its definition is not for the network."""

    database: str
    name: str
    why: str


def foreign(engine: Engine, ours: Callable[[str, str], bool], check: Callable[[str], object]) -> tuple[Foreign, ...]:
    """The objects of a database that are left out.

    ours: whether a table is one with vectors, whose definition is clipql's. check: raises ClipqlError for a definition
    that somebody from the network may not give.
    """
    found: list[Foreign] = []
    read_by: dict[tuple[str, str], frozenset[str]] = {}
    for row in engine.arrow(_DEFINED).to_pylist():
        database, name = row["database"], row["name"]
        if ours(database, name):
            continue
        read_by[database, name] = _names(row["create_table_query"])
        why = _wrong(row["engine"], row["create_table_query"], row["reads"], check)
        if why:
            found.append(Foreign(database, name, why))
    while more := [  # what reads what is left out
        Foreign(*key, f"it reads {hit}")
        for key, names in read_by.items()
        if not any((f.database, f.name) == key for f in found)
        and (hit := next((f.name for f in found if f.name in names and (f.database, f.name) != key), None))
    ]:
        found += more
    return tuple(found)


def _names(text: str) -> frozenset[str]:
    return frozenset(t.name for t in read(text).tokens if t.name)


def _wrong(engine: str, definition: str, reads: str, check: Callable[[str], object]) -> str | None:
    if engine.lower() not in allowed.ENGINES | _VIEWS:
        return f"its engine is {engine}"
    if any(t.upper == "REFRESH" for t in read(definition).tokens) and engine == "MaterializedView":
        return "it refreshes itself"
    try:
        for text in (definition if engine != "MaterializedView" else "", reads):
            if text:
                check(text)
    except ClipqlError as error:
        return str(error).partition("\n")[0]
    return None
