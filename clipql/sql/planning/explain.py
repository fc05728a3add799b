"""EXPLAIN of a statement with vector searches: what will be done, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence

from clipql.sql.joins.components import Components
from clipql.sql.joins.pairs import JoinPlan
from clipql.sql.joins.range_joins import RangeJoinPlan
from clipql.sql.numbers.rowwise import RowDistances
from clipql.sql.planning.untouched import Untouched
from clipql.sql.recognition.plan import Plan, Weighted, exact_range
from clipql.sql.search.vector_search import doubt, few
from clipql.storage.vectors.devices import CPU, described
from clipql.tables.registry import Registry

# rows a second that a vector column is read at, as docs/benchmarks.md and `plan.ALIAS_COST` have it: 10 to 16 µs a row
# through the ALIAS column; 50 ns a row of 512 numbers in the kernels, which read at memory speed
AS_IT_IS, SCANNED = 60_000, 20_000_000
# distances of two columns of a row: both at memory speed, and 0.2 µs for ClickHouse to ask for each, or less to find it
BY_ROW, AT_ONCE = 2_000_000, 5_000_000
# pairs a second of a range join on two cores
PAIRS = 100_000_000


def describe(
    plans: Sequence[Components | Plan | JoinPlan | RangeJoinPlan | RowDistances | Untouched],
    registry: Registry | None = None,
) -> list[str]:
    """The lines that EXPLAIN shows, one search after the other, outer ones first.

    registry: knows the codes that an exact scan may rule rows out by.
    """
    lines: list[str] = []
    for plan in plans:
        if isinstance(plan, Untouched):
            lines += _untouched(plan)
        elif isinstance(plan, Components):
            lines += [f"Connected components of {' '.join(plan.pairs.split())}", "  by: union-find, as the pairs come"]
        elif isinstance(plan, RangeJoinPlan):
            lines += _range_join(plan)
        elif isinstance(plan, RowDistances):
            lines += _by_row(plan)
        else:
            lines += _join(plan) if isinstance(plan, JoinPlan) else _one(plan, registry)
    return lines


def _untouched(plan: Untouched) -> list[str]:
    what = "compares every pair of rows" if plan.pairs else "reads each vector"
    tables = (f"  table: {s.table.full_name} ({s.table.rows:,} rows)" for s in plan.sources)
    return [f"No vector plan: ClickHouse {what}", *tables, f"  as it is, because {plan.why}", _SLOW]


def _range_join(plan: RangeJoinPlan) -> list[str]:
    join = plan.join
    at = "at least" if join.metric.larger_is_nearer else "at most"
    lines = [f"Range join ({join.metric.value} {at} {plan.bound:g})"]
    for side in join.sides:
        rows = f"{side.table.rows:,} rows" if side.given is None else "vectors that FROM gives"
        lines.append(f"  rows of: {side.named} ({rows}), {side.column}")
        if side.filter:
            lines.append(f"    filter first: {' '.join(side.filter.split())}")
    pairs = join.left.table.rows * join.right.table.rows
    if join.left.table is join.right.table and join.left.column == join.right.column:
        pairs //= 2
    if join.kept:
        kept = " AND ".join(" ".join(join.scope.text_of(*place).split()) for place in join.kept)
        lines.append(f"  pairs must meet: {kept}")
    known = join.left.given is None and join.right.given is None
    counted, takes = (
        (f"; {pairs:,} pairs, fewer after a filter", f": about {pairs / PAIRS:,.0f} s") if known else ("", "")
    )
    return [
        *lines,
        f"  exact: products of matrices in slices{counted}",
        *_device(plan.device, plan.products),
        f"  why: {plan.why}",
        f"  speed: {PAIRS:,} pairs of 512 numbers a second and more{takes}",
    ]


def _by_row(plan: RowDistances) -> list[str]:
    lines = ["Numbers of the vectors of each row"]
    for call in plan.calls:
        table, named = call.source.table, ", ".join(c.name for c in call.columns)
        lines.append(f"  {call.function}({named}) of {table.full_name} ({table.rows:,} rows)")
    lines = [*dict.fromkeys(lines)]
    how = "all at once" if plan.leaving == () else "in blocks, of the rows that are left when they are asked for"
    return [*lines, f"  {how}", f"  why: {plan.why}", _AT_ONCE if plan.leaving == () else _BY_ROW]


_SLOW = f"  speed: about {AS_IT_IS:,} rows a second that it reads vectors of"
_FAST = f"  speed: memory speed, about {SCANNED:,} vectors of 512 numbers a second; fewer are read with an index"


_AT_ONCE = f"  speed: about {AT_ONCE:,} rows of two vectors of 512 numbers a second"
_BY_ROW = f"  speed: about {BY_ROW:,} rows of two vectors of 512 numbers a second"


def _join(plan: JoinPlan) -> list[str]:
    join = plan.join
    if plan.kind == "as it is":
        return ["No vector plan: ClickHouse compares every pair of rows", f"  as it is, because {plan.why}", _SLOW]
    lines = [f"Nearest-neighbour join (n = {join.k})"]
    for side, what in ((join.each, "for each row of"), (join.near, "the nearest of")):
        rows = f"{side.table.rows:,} rows" if side.given is None else "query vectors that FROM gives"
        lines.append(f"  {what}: {side.named} ({rows}), {side.column}")
        if side.filter:
            lines.append(f"    filter first: {' '.join(side.filter.split())}")
    lines.append(f"  by: {join.metric.value}")
    entry, knobs = plan.chosen.entry, ", ".join(f"{k} = {v:g}" for k, v in plan.knobs.items())
    if entry is None or plan.chosen.index is None:
        lines.append(f"  index: none, one exact pass for all; {plan.chosen.why}")
    else:
        lines.append(f"  index: {entry.name} ({entry.kind}, {entry.metric}{', ' + knobs if knobs else ''})")
    if plan.chosen.index is None:
        lines += _device(plan.device, plan.products)
    if join.mixed:
        lines.append(f"  pairs must meet: {' AND '.join(' '.join(c.split()) for c in join.mixed)}")
        lines.append("    rows whose nearest ones do not are compared with all that do")
    return [*lines, f"  why: {plan.why}", _FAST]


def _one(plan: Plan, registry: Registry | None) -> list[str]:
    select = plan.select
    table = select.table
    titles = {
        "top-k": f"Top-k search (k = {plan.k})",
        "range": "Range search",
        "distances": "Distances of all rows",
        "as it is": "No vector plan: ClickHouse reads each vector",
    }
    lines = [titles[plan.kind], f"  table: {table.full_name} ({table.rows:,} rows)"]
    for name in dict.fromkeys(c.column for c in select.calls):
        column = table.column(name)
        if column:
            stored = ", ".join(dict.fromkeys(s.dtype for s in column.segments)) or "empty"
            lacking = f"; {column.absence}" if column.absent else ""
            lines.append(f"  column: {name} ({column.dimension or '?'} numbers, {stored}{lacking})")
    if plan.terms:
        lines.append(f"  smallest: {_formula(plan.terms)}")
    if plan.kind == "range":
        lines.append(f"  up to: {plan.radius:g}")
    if plan.kind in ("top-k", "range"):
        lines.append(f"  index: {_index(plan, registry)}")
    if plan.kind == "top-k" and plan.chosen.index is None and plan.device != CPU:
        lines.append(f"  device: {plan.device}, where many query vectors are asked for at once")
    if plan.filter:
        lines.append(f"  filter first: {' '.join(plan.filter.split())}")
        if plan.kind == "top-k":
            name = plan.terms[0].call.column if plan.terms else ""
            store = registry.store(table, name) if registry and name else None
            most = f"at most {few(plan, store):,} rows left: just those are compared"
            skips = (
                "the index skips the others" if plan.chosen.index and not doubt(plan) else "the scan skips the others"
            )
            lines.append(f"    {most}; more: {skips}")
    if plan.kept:
        lines.append(f"  then keep: {' AND '.join(' '.join(c.text.split()) for c in plan.kept)}")
    lines.append(f"  why: {plan.why}")
    lines.append(_SLOW if plan.kind == "as it is" else _FAST)
    if plan.kind in ("top-k", "range"):
        lines.append("  then: ClickHouse fetches the rows by number and does the rest")
    return lines


def _device(setting: str, products: float) -> list[str]:
    """The line that names the device of products; none where no other than the processor is asked for."""
    named = described(setting, products)
    return [f"  device: {named}"] if named else []


def by_index(plan: object) -> bool:
    """Whether an index answers, which may miss rows; else all are compared."""
    return (
        isinstance(plan, Plan) and plan.kind in ("top-k", "range") and plan.chosen.index is not None and not doubt(plan)
    )


def _bounds(plan: Plan, registry: Registry | None) -> str:
    """How a scan is spared most rows, empty where it is not."""
    if registry is None or not plan.codes or len(plan.terms) != 1:
        return ""
    table, column = plan.select.table, plan.terms[0].call.column
    file = registry.codes.ready(table, column, registry.store(table, column))
    if file is None:
        return ""
    newer = f", {table.rows - file.rows:,} newer rows are scanned" if file.rows < table.rows else ""
    size = file.coder.row_bytes
    return f" of codes of {size} bytes, proven by bounds: rows that they do not rule out are compared{newer}"


def _scan(plan: Plan, registry: Registry | None) -> str:
    return f"none, an exact scan on all cores{_bounds(plan, registry)}"


def _index(plan: Plan, registry: Registry | None) -> str:
    entry, index = plan.chosen.entry, plan.chosen.index
    if entry is None or index is None:
        return _scan(plan, registry) + (f"; {plan.chosen.why}" if plan.chosen.why else "")
    doubtful = doubt(plan)
    if doubtful:
        return f"{_scan(plan, registry)}; {entry.name} ({entry.kind}, {entry.metric}): {doubtful}"
    exact = plan.kind == "range" and exact_range(plan.knobs)
    if exact and _bounds(plan, registry):
        return (
            f"{_scan(plan, registry)}; those are closer than the bounds of {entry.name} ({entry.kind}, {entry.metric})"
        )
    knobs = ", ".join(f"{k} = {v:g}" for k, v in plan.knobs.items())
    tail = plan.select.table.rows - index.rows_covered
    newer = f"; {tail:,} newer rows are scanned" if tail else ""
    compared = "; exact: rows that its codes do not rule out are compared" if exact else ""
    others = f"; {len(entry.changed):,} rows with other vectors are compared" if entry.changed else ""
    return f"{entry.name} ({entry.kind}, {entry.metric}{', ' + knobs if knobs else ''}){compared}{newer}{others}"


def _formula(terms: Sequence[Weighted]) -> str:
    return " + ".join(
        f"{'' if t.weight == 1 else f'{t.weight:g} × '}{t.call.metric.value}({t.call.column}, query vector)"
        for t in terms
    )
