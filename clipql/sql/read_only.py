"""Which statements read only: in a database that was opened to be read, no other is run."""

from __future__ import annotations

from pathlib import Path

from clipql.errors import ReadOnly
from clipql.syntax.reading import read
from clipql.syntax.statements import Explain, Kind, OnTable, Other, Select, Set

_WORDS = ("SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "KILL", "VALUES", "")
_VERBS = ("SHOW CREATE", "SHOW DATABASES", "DESCRIBE")


def reads(statement: Kind) -> bool:
    """Whether a statement changes no rows and no definitions."""
    if isinstance(statement, OnTable):
        return statement.verb in _VERBS
    return isinstance(statement, (Select, Explain, Set)) or (isinstance(statement, Other) and statement.word in _WORDS)


def refuse(sql: str, folder: Path) -> None:
    """Raise ReadOnly for a statement that may write. folder: the database."""
    reading = read(sql)
    if not reads(reading.kind):
        raise ReadOnly(reading.words[0].upper, folder)
