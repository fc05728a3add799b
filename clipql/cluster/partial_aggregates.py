"""Aggregate functions in two halves by ClickHouse's own combinators: -State on the shards, -Merge over their states."""

from __future__ import annotations

from dataclasses import dataclass

from clipql.cluster.normal_form import NormalForm
from clipql.engine.embedded import Engine
from clipql.errors import UnsupportedStatement
from clipql.syntax.lexer import matching

# whose value depends on which row comes first: their states are kept apart for each part, and merged in its order
_BY_ORDER = ("any", "first_value", "last_value", "grouparray", "groupuniqarray", "groupconcat", "argmin", "argmax",
             "topk", "deltasum", "exponential", "singlevalue", "largesttriangle")  # fmt: skip


@dataclass(frozen=True)
class Aggregate:
    """A call in a normal form: [first, last) with its name; parameters and arguments as token ranges."""

    name: str
    last: int
    parameters: tuple[int, int] | None
    arguments: tuple[int, int]

    @property
    def by_order(self) -> bool:
        """Whether the order of the rows matters to it."""
        return self.name.lower().startswith(_BY_ORDER)


class PartialAggregates:
    """Which functions aggregate, as ClickHouse lists them."""

    def __init__(self, engine: Engine) -> None:
        names = engine.arrow("SELECT lower(name) FROM system.functions WHERE is_aggregate").column(0)
        self._names = frozenset(names.to_pylist())
        suffixes = engine.arrow("SELECT lower(name) FROM system.aggregate_function_combinators").column(0)
        self._suffixes = tuple(suffixes.to_pylist())

    def call(self, form: NormalForm, at: int) -> Aggregate | None:
        """The aggregate call that begins at a token, if one does; a window function is none."""
        name = form.called(at)
        if name is None or not self._aggregates(name.lower()):
            return None
        close = matching(form.tokens, at + 1)
        parameters, arguments = None, (at + 2, close)
        if close + 1 < len(form.tokens) and form.tokens[close + 1].text == "(":
            parameters, arguments = arguments, (close + 2, matching(form.tokens, close + 1))
            close = arguments[1]
        if close + 1 < len(form.tokens) and form.tokens[close + 1].upper == "OVER":
            return None
        return Aggregate(name, close + 1, parameters, arguments)

    def _aggregates(self, name: str) -> bool:
        while name not in self._names:
            suffix = next((s for s in self._suffixes if name.endswith(s) and len(name) > len(s)), None)
            if suffix is None:
                return False
            name = name[: -len(suffix)]
        return True


def state(form: NormalForm, call: Aggregate) -> str:
    """The call as each shard makes it. Raises UnsupportedStatement for one whose state cannot travel."""
    if call.name.endswith(("Merge", "MergeState", "SimpleState")):
        raise UnsupportedStatement(f"{call.name}() cannot be split over shards: aggregate the values themselves")
    name = call.name if call.name.endswith("State") else f"{call.name}State"
    return f"{name}{_parameters(form, call)}({form.render(*call.arguments)})"


def merge(form: NormalForm, call: Aggregate, column: str) -> str:
    """The value of the call from the states of all shards."""
    ends = call.name.endswith("State")
    name = f"{call.name.removesuffix('State')}MergeState" if ends else f"{call.name}Merge"
    return f"{name}{_parameters(form, call)}({column})"


def _parameters(form: NormalForm, call: Aggregate) -> str:
    return f"({form.render(*call.parameters)})" if call.parameters else ""
