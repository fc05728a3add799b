"""A table of clipql's as ClickHouse servers have it: MergeTree with `vector_similarity` indexes, alone or in a cluster.

What must stay true: columns, their types, defaults and the sorting key are the table's own, as it describes itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clipql.database import Database
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import UnknownTable
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read

# what ClickHouse's index can be asked for; any other distance is left to its exact scan
_METRICS = ("cosineDistance", "L2Distance")
# rows of an index granule: as many as the documentation advises, which is one graph a part of the table
GRANULARITY = 100_000_000


@dataclass(frozen=True)
class Column:
    """A column: its type, and DEFAULT or ALIAS with their expression, empty where there is none."""

    name: str
    type: str
    default: str = ""

    @property
    def sql(self) -> str:
        """As CREATE TABLE has it."""
        return f"{quote_name(self.name)} {self.type}{f' {self.default}' if self.default else ''}"


@dataclass(frozen=True)
class Exported:
    """A table for another server. vectors: length of each vector column, 0 where it is not known yet.

    nullable_key: whether the sorting key may have NULLs. lacking: columns that some rows have no vector in, which go as
    empty arrays.
    """

    columns: tuple[Column, ...]
    order: str
    vectors: dict[str, int]
    metrics: dict[str, str]
    nullable_key: bool = False
    lacking: tuple[str, ...] = ()

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the columns that have values of their own."""
        return tuple(c.name for c in self.columns if not c.default.startswith(("ALIAS", "MATERIALIZED", "EPHEMERAL")))


def described(db: Database, table: str) -> Exported:
    """What a table looks like. Raises UnknownTable, QueryError."""
    database, _, name = table.rpartition(".")
    source = f"{quote_name(database)}.{quote_name(name)}" if database else quote_name(name)
    definition = str(db.sql(f"SHOW CREATE TABLE {source}").rows[0][0])
    columns = tuple(
        Column(str(n), str(t), f"{k} {e}".strip())
        for n, t, k, e in (r[:4] for r in db.sql(f"DESCRIBE TABLE {source}").rows)
    )
    names = [c.name for c in columns if c.type == "Array(Float32)" and not c.default]
    if not names:
        raise UnknownTable(
            f"{table} has no vector columns, so there is nothing that ClickHouse would not copy by itself"
        )
    vectors, lacking = dict[str, int](), list[str]()
    for name in names:
        column = quote_name(name)
        found = db.sql(f"SELECT length({column}) FROM {source} WHERE notEmpty({column}) LIMIT 1").rows
        vectors[name] = int(found[0][0]) if found else 0
        if db.sql(f"SELECT 1 FROM {source} WHERE empty({column}) LIMIT 1").rows:
            lacking.append(name)
    nullable = "allow_nullable_key = 1" in definition
    return Exported(columns, _order(definition), vectors, _metrics(definition), nullable, tuple(lacking))


def _order(definition: str) -> str:
    """The sorting key in CREATE TABLE."""
    tokens = read(definition).tokens
    at = next((i for i, t in enumerate(tokens) if t.upper == "ENGINE"), 0)
    while at < len(tokens) - 2:
        if [t.upper for t in tokens[at : at + 2]] == ["ORDER", "BY"]:
            first = tokens[at + 2]
            last = tokens[matching(tokens, at + 2)] if first.text == "(" else first
            if first.text != "(" and at + 3 < len(tokens) and tokens[at + 3].text == "(":  # tuple(), or a function
                last = tokens[matching(tokens, at + 3)]
            return definition[first.start : last.end]
        at += 1
    return "tuple()"


def _metrics(definition: str) -> dict[str, str]:
    """The distance of the index on each vector column, where it has one that ClickHouse knows too."""
    found: dict[str, str] = {}
    for match in re.finditer(r"INDEX\s+\S+\s+`?(\w+)`?\s+TYPE\s+\w+\s*\(([^)]*)\)", definition):
        metric = next((m for m in _METRICS if m in match[2]), None)
        if metric:
            found.setdefault(match[1], metric)
    return found


def create_local(table: Exported, name: str, *, cluster: str | None = None, indexes: bool = True) -> str:
    """CREATE TABLE for one server; with a cluster, replicated on all of it. A column that rows lack a vector in has no
    index, as ClickHouse's takes no empty arrays.
    """
    lines = [f"    {c.sql}" for c in table.columns]
    for column, dimension in table.vectors.items():
        if dimension and indexes and column not in table.lacking:
            metric = table.metrics.get(column, "cosineDistance")
            index = quote_name(f"near_{column}")
            lines.append(
                f"    INDEX {index} {quote_name(column)} TYPE vector_similarity('hnsw', '{metric}', {dimension}) "
                f"GRANULARITY {GRANULARITY}"
            )
    on, engine = "", "MergeTree"
    if cluster is not None:
        on = f" ON CLUSTER {quote_string(cluster)}"
        path = "/clickhouse/tables/{shard}/" + name.replace("`", "").replace(".", "/")
        engine = f"ReplicatedMergeTree({quote_string(path)}, '{{replica}}')"
    columns, settings = ",\n".join(lines), "\nSETTINGS allow_nullable_key = 1" if table.nullable_key else ""
    head = f"CREATE TABLE IF NOT EXISTS {name}{on}\n(\n{columns}\n)"
    return f"{head}\nENGINE = {engine}\nORDER BY {table.order}{settings}"


def create_cluster(table: Exported, database: str, name: str, cluster: str) -> list[str]:
    """The statements that make a table on every server of a cluster: the local ones, and the one over them."""
    local = f"{quote_name(database)}.{quote_name(name + '_local')}"
    over = f"{quote_name(database)}.{quote_name(name)}"
    key = f"cityHash64({quote_name('id')})" if any(c.name == "id" for c in table.columns) else "rand()"
    on = f"ON CLUSTER {quote_string(cluster)}"
    distributed = ", ".join((*map(quote_string, (cluster, database, f"{name}_local")), key))
    return [
        f"CREATE DATABASE IF NOT EXISTS {quote_name(database)} {on}",
        create_local(table, local, cluster=cluster),
        f"CREATE TABLE IF NOT EXISTS {over} {on} AS {local}\nENGINE = Distributed({distributed})",
    ]
