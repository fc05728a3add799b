"""How a recognised SELECT is to be carried out. Planning reads no vectors; it decides, and says why.

top-k       ORDER BY distance LIMIT k: search, then let ClickHouse fetch and shape just those rows
range       WHERE distance < r: search, then the same
distances   any other use: compute the distance of every row at once, and hand ClickHouse the numbers
as it is    ClickHouse reads each vector through its ALIAS column: right, at about 100,000 rows a second
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipql.brief import Brief, short
from clipql.errors import VectorError
from clipql.index import kinds
from clipql.sql.recognition.calls import Call
from clipql.sql.recognition.clauses import Condition
from clipql.sql.recognition.constants import Constants, QueryVector
from clipql.sql.recognition.identity import Origins
from clipql.sql.recognition.recognise import VectorSelect
from clipql.sql.recognition.settings import SearchOptions
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors.devices import CPU
from clipql.syntax.once import once
from clipql.syntax.reading import read
from clipql.tables.computed import LENGTH
from clipql.tables.indexes import Chosen, Indexes
from clipql.tables.registry import NUMBERS, ROW

# A row costs about 10 µs through its ALIAS column and 50 ns in the kernels
ALIAS_COST = 200
SMALL_TABLE = 1_000
# one Float32 a row is held in memory for `distances`
MOST_DISTANCES = 1 << 25
LARGEST_K = 1_000_000
NOT_CHOSEN = Chosen(None, None, "")
# naming more rows than this, or than one of so many, costs ClickHouse more than the distances of all
LARGEST_RANGE, FEW_OF_RANGE = 5_000, 50


@dataclass(frozen=True, repr=False)
class Weighted(Brief):
    """A distance call, its weight in the sum that is searched by, and its query vector."""

    call: Call
    weight: float
    vector: QueryVector


@dataclass(frozen=True, repr=False)
class Plan:
    """kind: 'top-k', 'range', 'distances' or 'as it is', and why.

    terms: the sum whose smallest values are wanted. k: rows wanted, OFFSET included; page: without it.
    radius: largest value of the sum.
    filter: the conditions that do not mention a distance, joined by AND. kept: those that do. vectors: the query
    vector of each call of the select. codes: whether an exact scan may rule rows out by codes. device: what the setting
    says, for many query vectors at once.
    """

    select: VectorSelect
    kind: str
    why: str
    terms: tuple[Weighted, ...] = ()
    k: int = 0
    page: int = 0
    radius: float = 0.0
    filter: str | None = None
    kept: tuple[Condition, ...] = ()
    vectors: tuple[QueryVector, ...] = ()
    chosen: Chosen = NOT_CHOSEN
    knobs: Mapping[str, float] = field(default_factory=dict)
    codes: bool = True
    device: str = CPU

    def __repr__(self) -> str:
        k = f", k={self.k}" if self.k else ""
        return f"Plan({self.kind!r}, {self.searched}{k}, why={short(self.why)})"

    @property
    def searched(self) -> str:
        """The table and its vector columns that it is about, in words."""
        return f"{self.select.table.full_name}: {', '.join(c.name for c in self.columns)}"

    @once
    def columns(self) -> tuple[VectorColumn, ...]:
        """The vector columns it searches."""
        table = self.select.table
        found = (table.column(name) for name in dict.fromkeys(c.column for c in self.select.calls))
        return tuple(c for c in found if c)


def plan(
    select: VectorSelect, constants: Constants, indexes: Indexes, options: SearchOptions, origins: Origins
) -> Plan:
    """Choose. Raises VectorError where a query vector has another length than the column, ModelMismatch where it is
    another model's."""
    for call in select.calls:
        origins.check(select, call)
    found = _plan(select, constants)
    if found.kind not in ("top-k", "range"):
        return found
    chosen = _choose(found, indexes, options) if options.index else Chosen(None, None, "vector_index = 0")
    knobs = kinds.knobs_for(chosen.entry, options.knobs) if chosen.index and chosen.entry else {}
    if chosen.index and options.routes:
        chosen = dataclasses.replace(chosen, index=kinds.routed(chosen.index, options.routes))
    return dataclasses.replace(found, chosen=chosen, knobs=knobs, codes=options.codes, device=options.device)


def _choose(plan: Plan, indexes: Indexes, options: SearchOptions) -> Chosen:
    """The index to search with: one can serve a single distance, nearest rows first.

    A condition decides which rows there are, so it is exact, unless the statement says what recall is enough for it: an
    index can only rule rows out.
    """
    if len(plan.terms) != 1:
        return Chosen(None, None, "several distances are added up")
    term = plan.terms[0]
    if (term.weight < 0) != term.call.metric.larger_is_nearer:
        return Chosen(None, None, "the farthest rows are asked for")
    chosen = indexes.choose(plan.select.table, term.call.column, term.call.metric)
    if chosen.index is not None and plan.kind == "range" and exact_range(options.knobs) and not chosen.index.has_bounds:
        return Chosen(None, None, "a WHERE is exact, unless recall is set below 1")
    return chosen


def exact_range(knobs: Mapping[str, Any]) -> bool:
    """Whether a range is exact: it is, unless the statement says what recall is enough."""
    return float(knobs.get("recall", 1)) >= 1


def _plan(select: VectorSelect, constants: Constants) -> Plan:
    vectors: list[QueryVector] = []
    for call in select.calls:
        vector = constants.vector(call.argument, select.scope.withs, _without_calls(select))
        if vector is None:
            return Plan(select, "as it is", f"{_short(call.argument)} is not a constant vector")
        _check_length(select, call, vector)
        vectors.append(vector)
    if select.table.rows == 0:
        return Plan(select, "as it is", "the table is empty")
    found = _top(select, constants, tuple(vectors))
    return found if isinstance(found, Plan) else _range(select, constants, tuple(vectors), found)


def _without_calls(select: VectorSelect) -> dict[str, str]:
    """Named expressions that a constant may use: those without a distance in them."""
    calls = [select.scope.text[c.start : c.end] for c in select.calls]
    return {name: text for name, text in select.aliases.items() if not any(c in text for c in calls)}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "…"


def _check_length(select: VectorSelect, call: Call, vector: QueryVector) -> None:
    column = select.table.column(call.column)
    expected = column.dimension if column else None
    if expected is not None and len(vector.values) != expected:
        raise VectorError(
            f"{call.column} of {select.table.full_name} holds {expected} numbers; the query vector "
            f"{_short(call.argument)} has {len(vector.values)}"
        )


def _top(select: VectorSelect, constants: Constants, vectors: tuple[QueryVector, ...]) -> Plan | str:
    """A top-k plan, or why there is none."""
    if select.why_not or select.order is None or select.limit is None:
        return select.why_not or "it has no LIMIT"
    limit = constants.number(select.limit)
    offset = constants.number(select.offset) if select.offset else 0.0
    if limit is None or offset is None or limit != int(limit) or offset != int(offset) or limit < 1 or offset < 0:
        return "its LIMIT is not a whole number of rows"
    if limit + offset > LARGEST_K:
        return f"its LIMIT is more than {LARGEST_K:,} rows"
    sign = -1.0 if select.descending else 1.0
    same = frozenset(select.order.weights.items())
    searched = {select.calls[i].column for i in select.order.weights}
    plain, kept = [], []
    for condition in select.conditions:
        if not condition.calls:
            plain += [] if _is_implied(select, condition.text, searched) else [condition.text]
        elif condition.bound and _same_way(condition, same, sign):
            kept.append(condition)
        else:
            return "a condition on a distance is not on the one it is sorted by"
    return Plan(
        select,
        "top-k",
        "sorted by a distance, with a LIMIT",
        terms=tuple(Weighted(select.calls[i], sign * w, vectors[i]) for i, w in select.order.weights.items()),
        k=int(limit + offset),
        page=int(limit),
        filter=_joined(plain),
        kept=tuple(kept),
        vectors=vectors,
    )


def _is_implied(select: VectorSelect, text: str, searched: set[str]) -> bool:
    """Whether a condition is that a row has a vector of a column that is searched, as what is found has."""
    said = [t.value or t.name or t.text for t in read(text).tokens]
    while said[:1] == ["("] and said[-1:] == [")"]:
        said = said[1:-1]
    for column in (c for c in select.table.columns if c.name in searched):
        told = f"{LENGTH} {select.table.id}/{column.folder}".encode()  # as `rowwise` writes it
        row = [select.qualifier, ".", ROW, ")", ")", ">", "0"]
        if said == ["assumeNotNull", "(", NUMBERS["UInt64"], "(", told, ",", *row]:
            return not select.joined
    return False


def _joined(conditions: list[str]) -> str | None:
    return " AND ".join(f"({c})" for c in conditions) or None


def _same_way(condition: Condition, order: frozenset[tuple[int, float]], sign: float) -> bool:
    """Whether a bound keeps the first rows of the order: then it can be applied to what the search found."""
    bound = condition.bound
    if bound is None or len(bound.form.weights) != 1 or len(order) != 1:
        return False
    (call, weight), (sorted_by, ordered) = next(iter(bound.form.weights.items())), next(iter(order))
    if call != sorted_by:
        return False
    below = bound.op.startswith("<")
    return (weight > 0) == (ordered * sign > 0) if below else (weight < 0) == (ordered * sign > 0)


def _range(select: VectorSelect, constants: Constants, vectors: tuple[QueryVector, ...], why: str) -> Plan:
    plain = [c.text for c in select.conditions if not c.calls]
    kept = tuple(c for c in select.conditions if c.calls)
    for condition in kept:
        bound = condition.bound
        if bound is None:
            continue
        value = constants.number(bound.value, select.scope.withs, _without_calls(select))
        if value is None:
            continue
        sign = 1.0 if bound.op.startswith("<") else -1.0
        searched = {select.calls[i].column for i in bound.form.weights}
        return Plan(
            select,
            "range",
            f"a bound on a distance; {why}",
            terms=tuple(Weighted(select.calls[i], sign * w, vectors[i]) for i, w in bound.form.weights.items()),
            radius=sign * (value - bound.form.constant),
            filter=_joined([p for p in plain if not _is_implied(select, p, searched)]),
            kept=kept,
            vectors=vectors,
        )
    return _distances(select, vectors, why, _joined(plain), kept)


def _distances(
    select: VectorSelect, vectors: tuple[QueryVector, ...], why: str, filter: str | None, kept: tuple[Condition, ...]
) -> Plan:
    if select.table.rows < SMALL_TABLE:
        return Plan(select, "as it is", f"the table is small; {why}")
    if select.table.rows > MOST_DISTANCES:
        return Plan(select, "as it is", f"more than {MOST_DISTANCES:,} rows; {why}")
    clauses = select.scope.clauses
    if "LIMIT" in clauses and not clauses.keys() & {"ORDER", "GROUP", "WHERE", "PREWHERE"}:
        return Plan(select, "as it is", f"only the rows of LIMIT are read; {why}")
    return Plan(select, "distances", why, filter=filter, kept=kept, vectors=vectors)
