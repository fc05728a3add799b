"""A SELECT over shards in two halves: the partial query that each shard runs, and the SELECT over their rows.

rows         each shard gives its rows, or its first rows where there is a LIMIT; sorted and cut once more over all
aggregates   each shard gives the states of its groups; merged over all
distinct     each shard gives its different rows and where each came first; the same over all

What must stay true: the answer is the one that a single table with all the rows gives, in the order of their numbers.
What cannot be split is refused by name.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from typing import NoReturn

from clipql.cluster import partial_aggregates
from clipql.cluster.normal_form import Hook, NormalForm
from clipql.cluster.partial_aggregates import PartialAggregates
from clipql.cluster.partial_query import GLOBAL_ROW, PART_ROW, PartialQuery
from clipql.engine.quoting import quote_name
from clipql.errors import UnsupportedStatement
from clipql.storage.vectors.metrics import metric_named
from clipql.syntax.lexer import matching, split_list
from clipql.tables.registry import ROW

# where the rows of the shards stand in the second half
SOURCE, NUMBER = "clipql_source", "_clipql_query"
_FROM = "clipql_rows"
_COUNT = re.compile(r"_CAST\((\d+), 'UInt64'\)(?:, _CAST\((\d+), 'UInt64'\))?\s*\Z")
_KNOWN = {"SELECT", "FROM", "PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "LIMIT 2",
          "SETTINGS"}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """kind: 'rows', 'aggregates' or 'distinct'. final: the second half, which reads from SOURCE; why: for EXPLAIN.

    many: the second half for a batch, whose rows have the number of their query in NUMBER; None where there is none.
    """

    kind: str
    why: str
    query: PartialQuery
    final: str
    many: str | None = None


@dataclass
class _Columns:
    """What the shards give: expressions as they evaluate them, and the columns that hold them."""

    names: dict[str, str] = field(default_factory=dict)

    def of(self, expression: str) -> str:
        """The column of an expression, for the second half."""
        return f"{_FROM}.{self.names.setdefault(expression, f'_clipql_{len(self.names)}')}"

    def listed(self) -> str:
        """For SELECT."""
        return ", ".join(f"{e} AS {n}" for e, n in self.names.items())


def split(form: NormalForm, known: PartialAggregates, database: str, table: str) -> Split:
    """Both halves of a SELECT in normal form. Raises UnsupportedStatement, naming what cannot be split."""
    return _Splitter(form, known, database, table).split()


class _Splitter:
    def __init__(self, form: NormalForm, known: PartialAggregates, database: str, table: str) -> None:
        self._form, self._known, self._tokens = form, known, form.tokens
        self._database, self._table = database, table
        self._columns = _Columns()
        self._keys: dict[tuple[str, ...], str] = {}
        self._by_order = False

    def split(self) -> Split:
        form = self._form
        if form.alias is None:
            self._refuse(self._odd_source())
        odd = [c for c in form.clauses if c not in _KNOWN]
        if odd:
            self._refuse(odd[0])
        ordered = [t.upper for t in form.scope.within("ORDER")]
        if ("FILL", "FROM") in itertools.pairwise(ordered):
            self._refuse("WITH FILL FROM")
        if "INTERPOLATE" in ordered:
            self._refuse("INTERPOLATE")
        if form.scope.within("SELECT")[0].upper == "DISTINCT":
            return self._distinct()
        if "GROUP" in form.clauses or any(self._known.call(form, i) for i in self._places()):
            return self._aggregated()
        return self._rows()

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedStatement(
            f"{what} cannot be split over the shards of {self._database}.{self._table}: select the rows it needs in an "
            f"inner SELECT (of few enough rows to be held here), and use {what} outside"
        )

    def _odd_source(self) -> str:
        words = {t.upper for t in self._form.scope.within("FROM")}
        found = next((w for w in ("FINAL", "SAMPLE", "ARRAY", "JOIN") if w in words), None)
        return {"ARRAY": "ARRAY JOIN", "JOIN": "a join", None: "its FROM clause"}.get(found, found or "")

    def _places(self) -> list[int]:
        """Where expressions over groups may stand, but for what inner SELECTs hold."""
        found: list[int] = []
        for clause in ("SELECT", "HAVING", "QUALIFY", "WINDOW", "ORDER", "LIMIT"):
            span = self._form.clauses.get(clause)
            at = span.first if span else 0
            while span and at < span.last:
                if self._tokens[at].text == "(" and self._tokens[at + 1].upper in ("SELECT", "WITH"):
                    at = matching(self._tokens, at)
                found.append(at)
                at += 1
        return found

    # rows

    def _rows(self) -> Split:
        form = self._form
        windows = any(self._tokens[i].upper == "OVER" for i in self._places())
        hook = self._atom if windows else None
        items = [self._item(first, last, hook) for first, last in form.items("SELECT")]
        order = [self._ordered(first, last, hook) for first, last in form.items("ORDER")]
        fills = any(t.upper == "FILL" for t in form.scope.within("ORDER"))
        first_here = ", ".join([*(f"{e} {m}" for e, _, m in order), f"{form.alias}.{ROW}"])
        tail, why = self._first_rows(windows or fills, first_here)
        row = self._columns.of(GLOBAL_ROW)
        by = ", ".join([*(f"{c} {m}" for _, c, m in order), *([] if fills or self._ties() else [row])])
        final = f"SELECT {', '.join(items)} FROM {SOURCE} AS {_FROM}"
        final += self._rest(("WINDOW", "QUALIFY"), hook or self._column)
        final += f" ORDER BY {by}" if by else ""
        final += self._limits(hook or self._column)
        plain = bool(tail or "LIMIT" not in form.clauses) and not fills and not windows and not self._by_items("LIMIT")
        many = None
        if plain and not form.clauses.keys() & {"QUALIFY", "LIMIT 2", "SETTINGS"} and not self._ties():
            number = f"{_FROM}.{NUMBER}"
            many = f"SELECT {', '.join([number, *items])} FROM {SOURCE} AS {_FROM} ORDER BY {number}, {by}"
            many += f"{self._limits(self._column)} BY {number}" if "LIMIT" in form.clauses else ""
        return replace(self._made("rows", why, tail, final), many=many)

    def _item(self, first: int, last: int, hook: Hook | None) -> str:
        form = self._form
        end, name = form.named(first, last)
        text = form.render(first, end, hook)
        text = text if hook else self._columns.of(text)
        return f"{text} AS {quote_name(name)}" if name is not None else text

    def _ordered(self, first: int, last: int, hook: Hook | None) -> tuple[str, str, str]:
        """A key of ORDER BY: as the shards evaluate it, its column, and what follows it (ASC, NULLS FIRST …)."""
        end = self._end_of_key(first, last)
        modifiers = self._form.text[self._tokens[end].start : self._tokens[last - 1].end] if end < last else ""
        if hook is not None:
            return "", self._form.render(first, end, hook), modifiers
        text = self._form.render(first, end)
        return text, self._columns.of(text), modifiers

    def _end_of_key(self, first: int, last: int) -> int:
        at = first
        while at < last:
            if self._tokens[at].text in ("(", "["):
                at = matching(self._tokens, at)
            elif self._tokens[at].upper in ("ASC", "DESC") and at > first:
                return at
            at += 1
        return last

    def _column(self, at: int) -> tuple[str, int] | None:
        """A column of the table, in an expression over rows that are here already."""
        found = next((item for item in self._by_items("LIMIT") if item[0] == at), None)
        return (self._columns.of(self._form.render(*found)), found[1]) if found else None

    def _atom(self, at: int) -> tuple[str, int] | None:
        """A column, or a distance, that window functions are computed over: what the shards give for them."""
        name = self._form.called(at)
        if name is not None and metric_named(name):
            close = matching(self._tokens, at + 1)
            if any(self._form.column(i) for i in range(at, close)):
                return self._columns.of(self._form.render(at, close + 1)), close + 1
        column = self._form.column(at)
        return (self._columns.of(self._form.render(at, at + 3)), at + 3) if column is not None else None

    def _first_rows(self, all_rows: bool, order: str) -> tuple[str, str]:
        """What follows WHERE on the shards, so that they give no more rows than can be in the answer."""
        if all_rows or "QUALIFY" in self._form.clauses or self._ties():
            return "", "each shard gives all its rows that WHERE leaves"
        by, span = self._by_items("LIMIT"), self._form.clauses.get("LIMIT")
        counted = _COUNT.match(self._form.text[span.start : self._before_by()]) if span else None
        if not counted:
            return "", "each shard gives all its rows that WHERE leaves"
        most = sum(int(n) for n in counted.groups() if n)
        if not by:
            return f"ORDER BY {order} LIMIT {most}", f"each shard gives its first {most:,} rows"
        keys = ", ".join(self._form.render(first, last) for first, last in by)
        return f"ORDER BY {order} LIMIT {most} BY {keys}", f"each shard gives {most:,} rows of each group"

    def _before_by(self) -> int:
        at = self._place_of_by()
        return int(self._form.clauses["LIMIT"].end) if at is None else self._tokens[at].start

    def _place_of_by(self) -> int | None:
        span = self._form.clauses.get("LIMIT")
        return next((i for i in range(span.first, span.last) if self._tokens[i].upper == "BY"), None) if span else None

    def _by_items(self, clause: str) -> list[tuple[int, int]]:
        at = self._place_of_by()
        return split_list(self._tokens, at + 1, self._form.clauses[clause].last) if at is not None else []

    def _ties(self) -> bool:
        return any(t.upper == "TIES" for c in ("LIMIT", "LIMIT 2") for t in self._form.scope.within(c))

    # groups

    def _distinct(self) -> Split:
        form = self._form
        if any(self._tokens[i].upper == "OVER" or self._known.call(form, i) for i in self._places()):
            self._refuse("DISTINCT of aggregates or window functions")
        span = form.clauses["SELECT"]
        items = []
        for first, last in split_list(self._tokens, span.first + 1, span.last):
            end, name = form.named(first, last)
            column = self._columns.of(form.render(first, end))
            self._keys.setdefault(form.words(first, end), column)
            items.append(f"{column} AS {quote_name(name)}" if name is not None else column)
        keys = ", ".join(self._columns.names.values())
        row = self._columns.of(f"min({GLOBAL_ROW})")
        order = [(self._form.render(f, e, self._group), m) for f, e, m in self._order()]
        by = ", ".join([*(f"{c} {m}" for c, m in order), f"min({row})"])
        final = f"SELECT {', '.join(items)} FROM {SOURCE} AS {_FROM} GROUP BY {keys} ORDER BY {by}"
        return self._made(
            "distinct", "each shard gives its different rows", f"GROUP BY {keys}", final + self._limits(self._group)
        )

    def _order(self) -> list[tuple[int, int, str]]:
        found = []
        for first, last in self._form.items("ORDER"):
            end = self._end_of_key(first, last)
            text = self._form.text[self._tokens[end].start : self._tokens[last - 1].end] if end < last else ""
            found.append((first, end, text))
        return found

    def _aggregated(self) -> Split:
        form = self._form
        for first, last in self._group_keys():
            self._keys.setdefault(form.words(first, last), self._columns.of(form.render(first, last)))
        keys = list(self._columns.names.values())
        items = []
        for first, last in form.items("SELECT"):
            end, name = form.named(first, last)
            text = form.render(first, end, self._group)
            items.append(f"{text} AS {quote_name(name)}" if name is not None else text)
        rest = self._rest(("GROUP", "HAVING", "WINDOW", "QUALIFY"), self._group)
        order = ", ".join(f"{form.render(f, e, self._group)} {m}" for f, e, m in self._order())
        rest += f" ORDER BY {order}" if order else ""
        rest += self._limits(self._group)
        source, settings = f"{SOURCE} AS {_FROM}", ""
        if self._by_order:
            part = self._columns.of(PART_ROW)
            keys.append(part.removeprefix(f"{_FROM}."))
            source = f"(SELECT * FROM {SOURCE} AS {_FROM} ORDER BY {part}) AS {_FROM}"
            settings = "max_threads = 1"
        tail = f"GROUP BY {', '.join(keys)}" if keys else ""
        tail += f" SETTINGS {settings}" if settings else ""
        final = f"SELECT {', '.join(items)} FROM {source}{rest}"
        if settings:
            final += f", {settings}" if "SETTINGS" in form.clauses else f" SETTINGS {settings}"
        return self._made("aggregates", "each shard gives the states of its groups", tail, final)

    def _group_keys(self) -> list[tuple[int, int]]:
        span = self._form.clauses.get("GROUP")
        if not span:
            return []
        first, last = span.first, span.last
        if self._tokens[first].upper == "GROUPING":
            sets = split_list(self._tokens, first + 3, matching(self._tokens, first + 2))
            return [key for a, b in sets for key in split_list(self._tokens, a + 1, b - 1)]
        at = first
        while at < last:
            if self._tokens[at].text in ("(", "["):
                at = matching(self._tokens, at)
            elif self._tokens[at].upper == "WITH":
                last = at
            at += 1
        return split_list(self._tokens, first, last)

    def _group(self, at: int) -> tuple[str, int] | None:
        """An aggregate or a key of the groups, as it is found among the states."""
        call = self._known.call(self._form, at)
        if call is not None:
            self._by_order = self._by_order or call.by_order
            column = self._columns.of(partial_aggregates.state(self._form, call))
            return partial_aggregates.merge(self._form, call, column), call.last
        fits = [w for w in self._keys if self._form.words(at, at + len(w)) == w]
        if fits and not self._part_of_more(at, len(max(fits, key=len))):
            words = max(fits, key=len)
            return self._keys[words], at + len(words)
        if self._form.column(at) is not None:
            self._refuse(f"an expression of {self._form.column(at)} outside the groups")
        return None

    def _part_of_more(self, at: int, length: int) -> bool:
        """Whether the tokens are a part of a longer name or call."""
        before = self._tokens[at - 1].text if at else ""
        after = self._tokens[at + length].text if at + length < len(self._tokens) else ""
        return before == "." or after in (".", "(")

    # both

    def _rest(self, clauses: tuple[str, ...], hook: Hook) -> str:
        words = {"GROUP": "GROUP BY"}
        found = [(words.get(c, c), self._form.clauses[c]) for c in clauses if c in self._form.clauses]
        return "".join(f" {word} {self._form.render(s.first, s.last, hook)}" for word, s in found)

    def _limits(self, hook: Hook) -> str:
        found = [self._form.clauses[c] for c in ("LIMIT", "LIMIT 2") if c in self._form.clauses]
        text = "".join(f" LIMIT {self._form.render(s.first, s.last, hook)}" for s in found)
        settings = self._form.scope.body("SETTINGS")
        return f"{text} SETTINGS {settings}" if settings else text

    def _made(self, kind: str, why: str, tail: str, final: str) -> Split:
        form, settings = self._form, self._form.scope.body("SETTINGS")
        if settings:
            tail += f", {settings}" if " SETTINGS " in tail else f" SETTINGS {settings}"
        query = PartialQuery(
            database=self._database,
            table=self._table,
            alias=form.alias or "",
            select=self._columns.listed(),
            prewhere=form.condition("PREWHERE"),
            where=form.condition("WHERE"),
            tail=tail.strip(),
            bounds=form.row_bounds(),
            params=form.params,
        )
        return Split(kind, why, query, final)
