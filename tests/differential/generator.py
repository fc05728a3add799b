"""Random small tables and random statements over them: all that chance decides is decided here, by a seed.

What must stay true: a seed gives the same tables and statements everywhere; a bound on a distance is never within
rounding of a distance that a row has, so that both answers to `d < r` are the same; where rows may tie, the case says
by which keys they are ordered, and which of those are exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

Row = dict[str, object]
EXACT = ("L2Distance", "L2SquaredDistance", "dotProduct")  # on the grid of values: no rounding before the root
METRICS = (*EXACT, "L2Distance", "cosineDistance")
CLAUSES = ("WITH", "SELECT", "FROM", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT BY", "LIMIT", "OFFSET")
PLAIN = {"id": "UInt32", "k": "Int32", "n": "Nullable(Int32)", "f": "Nullable(Float64)", "s": "String"}
MARGIN = 1e-4  # a bound stays this far from every distance


@dataclass(frozen=True)
class Key:
    """An expression that a statement is sorted by. exact: rows that tie in it tie in every way of computing it."""

    text: str
    exact: bool = True
    descending: bool = False


@dataclass(frozen=True)
class Case:
    """A statement to compare. In its texts ⟨t⟩ is the table, ⟨q⟩ and ⟨p⟩ vectors, ⟨r⟩ a bound, ⟨c⟩ a whole number,
    ⟨n⟩ and ⟨m⟩ LIMIT and OFFSET.

    mode: 'bag' (rows in any order), 'sequence' (as they come), 'ranked' (the first rows by `keys`, of which any may be
    cut off where they tie), 'partition' (TLP) or 'pages' (LIMIT is a prefix, pages make the whole). outer: what stands
    around the SELECT. names: column names are compared too.
    """

    family: str
    clauses: Mapping[str, str]
    mode: str = "bag"
    keys: tuple[Key, ...] = ()
    outer: str = "⟨select⟩"
    names: bool = False
    literal: bool = False
    approximate: bool = False
    settings: tuple[str, ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)

    def without(self, *clauses: str) -> Case:
        return replace(self, clauses={k: v for k, v in self.clauses.items() if k not in clauses})

    def select(self, table: str, settings: Sequence[str] = ()) -> str:
        """The statement over a table."""
        parts = [f"{name} {self.clauses[name]}" for name in CLAUSES if name in self.clauses]
        text = " ".join(parts).replace("LIMIT BY ", "LIMIT ", 1) if "LIMIT BY" in self.clauses else " ".join(parts)
        text = self.filled(self.outer.replace("⟨select⟩", text), table)
        return f"{text} SETTINGS {', '.join(settings)}" if settings else text

    def filled(self, text: str, table: str) -> str:
        """A text with the table and the values in it, vectors as parameters unless they are to be literals."""
        text = text.replace("⟨t⟩", table)
        for name, value in self.values.items():
            shown = f"{{{name}:Array(Float32)}}" if name in "qp" and not self.literal else repr(value)
            text = text.replace(f"⟨{name}⟩", shown)
        return text

    @property
    def parameters(self) -> dict[str, object]:
        """The query vectors, where they are parameters."""
        return {} if self.literal else {n: v for n, v in self.values.items() if n in "qp"}


@dataclass
class World:
    """A table: its columns in order, its kind of index and the rows that it has now."""

    luck: random.Random
    dimension: int
    grid: bool
    columns: dict[str, str]
    index: str
    index_column: str
    numbers: Sequence[float] = (-1.0, 0.0, 0.5, 1.0, 2.0)
    rows: list[Row] = field(default_factory=list)
    serial: int = 0

    def vector(self) -> list[float]:
        """A vector of small numbers, of which many are equal, or of any."""
        if self.grid:
            return [self.luck.choice(self.numbers) for _ in range(self.dimension)]
        return [round(self.luck.gauss(0, 1), 3) for _ in range(self.dimension)]

    def new_rows(self, count: int) -> list[Row]:
        """Rows to insert; a third of the vectors are those of rows before."""
        found: list[Row] = []
        for _ in range(count):
            like = self.luck.choice(found) if found and self.luck.random() < 0.3 else None
            null = self.luck.random()
            found.append(
                {
                    "id": self.serial,
                    "k": self.luck.randrange(6),
                    "n": None if null < 0.3 else self.luck.randrange(4),
                    "f": None if null > 0.8 else self.luck.choice((-1.5, 0.0, 2.25)),
                    "s": self.luck.choice(("", "a", "b'c", "ORDER BY", "é")),
                    "a": like["a"] if like else self.vector(),
                    "b": like["b"] if like and self.luck.random() < 0.5 else self.vector(),
                }
            )
            self.serial += 1
        return found

    def values(self) -> dict[str, object]:
        """Values for the places of a statement."""
        q, p = self.vector(), self.vector()
        if self.rows and self.luck.random() < 0.3:
            q = list(self.luck.choice(self.rows)["a"])  # type: ignore[call-overload]
        limit = self.luck.choice((1, 2, 3, 5, 8, 13, 40, 200))
        return {
            "q": q,
            "p": p,
            "r": self.bound(q, p),
            "c": self.luck.randrange(5),
            "n": limit,
            "m": self.luck.choice((0, 0, 1, 4, 11)),
        }

    def bound(self, q: list[float], p: list[float]) -> float:
        """A number that no distance, nor one minus it, nor twice it plus one, is near to."""
        near = self._distances(q, p)
        near = np.concatenate([near, 1 - near, 2 * near + 1, -near])
        for _ in range(50):
            r = round(self.luck.choice((0.3, 1.0, 1.7, 2.6, 4.2)) + self.luck.uniform(-0.3, 0.3), 5)
            if not np.any(np.abs(near - r) < MARGIN):
                break
        return r

    def _distances(self, q: list[float], p: list[float]) -> np.ndarray:
        a = np.array([r["a"] for r in self.rows], np.float64).reshape(-1, self.dimension)
        b = np.array([r["b"] for r in self.rows], np.float64).reshape(-1, self.dimension)
        left = np.concatenate([a, b])
        right = np.concatenate([[q], [p], a, b])
        dot = left @ right.T
        squared = np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * dot, 0)
        lengths = np.sqrt((left**2).sum(1)[:, None] * (right**2).sum(1)[None])
        cosine = 1 - np.divide(dot, lengths, out=np.zeros_like(dot), where=lengths > 0)
        return np.concatenate([x.ravel() for x in (dot, squared, np.sqrt(squared), cosine)])


def world(seed: int, kinds: Sequence[str]) -> World:
    """A table by chance, with an index of one of the kinds."""
    luck = random.Random(seed)
    columns = {**PLAIN, "a": "Array(Float32)", "b": "Array(Float32)"}
    order = list(columns)
    luck.shuffle(order)
    return World(
        luck,
        luck.choice((2, 3, 4)),
        luck.random() < 0.75,
        {c: columns[c] for c in order},
        luck.choice(kinds),
        luck.choice("ab"),
        luck.sample((-1.0, 0.0, 0.5, 1.0, 2.0), luck.choice((2, 3, 5))),
    )


class Maker:
    """Makes cases for a table."""

    def __init__(self, world: World) -> None:
        self.world, self.luck = world, world.luck

    def case(self) -> Case:
        """A case of any family, with values."""
        make = self.luck.choice(FAMILIES)
        case = make(self)
        indexed = self.world.index != "none"
        settings: tuple[str, ...] = ()
        approximate = False
        if indexed:
            free = case.family == "top-k" and self.luck.random() < 0.5
            approximate = free or (self.world.index != "ivf" and case.family == "top-k" and self.luck.random() < 0.3)
            exact = "recall = 1" if self.world.index == "ivf" and self.luck.random() < 0.85 else "vector_index = 0"
            settings = () if approximate else (exact,)
        return replace(
            case,
            literal=self.luck.random() < 0.4,
            settings=settings,
            approximate=approximate,
            values=self.world.values(),
        )

    def again(self, case: Case) -> Case:
        """The same statement with other values."""
        return replace(case, values=self.world.values())

    def pick(self, *texts: str) -> str:
        return self.luck.choice(texts)

    def metric(self, exact: bool = False) -> str:
        return self.luck.choice(EXACT if exact else METRICS)

    def distance(self, metric: str, prefix: str = "") -> str:
        """A distance to a constant."""
        near = self.world.index_column if self.world.index != "none" else "a"
        column, q = prefix + self.pick("a", "b", near), self.pick("⟨q⟩", "⟨q⟩", "⟨p⟩")
        return f"{metric}({column}, {q})" if self.luck.random() < 0.85 else f"{metric}({q}, {column})"

    def is_exact(self, metric: str) -> bool:
        return self.world.grid and metric in EXACT

    def plain(self) -> str:
        """A condition on columns that are no vectors; some are NULL."""
        return self.pick(
            "k = ⟨c⟩",
            "k > ⟨c⟩",
            "n = ⟨c⟩",
            "n < 2",
            "n IS NULL",
            "f > 0",
            "f = n",
            "s = 'a'",
            "s IN ('', 'é')",
            "s LIKE '%b%'",
            "n IN (0, 1, NULL)",
            "k BETWEEN 1 AND ⟨c⟩",
            "id % 3 = 1",
            "k + n > ⟨c⟩",
            "NOT (n = ⟨c⟩)",
            "coalesce(n, k) = 1",
            "k = 1 OR n = 2",
            "n NOT IN (1, 2)",
        )

    def vectorial(self) -> str:
        """A condition on vectors."""
        d = self.distance(self.metric())
        return self.pick(
            f"{d} < ⟨r⟩",
            f"{d} > ⟨r⟩",
            f"{d} <= ⟨r⟩",
            f"⟨r⟩ >= {d}",
            f"1 - {d} < ⟨r⟩",
            f"2 * {d} + 1 > ⟨r⟩",
            f"NOT ({d} < ⟨r⟩)",
            f"{self.metric()}(a, b) < ⟨r⟩",
            "a[1] > 0",
            "b[2] = a[1]",
            "a = b",
            "length(a) = 2",
            f"{d} BETWEEN -1000 AND ⟨r⟩",
            "arrayExists(x -> x > 1, a)",
            f"if(n > 1, {d}, NULL) < ⟨r⟩",
            f"{d} + n * 100 > ⟨r⟩",
        )

    def condition(self) -> str:
        """Any condition."""
        one = self.plain() if self.luck.random() < 0.4 else self.vectorial()
        luck = self.luck.random()
        if luck < 0.45:
            return one
        other = self.plain() if self.luck.random() < 0.6 else self.vectorial()
        return f"({one}) {'AND' if luck < 0.75 else 'OR'} ({other})" if luck < 0.93 else f"NOT (({one}) AND ({other}))"

    def where(self, share: float = 0.5) -> dict[str, str]:
        return {"WHERE": self.condition()} if self.luck.random() < share else {}

    def visible(self) -> str:
        """Columns to show."""
        chosen = self.luck.sample(list(self.world.columns), self.luck.randint(1, 4))
        return ", ".join(["id", *(c for c in chosen if c != "id")])

    def direction(self) -> tuple[str, bool]:
        return self.luck.choice((("", False), (" ASC", False), (" DESC", True)))

    # families

    def top(self) -> Case:
        metric = self.metric()
        d = self.distance(metric)
        way, down = self.direction()
        form = self.pick(d, d, d, f"1 - {d}", f"-{d}", f"2 * {d} + 1", f"{d} + 0.5 * {self.distance(metric)}")
        named = self.luck.random() < 0.5
        clauses = {
            "SELECT": self.visible() + (f", {form} AS d" if named else ""),
            "FROM": "⟨t⟩",
            **({"WHERE": self.plain()} if self.luck.random() < 0.4 else {}),
            "ORDER BY": ("d" if named else form) + way,
            "LIMIT": "⟨n⟩",
        }
        if self.luck.random() < 0.3:
            clauses["OFFSET"] = "⟨m⟩"
        return Case("top-k", clauses, "ranked", (Key(form, False, down),))

    def several_keys(self) -> Case:
        metric = self.metric()
        d = self.distance(metric)
        way, down = self.direction()
        then = self.pick("id", "id DESC", "k DESC, id", "n, id DESC", "s, k, id")
        keys = [Key(d, self.is_exact(metric), down)]
        keys += [Key(k.removesuffix(" DESC"), True, k.endswith("DESC")) for k in then.split(", ")]
        clauses = {
            "SELECT": f"{self.visible()}, {d} AS d",
            "FROM": "⟨t⟩",
            **self.where(0.3),
            "ORDER BY": f"d{way}, {then}",
            "LIMIT": "⟨n⟩",
        }
        if self.luck.random() < 0.4:
            clauses["OFFSET"] = "⟨m⟩"
        return Case("several keys", clauses, "ranked", tuple(keys))

    def pages(self) -> Case:
        d = self.distance(self.metric(True))
        then = self.pick("", ", id", ", id DESC")
        clauses = {"SELECT": "id", "FROM": "⟨t⟩", **self.where(0.3), "ORDER BY": self.pick(d, f"{d} DESC") + then}
        return Case("pages" if then else "pages without a second key", clauses, "pages")

    def range(self) -> Case:
        return Case(
            "range",
            {
                "SELECT": self.pick(self.visible(), "count(), sum(id)", "id, k + 1"),
                "FROM": "⟨t⟩",
                "WHERE": self.condition(),
            },
        )

    def partition(self) -> Case:
        return Case("partition", {"SELECT": "id", "FROM": "⟨t⟩", "WHERE": self.condition()}, "partition")

    def star(self) -> Case:
        names = "|".join(self.luck.sample(list(self.world.columns), 2))
        item = self.pick(
            "*",
            "⟨t⟩.*",
            "* EXCEPT (k)",
            "* EXCEPT (a, s)",
            f"COLUMNS('^({names})$')",
            "COLUMNS('.')",
            "* REPLACE (k + 1 AS k)",
            "id, *",
            "*, 1 AS one",
        )
        d = self.distance(self.metric())
        clauses = {"SELECT": item, "FROM": "⟨t⟩", **self.where(0.6)}
        outer = self.pick(
            "⟨select⟩",
            "⟨select⟩",
            "SELECT * FROM (⟨select⟩)",
            "WITH w AS (⟨select⟩) SELECT * FROM w",
            "⟨select⟩ UNION ALL ⟨select⟩",
        )
        form = self.luck.random()
        if form < 0.2 and outer == "⟨select⟩":
            return Case("star", {**clauses, "ORDER BY": d, "LIMIT": "⟨n⟩"}, "ranked", (Key(d, False),), names=True)
        if form < 0.4:
            clauses = {
                "SELECT": self.pick("*", "x.*", "y.*, x.id"),
                "FROM": "⟨t⟩ AS x JOIN ⟨t⟩ AS y ON x.id = y.id",
                **({"WHERE": f"{self.distance(self.metric(), 'x.')} < ⟨r⟩"} if form < 0.3 else {}),
            }
        elif form < 0.6:
            clauses = {**clauses, "FROM": "⟨t⟩_v", "SELECT": self.pick("*", "* EXCEPT (k)", "COLUMNS('.')")}
        return Case("star", clauses, outer=outer, names=True)

    def nested(self) -> Case:
        metric = self.metric(True)
        d = self.distance(metric)
        inner = {"SELECT": f"id, k, n, {d} AS d", "FROM": self.pick("⟨t⟩", "⟨t⟩", "⟨t⟩_v"), **self.where(0.4)}
        if self.world.grid and self.luck.random() < 0.6:
            inner |= {"ORDER BY": "d, id" + self.pick("", " DESC"), "LIMIT": "⟨n⟩"}
        outer = self.pick(
            "SELECT count(), sum(id), avg(d), max(n) FROM (⟨select⟩)",
            "WITH w AS (⟨select⟩) SELECT k, count(), min(d) FROM w GROUP BY k",
            "SELECT id, b FROM ⟨t⟩ WHERE id IN (SELECT id FROM (⟨select⟩))",
            "SELECT w.id, u.s, w.d FROM (⟨select⟩) AS w JOIN ⟨t⟩ AS u ON u.id = w.id",
            "SELECT * FROM (⟨select⟩) WHERE d > ⟨r⟩",
            "SELECT id, d FROM (⟨select⟩) UNION ALL SELECT id, L2Distance(b, ⟨p⟩) FROM ⟨t⟩",
        )
        return Case("nested", inner, outer=outer)

    def nearest_join(self) -> Case:
        metric = self.metric(True)
        d, order = f"{metric}(x.{self.pick('a', 'b')}, y.{self.pick('a', 'b')})", self.pick("", " DESC")
        exact = self.world.grid
        where = f"x.id % 5 = ⟨c⟩{self.pick('', ' AND x.id != y.id', ' AND y.n IS NOT NULL')}"
        return Case(
            "nearest join",
            {
                "SELECT": "x.id, y.id, " * exact + f"x.id AS i, {d} AS d" if exact else f"x.id AS i, {d} AS d",
                "FROM": self.pick("⟨t⟩ AS x CROSS JOIN ⟨t⟩ AS y", "⟨t⟩ AS x, ⟨t⟩ AS y"),
                "WHERE": where,
                "ORDER BY": f"x.id, d{order}, y.id" if exact else f"x.id, d{order}",
                "LIMIT BY": "2 BY x.id",
            },
            "sequence",
        )

    def nearest_join_by_distance(self) -> Case:
        d = f"{self.metric()}(x.a, y.{self.pick('a', 'b')})"
        return Case(
            "nearest join",
            {
                "SELECT": f"x.id AS i, {d} AS d",
                "FROM": "⟨t⟩ AS x CROSS JOIN ⟨t⟩ AS y",
                **({"WHERE": "x.id != y.id"} if self.luck.random() < 0.5 else {}),
                "ORDER BY": "d",
                "LIMIT BY": "3 BY x.id",
            },
        )

    def cross_join(self) -> Case:
        d = f"{self.metric()}(x.{self.pick('a', 'b')}, y.{self.pick('a', 'b')})"
        more = self.pick(
            "",
            " AND x.id < y.id",
            " AND x.k = y.n",
            " AND y.n IS NULL",
            f" AND {self.distance('L2Distance', 'x.')} < 3.33331",
        )
        return Case(
            "cross join",
            {
                "SELECT": self.pick("x.id, y.id", "count(), sum(x.id), sum(y.id)", f"x.id, y.k, {d}"),
                "FROM": self.pick(
                    "⟨t⟩ AS x CROSS JOIN ⟨t⟩ AS y", "⟨t⟩ AS x, ⟨t⟩ AS y", "⟨t⟩ AS x JOIN ⟨t⟩ AS y ON x.k = y.k"
                ),
                "WHERE": f"{d} < ⟨r⟩ AND x.id % 4 = ⟨c⟩{more}",
            },
        )

    def groups(self) -> Case:
        d = self.distance(self.metric())
        clauses = {
            "SELECT": f"{self.pick('k', 'n', 's', 'n, k')} AS g, count(), {self.pick('avg', 'min', 'max', 'sum')}({d})",
            "FROM": "⟨t⟩",
            **self.where(),
            "GROUP BY": "g",
        }
        if "n, k" in clauses["SELECT"]:
            clauses["GROUP BY"] = "n, g"
        if self.luck.random() < 0.4:
            clauses["HAVING"] = self.pick(f"min({d}) < ⟨r⟩", f"max({d}) > ⟨r⟩", "count() > ⟨c⟩")
        if self.luck.random() < 0.25:
            clauses = {
                "SELECT": f"floor({d} * 3 + 0.1370137) AS g, count(), sum(id)",
                "FROM": "⟨t⟩",
                **self.where(0.3),
                "GROUP BY": "g",
            }
        return Case("groups", clauses)

    def aggregates(self) -> Case:
        d, e = self.distance(self.metric()), self.distance(self.metric())
        return Case(
            "groups",
            {
                "SELECT": f"count(), min({d}), max({e}), sum(if(n IS NULL, 0, {d})), countIf({d} < ⟨r⟩)",
                "FROM": "⟨t⟩",
                **self.where(),
            },
        )

    def distinct(self) -> Case:
        d = self.distance(self.metric(True))
        item = self.pick("k", "n", "a", f"round({d}, 2)" if self.world.grid else "s", f"k, {d} > ⟨r⟩")
        return Case("distinct", {"SELECT": f"DISTINCT {item}", "FROM": "⟨t⟩", **self.where(0.6)})

    def window(self) -> Case:
        metric = self.metric(True)
        d = self.distance(metric)
        over = self.pick(
            f"ORDER BY {d}, id", f"PARTITION BY k ORDER BY {d} DESC, id", f"PARTITION BY n ORDER BY {d}, id"
        )
        if not self.world.grid:
            over = "PARTITION BY k ORDER BY id"
        item = self.pick("row_number()", f"sum({d})", f"min({d})", f"lagInFrame({d})")
        return Case("window", {"SELECT": f"id, {item} OVER ({over}) AS w", "FROM": "⟨t⟩", **self.where(0.4)})

    def functions(self) -> Case:
        d = self.distance(self.metric())
        item = self.pick(
            f"arrayMap(x -> x + {d}, [1, 2])",
            "arrayMap(x -> x * 2, a)",
            "arrayMap((x, y) -> x - y, a, b)",
            f"arraySum(x -> x * {d}, a)",
            "a[1], b[-1]",
            f"if({d} > ⟨r⟩, 'far', 'near')",
            f"multiIf(n IS NULL, -1, {d})",
            f"tuple({d}, k)",
            "arrayMap(a -> a + 1, b)",
            f"{self.metric()}(a, b)",
            f"{self.metric()}(arrayMap(x -> x + 1, a), ⟨q⟩)",
            "length(a), b",
        )
        return Case("functions", {"SELECT": f"id, {item} AS v", "FROM": "⟨t⟩", **self.where(0.5)})

    def aliases(self) -> Case:
        metric = self.metric()
        column = self.pick("a", "b")
        form = self.luck.randrange(5)
        if form == 0:
            return Case(
                "aliases",
                {
                    "WITH": f"⟨q⟩ AS target, {metric}({column}, target) AS d",
                    "SELECT": "id, d, 1 - d AS e",
                    "FROM": "⟨t⟩",
                    "WHERE": "d < ⟨r⟩",
                },
            )
        if form == 1:
            return Case(
                "aliases",
                {
                    "SELECT": f"id, {metric}({column}, ⟨q⟩) AS d, d * 2 AS e",
                    "FROM": "⟨t⟩",
                    "WHERE": f"e > ⟨r⟩ AND {self.plain()}",
                },
            )
        if form == 2:
            return Case(
                "aliases",
                {
                    "WITH": f"(SELECT {column} FROM ⟨t⟩ ORDER BY id LIMIT 1) AS target",
                    "SELECT": f"id, {metric}(a, target) AS d",
                    "FROM": "⟨t⟩",
                    "ORDER BY": "d",
                    "LIMIT": "⟨n⟩",
                },
                "ranked",
                (Key(f"{metric}(a, target)", False),),
            )
        if form == 3:  # names of columns, given to other things
            return Case("aliases", {"SELECT": f"k AS id, {metric}({column}, ⟨q⟩) AS n", "FROM": "⟨t⟩"})
        return Case(
            "aliases",
            {
                "WITH": f"{metric}({column}, ⟨q⟩) AS d",
                "SELECT": "id, d",
                "FROM": "⟨t⟩",
                "WHERE": self.plain(),
                "ORDER BY": "d DESC",
                "LIMIT": "⟨n⟩",
            },
            "ranked",
            (Key(f"{metric}({column}, ⟨q⟩)", False, True),),
        )


FAMILIES: tuple[Callable[[Maker], Case], ...] = (
    Maker.top,
    Maker.top,
    Maker.top,
    Maker.several_keys,
    Maker.pages,
    Maker.range,
    Maker.range,
    Maker.partition,
    Maker.partition,
    Maker.star,
    Maker.star,
    Maker.nested,
    Maker.nearest_join,
    Maker.nearest_join_by_distance,
    Maker.cross_join,
    Maker.groups,
    Maker.aggregates,
    Maker.distinct,
    Maker.window,
    Maker.functions,
    Maker.aliases,
)
