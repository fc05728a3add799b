"""The rule for the nearest of given vectors, asked by groups: labels of pictures, centroids of rows.

    SELECT l.id, argMin(p.label, cosineDistance(l.image_embedding, p.v)) FROM laion AS l, prompts AS p GROUP BY l.id

It is the nearest-neighbour join of each row of `laion` with one row of `prompts`, under the same GROUP BY. What must
stay true: nothing is asked of a group that depends on other pairs than the nearest of each row: only argMin and min of
the distance (argMax and max of dotProduct), and any() of what the groups are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipql.sql.joins.nearest_joins import NearestJoin, Side, all_pairs, columns_of, condition_owners, parted_conditions
from clipql.sql.recognition.calls import FindTable, Source, find_sources
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.lexer import Token
from clipql.syntax.names import FunctionCall
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope

_CLAUSES = {"WITH", "SELECT", "FROM", "WHERE", "GROUP", "ORDER", "LIMIT", "OFFSET", "SETTINGS", "FORMAT"}
# what stands between two tables, without ON and with it, and what ON may say


def recognise_nearest_groups(scope: Scope, find: FindTable) -> NearestJoin | None:
    """The join that a SELECT is, or None."""
    sources, _ = find_sources(scope, find)
    if "GROUP" not in scope.clauses or set(scope.clauses) - _CLAUSES or len(sources) != 2 or not all_pairs(scope):
        return None
    qualifiers = (sources[0].qualifier, sources[1].qualifier)
    keys = condition_owners(scope.within("GROUP"), qualifiers)
    if qualifiers[0] == qualifiers[1] or keys is None or len(keys) != 1 or _nested(scope):
        return None
    owner = keys.pop()
    found = _distances(scope, sources)
    if not found:
        return None
    metric, columns, calls = found
    if not _asks_for_nearest(scope, metric, calls, owner, qualifiers):
        return None
    parted = parted_conditions(scope, qualifiers)
    if parted is None:
        return None
    sides = {s.qualifier: Side(s.table, s.qualifier, columns[s.qualifier], tuple(parted[s.qualifier])) for s in sources}
    other = next(q for q in qualifiers if q != owner)
    places = tuple((scope.tokens[c.at].start, scope.tokens[c.close].end) for c in calls)
    why = "the nearest of a table for each group of another's rows, by argMin or min of their distance"
    return NearestJoin(scope, sides[owner], sides[other], metric, 1, tuple(parted[""]), places, why)


def _nested(scope: Scope) -> bool:
    return any(scope.whole.first < s.whole.first < scope.whole.last for s in read(scope.text).selects)


def _distances(scope: Scope, sources: list[Source]) -> tuple[Metric, dict[str, str], list[FunctionCall]] | None:
    """The one distance that is computed, the column of each table, and where it stands."""
    calls = [c for c in scope.calls if metric_named(c.name)]
    metrics = {metric_named(c.name) for c in calls}
    columns = [columns_of(scope, c.at, c.close + 1, sources) for c in calls]
    named = [{qualifier: column for qualifier, _, column in found} for found in columns if found]
    (metric,) = metrics if len(metrics) == 1 else (None,)
    if metric is None or len(named) != len(calls) or any(n != named[0] for n in named):
        return None
    return metric, named[0], calls


def _asks_for_nearest(
    scope: Scope, metric: Metric, calls: Sequence[FunctionCall], owner: str, qualifiers: tuple[str, ...]
) -> bool:
    """Whether SELECT and ORDER BY ask for nothing of a group but its keys and what its nearest pairs tell."""
    by, best = ("argMax", "max") if metric.larger_is_nearer else ("argMin", "min")
    distances = {(c.at, c.close + 1) for c in calls}
    asked = 0
    for clause in ("SELECT", "ORDER"):
        span = scope.clauses.get(clause)
        at = span.first if span else 0
        while span and at < span.last:
            call = next((c for c in scope.calls if c.at == at), None)
            if call is None:
                if scope.tokens[at].text == "*" and scope.tokens[at - 1].upper in ("SELECT", ",", "."):
                    return False
                at += 1
                continue
            last = call.arguments[-1] if call.arguments else (0, 0)
            of_best = call.name == by and len(call.arguments) == 2 and not _calls_in(scope, call.arguments[0])
            if last in distances and (of_best or (call.name == best and len(call.arguments) == 1)):
                asked += 1
            elif call.name != "any" or _owners(scope.tokens[slice(*last)], qualifiers) != {owner}:
                return False
            at = call.close + 1
    if not asked:
        return False
    outside = [t for c in ("SELECT", "ORDER") for t in _outside(scope, c)]
    return not any(t.name in qualifiers and t.name != owner for t in outside)


def _calls_in(scope: Scope, place: tuple[int, int]) -> bool:
    """Whether something is called there, which might be an aggregate."""
    return any(place[0] <= c.at < place[1] for c in scope.calls)


def _owners(tokens: Sequence[Token], qualifiers: tuple[str, ...]) -> set[str]:
    return condition_owners(tokens, qualifiers) or set()


def _outside(scope: Scope, clause: str) -> list[Token]:
    """The tokens of a clause outside all calls."""
    span = scope.clauses.get(clause)
    inside = [(c.at, c.close + 1) for c in scope.calls]
    return [
        scope.tokens[i]
        for i in (range(span.first, span.last) if span else ())
        if not any(a <= i < b for a, b in inside)
    ]
