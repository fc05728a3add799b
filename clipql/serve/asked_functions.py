"""hostName() and hasColumnInTable(), which ask for what is the server's to tell, as what it tells.

ClickHouse's own would tell the machine's name, and look into tables that whoever asks may not see, here or on other
servers. What must stay true: what stands in a call's place passes the guard like anything else of the statement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read
from clipql.tables.registry import INTERNAL

NAMED = re.compile(r"host_?name|hasColumnInTable", re.I)
# what every server calls itself
HOST = "clipql"
# how often a statement may ask for a column, as each call is written out
_MOST = 64


def answered(sql: str) -> str:
    """The statement with an expression in the place of each call. Raises QueryError for calls that are not answered."""
    if not NAMED.search(sql):
        return sql
    tokens, edits = read(sql).words, list[Edit]()
    for at in range(len(tokens) - 2):
        name, called = tokens[at].name or "", tokens[at + 1].text == "("
        if not called or (at and tokens[at - 1].text == "."):
            continue
        if name.lower() == "hostname":
            end = matching(tokens, at + 1)
            if end == at + 2:
                edits.append((tokens[at].start, tokens[end].end, _named(quote_string(HOST), tokens, at, end, sql)))
        elif name == "hasColumnInTable":
            end = matching(tokens, at + 1)
            text = _has_column(tokens, at + 2, end)
            edits.append((tokens[at].start, tokens[end].end, _named(text, tokens, at, end, sql)))
        if len(edits) > _MOST:
            raise QueryError(f"AST is too big: more than {_MOST} calls of {name}()", code=168, name="TOO_BIG_AST")
    return edited(sql, edits)


def _named(text: str, tokens: Sequence[Token], first: int, last: int, sql: str) -> str:
    """An expression under the name that the call's column would have."""
    return f"({text} AS {quote_name(sql[tokens[first].start : tokens[last].end])})"


def _has_column(tokens: Sequence[Token], first: int, last: int) -> str:
    """Whether a table has a column, from ClickHouse's table of columns, which shows what whoever asks may see."""
    given = [tokens[a].value if b == a + 1 else None for a, b in split_list(tokens, first, last)]
    texts = [None if value is None else value.decode("utf-8", "replace") for value in given]
    if len(texts) != 3 or None in texts:
        raise QueryError(
            "hasColumnInTable() is answered for a database, a table and a column of this server, each as a string",
            code=43,
            name="ILLEGAL_TYPE_OF_ARGUMENT",
        )
    if texts[0] == INTERNAL:
        raise QueryError(f"Table {texts[0]}.{texts[1]} does not exist", code=60, name="UNKNOWN_TABLE")
    database, table, column = (quote_string(text or "") for text in texts)
    where = f"database = {database} AND table = {table}"
    missing = f"throwIf(count() = 0, {quote_string(f'Table {texts[0]}.{texts[1]} does not exist')})"
    return f"(SELECT toUInt8(countIf(name = {column}) + {missing} > 0) FROM system.columns WHERE {where})"
