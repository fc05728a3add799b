"""Whether an answer may have rows besides its own: those of WITH TOTALS, and extremes.

Formats that write them do so behind all rows, so such an answer is made as a whole. What must stay true: totals come
through subqueries and views, so where a view has them, whatever reads a view may.
"""

from __future__ import annotations

import itertools
from weakref import WeakKeyDictionary

from clipql.engine.users import Acting
from clipql.storage.catalog import Catalog
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL, Registry

# the views of a database, where one of them has totals; as of which definitions
_VIEWS: WeakKeyDictionary[Registry, tuple[Catalog, int, frozenset[str]]] = WeakKeyDictionary()


def may_have_more(sql: str, registry: Registry) -> bool:
    """Whether a SELECT, run for whoever acts, may have totals or extremes; one that has them never gives False."""
    tokens = read(sql).tokens
    if _says_so(tokens) or _extremes(registry.engine.acting):
        return True
    views = _views(registry)
    return bool(views) and any(token.name in views for token in tokens)


def _says_so(tokens: tuple[Token, ...]) -> bool:
    pairs = itertools.pairwise(tokens)
    return any((a.upper, b.upper) == ("WITH", "TOTALS") or (a.upper, b.text) == ("EXTREMES", "=") for a, b in pairs)


def _extremes(acting: Acting) -> bool:
    given = acting.settings.get("extremes", "0")
    return given not in ("", "0", "false") or any("extremes" in each for each in acting.user.statements)


def _views(registry: Registry) -> frozenset[str]:
    catalog, changes = registry.catalog, registry.changes
    known = _VIEWS.get(registry)
    if known is None or known[0] is not catalog or known[1] != changes:
        found = registry.engine.arrow(
            "SELECT name, positionCaseInsensitive(as_select, 'TOTALS') > 0 AS has FROM system.tables "
            f"WHERE engine = 'View' AND database NOT IN ('system', '{INTERNAL}')"
        ).to_pylist()
        names = frozenset(str(each["name"]) for each in found) if any(each["has"] for each in found) else frozenset()
        known = _VIEWS[registry] = (catalog, changes, names)
    return known[2]
