"""A search by meaning and by words in one statement: the best of each, fused by the places that they have.

score = sum of 1 / (60 + place) over the two lists (reciprocal rank fusion: Cormack, Clarke and Büttcher, 2009). Places
need no scale, as distances and bm25 have none in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipql.brief import Brief
from clipql.errors import QueryError

CONSTANT = 60
SCORE = "hybrid_score"
LEAST, TIMES = 100, 4  # rows of each list: so many times k, and no fewer than the least


@dataclass(frozen=True, repr=False)
class Hybrid(Brief):
    """source: the table as FROM names it. shown: columns to return, quoted. distance: SQL, `descending` where larger is
    nearer. words: SQL of the bm25 score. condition: SQL, or nothing.
    """

    source: str
    shown: Sequence[str]
    distance: str
    descending: bool
    words: str
    condition: str
    k: int


def statement(search: Hybrid) -> str:
    """SELECT of the k rows with the best score: the columns, `distance`, and `hybrid_score`, largest first."""
    most = max(LEAST, TIMES * search.k)
    only = f" WHERE ({search.condition}\n)" if search.condition else ""
    also = f" AND ({search.condition}\n)" if search.condition else ""
    way = " DESC" if search.descending else ""
    by_meaning = (
        f"SELECT _row, {search.distance} AS clipql_key FROM {search.source}{only} ORDER BY clipql_key{way} LIMIT {most}"
    )
    by_words = (
        f"SELECT _row, {search.words} AS clipql_key FROM {search.source} WHERE {search.words} > 0{also} "
        f"ORDER BY clipql_key DESC, _row LIMIT {most}"
    )
    placed = " UNION ALL ".join(
        f"SELECT _row AS clipql_row, row_number() OVER (ORDER BY clipql_key{order}, _row) AS clipql_place FROM ({one})"
        for one, order in ((by_meaning, way), (by_words, " DESC"))
    )
    fused = (
        "SELECT (groupArray(clipql_row), groupArray(clipql_score)) FROM (SELECT clipql_row, "
        f"sum(1 / ({CONSTANT} + clipql_place)) AS clipql_score FROM ({placed}) GROUP BY clipql_row "
        f"ORDER BY clipql_score DESC, clipql_row LIMIT {search.k})"
    )
    listed = ", ".join(
        [
            *search.shown,
            f"{search.distance} AS distance",
            f"clipql_fused.2[indexOf(clipql_fused.1, _row)] AS {SCORE}",
        ]
    )
    return (
        f"WITH ({fused}) AS clipql_fused SELECT {listed} FROM {search.source} "
        f"WHERE _row IN (SELECT arrayJoin(clipql_fused.1)) ORDER BY {SCORE} DESC, _row"
    )


def words_column(indexed: Sequence[str], plain: Sequence[str], named: str | None) -> str:
    """The column whose words are searched: the one named, the only one with a text index, or `caption`.

    Raises QueryError where that cannot be told.
    """
    if named is not None:
        if named not in plain:
            raise QueryError(f"words = {named!r}: there is no such column; there are {', '.join(plain)}")
        return named
    if len(indexed) == 1:
        return indexed[0]
    if "caption" in plain:
        return "caption"
    raise QueryError(f"a hybrid search needs a column of words: say which (words=…, --words) of {', '.join(plain)}")
