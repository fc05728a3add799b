"""SELECTs that come again with another query vector: cut in two once, and given the new vector from then on.

Bringing a statement into its normal form and cutting it takes 4 ms. A statement is known by its text without its
literal vectors (`syntax/skeleton.py`), which count as parameters where they are arrays of Float64. What must stay
true: a statement is only known again where no value but those in its key can matter to how it is cut. So a vector may
only be compared with a column of the table by a distance, which nothing is computed of before there is a row; nothing
else is called but functions that know neither the time nor the user; and where a vector shows in what was made, as in
the name of a column, it is made again each time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.cluster.split import Split
from clipql.errors import ClipqlError
from clipql.storage.vectors.metrics import Metric
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.syntax.recent import Recent
from clipql.syntax.skeleton import LONGEST, Skeleton, certain, skeleton

MOST, LONGEST_KNOWN, LONGEST_VALUE = 256, 4096, 256  # statements; characters without vectors, and of a parameter
LITERAL = "clipql_literal_"
# with a number that has a point or an exponent, and none too large for a Float64 beside it
_WHOLE = r"[-+]?\d{1,9}"
_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d{1,2})?"
_FLOAT64 = re.compile(rf"\[\s*(?:{_WHOLE}\s*,\s*)*{_FLOAT}(?:\s*,\s*(?:{_FLOAT}|{_WHOLE}))*\s*\]")
_DISTANCES = {m.value.lower() for m in Metric}
# words that a bracket may follow: distances, functions of a row's values, aggregates, and words of SQL
_KNOWN = {
    *_DISTANCES,
    *("lower", "upper", "length", "like", "ilike", "startswith", "endswith", "position", "ifnull", "coalesce", "round"),
    *("count", "sum", "avg", "min", "max", "any", "uniq", "uniqexact", "grouparray"),
    *("and", "or", "not", "in", "where", "select", "from", "by", "on", "prewhere", "having", "limit"),
}
# what a column may follow, so that it is that and not the name that something is given
_BEFORE_COLUMN = {"(", ",", ".", "SELECT", "DISTINCT", "BY", "WHERE", "PREWHERE", "AND", "OR", "NOT"}
_STAND_IN = (1 << 22, 1 << 24)  # whole numbers that float32 holds and ClickHouse writes as they are
Params = Mapping[str, Any]


@dataclass(frozen=True)
class CachedSplit:
    """A statement cut in two, and the constant in it that each vector stands for. literals: vectors that it names."""

    made: Split
    places: Mapping[str, str]
    literals: Params = field(default_factory=dict)

    def with_vectors(self, params: Params) -> Split:
        """Both halves for these vectors."""
        query, params = self.made.query, {**params, **self.literals}
        given = {c: np.asarray(params[name], query.params[c].dtype) for name, c in self.places.items()}
        return replace(self.made, query=replace(query, params={**query.params, **given}))


@dataclass(frozen=True)
class _Parameters:
    """The parameters of a statement: vectors by name, and those whose values are in its key."""

    vectors: tuple[str, ...]
    others: tuple[tuple[str, str, str], ...]


class PlanCache:
    """Thread-safe. Keeps the statements that were asked last."""

    def __init__(self) -> None:
        self._kept: Recent[tuple[Any, ...], _Made] = Recent(MOST)

    def find(
        self, text: str, params: Params, columns: Sequence[str], context: str, make: Callable[[str, Params], Split]
    ) -> CachedSplit | None:
        """The statement as it was cut before, or is cut by `make`; None where it has to be cut again each time.

        columns: vector columns of the table. context: all besides text and parameters that the cutting depends on.
        """
        if len(text) > LONGEST:
            return None
        literals = literal_parameters(text)
        known, given = literals.text, dict(params) | dict(literals.vectors)
        asked = _asked(known, given, columns)
        if asked is None and literals.vectors:  # then they are part of it
            literals = replace(literals, text=text, vectors={})
            known, given = text, dict(params)
            asked = _asked(text, params, columns)
        if asked is None:
            return None
        kinds = tuple((n, given[n].dtype.str, len(given[n])) for n in asked.vectors)
        key = (known, context, asked.others, kinds)
        made = self._kept.find(key)
        if made is None:
            sure = not literals.vectors or certain(text, literals.skeleton)
            split = _made(given, asked.vectors, partial(make, known)) if sure else None
            made = self._kept.keep(key, _Made(split))
        return replace(made.split, literals=literals.vectors) if made.split else None


@dataclass(frozen=True)
class _Made:
    """What came of a statement; None where it has to be cut each time."""

    split: CachedSplit | None


@dataclass(frozen=True)
class _Literals:
    """A statement with parameters for its literal vectors, and their values."""

    skeleton: Skeleton
    text: str
    vectors: Mapping[str, NDArray[np.float64]]


def literal_parameters(text: str) -> _Literals:
    """The statement with each literal vector as a parameter, where all of them are arrays of Float64 to ClickHouse."""
    found = skeleton(text)
    if not found.literals or not all(map(_FLOAT64.fullmatch, found.literals)) or "\0" in text:
        return _Literals(found, text, {})
    values = [np.array([float(n) for n in t.strip("[ ]\t\r\n").split(",")]) for t in found.literals]
    names = [f"{LITERAL}{i}" for i in range(len(values))]
    known = found.filled([f"{{{name}:Array(Float64)}}" for name in names])
    return _Literals(found, known, dict(zip(names, values, strict=True)))


def _made(params: Params, vectors: tuple[str, ...], make: Callable[[Params], Split]) -> CachedSplit | None:
    """The template of a statement, cut with vectors that stand in; None where they show, or are not found again."""
    drawn = np.random.default_rng()
    instead = {n: drawn.integers(*_STAND_IN, len(params[n])).astype(params[n].dtype) for n in vectors}
    try:
        made = make({**params, **instead})
    except ClipqlError:  # the error is raised for the statement as it was given
        return None
    query = made.query
    texts = (made.final, made.many or "", made.why, query.select, query.prewhere, query.where, query.tail)
    places = {}
    for name, vector in instead.items():
        found = [c for c, v in query.params.items() if _same(v, vector)]
        shown = any(str(int(number)) in text for text in texts for number in vector[:4])
        if len(found) != 1 or shown:
            return None
        places[name] = found[0]
    return CachedSplit(made, places)


def _same(constant: Any, vector: Any) -> bool:
    """Whether a constant is a vector, of its type or rounded to a narrower one as the statement would."""
    narrow = isinstance(constant, np.ndarray) and constant.dtype.itemsize <= vector.dtype.itemsize
    return narrow and np.array_equal(constant, vector)


def _asked(text: str, params: Params, columns: Sequence[str]) -> _Parameters | None:
    """The parameters of a statement that may come again with other vectors; None of any other."""
    if len(text) > LONGEST_KNOWN:
        return None
    tokens = read(text).tokens
    words = [t.upper for t in tokens if t.kind == "word"]
    if words.count("SELECT") != 1 or "WITH" in words or any(w.startswith(("CURRENT_", "LOCALTIME")) for w in words):
        return None
    vectors: list[str] = []
    others: dict[str, tuple[str, str, str]] = {}
    called: set[str] = set()
    at = 0
    while at < len(tokens):
        if tokens[at].text == "{" and tokens[at].kind == "symbol":
            end = next((i for i in range(at, len(tokens)) if tokens[i].text == "}"), len(tokens))
            name = tokens[at + 1].text if end - at > 3 and tokens[at + 2].text == ":" else None
            if name is None or name not in params:
                return None
            value = params[name]
            if isinstance(value, np.ndarray):
                if name in vectors or not _is_vector(value) or not _compared(tokens, at, end, columns):
                    return None
                vectors.append(name)
            elif isinstance(value, (str, int, float)) and len(str(value)) < LONGEST_VALUE:
                others[name] = (name, type(value).__name__, str(value))
            else:
                return None
            at = end
        elif at + 1 < len(tokens) and tokens[at + 1].text == "(" and tokens[at].kind in ("word", "quoted"):
            called.add((tokens[at].name or "").lower())
        at += 1
    named = all(before.upper in _BEFORE_COLUMN for before, token in itertools.pairwise(tokens) if token.name in columns)
    return _Parameters(tuple(vectors), tuple(others.values())) if vectors and named and called <= _KNOWN else None


def _is_vector(value: Any) -> bool:
    return bool(value.ndim == 1 and len(value) and value.dtype.kind == "f" and np.isfinite(value).all())


def _compared(tokens: Sequence[Token], first: int, last: int, columns: Sequence[str]) -> bool:
    """Whether a parameter, tokens [first, last], is one argument of a distance of which a column is the other."""
    before, after = first - 1, last + 1
    if after >= len(tokens) or before < 1:
        return False
    if tokens[before].text == "," and tokens[after].text == ")":  # distance(column, {q})
        begin = before
        while begin > 0 and (tokens[begin - 1].name is not None or tokens[begin - 1].text == "."):
            begin -= 1
        column, opening = tokens[begin:before], begin - 1
    elif tokens[before].text == "(" and tokens[after].text == ",":  # distance({q}, column)
        end = after + 1
        while end < len(tokens) and (tokens[end].name is not None or tokens[end].text == "."):
            end += 1
        if end >= len(tokens) or tokens[end].text != ")":
            return False
        column, opening = tokens[after + 1 : end], before
    else:
        return False
    function = tokens[opening - 1] if opening > 0 and tokens[opening].text == "(" else None
    plain = len(column) % 2 == 1 and all(t.text == "." for t in column[1::2]) and column[-1].name in columns
    return plain and function is not None and (function.name or "").lower() in _DISTANCES
