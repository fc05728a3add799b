"""SELECTs that come again with another query vector: cut in two once, and given the new vector from then on.

Bringing a statement into its normal form and cutting it takes 4 ms. What must stay true: a statement is only known
again where nothing but its vectors can matter. So each vector stands in it once, there is one SELECT in it, and no
function is called but those below, which neither know the time or the user nor are computed before there is a row.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipql.cluster.split import Split
from clipql.query.lexer import tokenize
from clipql.vectors.metrics import Metric

MOST, LONGEST, LONGEST_VALUE = 256, 4096, 256  # statements; characters of one, and of a parameter of it
# words that a bracket may follow: distances, functions of a row's values, aggregates, and words of SQL
_KNOWN = {
    *(m.value.lower() for m in Metric),
    *("lower", "upper", "length", "like", "ilike", "startswith", "endswith", "position", "ifnull", "coalesce", "round"),
    *("count", "sum", "avg", "min", "max", "any", "uniq", "uniqexact", "grouparray"),
    *("and", "or", "not", "in", "where", "select", "from", "by", "as", "array", "on", "prewhere", "having", "limit"),
}
Params = Mapping[str, Any]


@dataclass(frozen=True)
class _Template:
    """A statement cut in two, and the constants in it that each vector stands for."""

    made: Split
    places: Mapping[str, str]

    def with_vectors(self, params: Params) -> Split:
        given = {constant: params[name] for name, constant in self.places.items()}
        piece = self.made.piece
        return replace(self.made, piece=replace(piece, params={**piece.params, **given}))


class Templates:
    """Thread-safe. Keeps the statements that were asked last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Template | None] = OrderedDict()
        self._lock = threading.Lock()

    def split(self, text: str, params: Params, context: str, make: Callable[[Params], Split]) -> Split:
        """The statement cut in two by `make`, or as it was before, for the vectors that are given now.

        context: all besides the text and the parameters that the cutting depends on.
        """
        vectors = _vectors(text, params)
        if not vectors:
            return make(params)
        others = tuple(sorted((n, type(v).__name__, str(v)) for n, v in _others(text, params).items()))
        key = (text, context, others, tuple((n, params[n].dtype.str, len(params[n])) for n in vectors))
        with self._lock:
            known = key in self._kept
            template = self._kept.get(key)
            if known:
                self._kept.move_to_end(key)
        if not known:
            template = _made(params, vectors, make)
            with self._lock:
                self._kept[key] = template
                while len(self._kept) > MOST:
                    self._kept.popitem(last=False)
        return template.with_vectors(params) if template is not None else make(params)


def _made(params: Params, vectors: tuple[str, ...], make: Callable[[Params], Split]) -> _Template | None:
    """The template of a statement, cut with vectors that stand in; None where they are not found in it as they are."""
    drawn = np.random.default_rng()
    instead = {n: drawn.standard_normal(len(params[n])).astype(params[n].dtype) for n in vectors}
    made = make({**params, **instead})
    places = {}
    for name, vector in instead.items():
        found = [c for c, v in made.piece.params.items() if _same(v, vector)]
        if len(found) != 1:
            return None
        places[name] = found[0]
    return _Template(made, places)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)


def _vectors(text: str, params: Params) -> tuple[str, ...]:
    """The vectors of a statement that may come again with others; none where that cannot be told."""
    if len(text) > LONGEST:
        return ()
    given = [n for n, v in params.items() if _is_vector(v) and f"{{{n}:" in text]
    if any(text.count(f"{{{n}:") != 1 or not np.isfinite(params[n]).all() for n in given):
        return ()
    if not all(
        isinstance(v, (str, int, float)) and len(str(v)) < LONGEST_VALUE for v in _others(text, params).values()
    ):
        return ()
    tokens = tokenize(text)
    called = {
        (a.name or a.text).lower() for a, b in itertools.pairwise(tokens)
        if b.text == "(" and b.kind == "symbol" and a.kind in ("word", "quoted")
    }  # fmt: skip
    words = [t.upper for t in tokens if t.kind == "word"]
    timeless = not any(w.startswith(("CURRENT_", "LOCALTIME")) for w in words)
    return tuple(given) if called <= _KNOWN and words.count("SELECT") == 1 and timeless else ()


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f"


def _others(text: str, params: Params) -> Params:
    """The parameters in a statement that are no vectors."""
    return {n: v for n, v in params.items() if f"{{{n}:" in text and not _is_vector(v)}
