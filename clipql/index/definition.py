"""How vector indexes are spelled in SQL: `INDEX name column TYPE kind(arguments) GRANULARITY n`.

ClickHouse's spellings, the present and the old ones, are taken as they are written; GRANULARITY means nothing here.
Sources: https://clickhouse.com/docs/engines/table-engines/mergetree-family/annindexes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from clipql.errors import VectorIndexError
from clipql.storage.catalog import IndexEntry
from clipql.storage.vectors.metrics import Metric, metric_spelled
from clipql.syntax.lexer import Token, matching, split_list, string_value

_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        # spelling: (kind, names of the arguments after the distance)
        "flat": ("flat", ()),
        "ivf": ("ivf", ("lists",)),
        "hnsw": ("hnsw", ("connectivity", "expansion_add")),
        "annoy": ("annoy", ("trees",)),
        "usearch": ("hnsw", ("quantization",)),
        "vector_similarity": ("hnsw", ("dimension", "quantization", "connectivity", "expansion_add")),
    }
)
# ClickHouse's own indexes, which cannot be on a vector column
_PLAIN = {
    "minmax",
    "set",
    "bloom_filter",
    "ngrambf_v1",
    "tokenbf_v1",
    "sparse_grams",
    "text",
    "full_text",
    "inverted",
    "hypothesis",
}
_QUANTIZATIONS = {"f64": "f32", "f32": "f32", "f16": "f16", "bf16": "bf16", "i8": "i8"}


@dataclass(frozen=True)
class Written:
    """An index definition in a statement, and its place among the tokens, [first, last)."""

    entry: IndexEntry
    first: int
    last: int


def read(tokens: Sequence[Token], first: int, last: int, sql: str) -> Written | None:
    """The vector index that tokens [first, last), beginning with its name, define; None for an index of ClickHouse's.

    Raises VectorIndexError for an unknown type, distance or argument, with the known ones.
    """
    words = [t.upper for t in tokens[first:last]]
    if "TYPE" not in words or first + words.index("TYPE") + 1 >= last:
        return None
    at = first + words.index("TYPE") + 1
    name, kind = tokens[first].name or "", tokens[at].text
    if kind.lower() in _PLAIN:
        return None
    expression = tokens[first + 1 : at - 1]
    column = next((t.name for t in expression if t.name), "") or ""
    if kind not in _KINDS:
        raise VectorIndexError(f"index {name}: there is no type {kind}; vector indexes are {', '.join(sorted(_KINDS))}")
    arguments: list[str] = []
    if at + 1 < last and tokens[at + 1].text == "(":
        close = matching(list(tokens), at + 1)
        arguments = [sql[tokens[a].start : tokens[b - 1].end] for a, b in split_list(list(tokens), at + 2, close)]
    resolved, metric, options = _resolve(name, kind, arguments)
    definition = sql[tokens[at - 1].start : tokens[last - 1].end]
    return Written(IndexEntry(name, column, resolved, metric.value, definition, options), first, last)


def _resolve(name: str, spelling: str, arguments: Sequence[str]) -> tuple[str, Metric, dict[str, Any]]:
    kind, names = _KINDS[spelling]
    strings = [string_value(a) for a in arguments]
    values = [a if s is None else s.decode("utf-8", "replace") for a, s in zip(arguments, strings, strict=True)]
    quoted = [s is not None for s in strings]
    if spelling == "vector_similarity":
        if not values or values[0] != "hnsw":
            raise VectorIndexError(
                f"index {name}: vector_similarity takes 'hnsw' first, and got {', '.join(arguments) or 'nothing'}"
            )
        values, quoted = values[1:], quoted[1:]
    if values and not quoted[0] and len(values) > 1 and quoted[1]:  # annoy(100, 'L2Distance') of old
        values, quoted = [values[1], values[0], *values[2:]], [True, False, *quoted[2:]]
    metric = Metric.L2
    if values and quoted[0]:
        known = metric_spelled(values[0])
        if known is None:
            raise VectorIndexError(
                f"index {name}: there is no distance {values[0]!r}; known are {', '.join(m.value for m in Metric)}"
            )
        metric, values = known, values[1:]
    elif spelling == "ivf" or spelling == "flat":
        metric = Metric.COSINE if not values else metric
    if len(values) > len(names):
        raise VectorIndexError(
            f"index {name}: {spelling} takes a distance"
            + (f" and {', '.join(names)}" if names else "")
            + f"; it got {len(arguments)} arguments"
        )
    return kind, metric, {n: _option(name, n, v) for n, v in zip(names, values, strict=False)}


def _option(index: str, name: str, value: str) -> Any:
    if name == "quantization":
        if value not in _QUANTIZATIONS:
            raise VectorIndexError(
                f"index {index}: there is no quantization {value!r}; known are {', '.join(_QUANTIZATIONS)}"
            )
        return _QUANTIZATIONS[value]
    if not value.isdigit() or (int(value) < 1 and name != "dimension"):
        raise VectorIndexError(f"index {index}: {name} = {value}; expected a whole number of at least 1")
    return int(value)


def in_create(tokens: Sequence[Token], first: int, sql: str) -> list[Written]:
    """The vector indexes among the columns of a CREATE TABLE; `first` is the place of the opening bracket."""
    close = matching(tokens, first)
    found: list[Written] = []
    for a, b in split_list(tokens, first + 1, close):
        if tokens[a].upper == "INDEX" and b - a > 3:
            written = read(tokens, a + 1, b, sql)
            if written:
                found.append(Written(written.entry, a, b))
    return found
