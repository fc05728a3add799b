"""Views that were made before stars were spelled out: at open they get their columns in the user's order.

A view keeps a list of its columns and the text of its SELECT; both are made anew where a star in the text stands for
columns in another order than the list has, in views of such views too.
"""

from __future__ import annotations

import contextlib

from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError
from clipql.sql.recognition.stars import Stars
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL, Registry


def put_in_order(registry: Registry) -> None:
    """Make such views anew. One that cannot be is left as it is."""
    if not registry.catalog.tables:
        return
    found = registry.engine.arrow(
        "SELECT database, name, create_table_query AS text FROM system.tables WHERE engine = 'View' "
        f"AND database != '{INTERNAL}' AND (position(create_table_query, '*') > 0 "
        "OR positionCaseInsensitive(create_table_query, 'COLUMNS(') > 0)"
    ).to_pylist()
    stars, changed = Stars(registry), set[str]()
    again = True
    while again:
        again = False
        for view in found:
            with contextlib.suppress(ClipqlError):
                spelled = stars.spelled(view["text"])
                reads = changed & {t.name for t in read(view["text"]).tokens}
                if view["name"] not in changed and (spelled != view["text"] or reads):
                    registry.engine.run(_without_columns(spelled, view["database"], view["name"]))
                    changed.add(view["name"])
                    again = True


def _without_columns(text: str, database: str, name: str) -> str:
    """CREATE OR REPLACE VIEW without the list of columns, which ClickHouse then makes of the SELECT."""
    tokens = read(text).tokens
    at = next(i for i, t in enumerate(tokens) if t.upper == "VIEW") + 4
    end = tokens[at - 1].end
    if tokens[at].text == "(":
        end = tokens[matching(tokens, at)].end
    return f"CREATE OR REPLACE VIEW {quote_name(database)}.{quote_name(name)}{text[end:]}"
