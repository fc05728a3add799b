"""What a client of a server sees of ClickHouse's own tables about tables: those that it may ask for.

It is said by `additional_table_filters`, which ClickHouse applies to its system tables wherever a query reads them,
SHOW and information_schema included.
"""

from __future__ import annotations

from collections.abc import Iterable

from clipql.engine.quoting import quote_string
from clipql.serve import allowed
from clipql.serve.foreign import Foreign
from clipql.tables.registry import INTERNAL

# the tables of system that list others, and what they call a database and a table
_LISTS = {
    "tables": ("database", "name"),
    "columns": ("database", "table"),
    "parts": ("database", "table"),
    "data_skipping_indices": ("database", "table"),
    "projections": ("database", "table"),
    "constraints": ("database", "table"),
    "mutations": ("database", "table"),
    "databases": ("name", ""),
    "completions": ("", "word"),
}


def filters(left_out: Iterable[Foreign]) -> str:
    """The value of additional_table_filters, as SQL."""
    names = sorted({each.name for each in left_out})
    entries = []
    for table, (database, name) in _LISTS.items():
        conditions = [f"{database} != {quote_string(INTERNAL)}"] if database else []
        if name and database:
            shown = ", ".join(map(quote_string, sorted(allowed.SYSTEM_TABLES)))
            conditions.append(f"({database} != 'system' OR {name} IN ({shown}))")
        elif name:
            names_here = [INTERNAL, *names]
            conditions.append(f"{name} NOT IN ({', '.join(map(quote_string, names_here))})")
        if name and database and names:
            conditions.append(f"{name} NOT IN ({', '.join(map(quote_string, names))})")
        entries.append(f"{quote_string('system.' + table)}: {quote_string(' AND '.join(conditions))}")
    return "{" + ", ".join(entries) + "}"
