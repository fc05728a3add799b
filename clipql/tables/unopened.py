"""What is known of a table without ClickHouse, from the files of its folder `engine`: for readers, which start it late.

What must stay true: what is told is what ClickHouse would say; None where only it can say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipql.storage.catalog import INTERNAL, Table
from clipql.syntax.lexer import Token, matching
from clipql.syntax.reading import read

_PART = re.compile(r"([^-].*)_(\d+)_(\d+)_(\d+)(?:_(\d+))?")
_KINDS = ("DEFAULT", "MATERIALIZED", "ALIAS", "EPHEMERAL")


@dataclass(frozen=True)
class _Part:
    name: str
    partition: str
    first: int
    last: int
    level: int
    mutation: int

    def covers(self, other: _Part) -> bool:
        """Whether ClickHouse made this part of the other one, among others."""
        return (
            self.name != other.name
            and self.partition == other.partition
            and self.first <= other.first
            and self.last >= other.last
            and (self.level, self.mutation) >= (other.level, other.mutation)
        )


def escaped(name: str) -> str:
    """A name as ClickHouse writes it in a file's."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
    return "".join(chr(b) if b in plain else f"%{b:02X}" for b in name.encode())


def definition_file(engine: Path, database: str, name: str) -> Path:
    """Where ClickHouse has a table's definition."""
    return engine / "metadata" / escaped(database) / f"{escaped(name)}.sql"


def all_there(engine: Path, table: Table) -> bool:
    """Whether no row of a table was ever deleted; False also where only ClickHouse can say."""
    try:
        folder = engine / "data" / escaped(table.database) / escaped(table.name)
        names = [entry.name for entry in folder.iterdir()]
        parts = _parts([n for n in names if n not in ("detached", "format_version.txt") and "mutation_" not in n])
        latest = max((int(n.removeprefix("mutation_").split(".")[0]) for n in names if "mutation_" in n), default=0)
        if parts is None or any(max(p.mutation, p.first) < latest for p in parts):
            return False
        if any(b"`_row_exists`" in (folder / p.name / "columns.txt").read_bytes() for p in parts):
            return False
        return sum(int((folder / p.name / "count.txt").read_bytes()) for p in parts) == table.rows
    except (OSError, ValueError):
        return False


def _parts(names: Sequence[str]) -> list[_Part] | None:
    """Those that are in force; None where a name is not understood."""
    found: list[_Part] = []
    for name in names:
        match = _PART.fullmatch(name)
        if match is None or name.startswith("patch-"):
            return None
        found.append(_Part(name, match[1], *(int(match[i] or 0) for i in range(2, 6))))
    # sorted so, what a part covers comes right behind it
    found.sort(key=lambda p: (p.partition, p.first, -p.last, -p.level, -p.mutation))
    kept: list[_Part] = []
    for part in found:
        if not (kept and kept[-1].covers(part)):
            kept.append(part)
    return kept


def columns(engine: Path, table: Table) -> list[tuple[str, str]] | None:
    """The columns of a table's shape in order, each with its default's kind ('' where it has none).

    None where the definition has a TTL, or is not understood.
    """
    try:
        text = definition_file(engine, INTERNAL, table.id).read_text("utf-8")
    except (OSError, ValueError):
        return None
    tokens = read(text).words
    start = next((i for i, t in enumerate(tokens) if t.text == "("), None)
    if start is None or any(t.upper == "TTL" for t in tokens):
        return None
    found: list[tuple[str, str]] = []
    for item in _items(tokens, start + 1, matching(tokens, start)):
        if item[0].kind != "quoted" or item[0].name is None:
            return None if item[0].name is None else found  # INDEX, CONSTRAINT, PROJECTION: columns come first
        found.append((item[0].name, next((t.upper for t in item[1:] if t.upper in _KINDS), "")))
    return found


def _items(tokens: Sequence[Token], at: int, end: int) -> list[Sequence[Token]]:
    """What stands between the commas of a list, without what is in brackets."""
    found: list[list[Token]] = [[]]
    while at < end:
        token = tokens[at]
        if token.text == ",":
            found.append([])
        else:
            found[-1].append(token)
        at = (matching(tokens, at) if token.text in ("(", "[") else at) + 1
    return [item for item in found if item]
