"""Temporary tables, which a session makes for itself and which may have the name of a table of ours."""

from __future__ import annotations

from collections.abc import Sequence

from clipql.engine.quoting import quote_name
from clipql.syntax.lexer import Token
from clipql.tables.registry import Registry


def note_temporary(registry: Registry, tokens: Sequence[Token]) -> None:
    """A temporary table hides a table of ours of the same name, as it does in ClickHouse."""
    words = [t.upper for t in tokens[:8]]
    if not words or words[0] not in ("CREATE", "REPLACE", "DROP"):
        return
    named = {t.name for t in tokens[1:8] if t.name} if "TEMPORARY" in words else set()
    hidden = registry.hidden
    for name in hidden | {n for n in named if registry.catalog.table(registry.database, n)}:
        there = registry.engine.scalar(f"EXISTS TEMPORARY TABLE {quote_name(name)}", user=True)
        (hidden.add if there else hidden.discard)(name)
