"""bm25(column, 'words') in a statement: how well a text answers words, as ClickHouse's own functions compute it.

A call becomes an expression over the tokens of the text, with the weight of each word in the whole table as a constant;
`bm25(…) > 0` becomes hasAnyTokens(…), 0 for NULL, which a text index of ClickHouse answers. What must stay true: the
words of a query and of a text are told apart and folded by the same functions; what is remembered of a table is of its
state now.

    score = sum of ln(1 + (N - n + 0.5) / (n + 0.5)) * f * (k1 + 1) / (f + k1 * (1 - b + b * length / mean length))

over the words of the query: N rows, n of them with the word, f times in this text; k1 = 1.2, b = 0.75 (Robertson and
Zaragoza, The Probabilistic Relevance Framework, 2009, with Lucene's weight, which is never negative).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipql.engine.quoting import quote_string
from clipql.errors import QueryError
from clipql.sql.recognition.calls import find_sources
from clipql.sql.recognition.encode_calls import naming
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read
from clipql.syntax.recent import Recent
from clipql.syntax.scopes import Scope
from clipql.tables.registry import INTERNAL, Registry

BM25 = "bm25"
K1, B = 1.2, 0.75
_REMEMBERED = 4_096  # words, with how many rows have them
_MOST_TOKENS = 64  # of hasAnyTokens
# what may stand around `bm25(…) > 0` where that is a condition by itself
_BEFORE = frozenset({"WHERE", "PREWHERE", "AND", "OR", "NOT", "(", ",", "SELECT"})
_AFTER = frozenset({"AND", "OR", ")", ",", ";", "AS", "FROM", "WHERE", "GROUP", "ORDER", "LIMIT", "SETTINGS", "FORMAT"})
_USAGE = f"{BM25}(column, 'words')"


@dataclass(frozen=True)
class _Call:
    """A call in the tokens of a statement: [first, last) with its name and brackets; what it scores, and the words.

    positive: where `> 0` behind it ends; None where it does not follow.
    """

    first: int
    last: int
    scored: tuple[int, int]
    words: tuple[int, int]
    positive: int | None


@dataclass(frozen=True)
class _Weighed:
    """The words of a query in a table: (word, how often it is asked for, its weight); mean length of a text."""

    terms: tuple[tuple[str, int, float], ...]
    mean: float


class Words:
    """Replaces the calls in statements."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._engine = registry, registry.engine
        self._lengths: Recent[tuple[object, ...], tuple[int, float]] = Recent(_REMEMBERED)
        self._counts: Recent[tuple[object, ...], int] = Recent(_REMEMBERED)

    def replace(self, sql: str, params: Mapping[str, Any]) -> str:
        """The statement with each call replaced. Raises QueryError for what is not of a column and words."""
        if BM25 not in sql:
            return sql
        while (call := _last_call(read(sql).tokens)) is not None:  # inner SELECTs stand behind outer ones
            self._engine.check_cancelled()
            sql = edited(sql, self._edits(sql, call, params))
        return sql

    def _edits(self, sql: str, call: _Call, params: Mapping[str, Any]) -> list[Edit]:
        tokens = read(sql).tokens
        scope = next((s for s in reversed(read(sql).selects) if s.whole.first <= call.first < s.whole.last), None)
        if scope is None or not scope.sources.alone or scope.sources.entries[0].kind != "table":
            raise QueryError(f"{_USAGE} scores a column of a table: expected it in a SELECT from one table")
        known, _ = find_sources(scope, self._registry.find)
        table = known[0].table if known else None
        text = sql[tokens[call.scored[0]].start : tokens[call.scored[1] - 1].end]
        fold = self._fold(table, {t.name for t in tokens[slice(*call.scored)] if t.name})
        words = self._words(sql[tokens[call.words[0]].start : tokens[call.words[1] - 1].end], fold, params)
        start = tokens[call.first].start
        if call.positive is not None and len(set(words)) <= _MOST_TOKENS:
            asked = ", ".join(map(quote_string, dict.fromkeys(words)))
            # ClickHouse says NULL of a text that is NULL, whose score is 0, and its index answers through ifNull
            condition = f"ifNull(hasAnyTokens({fold.indexed(text)}, [{asked}]), 0)" if words else "0"
            return [
                (start, tokens[call.positive - 1].end, condition),
                *naming(sql, tokens, scope, call.first, call.positive),
            ]
        expression = _expression(fold.applied(text), self._weighed(scope, table, fold.applied(text), words, params))
        return [(start, tokens[call.last - 1].end, expression), *naming(sql, tokens, scope, call.first, call.last)]

    def _fold(self, table: Table | None, names: set[str]) -> _Fold:
        """How letters are made alike: as the text index of the column does it, else by lowerUTF8."""
        if table is None:
            return _Fold("lowerUTF8", False)
        found = self._engine.arrow(
            f"SELECT expr, type_full FROM system.data_skipping_indices WHERE database = '{INTERNAL}' "
            f"AND table = {quote_string(table.id)} AND type = 'text'"
        ).to_pylist()
        for row in found:
            for text, of_index in ((row["type_full"], True), (row["expr"], False)):
                said = read(text).tokens
                function = next((t.text for t in said if t.text in ("lower", "lowerUTF8")), None)
                if function and names & {t.name for t in read(row["expr"]).tokens}:
                    return _Fold(function, of_index)
        return _Fold("lowerUTF8", False)

    def _words(self, text: str, fold: _Fold, params: Mapping[str, Any]) -> list[str]:
        """The words of a query. Raises QueryError for what is no constant text."""
        try:
            sql = f"SELECT tokens({fold.applied(f'CAST({text} AS String)')})"
            found: list[str] = self._engine.arrow(sql, params=params, user=True).column(0)[0].as_py()
        except QueryError as error:
            raise QueryError(f"{BM25}(…, {text[:60]}): expected words as a constant text ({error})") from error
        return found

    def _weighed(
        self, scope: Scope, table: Table | None, text: str, words: Sequence[str], params: Mapping[str, Any]
    ) -> _Weighed:
        """What the words weigh in the whole table, read of it once for each of its states."""
        place = (table.id, self._registry.version(table.id), table.rows, text) if table else None
        lengths = self._lengths.find(place) if place else None
        counts = {w: self._counts.find((*place, w)) if place else None for w in words}
        missing = [w for w, n in counts.items() if n is None]
        if lengths is None or missing:
            asked = [f"sum(has(clipql_d, {quote_string(w)}))" for w in missing]
            items = ", ".join(["count()", "avg(length(clipql_d))", *asked])
            row = self._engine.arrow(
                f"SELECT {items} FROM (SELECT tokens({text}) AS clipql_d FROM {scope.body('FROM')}) "
                "SETTINGS limit = 0, offset = 0, max_result_rows = 0, max_result_bytes = 0",
                params=params,
                user=True,
            )
            values = [c[0].as_py() for c in row.columns]
            lengths = int(values[0]), float(values[1] or 0.0)
            counts |= {w: int(n or 0) for w, n in zip(missing, values[2:], strict=True)}
            if place:
                self._lengths.keep(place, lengths)
                for word in missing:
                    self._counts.keep((*place, word), counts[word] or 0)
        rows, mean = lengths
        asked_for = Counter(words)
        weights = {w: math.log(1 + (rows - (n or 0) + 0.5) / ((n or 0) + 0.5)) for w, n in counts.items()}
        return _Weighed(tuple((w, asked_for[w], weights[w]) for w in asked_for), mean)


@dataclass(frozen=True)
class _Fold:
    """A function that makes letters alike; by_index: the text index applies it itself to a column."""

    function: str
    by_index: bool

    def applied(self, text: str) -> str:
        return f"{self.function}({text})"

    def indexed(self, text: str) -> str:
        """The text as a condition names it that the text index may answer."""
        return text if self.by_index else self.applied(text)


def _expression(text: str, weighed: _Weighed) -> str:
    """The score of a text as SQL; toFloat64(0) where nothing is asked for."""
    parts = []
    for word, times, weight in weighed.terms:
        found = f"countEqual(clipql_d, {quote_string(word)})"
        norm = f"{K1} * ({1 - B} + {B} * length(clipql_d) / {max(weighed.mean, 1e-9)!r})"
        parts.append(f"{times * weight * (K1 + 1)!r} * {found} / ({found} + {norm})")
    return f"arrayMap(clipql_d -> {' + '.join(parts)}, [tokens({text})])[1]" if parts else "toFloat64(0)"


@contextlib.contextmanager
def telling_where() -> Iterator[None]:
    """For a statement in which calls are not replaced: ClickHouse's error for one says where they may stand."""
    try:
        yield
    except QueryError as error:
        if f"Function with name `{BM25}`" not in str(error):
            raise
        raise QueryError(
            f"{_USAGE} is computed in SELECT and INSERT … SELECT, and not in other statements: insert the keys of the "
            "rows that it finds into a table, and name that table here"
        ) from error


def stood_in(sql: str) -> str:
    """The statement with a number in the place of each call: of the same columns, names and types."""
    while BM25 in sql and (call := _last_call(tokens := read(sql).tokens)) is not None:
        scope = next((s for s in reversed(read(sql).selects) if s.whole.first <= call.first < s.whole.last), None)
        edits = naming(sql, tokens, scope, call.first, call.last)
        sql = edited(sql, [(tokens[call.first].start, tokens[call.last - 1].end, "toFloat64(0)"), *edits])
    return sql


def _last_call(tokens: Sequence[Token]) -> _Call | None:
    for at in reversed(range(len(tokens) - 1)):
        if tokens[at].text == BM25 and tokens[at].kind == "word" and tokens[at + 1].text == "(":
            return _call_at(tokens, at)
    return None


def _call_at(tokens: Sequence[Token], at: int) -> _Call:
    close = matching(tokens, at + 1)
    arguments = split_list(tokens, at + 2, close)
    if tokens[close].text != ")" or len(arguments) != 2:
        raise QueryError(f"{BM25} got {len(arguments)} arguments; expected {_USAGE}")
    after = [t.text.upper() for t in tokens[close + 1 : close + 4]]
    positive = after[:2] == [">", "0"] and (not after[2:] or after[2] in _AFTER) and tokens[at - 1].upper in _BEFORE
    return _Call(at, close + 1, arguments[0], arguments[1], close + 3 if positive else None)
