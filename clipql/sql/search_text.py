"""What `search` runs, as text: the nearest rows of a table, or those that meaning and words together rank first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from clipql.engine.quoting import quote_name
from clipql.errors import QueryError
from clipql.sql import hybrid
from clipql.storage.vectors.metrics import Metric, metric_spelled
from clipql.syntax.reading import read

# what a search is by, as SQL over the parameter `query`
QUERIES = {
    "vector": "{query:Array(Float32)}",
    "text": "encode_text({query:String})",
    "image": "encode_image({query:String})",
}


@dataclass(frozen=True)
class Searched:
    """A table that is searched: its name, how FROM names it, its vector columns, what gives its other columns, and what
    those with a text index; None where words are not searched.
    """

    name: str
    source: str
    vectors: tuple[str, ...]
    plain: Callable[[], list[str]]
    indexed: Callable[[], list[str]] | None = None


def search_text(
    source: str,
    shown: Sequence[str],
    *,
    column: str,
    by: str,
    k: int,
    where: str | None,
    distance: str,
    recall: float | None,
    words: str | None = None,
) -> str:
    """The statement. source: the table as FROM names it; shown: columns to return; by: a key of QUERIES; words: the
    column whose words are searched too, None for none. Raises QueryError for what cannot be.
    """
    metric = metric_spelled(distance)
    if metric is None:
        raise QueryError(f"{distance} is no distance function; known are {', '.join(m.value for m in Metric)}")
    if not isinstance(k, int) or k < 1:
        raise QueryError(f"k = {k!r}: expected a whole number of at least 1")
    return _statement(source, tuple(shown), column, by, k, where, metric, recall, words)


@lru_cache(maxsize=256, typed=True)
def _statement(
    source: str,
    shown: tuple[str, ...],
    column: str,
    by: str,
    k: int,
    where: str | None,
    metric: Metric,
    recall: float | None,
    words: str | None,
) -> str:
    """The same for what was checked: most searches come again with another vector."""
    condition = one_condition(where) if where else ""
    key = f"{metric.value}({quote_name(column)}, {QUERIES[by]})"
    asked = f" SETTINGS recall = {recall}" if recall is not None else ""
    if words is not None:
        if by != "text":
            raise QueryError(f"a hybrid search is by words as well as by meaning, and this one is by {by}: give text")
        score = f"bm25({quote_name(words)}, {{query:String}})"
        way = hybrid.Hybrid(source, [*map(quote_name, shown)], key, metric.larger_is_nearer, score, condition, k)
        return f"{hybrid.statement(way)}{asked}"
    listed = ", ".join([*map(quote_name, shown), f"{key} AS distance"])
    only = f" WHERE ({condition}\n)" if condition else ""
    descending = " DESC" if metric.larger_is_nearer else ""
    return f"SELECT {listed} FROM {source}{only} ORDER BY distance{descending} LIMIT {k}{asked}"


def one_condition(where: str) -> str:
    """A condition as it is. Raises QueryError for a text that would end it, or the statement, before its end."""
    depth = 0
    for token in read(where).tokens:
        if token.kind == "symbol" and token.text in "()":
            depth += 1 if token.text == "(" else -1
        if depth < 0 or token.kind == "error" or (token.kind == "symbol" and token.text == ";"):
            raise QueryError(f"where = {where!r}: expected one condition; {token.text[:20]} at {token.start} ends it")
    if depth:
        raise QueryError(f"where = {where!r}: expected one condition; a bracket is not closed")
    return where
