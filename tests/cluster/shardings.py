"""One table and the same rows in 1 to 8 shards, all in one database, so that splitting is tried without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import clipql
from clipql.cluster.partial_query import PartialQuery, Run, Snapshot, rows_of, statement
from clipql.cluster.placeholder import Shape, declare
from clipql.cluster.scatter_gather import Gathered, ScatterGather

COLUMNS = (
    "id UInt64, w Nullable(Int32), lang LowCardinality(String), url String, s Float64, ts DateTime, "
    "tags Array(String), e Array(Float32)"
)
MOST = 8
# as one table names it; a sharded one is called n1 to n8, by its shards
ONE = "one"


def row(i: int, rng: np.random.Generator) -> str:
    """A row with few different values, so that there are ties of all kinds. Floats are sums of powers of two."""
    w = "NULL" if rng.random() < 0.1 else str(int(rng.integers(0, 5)))
    lang, tags = ("de", "en", "fr")[int(rng.integers(0, 3))], ["a", "b"][: int(rng.integers(0, 3))]
    vector = [float(x) for x in rng.integers(0, 3, 3) / 2 + 0.5]
    s, ts = int(rng.integers(0, 40)) / 4, 1_600_000_000 + 977 * i
    return f"({i}, {w}, '{lang}', 'u{i % 37}', {s}, {ts}, {tags}, {vector})"


class Shardings:
    """The tables, and a reader of the sharded ones."""

    def __init__(self, db: clipql.Database, rows: int = 240, *, name: str = "", most: int = MOST) -> None:
        """name: before the names of all tables. most: shards. With a name, the tables also have a column `x` of vectors
        that two thirds of the rows lack, and all rows of some shards.
        """
        self.db, self._name, self._runs = db, name, dict[tuple[int, int], list[Run]]()
        rng = np.random.default_rng(7)
        texts = [row(i, rng) for i in range(rows)]
        self._fill(f"{name}{ONE}", texts)
        for shards in range(1, most + 1):
            self._deal(shards, texts, np.random.default_rng(shards))
        listed = rows_of(self._run(f"SELECT * FROM {name}{ONE} LIMIT 0")).columns
        vectors = {"e": (3, None), **({"x": (2, None)} if name else {})}
        names = [f"{name}n{n}" for n in range(1, most + 1)]
        self._shapes = {each: Shape("default", each, listed, (), vectors) for each in names}
        for shape in self._shapes.values():
            declare(db.registry.engine, shape)
        self.scatter_gather = ScatterGather(db.registry.engine, self._find, self._run_on_shards)

    def _find(self, database: str | None, name: str) -> Shape | None:
        return self._shapes.get(name) if database in (None, "default") else None

    def _fill(self, name: str, texts: list[str]) -> None:
        self.db.sql(f"CREATE TABLE {name} ({COLUMNS}) ENGINE = MergeTree ORDER BY id")
        if texts:
            self.db.sql(f"INSERT INTO {name} VALUES {', '.join(texts)}")
        if self._name:
            self.db.sql(f"ALTER TABLE {name} ADD COLUMN x Array(Float32)")
            self.db.sql(f"ALTER TABLE {name} UPDATE x = [id % 9, s] WHERE id % 3 = 0 AND id < 50")

    def _deal(self, shards: int, texts: list[str], rng: np.random.Generator) -> None:
        """Parts of 1 to 60 rows, each to a shard; some shards may stay empty."""
        held: list[list[str]] = [[] for _ in range(shards)]
        at = 0
        while at < len(texts):
            size, shard = int(rng.integers(1, 60)), int(rng.integers(0, shards))
            part = texts[at : at + size]
            self._runs.setdefault((shards, shard), []).append(Run(len(held[shard]), at, len(part)))
            held[shard] += part
            at += len(part)
        for shard, rows in enumerate(held):
            # rows that a query does not see: a part that goes in meanwhile
            self._fill(f"{self._name}n{shards}s{shard}", [*rows, texts[0]])

    def _run_on_shards(self, queries: Sequence[PartialQuery], shape: Shape) -> list[Gathered]:
        return [self._asked(query, shape) for query in queries]

    def _asked(self, query: PartialQuery, shape: Shape) -> Gathered:
        shards = int(shape.name.removeprefix(self._name)[1:])
        answers = []
        for shard in range(shards):
            snapshot = Snapshot(tuple(self._runs.get((shards, shard), ())))
            own = replace(query, table=f"{shape.name}s{shard}")
            answers.append(rows_of(self._run(statement(own, snapshot, snapshot.rows + 1), query.params)))
        return Gathered(answers, shards, shards)

    def _run(self, sql: str, params: Any = None) -> bytes:
        return self.db.execute(sql, params, format="RowBinaryWithNamesAndTypes").output.data

    def one(self, sql: str, **params: Any) -> tuple[Any, ...]:
        """Names, types and rows that the one table gives for {t}."""
        return self._seen(self._run(sql.replace("{t}", f"{self._name}{ONE}"), params))

    def sharded(self, shards: int, sql: str, **params: Any) -> tuple[Any, ...]:
        """The same over so many shards."""
        with self.scatter_gather.rewritten(sql.replace("{t}", f"{self._name}n{shards}"), params, {}) as reading:
            return self._seen(self._run(reading.sql, reading.params))

    def shard_plans(self, shards: int, sql: str, **params: Any) -> list[str]:
        """What EXPLAIN tells of the partial query that the first shard is asked last."""
        asked: list[PartialQuery] = []
        scatter_gather = ScatterGather(
            self.db.registry.engine, self._find, lambda p, s: (asked.extend(p), self._run_on_shards(p, s))[1]
        )
        with scatter_gather.rewritten(sql.replace("{t}", f"{self._name}n{shards}"), params, {}):
            own = replace(asked[-1], table=f"{self._name}n{shards}s0")
            snapshot = Snapshot(tuple(self._runs[shards, 0]))
            found = self.db.sql(f"EXPLAIN {statement(own, snapshot, snapshot.rows + 1)}", **own.params).rows
            return [str(r[0]) for r in found]

    def _seen(self, data: bytes) -> tuple[Any, ...]:
        rows = rows_of(data)
        found = self.db.sql(f"SELECT * FROM format('RowBinaryWithNamesAndTypes', unhex('{data.hex()}'))").rows
        return rows.columns, [tuple(map(repr, r)) for r in found]
