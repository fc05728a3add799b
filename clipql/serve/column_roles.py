"""What a table's columns are for: which one is the caption, the picture, the mark of what is not safe to show.

Told by their names and types, as LAION, img2dataset and `clipql embed` give them. What must stay true: nothing is
read but the definition, and that once for each state of the database, as it is asked for at every request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.storage.catalog import Table
from clipql.tables.registry import INTERNAL, ROW, Registry

_CAPTIONS = ("caption", "text", "alt", "title", "description", "name")
_URLS = ("url", "image_url", "picture_url", "src")
_FILES = ("image_path", "picture_path", "path", "file", "filename")
_UNSAFE = ("nsfw", "is_nsfw", "punsafe", "unsafe")


@dataclass(frozen=True)
class ColumnRoles:
    """types: of all columns by name, in their order. plain: those without vectors. url and file: where the picture is.
    safe: the condition that leaves out what is not safe to show, None where there is no column that says so."""

    types: Mapping[str, str]
    plain: tuple[str, ...]
    caption: str | None
    url: str | None
    file: str | None
    nsfw: str | None
    safe: str | None


class Roles:
    """The roles of tables' columns, looked up once for each state of the database. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, tuple[object, int, ColumnRoles]] = {}

    def __getitem__(self, table: Table) -> ColumnRoles:
        known, state = self._at_hand(table), (self._registry.catalog, self._registry.changes)
        if known is None:
            known = column_roles(self._registry.engine, table)
            self._known[table.id] = (*state, known)
        return known

    def knows(self, table: Table) -> bool:
        """Whether a table's are at hand, so that ClickHouse is not asked for them."""
        return self._at_hand(table) is not None

    def _at_hand(self, table: Table) -> ColumnRoles | None:
        known = self._known.get(table.id)
        if known is None or known[0] is not self._registry.catalog or known[1] != self._registry.changes:
            return None
        return known[2]


def column_roles(engine: Engine, table: Table) -> ColumnRoles:
    """Look at a table's definition."""
    found = engine.arrow(
        "SELECT name, type FROM system.columns WHERE database = {d:String} AND table = {t:String} ORDER BY position",
        params={"d": INTERNAL, "t": table.id},
    )
    types = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
    plain = tuple(n for n in types if table.column(n) is None and n != ROW)
    text = [n for n in plain if "String" in types[n]]
    nsfw = _first(list(plain), _UNSAFE)
    return ColumnRoles(
        types,
        plain,
        _first(text, _CAPTIONS),
        _first(text, _URLS),
        _first(text, _FILES),
        nsfw,
        None if nsfw is None else _safe(nsfw, types[nsfw]),
    )


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    by_name = {n.lower(): n for n in reversed(names)}
    return next((by_name[k] for k in known if k in by_name), None)


def _safe(name: str, type: str) -> str:
    column = quote_name(name)
    if "String" in type or "Enum" in type:
        return f"{column} = 'UNLIKELY'"
    return f"{column} < 0.5" if "Float" in type else f"NOT {column}"


def kind(type: str) -> str:
    """A ClickHouse type as the page tells them apart."""
    plain = re.sub(r"^(?:LowCardinality|Nullable)\((.*)\)$", r"\1", re.sub(r"^LowCardinality\((.*)\)$", r"\1", type))
    if plain.startswith("Array(Float32"):
        return "vector"
    if plain == "Bool":
        return "bool"
    if plain.startswith(("Int", "UInt", "Float", "Decimal", "BFloat")):
        return "number"
    if plain.startswith("Date"):
        return "date"
    return "text" if plain.startswith(("String", "FixedString", "Enum", "UUID")) else "other"
