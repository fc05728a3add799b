"""What a SELECT asks of vector columns: which distances, ordered how, limited and filtered by what.

Recognition is by shape and from the text alone; it never guesses. Where a SELECT has a distance to a vector column but
its shape is not one that can be planned, `why_not` says so in a few words for EXPLAIN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipql.brief import Brief
from clipql.engine.quoting import quote_name
from clipql.sql.recognition.affine import Affine, Parser
from clipql.sql.recognition.calls import (
    Call,
    FindTable,
    find_calls,
    find_sources,
    has_outer_join,
)
from clipql.sql.recognition.clauses import Condition, read_conditions, read_limit, read_order
from clipql.storage.catalog import Table
from clipql.syntax.once import once
from clipql.syntax.scopes import Scope


@dataclass(frozen=True, repr=False)
class VectorSelect(Brief):
    """A SELECT over a table with vector columns that computes distances to one or more of them.

    order: the sum of distances it sorts by, and whether the largest comes first. limit: texts of LIMIT and OFFSET.
    aliases: the texts of the expressions it names. why_not: why it cannot be searched for its top rows, or None.
    """

    scope: Scope
    table: Table
    qualifier: str
    joined: bool
    calls: tuple[Call, ...]
    order: Affine | None
    descending: bool
    limit: str | None
    offset: str | None
    conditions: tuple[Condition, ...]
    aliases: Mapping[str, str]
    why_not: str | None

    @property
    def qualifier_sql(self) -> str:
        """What to write before a column of this table."""
        return quote_name(self.qualifier) + "."

    @once
    def ordered_alone(self) -> bool:
        """Whether ORDER BY has one item."""
        return len(self.scope.items("ORDER")) == 1


def recognise(scope: Scope, find: FindTable) -> VectorSelect | None:
    """The vector work in a SELECT, or None where it has none."""
    sources, joined = find_sources(scope, find)
    if not sources:
        return None
    names = {s.qualifier for s in sources}
    if has_outer_join(scope) or len(names) < len(sources) or names & scope.aliases.keys():
        return None
    if any(t.upper == "ARRAYJOIN" for t in (*scope.within("WHERE"), *scope.within("PREWHERE"), *scope.within("ORDER"))):
        return None
    spans = scope.aliases
    calls = find_calls(scope, sources, joined, frozenset(spans))
    if not calls or len({c.qualifier for c in calls}) > 1:
        return None
    source = next(s for s in sources if s.qualifier == calls[0].qualifier)
    if _misread(scope, calls, spans):
        return None
    places = {c.first: (c.same, c.last) for c in calls}
    parser = Parser(scope.tokens, places, lambda token: spans.get(token.name or ""))
    order, descending, odd_order = read_order(scope, parser)
    limit, offset, odd_limit = read_limit(scope)
    why_not = odd_order or odd_limit or _blocks_top(scope, joined)
    if not why_not and order is None:
        why_not = "it is not sorted by a distance"
    if not why_not and limit is None:
        why_not = "it has no LIMIT"
    return VectorSelect(
        scope=scope,
        table=source.table,
        qualifier=source.qualifier,
        joined=joined,
        calls=calls,
        order=order,
        descending=descending,
        limit=limit,
        offset=offset,
        conditions=read_conditions(scope, calls, parser),
        aliases={n: scope.text_of(*span) for n, span in spans.items()},
        why_not=why_not,
    )


def _misread(scope: Scope, calls: tuple[Call, ...], spans: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a name in the SELECT may mean another thing than this module would take it for."""
    if scope.inner_names or scope.lambda_arguments & {c.column for c in calls}:
        return True
    # an alias in WHERE that is made of aliases: ClickHouse may mean the columns of those names
    filtered_by = {t.name for clause in ("WHERE", "PREWHERE") for t in scope.within(clause) if t.name} & spans.keys()
    return any(t.name in spans for name in filtered_by for t in scope.tokens[slice(*spans[name])] if t.name)


def _blocks_top(scope: Scope, joined: bool) -> str | None:
    """Why the rows of the answer are not simply the first rows of the sorted table."""
    if joined:
        return "it reads more than one plain table"
    for clause in ("GROUP", "HAVING", "WINDOW", "QUALIFY"):
        if clause in scope.clauses:
            return f"it has {clause}"
    select = scope.within("SELECT")
    if select and select[0].upper == "DISTINCT":
        return "it has DISTINCT"
    if any(t.upper in ("OVER", "ARRAYJOIN") for t in select):
        return "it has a window function or arrayJoin"
    return None
