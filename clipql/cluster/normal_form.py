"""A SELECT in ClickHouse's own normal form: every name resolved, `*` spelled out, every operator a function.

ClickHouse's analyzer makes it (EXPLAIN SYNTAX after the passes of its query tree), so that what is an alias, a position
or a column is never guessed here. It is made over an empty table with the same columns, vector columns being plain.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipql.cluster.partial_query import GLOBAL_ROW
from clipql.engine.embedded import Engine
from clipql.errors import UnsupportedStatement
from clipql.syntax.lexer import matching, split_list
from clipql.syntax.reading import read
from clipql.syntax.scopes import Span
from clipql.tables.registry import ROW

# what is folded while the statement is looked at would be lost to it: a scalar subquery's value is known by number only
_SETTINGS = "enable_scalar_subquery_optimization = 0"
_INFIX = {"plus": "+", "minus": "-", "multiply": "*", "divide": "/", "equals": "=", "notEquals": "!=", "less": "<",
          "greater": ">", "lessOrEquals": "<=", "greaterOrEquals": ">=", "in": "IN", "notIn": "NOT IN", "like": "LIKE",
          "notLike": "NOT LIKE", "ilike": "ILIKE", "notILike": "NOT ILIKE"}  # fmt: skip
_BOUNDS = ("equals", "less", "lessOrEquals", "greater", "greaterOrEquals")
_CHAINS = {"and": "AND", "or": "OR"}
_SELECTS = ("SELECT", "WITH")
_LONG = 512
# gives the text for the tokens from a place on, and the place after them
Hook = Callable[[int], tuple[str, int] | None]


class NormalForm:
    """The normal form of one SELECT, and the constants that were taken out of it into `params`."""

    def __init__(self, text: str, params: Mapping[str, Any]) -> None:
        reading = read(text)
        found = [s for s in reading.selects if not s.nested]
        if len(found) != 1 or found[0].whole.first != 0:
            raise UnsupportedStatement(f"a SELECT over shards of an unknown shape: {text[:200]}")
        self.text, self.tokens, self.scope = text, reading.tokens, found[0]
        self.params = dict(params)
        source = self.scope.within("FROM")
        # FROM clipql_shards.`x` AS __table1: the only source that rows of shards can be taken from one by one
        plain = len(source) == 5 and source[1].text == "." and source[3].upper == "AS"
        self.alias = source[4].text if plain else None
        self._now = int(time.time())
        self._constants: dict[str, str] = {}

    @property
    def clauses(self) -> Mapping[str, Any]:
        """Clauses by keyword."""
        return self.scope.clauses

    def items(self, clause: str) -> list[tuple[int, int]]:
        """The items of a clause between commas, as token ranges."""
        return self.scope.items(clause)

    def words(self, first: int, last: int) -> tuple[str, ...]:
        """The tokens of a range as texts, by which two expressions can be compared."""
        return tuple(t.text for t in self.tokens[first:last])

    def named(self, first: int, last: int) -> tuple[int, str | None]:
        """Where the expression of an item of SELECT ends, and the name it is given."""
        if last - first > 2 and self.tokens[last - 2].upper == "AS" and self.tokens[last - 1].name is not None:
            return last - 2, self.tokens[last - 1].name
        return last, None

    def condition(self, clause: str, hook: Hook | None = None) -> str:
        """The condition of WHERE or PREWHERE, joined by AND where it is joined so; empty where there is none."""
        span = self.scope.clauses.get(clause)
        if not span:
            return ""
        return " AND ".join(self._bare(a, b, hook) for a, b in self._conjuncts(span))

    def row_bounds(self) -> tuple[int, int | None]:
        """The numbers of rows that WHERE leaves: the first, and the one after the last or None."""
        low, high = 0, None
        span = self.scope.clauses.get("WHERE")
        for first, last in self._conjuncts(span) if span else []:
            words = self.words(first, last)
            found = len(words) == 8 and self.column(first + 2) == ROW and words[5] == "," and words[6].isdigit()
            if not found or words[0] not in _BOUNDS:
                continue
            number = int(words[6])
            if words[0] in ("greaterOrEquals", "equals", "greater"):
                low = max(low, number + (words[0] == "greater"))
            if words[0] in ("less", "lessOrEquals", "equals"):
                end = number + (words[0] != "less")
                high = end if high is None else min(high, end)
        return low, high

    def _conjuncts(self, span: Span) -> list[tuple[int, int]]:
        if self._called(span.first) == "and" and matching(self.tokens, span.first + 1) == span.last - 1:
            return split_list(self.tokens, span.first + 2, span.last - 1)
        return [(span.first, span.last)]

    def _bare(self, first: int, last: int, hook: Hook | None) -> str:
        text = self.render(first, last, hook)
        alone = self._called(first) in _INFIX and matching(self.tokens, first + 1) == last - 1
        return text[1:-1] if alone and text.startswith("(") else text

    def render(self, first: int, last: int, hook: Hook | None = None) -> str:
        """A range of tokens as SQL with operators, as the planner of a shard reads it."""
        queries: list[str] = []
        at = first
        while at < last:
            gap = self.text[self.tokens[at - 1].end : self.tokens[at].start] if at > first else ""
            done = (
                self._inner(at)
                or (hook(at) if hook else None)
                or self._row(at)
                or self._moment(at)
                or self._constant(at)
                or self._operator(at, hook)
            )
            text, after = done if done else (self.tokens[at].text, at + 1)
            queries.append(gap + text)
            at = after
        return "".join(queries)

    def _inner(self, at: int) -> tuple[str, int] | None:
        """A SELECT in brackets, whose names are its own."""
        if self.tokens[at].text != "(" or at + 1 >= len(self.tokens) or self.tokens[at + 1].upper not in _SELECTS:
            return None
        close = matching(self.tokens, at)
        queries = [self.text[self.tokens[at].start : self.tokens[at].end]]
        for i in range(at + 1, close + 1):
            constant = self._constant(i) if self.tokens[i].kind == "string" else None
            queries.append(self.text[self.tokens[i - 1].end : self.tokens[i].start])
            queries.append(constant[0] if constant else self.tokens[i].text)
        return "".join(queries), close + 1

    def _row(self, at: int) -> tuple[str, int] | None:
        if self.alias and self.column(at) == ROW:
            return GLOBAL_ROW, at + 3
        return None

    def _moment(self, at: int) -> tuple[str, int] | None:
        """The moment of the query, which is the same for all shards."""
        if self._called(at) not in ("now", "today") or self.tokens[at + 2].text != ")":
            return None
        moment = f"toDateTime({self._now})"
        return (moment if self.tokens[at].text == "now" else f"toDate({moment})"), at + 3

    def column(self, at: int) -> str | None:
        """The column of the table that stands at a place."""
        words = self.tokens[at : at + 3]
        if len(words) < 3 or words[0].text != self.alias or words[1].text != ".":
            return None
        return words[2].name

    def called(self, at: int) -> str | None:
        """The name of the function whose call begins here."""
        return self._called(at)

    def _called(self, at: int) -> str | None:
        """The name of the function whose call begins here."""
        token = self.tokens[at]
        called = token.kind == "word" and at + 1 < len(self.tokens) and self.tokens[at + 1].text == "("
        return token.text if called and not (at and self.tokens[at - 1].text == ".") else None

    def _operator(self, at: int, hook: Hook | None) -> tuple[str, int] | None:
        name = self._called(at)
        if name not in _INFIX and name not in _CHAINS:
            return None
        close = matching(self.tokens, at + 1)
        arguments = [self.render(a, b, hook) for a, b in split_list(self.tokens, at + 2, close)]
        if len(arguments) < 2 or (name in _INFIX and len(arguments) != 2):
            return None
        word = _INFIX.get(name) or _CHAINS[name]
        return f"({f' {word} '.join(arguments)})", close + 1

    def _constant(self, at: int) -> tuple[str, int] | None:
        """A long constant as a parameter: a vector, or the rows of an inner SELECT."""
        words = self.tokens[at : at + 6]
        if len(words) == 6 and words[0].text == "_CAST" and words[2].kind == "vector" and words[5].text == ")":
            kind = words[4].text[1:-1]
            if kind in ("Array(Float32)", "Array(Float64)"):
                numbers = [float(n) for n in words[2].text.strip()[1:-1].split(",")]
                value = np.array(numbers, np.float32 if kind == "Array(Float32)" else np.float64)
                return f"{{{self._kept(words[2].text + kind, value)}:{kind}}}", at + 6
        token = self.tokens[at]
        if token.kind == "string" and len(token.text) > _LONG and re.fullmatch(r"'[A-Za-z0-9+/=]*'", token.text):
            return f"{{{self._kept(token.text, token.text[1:-1])}:String}}", at + 1
        return None

    def _kept(self, text: str, value: Any) -> str:
        if text not in self._constants:
            self._constants[text] = name = f"clipql_constant_{len(self._constants)}"
            self.params[name] = value
        return self._constants[text]


def normal_form(engine: Engine, text: str, params: Mapping[str, Any]) -> NormalForm:
    """The normal form of a SELECT. Raises QueryError as running it would."""
    options = "oneline = 1, run_query_tree_passes = 1"
    clause = f", {_SETTINGS}" if _has_settings(text) else f" SETTINGS {_SETTINGS}"
    found = engine.arrow(f"EXPLAIN SYNTAX {options} {text}{clause}", params=params, user=True)
    line = str(found.column(0)[0].as_py()) if found.num_rows == 1 else ""
    return NormalForm(_without_ours(line), {})


def _has_settings(text: str) -> bool:
    return any("SETTINGS" in s.clauses for s in read(text).selects if not s.nested)


def _without_ours(line: str) -> str:
    """The form without the setting that made it."""
    return re.sub(rf"(,| SETTINGS) {re.escape(_SETTINGS)}\Z", "", line)
