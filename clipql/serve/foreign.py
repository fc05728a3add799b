"""What a database folder from somebody else may hold that the network must not reach: views over files or addresses,
engines that are files or other servers, databases that are folders, dictionaries, defaults that read files.

Such an object does what its definition says for whoever asks for it. So its definition is looked at by the lists that
statements are looked at by, when the server starts. What must stay true: an object that reads one that is left out is
left out too; one whose definition is not understood is left out; and what is left out is detached, until the folder is
opened again, so that no INSERT into another table sets it off.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError
from clipql.serve import allowed
from clipql.syntax.reading import read
from clipql.tables.registry import FUNCTION, INTERNAL, ROW

# an object's engine that is no table's: its definition says what it reads
_VIEWS = allowed.words("view materializedview")
# by what a database says of its engine, all of it: settings may put its tables elsewhere
_DATABASES = {"Atomic", "Memory"}
_CLICKHOUSES = "'system', 'INFORMATION_SCHEMA', 'information_schema'"
_DEFINED = f"""
SELECT database, name, engine, create_table_query, toString(uuid) AS uuid,
    if(engine = 'MaterializedView', as_select, '') AS reads
FROM system.tables
WHERE NOT is_temporary AND database NOT IN ({_CLICKHOUSES})
"""
# settings of a table that say where its rows lie
_ELSEWHERE = re.compile("disk|storage|path|file|url|script")
# how the physical table of a vector column reads it
_OWN_CALL = re.compile(rf"\b{FUNCTION}\('[^'\\]*', {ROW}\)")


@dataclass(frozen=True)
class Foreign:
    """An object that is left out; name: empty for a whole database. why: what about it is not for the network."""

    database: str
    table: str
    why: str

    @property
    def name(self) -> str:
        """What statements name it by."""
        return self.table or self.database

    def __str__(self) -> str:
        return f"{self.database}.{self.table}" if self.table else f"the database {self.database}"


def foreign(
    engine: Engine, vectors: Mapping[tuple[str, str], str], check: Callable[[str], object]
) -> tuple[Foreign, ...]:
    """The objects of a database that are left out. Foreign databases are detached at once: a list of tables asks them.

    vectors: the tables with vectors, by database and name, and the names of their shapes. check: raises ClipqlError for
    a definition that somebody from the network may not give.
    """
    found = _databases(engine)
    detach(engine, found, vectors)
    rows = engine.arrow(_DEFINED).to_pylist()
    of_shapes = {shape: key for key, shape in vectors.items()}
    read_by: dict[tuple[str, str], frozenset[str]] = {}
    for row in rows:
        key = row["database"], row["name"]
        if row["database"] == INTERNAL:
            if row["name"] not in of_shapes:
                continue  # nothing leads there
            key = of_shapes[row["name"]]
        why = _wrong(row, check, ours=key in vectors)
        read_by[key] = read_by.get(key, frozenset()) | _names(row["create_table_query"]) | _inner(row)
        if why and not any((f.database, f.table) == key for f in found):
            found.append(Foreign(*key, why))
    while more := [  # what reads what is left out
        Foreign(*key, f"it reads {hit}")
        for key, names in read_by.items()
        if not any((f.database, f.table) == key for f in found)
        and (hit := next((f.name for f in found if f.name in names and (f.database, f.table) != key), None))
    ]:
        found += more
    return tuple(found)


def detach(engine: Engine, found: Iterable[Foreign], vectors: Mapping[tuple[str, str], str]) -> None:
    """Have ClickHouse forget what is left out, until the folder is opened again; not tables with vectors.

    Raises ClipqlError where a view that INSERTs set off stays.
    """
    for each in found:
        if (each.database, each.table) in vectors:
            continue  # refused by its name: clipql keeps it open
        what = "TABLE" if each.table else "DATABASE"
        name = f"{quote_name(each.database)}.{quote_name(each.table)}" if each.table else quote_name(each.database)
        try:
            engine.run(f"DETACH {what} {name}")
        except ClipqlError:
            with contextlib.suppress(ClipqlError):
                engine.run(f"DETACH DICTIONARY {name}")
    left = engine.arrow("SELECT database, name FROM system.tables WHERE engine = 'MaterializedView'").to_pylist()
    for row in left:
        if any((f.database, f.table) == (row["database"], row["name"]) for f in found):
            engine.run(f"DETACH TABLE {quote_name(row['database'])}.{quote_name(row['name'])}")


def _databases(engine: Engine) -> list[Foreign]:
    rows = engine.arrow(f"SELECT name, engine, engine_full FROM system.databases WHERE name NOT IN ({_CLICKHOUSES})")
    return [
        Foreign(row["name"], "", f"its engine is {row['engine_full'] or row['engine']}")
        for row in rows.to_pylist()
        if row["engine_full"] not in _DATABASES and (row["name"], row["engine"]) != ("default", "Overlay")
    ]


def _names(text: str) -> frozenset[str]:
    return frozenset(t.name for t in read(text).tokens if t.name)


def _inner(row: Mapping[str, Any]) -> frozenset[str]:
    """The table that a materialized view keeps its rows in."""
    return frozenset({f".inner_id.{row['uuid']}", f".inner.{row['name']}"} if row["reads"] else ())


def _wrong(row: Mapping[str, Any], check: Callable[[str], object], *, ours: bool) -> str | None:
    engine, definition, reads = row["engine"], row["create_table_query"], row["reads"]
    if engine.lower() not in allowed.ENGINES | _VIEWS:
        return f"its engine is {engine}"
    tokens = read(definition).tokens
    if any(t.upper == "REFRESH" for t in tokens) and engine == "MaterializedView":
        return "it refreshes itself"
    named = [i for i, t in enumerate(tokens[:8]) if t.name == row["name"]]
    if not named:
        return "its definition is not understood"
    # whatever it is called, and by the calls of ours that its vector columns are read by
    body = f"{tokens[0].text} {tokens[1].text} x{definition[tokens[named[0]].end :]}"
    if ours:
        body = _OWN_CALL.sub("''", body)
    if engine.lower().endswith("mergetree"):
        body = _without_settings(body)
    try:
        for text in (body if engine != "MaterializedView" else "", reads):
            if text:
                check(text)
    except ClipqlError as error:
        return str(error).partition("\n")[0]
    return None


def _without_settings(definition: str) -> str:
    """A table's definition without the settings of its own that say nothing of where its rows lie: an owner may have
    given any of these. A clause with another one, or with more than literals, stays to be refused."""
    tokens = read(definition).tokens
    depth, begin = 0, None
    for i, token in enumerate(tokens):
        if token.kind == "symbol":
            depth += (token.text in "([{") - (token.text in ")]}")
        if depth == 0 and token.upper == "SETTINGS":
            begin = i
    if begin is None:
        return definition
    at = begin + 1
    while at + 2 < len(tokens):
        name, equals, value = tokens[at : at + 3]
        if name.kind != "word" or equals.text != "=" or value.kind not in ("number", "string", "word"):
            return definition
        if _ELSEWHERE.search(name.text) or (value.kind == "word" and value.upper not in ("TRUE", "FALSE")):
            return definition
        at += 4
        if at > len(tokens) or tokens[at - 1].text != ",":
            break
    after = definition[tokens[at - 1].start :] if at - 1 < len(tokens) else ""
    return f"{definition[: tokens[begin].start]} {after}"
