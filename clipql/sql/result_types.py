"""ClickHouse's types of what a SELECT returns, for where Arrow has one type for several of them.

What must stay true: what is asked changes nothing, and is asked anew when definitions have changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from clipql.engine.arrays import with_numbers
from clipql.errors import ClipqlError
from clipql.sql.recognition.settings import take_format, taken_from
from clipql.sql.recognition.words import stood_in
from clipql.storage.catalog import Catalog
from clipql.syntax.reading import read
from clipql.syntax.recent import Recent
from clipql.syntax.skeleton import skeleton
from clipql.syntax.spelling import respelled
from clipql.syntax.statements import Select
from clipql.tables.registry import Registry

_MOST = 256
# what lies in quotes is a name or a text
_DATETIME = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|\bDateTime\b(?!\()")


class ResultTypes:
    """Remembers the types by statement, which neither parameters nor literal vectors change. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: Recent[tuple[str, int], tuple[Catalog, int, Mapping[str, str]]] = Recent(_MOST)

    def of(self, statement: str, params: Mapping[str, Any]) -> Mapping[str, str]:
        """The types by the columns' names; none where it is no SELECT, or ClickHouse does not say."""
        key, catalog, changes = skeleton(statement).key, self._registry.catalog, self._registry.changes
        known = self._known.find(key)
        if known is not None and known[0] is catalog and known[1] == changes:
            return known[2]
        return self._known.keep(key, (catalog, changes, self._ask(statement, params)))[2]

    def _ask(self, statement: str, params: Mapping[str, Any]) -> dict[str, str]:
        question = describing(statement)
        if question is None:
            return {}
        engine = self._registry.engine
        try:
            # of the engine, not of the session, to which anything but a SELECT is a change
            found = engine.arrow(question, params=with_numbers(statement, params), user=True)
        except ClipqlError:
            return {}
        return told(found, str(engine.scalar("SELECT timezone()")))


def describing(statement: str) -> str | None:
    """The statement that tells the types of what a SELECT returns; None for anything but a SELECT."""
    if not isinstance(read(statement).kind, Select):
        return None
    text, _ = taken_from(take_format(respelled(statement, list))[0])
    return f"DESCRIBE TABLE ({stood_in(text)}\n) SETTINGS print_pretty_type_names = 0"


def told(found: pa.Table, timezone: str) -> dict[str, str]:
    """The types by the columns' names, of what DESCRIBE gave; a DateTime without a time zone has the server's."""
    zone = f"DateTime('{timezone}')"
    kinds = [_DATETIME.sub(lambda m: zone if m[0] == "DateTime" else m[0], t) for t in found.column(1).to_pylist()]
    return dict(zip(found.column(0).to_pylist(), kinds, strict=True))
