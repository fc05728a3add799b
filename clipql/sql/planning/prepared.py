"""Statements that come again: what was read and planned once is bound to new values, and searched.

A statement is known by its text without its literal vectors (`syntax/skeleton.py`). What must stay true: a prepared
statement gives what reading it anew would give. So it is kept only where the row file gave the whole answer of a single
search, and it holds for one state of the catalog, one user's settings and one set of definitions; whatever does not fit
is read anew.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from clipql.encode.service import TEXT, Encoders
from clipql.engine.embedded import Engine
from clipql.errors import QueryCancelled, QueryError, VectorError
from clipql.index.base import Candidates
from clipql.sql.planning.batch_search import search_each, stacked
from clipql.sql.planning.execution import Execution
from clipql.sql.planning.together import Together
from clipql.sql.planning.work import Direct, Step, Work
from clipql.sql.recognition.constants import Constants, QueryVector, checked, of_parameter, parameter_named
from clipql.sql.recognition.encode_calls import Encoded
from clipql.sql.recognition.plan import LARGEST_K, Plan
from clipql.sql.search.direct import Item, answer
from clipql.sql.search.filters import FilterMemory
from clipql.storage.catalog import Catalog
from clipql.syntax.recent import Recent
from clipql.syntax.skeleton import LONGEST, Skeleton, certain, skeleton
from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry

T = TypeVar("T")

Found = tuple[Direct, tuple[Step, ...]]

MOST = 256  # statements kept
_LONGEST_COUNT = 200  # letters of a LIMIT that is read here
_PARAMETER = re.compile(r"\{\s*(\w+)\s*:\s*([^{}]+?)\s*\}")
_VECTOR_PARAMETER = re.compile(r"\{\s*(\w+)\s*:\s*Array\(Float(?:32|64)\)\s*\}")
_COUNT = re.compile(r"\{\s*(\w+)\s*:\s*U?Int(?:8|16|32|64)\s*\}|(\d+)")


@dataclass(frozen=True)
class Asked:
    """A statement as it was asked: its text without its literal vectors, those, and what else its meaning rests on."""

    key: Hashable
    known: Skeleton
    text: str

    @property
    def literals(self) -> tuple[str, ...]:
        """The literal vectors, as they are written."""
        return self.known.literals


@dataclass(frozen=True)
class Bound:
    """Where the query vector of a call comes from: a literal by its number, or an expression over parameters."""

    literal: int | None
    text: str


@dataclass(frozen=True)
class Prepared:
    """A planned SELECT with places for its values.

    groups: numbers of literals that must be the same text, as the statement repeats one vector. encoded: what
    encode_text and encode_image gave, by the parameter that holds it: the function, the parameter that was its
    argument and the model.
    """

    plan: Plan
    items: tuple[Item, ...]
    bound: tuple[Bound, ...]
    groups: tuple[tuple[int, ...], ...]
    encoded: Mapping[str, tuple[str, str, str]]
    constants: Mapping[str, Any]
    sql: str
    catalog: Catalog
    changes: int
    format: str
    types: tuple[str, ...] | None

    @functools.cached_property
    def vector(self) -> tuple[str, bool] | None:
        """The parameter that is the one query vector, and whether it is of Float32; None where there are others."""
        match = _VECTOR_PARAMETER.fullmatch(self.bound[0].text) if len(self.bound) == 1 else None
        return None if match is None or self.bound[0].literal is not None else (match[1], "Float32" in match[0])

    def kind(self, given: Mapping[str, Any]) -> Hashable:
        """What sets of parameters have in common that differ in the query vector alone; None where that is not known.

        given: with what words and pictures are encoded as, which then stands for them.
        """
        if self.vector is None:
            return None
        vector = self.vector[0]
        if len(given) == 1 and vector in given:  # nearly always
            return id(self), ()
        apart = {argument for _, argument, _ in self.encoded.values()}
        rest = [(n, v) for n, v in given.items() if n != vector and n not in apart]
        if not all(isinstance(v, (str, int, float, bool, type(None))) for _, v in rest):
            return None
        return id(self), tuple((n, repr(v)) for n, v in rest)

    def of_one_kind(self, given: Sequence[Mapping[str, Any]]) -> bool:
        """Whether sets of parameters differ in the query vector alone."""
        kinds = {self.kind(each) for each in given}
        return len(kinds) == 1 and None not in kinds


class Repeats:
    """The prepared statements of a database, whoever asks them. Thread-safe.

    memory: the masks of conditions, which are shared alike.
    """

    def __init__(self, registry: Registry, indexes: Indexes, encoders: Encoders) -> None:
        self._registry, self._indexes, self._encoders = registry, indexes, encoders
        self.memory = FilterMemory(registry)
        self._engine: Engine = registry.engine
        self._together: Together[Mapping[str, Any], Found | None] = Together()
        self._kept: Recent[Hashable, Prepared] = Recent(MOST)

    def asked(self, sql: str, format: str, settings: Mapping[str, str], params: Mapping[str, Any]) -> Asked | None:
        """The statement as it is looked up; None for one that is never kept."""
        if len(sql) > LONGEST:
            return None
        known = skeleton(sql)
        acting = self._engine.acting
        key = (
            known.key,
            format,
            tuple(settings.items()),
            tuple(acting.user.statements),
            frozenset(acting.user.hidden),
            tuple(acting.settings.items()),
            self._registry.database,
            frozenset(params),
        )
        return Asked(key, known, sql)

    def find(self, asked: Asked) -> Prepared | None:
        """What was kept for a statement, if it still holds."""
        found = self._kept.find(asked.key)
        if found is None:
            return None
        if self.holds(found):
            return found
        self._kept.forget(asked.key, found)
        return None

    def holds(self, prepared: Prepared) -> bool:
        """Whether nothing has changed since a statement was prepared."""
        return prepared.catalog is self._registry.catalog and prepared.changes == self._registry.changes

    def keep(self, asked: Asked, prepared: Prepared) -> None:
        """Keep a statement; the one that was asked for the longest time ago goes."""
        self._kept.keep(asked.key, prepared)

    def values(self, prepared: Prepared, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters with what they are encoded as; None where the statement must be read anew."""
        given = dict(params)
        for name, (function, argument, model) in prepared.encoded.items():
            value = params.get(argument)
            if not isinstance(value, str):
                return None
            if function == TEXT:
                given[name] = self._encoders.texts([value], model)[0]
            else:
                given[name] = self._encoders.picture(self._encoders.as_picture(value.encode()), model)
        given.update(prepared.constants)
        return given

    def answer(self, prepared: Prepared, literals: Sequence[str], given: Mapping[str, Any]) -> Found | None:
        """As `run`, in turn with other threads, or together with what they ask."""

        def alone(given: Mapping[str, Any]) -> Found | None:
            with self._registry.gate.reading():
                return self.run(prepared, literals, given) if self.holds(prepared) else None

        def each(given: Sequence[Mapping[str, Any]]) -> Sequence[Found | None] | None:
            with self._registry.gate.reading():
                return self.run_many(prepared, given, on_all_cores=False) if self.holds(prepared) else None

        return self._together.ask(prepared.kind(given), given, alone, each)

    def run(self, prepared: Prepared, literals: Sequence[str], given: Mapping[str, Any]) -> Found | None:
        """The answer for these values; None where the statement must be read anew. Hold the gate.

        Raises VectorError where a query vector has another length than its column, or is not finite.
        """
        if any(len({literals[i] for i in group}) > 1 for group in prepared.groups):
            return None
        plan = self._plan(prepared, literals, given)
        if plan is None:
            return None
        work = Work(prepared.sql, dict(given))
        fetch = partial(self._fetched, plan, prepared, given)
        Execution(self._registry, self._indexes.rows, self.memory, plan, work).run(fetch)
        return None if work.answer is None else (work.answer, tuple(work.steps))

    def run_many(
        self, prepared: Prepared, given: Sequence[Mapping[str, Any]], *, on_all_cores: bool = True
    ) -> list[Found | None] | None:
        """The answers for many sets of values of one kind, None for those that are to be asked alone; None where all
        are. Hold the gate.
        """
        plan = self._plan(prepared, (), given[0]) if prepared.vector else None
        if prepared.vector is None or plan is None:
            return None
        name, narrow = prepared.vector
        vectors = stacked([g[name] for g in given], narrow=narrow)
        if vectors is None or vectors.shape[1] != len(plan.vectors[0].values):
            return None
        execution = Execution(self._registry, self._indexes.rows, self.memory, plan, Work(prepared.sql, dict(given[0])))
        offset = _count(plan.select.offset or "0", given[0]) or 0
        try:
            found = search_each(
                self._registry, self._indexes, plan, execution, prepared.items, vectors, offset, on_all_cores
            )
        except QueryCancelled:
            raise
        except QueryError:  # what is wrong, the statement itself will say
            return None
        if found is None:
            return None
        return [None if one is None else (Direct(one[0], prepared.types), (one[1],)) for one in found]

    def _plan(self, prepared: Prepared, literals: Sequence[str], given: Mapping[str, Any]) -> Plan | None:
        """The plan with these values in their places."""
        plan, constants = prepared.plan, Constants(self._engine, given)
        vectors: list[QueryVector] = []
        for call, bound in zip(plan.select.calls, prepared.bound, strict=True):
            text = bound.text if bound.literal is None else literals[bound.literal]
            named = parameter_named(text) if bound.literal is None else None
            vector = of_parameter(given[named[0]], narrow=named[1]) if named and named[0] in given else None
            vector = checked(vector) if vector else constants.vector(text, (), {})
            column = plan.select.table.column(call.column)
            if vector is None or column is None:
                return None
            if column.dimension is not None and len(vector.values) != column.dimension:
                raise VectorError(
                    f"{call.column} of {plan.select.table.full_name} holds {column.dimension} numbers; the query "
                    f"vector has {len(vector.values)}"
                )
            vectors.append(vector)
        page, offset = _count(plan.select.limit, given), _count(plan.select.offset or "0", given)
        if page is None or offset is None or page < 1 or page + offset > LARGEST_K:
            return None
        at = {id(call): i for i, call in enumerate(plan.select.calls)}
        terms = tuple(_replaced(t, vector=vectors[at[id(t.call)]]) for t in plan.terms)
        if any(a.narrow != b.narrow or a.integral != b.integral for a, b in zip(vectors, plan.vectors, strict=True)):
            return None  # the distance is of another type
        return _replaced(plan, vectors=tuple(vectors), terms=terms, k=page + offset, page=page)

    def _fetched(self, plan: Plan, prepared: Prepared, given: Mapping[str, Any], found: Candidates) -> Direct | None:
        offset = _count(plan.select.offset or "0", given) or 0
        table = answer(self._registry, self._indexes, plan, prepared.items, found, offset)
        return None if table is None else Direct(table, prepared.types)


def _replaced(value: T, **fields: Any) -> T:
    """As `dataclasses.replace`, in a quarter of the time: that makes a value of so many fields anew, one by one.

    value: one without slots, of which nothing that was found `once` rests on the fields that are replaced.
    """
    found = object.__new__(type(value))
    found.__dict__.update(value.__dict__, **fields)
    return found


def _count(text: str | None, params: Mapping[str, Any]) -> int | None:
    """A number of rows that is written out, or that an integer parameter gives."""
    named, number = _count_told(text) if text and len(text) <= _LONGEST_COUNT else ("", None)
    value = params.get(named) if named else number
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


@functools.lru_cache(512)
def _count_told(text: str) -> tuple[str, int | None]:
    """The parameter that gives a number of rows, or the number."""
    match = _COUNT.fullmatch(text)
    return (match[1] or "", None if match[1] else int(match[2])) if match else ("", None)


def prepare(
    asked: Asked,
    plan: Plan,
    items: tuple[Item, ...],
    encoded: Encoded,
    found: Direct,
    registry: Registry,
    *,
    sql: str,
    format: str,
) -> Prepared | None:
    """What to keep of a statement that was answered from the row file; None where a value of it has no place.

    sql: the text that was planned.
    """
    if "Identifier" in asked.text or _count(plan.select.limit, encoded.params) is None:
        return None
    if plan.select.offset and _count(plan.select.offset, encoded.params) is None:
        return None
    if not certain(asked.text, asked.known):
        return None
    bound: list[Bound] = []
    used: dict[str, int] = {}
    for call in plan.select.calls:
        if call.argument in asked.literals:
            bound.append(Bound(asked.literals.index(call.argument), call.argument))
            used[call.argument] = used.get(call.argument, 0) + 1
        elif _VECTOR_PARAMETER.fullmatch(call.argument):
            bound.append(Bound(None, call.argument))
        else:
            return None
    if any(asked.literals.count(text) != used.get(text, 0) for text in asked.literals):
        return None
    groups = tuple(
        tuple(i for i, other in enumerate(asked.literals) if other == text)
        for text in dict.fromkeys(asked.literals)
        if asked.literals.count(text) > 1
    )
    sources: dict[str, tuple[str, str, str]] = {}
    constants: dict[str, Any] = {}
    for name in encoded.models:
        source = encoded.sources.get(name)
        if source is None:
            return None
        if source[1] is None:
            constants[name] = encoded.params[name]
        else:
            sources[name] = (source[0], source[1], source[2])
    return Prepared(
        plan=plan,
        items=items,
        bound=tuple(bound),
        groups=groups,
        encoded=sources,
        constants=constants,
        sql=sql,
        catalog=registry.catalog,
        changes=registry.changes,
        format=format,
        types=found.types,
    )
