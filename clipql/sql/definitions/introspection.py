"""ClickHouse's own tables about tables, with tables that have vectors as their users made them.

`system.tables`, `columns` and `data_skipping_indices`, and the views of information_schema over them, tell of the
physical table: a hidden `_row` that it is sorted by, vector columns as ALIAS, no vector indexes. In a statement that
reads one of them, it is replaced by a subquery: ClickHouse's rows of all other tables, and of ours what the shape
says, with the counts and sizes of the physical table. SHOW COLUMNS and SHOW INDEX ask the shape. What must stay true:
the subquery has the columns of the table, with their types and in their order, and shows nothing that whoever asks may
not see; what is asked of other tables stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from clipql.engine.output import Output
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.tables.index_listing import listing, statement
from clipql.tables.indexes import Indexes
from clipql.tables.registry import INTERNAL, Registry


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# what each of the tables calls a table, and which of its columns tell of the rows as they lie, not of the definition
_TABLE = {"tables": "name", "columns": "table", "data_skipping_indices": "table"}
_DEFINED = {"tables": words("engine_full partition_key sorting_key primary_key sampling_key comment")}
_MEASURED = words("data_compressed_bytes data_uncompressed_bytes marks_bytes")
_VIEWS = ("columns", "tables", "statistics", "key_column_usage")
_SCHEMAS = ("information_schema", "INFORMATION_SCHEMA")
_READING = ("FROM", "JOIN", ",")
_SHAPES = "clipql_shapes"
# how often a statement may name them: each becomes a text as long as some thousand words
MOST_PLACES = 64


def too_often(tables: str, most: int) -> QueryError:
    """The error of a statement that names tables more often than may be."""
    return QueryError(
        f"AST is too big: the statement names {tables} more than {most} times: read them once, in a WITH",
        code=168,
        name="TOO_BIG_AST",
    )


class Introspection:
    """Answers from the shapes of a database's tables. Thread-safe."""

    # of ClickHouse's tables and views, which are the same as long as the process lives
    _types: ClassVar[dict[str, dict[str, str]]] = {}
    _views: ClassVar[dict[str, str]] = {}

    def __init__(self, registry: Registry, indexes: Indexes) -> None:
        self._registry, self._indexes, self._engine = registry, indexes, registry.engine

    def listed(self, sql: str) -> tuple[str, dict[str, pa.Table]]:
        """As `shown`, with `clipql.indexes` too as what it stands for."""
        sql, shown = self.shown(sql)
        if "clipql" not in sql:
            return sql, shown
        tokens = read(sql).words
        sql = edited(
            sql,
            [
                (a.start, b.end, "Python(clipql_indexes)")
                for a, dot, b in zip(tokens, tokens[1:], tokens[2:], strict=False)
                if (a.name, dot.text, b.name) == ("clipql", ".", "indexes")
            ],
        )
        return sql, {**shown, "clipql_indexes": listing(self._indexes)} if "clipql_indexes" in sql else shown

    def shown(self, sql: str) -> tuple[str, dict[str, pa.Table]]:
        """A SELECT with each of ClickHouse's tables about tables as a subquery, and the tables that this reads.

        Raises QueryError for very many.
        """
        lowered = sql.lower()
        if not ("system" in lowered or "information_schema" in lowered) or not self._registry.catalog.tables:
            return sql, {}
        if "information_schema" in lowered:
            sql = self._with_views(sql)
        tokens, edits, places = read(sql).words, list[Edit](), 0
        used: set[str] = set()
        for at in range(len(tokens) - 2):
            table = tokens[at + 2].name or ""
            if not _names(tokens, at, ("system",)) or table not in _TABLE:
                continue
            following = tokens[at + 3].text if at + 3 < len(tokens) else ""
            if following == ".":
                edits.append((tokens[at].start, tokens[at + 2].start, ""))  # a column: its table is now the subquery
            elif at and tokens[at - 1].upper in _READING:
                places += 1
                if places > MOST_PLACES:
                    raise too_often(f"system.{table} and its like", MOST_PLACES)
                alias = "" if _named(tokens, at + 3) else f" AS {table}"
                edits.append((tokens[at].start, tokens[at + 2].end, self._subquery(table) + alias))
                used.add(table)
        return (edited(sql, edits), {f"clipql_{each}": self._rows(each) for each in used}) if used else (sql, {})

    def show(self, sql: str, tokens: Sequence[Token], format: str) -> Output | None:
        """The answer to SHOW COLUMNS or SHOW INDEX of a table with vectors; None for any other SHOW."""
        at = next((i for i, t in enumerate(tokens[:4]) if t.upper in ("FROM", "IN")), 0)
        kind = tokens[at - 1].upper if at else ""
        if kind not in ("COLUMNS", "FIELDS", "INDEX", "INDEXES", "INDICES", "KEYS") or at + 1 >= len(tokens):
            return None
        names, end = [tokens[at + 1].name], at + 2
        if end + 1 < len(tokens) and tokens[end].text == ".":
            names, end = [*names, tokens[end + 1].name], end + 2
        elif end + 1 < len(tokens) and tokens[end].upper in ("FROM", "IN"):
            names, end = [tokens[end + 1].name, *names], end + 2
        table = self._registry.find(names[0] if len(names) > 1 else None, names[-1] or "")
        if table is None:
            return None
        rest = sql[tokens[end].start :] if end < len(tokens) else ""
        text = f"{sql[: tokens[at].end]} {self._registry.shape(table)} {rest}"
        if kind in ("COLUMNS", "FIELDS"):
            return self._engine.query(text, format)
        return self._indexes_shown(table, text, format)

    def _indexes_shown(self, table: Table, text: str, format: str) -> Output:
        found = self._engine.arrow(text)
        rows = [{**row, "table": table.name} for row in found.to_pylist()]
        plain = dict.fromkeys(found.column_names) | {"table": table.name, "non_unique": 1, "seq_in_index": 1}
        plain |= {"cardinality": 0, "comment": "", "index_comment": "", "visible": "YES"}
        for entry in table.indexes:
            told = {"key_name": entry.name, "index_type": entry.kind.upper(), "expression": entry.column}
            rows.append(plain | told)
        shown = pa.Table.from_pylist(rows, found.schema)
        return self._engine.query("SELECT * FROM Python(shown)", format, tables={"shown": shown}, user=True)

    # rows

    def _subquery(self, table: str) -> str:
        """The table with our rows in their place; columns are named, as a star may be anything."""
        types = self._columns(table)
        name = _TABLE[table]
        listed = ", ".join(map(quote_name, types))
        cast = ", ".join(f"CAST({quote_name(c)}, {quote_string(t)}) AS {quote_name(c)}" for c, t in types.items())
        # those that whoever asks may see
        seen = f"(database, {name}) IN (SELECT database, name FROM system.tables)"
        ours = f"SELECT {cast} FROM Python(clipql_{table}) WHERE {seen}"
        left = ", ".join(f"({quote_string(t.database)}, {quote_string(t.name)})" for t in self._registry.catalog.tables)
        return f"(SELECT {listed} FROM system.{table} WHERE (database, {name}) NOT IN ({left}) UNION ALL {ours})"

    def _columns(self, table: str) -> dict[str, str]:
        """The columns of one of ClickHouse's tables with their types."""
        if table not in self._types:
            found = self._engine.arrow(f"DESCRIBE TABLE system.{table}")
            self._types[table] = dict(zip(found["name"].to_pylist(), found["type"].to_pylist(), strict=True))
        return self._types[table]

    def _rows(self, table: str) -> pa.Table:
        """Our tables' rows of one of ClickHouse's tables."""
        kept = self._registry.catalog.tables
        shapes = {_SHAPES: pa.table({"shape_id": [t.id for t in kept], "of": [t.database for t in kept],
                                     "called": [t.name for t in kept]})}  # fmt: skip
        found = self._engine.query(self._select(table), tables=shapes).arrow()
        if table == "data_skipping_indices":
            return self._with_vector_indexes(found)
        if table == "tables":
            return self._with_definitions(found)
        return found

    def _select(self, table: str) -> str:
        """The SELECT of the shapes' rows under the names of their tables, sizes and counts from those."""
        name, columns = _TABLE[table], self._columns(table)
        physical = "p" if table == "tables" else "s"
        taken = {c: f"{physical}.{quote_name(c)}" for c in columns}
        taken |= {c: f"s.{quote_name(c)}" for c in _DEFINED.get(table, ())}
        taken |= {"database": "m.of", name: "m.called", "table": "m.called"}
        key = f"p.database = m.of AND p.{name} = m.called"
        if table == "columns":
            key += " AND p.name = s.name"
            taken |= {c: f"p.{c}" for c in _MEASURED}
        # what Arrow has another type for goes as text
        texts = {c: f"toString({taken[c]})" for c, type in columns.items() if type.startswith(("Enum", "UUID"))}
        chosen = ", ".join(f"{texts.get(c, taken[c])} AS {quote_name(c)}" for c in columns)
        joined = "" if table == "data_skipping_indices" else f"LEFT JOIN system.{table} AS p ON {key} "
        return (
            f"SELECT {chosen} FROM system.{table} AS s INNER JOIN Python({_SHAPES}) AS m ON s.{name} = m.shape_id "
            f"{joined}WHERE s.database = '{INTERNAL}'"
        )

    def _with_definitions(self, rows: pa.Table) -> pa.Table:
        by_name = {(t.database, t.name): t for t in self._registry.catalog.tables}
        texts = []
        for row in rows.select(["database", "name"]).to_pylist():
            text = statement(self._registry, by_name[row["database"], row["name"]])
            texts.append(" ".join(line.strip() for line in text.split("\n")).replace("( ", "(").replace(" )", ")"))
        at = rows.column_names.index("create_table_query")
        return rows.set_column(at, rows.schema.field(at), pa.array(texts, rows.schema.field(at).type))

    def _with_vector_indexes(self, rows: pa.Table) -> pa.Table:
        text = {n: "" for n in rows.column_names if not pa.types.is_integer(rows.schema.field(n).type)}
        plain = dict.fromkeys(rows.column_names, 0) | text | {"creation": "Explicit", "granularity": 1}
        more = [
            plain
            | {"database": t.database, "table": t.name, "name": i.name, "type": i.kind, "type_full": i.kind,
               "expr": i.column, "data_compressed_bytes": i.bytes, "data_uncompressed_bytes": i.bytes}
            for t in self._registry.catalog.tables
            for i in t.indexes
        ]  # fmt: skip
        known = [{n: row[n] for n in rows.column_names} for row in more]
        return pa.concat_tables([rows, pa.Table.from_pylist(known, rows.schema)]) if known else rows

    # information_schema

    def _with_views(self, sql: str) -> str:
        """The statement with each view of information_schema as the SELECT that it is."""
        tokens, edits, places = read(sql).words, list[Edit](), 0
        for at in range(len(tokens) - 2):
            view = (tokens[at + 2].name or "").lower()
            if not _names(tokens, at, _SCHEMAS) or view not in _VIEWS:
                continue
            if at and tokens[at - 1].upper in _READING:
                places += 1
                if places > MOST_PLACES:
                    raise too_often(f"information_schema.{view} and its like", MOST_PLACES)
                alias = "" if _named(tokens, at + 3) else f" AS {quote_name(tokens[at + 2].name or '')}"
                edits.append((tokens[at].start, tokens[at + 2].end, f"({self._view(view)}){alias}"))
            elif at + 3 < len(tokens) and tokens[at + 3].text == ".":
                edits.append((tokens[at].start, tokens[at + 2].start, ""))
        return edited(sql, edits)

    def _view(self, name: str) -> str:
        if name not in self._views:
            where = f"database = 'information_schema' AND name = {quote_string(name)}"
            text = str(self._engine.scalar(f"SELECT as_select FROM system.tables WHERE {where}"))
            told, made = (
                self._engine.arrow(f"DESCRIBE TABLE {source}").select(["name", "type"]).to_pylist()
                for source in (f"information_schema.{name}", f"({text})")
            )
            # a view gives its columns the types that it names
            cast = ", ".join(
                f"CAST({quote_name(a['name'])}, {quote_string(a['type'])}) AS {quote_name(a['name'])}"
                for a, b in zip(told, made, strict=True)
                if a["type"] != b["type"]
            )
            self._views[name] = f"SELECT * REPLACE ({cast}) FROM ({text})" if cast else text
        return self._views[name]


def _names(tokens: Sequence[Token], at: int, databases: tuple[str, ...]) -> bool:
    """Whether a database's name and a dot are here."""
    return tokens[at].name in databases and tokens[at + 1].text == "." and (at == 0 or tokens[at - 1].text != ".")


def _named(tokens: Sequence[Token], at: int) -> bool:
    """Whether an alias is here."""
    if at >= len(tokens):
        return False
    return tokens[at].upper == "AS" or (tokens[at].name is not None and tokens[at].upper not in _AFTER_TABLE)


_AFTER_TABLE = words(
    "FINAL SAMPLE ARRAY LEFT RIGHT INNER FULL CROSS OUTER JOIN GLOBAL ANY ALL SEMI ANTI ASOF PASTE PREWHERE WHERE "
    "GROUP HAVING WINDOW QUALIFY ORDER LIMIT OFFSET FETCH UNION EXCEPT INTERSECT SETTINGS FORMAT INTO ON USING SELECT"
)
