"""The letters of distance functions: tutorials write `l2Distance`, and ClickHouse knows only `L2Distance`.

What must stay true: only the names of functions that are called change, and only their letters' case, so that every
place in the text stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from clipql.syntax.edits import edited
from clipql.syntax.reading import read

# of vectors; ClickHouse takes their aliases, distanceL2 and the like, in any case already
FUNCTIONS = (
    "L1Distance", "L2Distance", "L2SquaredDistance", "LinfDistance", "LpDistance", "cosineDistance", "dotProduct",
    "arrayDotProduct", "L1Norm", "L2Norm", "L2SquaredNorm", "LinfNorm", "LpNorm", "L1Normalize", "L2Normalize",
    "LinfNormalize", "LpNormalize",
)  # fmt: skip
_SPELLED = {name.lower(): name for name in FUNCTIONS}
_HINTS = ("distance", "dotproduct", "norm")
# after these a name is that of a table, a view, an index or the like, whatever brackets follow it
_NAMING = {".", "TABLE", "INTO", "INSERT", "VIEW", "EXISTS", "DICTIONARY", "INDEX", "PROJECTION", "TO", "AS"}


def respelled(sql: str, defined: Callable[[], Collection[str]] = tuple) -> str:
    """The statement with each call of a distance function spelled as ClickHouse spells it.

    defined: gives the functions that users made, which mean what they say; it is asked only where a name would change.
    """
    lowered = sql.lower()
    if not any(hint in lowered for hint in _HINTS):
        return sql
    tokens = read(sql).tokens
    wrong = [
        token
        for before, token, after in zip([None, *tokens], tokens, tokens[1:], strict=False)
        if token.kind == "word"
        and after.text == "("
        and _SPELLED.get(token.text.lower(), token.text) != token.text
        and not (before and before.upper in _NAMING)
    ]
    kept = defined() if wrong else ()
    return edited(sql, [(t.start, t.end, _SPELLED[t.text.lower()]) for t in wrong if t.text not in kept])
