"""A statement under way: its text as it is edited, the tables that edits refer to, what was done, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipql.brief import Brief, short
from clipql.index.base import Cost
from clipql.sql.joins.components import Components
from clipql.sql.joins.pairs import JoinPlan
from clipql.sql.joins.range_joins import RangeJoinPlan
from clipql.sql.numbers.rowwise import RowDistances
from clipql.sql.recognition.plan import Plan
from clipql.syntax.edits import Edit, edited

NO_COST = Cost()


@dataclass(frozen=True, repr=False)
class Step:
    """What was done for one SELECT: the plan, how it ended up (`kind` may be 'as it is' after all), and its cost."""

    plan: Components | Plan | JoinPlan | RangeJoinPlan | RowDistances
    kind: str
    why: str
    cost: Cost = NO_COST
    filtered: int | None = None
    found: int = 0

    def __repr__(self) -> str:
        compared = f", {self.cost.rows_scanned:,} compared" if self.cost.rows_scanned else ""
        return f"Step({self.kind!r}, {self.plan.searched}, {self.found:,} found{compared}, why={short(self.why)})"


@dataclass(frozen=True, repr=False)
class Direct(Brief):
    """A result from the row file. types: ClickHouse's, where it is to be written in another format than Arrow's."""

    table: pa.Table
    types: tuple[str, ...] | None


@dataclass
class Work:
    """A statement being edited, with what the edits refer to."""

    sql: str
    params: dict[str, Any]
    tables: dict[str, pa.Table] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    answer: Direct | None = None

    def edit(self, edits: Sequence[Edit]) -> None:
        self.sql = edited(self.sql, edits)

    def name(self, kind: str) -> str:
        return f"clipql_{kind}_{len(self.params) + len(self.tables)}"

    def keep(self, kind: str, table: pa.Table) -> str:
        """Have the text refer to a table; by the name that this returns."""
        name = self.name(kind)
        self.tables[name] = table
        return name
