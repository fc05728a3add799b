"""Which vector columns a SELECT passes on as they are: so a table that is filled by it knows what made its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from clipql.errors import ModelMismatch
from clipql.sql.recognition.calls import FindTable, column_named, find_sources
from clipql.storage.catalog import Table, VectorColumn
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read


def passed_on(
    select: str, find: FindTable, columns_of: Callable[[Table], Sequence[str]]
) -> dict[int, tuple[Table, VectorColumn]]:
    """The vector columns among what a SELECT gives, by their place in it. Stars are spelled out, or of one table alone.

    columns_of: what the star of a table stands for.
    """
    found = read(select).selects
    scope = found[0] if found and not found[0].nested else None
    if scope is None or scope.whole.start != 0 or scope.whole.end != len(select) or not scope.within("SELECT"):
        return {}
    sources, joined = find_sources(scope, find)
    given: dict[int, tuple[Table, VectorColumn]] = {}
    at = 0
    for first, last in scope.items("SELECT"):
        if scope.tokens[first].upper == "DISTINCT":
            first += 1
        if [t.text for t in scope.tokens[first:last]] == ["*"] and len(sources) == 1 and not joined:
            places = [(n, source.table) for source in sources for n in columns_of(source.table)]
            for name, table in places:
                column = table.column(name)
                if column is not None:
                    given[at] = table, column
                at += 1
            continue
        for a, b in _items(scope.tokens, first, last):
            hidden = frozenset(scope.inner_names)
            known = column_named(scope.tokens, a, _without_alias(scope.tokens, a, b), sources, joined, hidden)
            source = next((s for s in sources if known and s.qualifier == known[1]), None)
            column = source.table.column(known[0]) if source and known else None
            if source is not None and column is not None:
                given[at] = source.table, column
            at += 1
    return given


def check_models(table: Table, origins: Mapping[str, tuple[Table, VectorColumn]], same: Callable[[str], str]) -> None:
    """Raise ModelMismatch where vectors of one model would come to those of another. same: the one name of a model."""
    for name, (origin, column) in origins.items():
        own = table.column(name)
        if own and own.model and column.model and same(own.model) != same(column.model):
            raise ModelMismatch(
                f"{name} of {table.full_name} was filled by the model {own.model}, and {column.name} of "
                f"{origin.full_name} by {column.model}: vectors of two models cannot be compared, name another column"
            )


def _items(tokens: Sequence[Token], first: int, last: int) -> list[tuple[int, int]]:
    """The items that one item of SELECT stands for: those of a list COLUMNS(a, b), or itself."""
    listed = tokens[first].upper == "COLUMNS" and last - first > 3 and matching(tokens, first + 1) == last - 1
    if listed and not any(t.kind == "string" for t in tokens[first:last]):
        return split_list(tokens, first + 2, last - 1)
    return [(first, last)]


def _without_alias(tokens: Sequence[Token], first: int, last: int) -> int:
    if last - first > 2 and tokens[last - 2].upper == "AS":
        return last - 2
    return last
