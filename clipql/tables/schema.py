"""CREATE, ALTER, RENAME, TRUNCATE, DROP and DELETE of tables with vector columns.

Each change of the catalog is announced in the manifest before it begins, so that `recover` can finish it. The caller
has already found out that the statement is about such a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import UnsupportedStatement, VectorIndexError
from clipql.index import definition
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Pending, Table, VectorColumn
from clipql.storage.vectors import presence
from clipql.syntax.lexer import Token, matching, split_list
from clipql.syntax.reading import read
from clipql.tables import parts, recover, shape, vector_updates
from clipql.tables.index_entries import check_column, unbuilt
from clipql.tables.indexes import Indexes
from clipql.tables.registry import INTERNAL, Registry
from clipql.tables.revising import Revision
from clipql.tables.vector_expressions import anew, by_row, check_added, fill, reading

Made = TypeVar("Made")
# parts of ALTER that only touch rows: the shape has none
_ROW_CHANGES = {"DELETE", "UPDATE", "MATERIALIZE", "DROP PARTITION", "DROP PART", "CLEAR", "APPLY"}
_REFUSED = {"ATTACH", "DETACH", "REPLACE", "MOVE", "FETCH", "FREEZE", "UNFREEZE", "EXPORT"}


def new_id(registry: Registry, name: str) -> str:
    """An id that no table of this database has had: the name as far as it is plain, and the catalog's serial."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[:40]
    return f"{plain}-{registry.catalog.serial + 1}"


def create(
    registry: Registry,
    database: str,
    name: str,
    definition: str,
    indexes: Sequence[IndexEntry] = (),
    params: Mapping[str, Any] | None = None,
) -> Table | None:
    """Make a table from what follows its name in CREATE TABLE; None, with nothing made, where it has no vector columns.

    Raises QueryError as ClickHouse does, for instance where the table exists.
    """
    with registry.write_lock:
        recover.settle(registry)
        table = Table(database, name, new_id(registry, name), ())
        registry.engine.run(f"CREATE DATABASE IF NOT EXISTS {INTERNAL}")
        # a CREATE that failed on a full disk may have left one of this id
        registry.engine.run(f"DROP TABLE IF EXISTS {registry.shape(table)} SYNC")
        registry.engine.run(f"CREATE TABLE {registry.shape(table)} {definition}", params=params, user=True)
        try:
            columns = shape.vector_columns(registry.engine, table.id)
            if columns is None:
                registry.engine.run(f"DROP TABLE {registry.shape(table)} SYNC")
                if indexes:
                    raise VectorIndexError(
                        f"index {indexes[0].name}: {name} has no vector column (an Array(Float32) of a MergeTree table)"
                    )
                return None
            table = dataclasses.replace(table, columns=columns, indexes=tuple(indexes))
            for entry in indexes:
                check_column(table, entry)
            shape.check_computed(registry.engine, table)
            statement = shape.physical_definition(registry.engine, table, registry.physical(table))
            registry.save(registry.catalog.with_pending(Pending("create", None, table)))
            registry.publish(table)  # ClickHouse tries the columns' expressions out
            try:
                registry.engine.run(statement)
                parts.check_definition(registry, table)
            except BaseException:
                recover.settle(registry)  # which removes what there may be of it
                raise
            registry.save(registry.catalog.with_table(table).with_pending(None))
        except BaseException:
            with contextlib.suppress(Exception):
                recover.settle(registry)  # which removes what was announced
            with contextlib.suppress(Exception):
                registry.engine.run(f"DROP TABLE IF EXISTS {registry.shape(table)} SYNC")
            raise
        return table


def drop(registry: Registry, table: Table) -> None:
    """Remove a table, its vectors and all."""
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        registry.save(registry.catalog.with_pending(Pending("drop", table, None)))
        recover.settle(registry)


def give_way(registry: Registry, table: Table, make: Callable[[], Made]) -> Made:
    """Have ClickHouse put something else in the place of a table; its vectors go once that is done."""
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        registry.save(registry.catalog.with_pending(Pending("replace", table, None)))
        try:
            return make()
        finally:
            recover.settle(registry)


def drop_if_there(registry: Registry, table: Table) -> None:
    """Remove a table that was being made, where something went wrong on the way."""
    with contextlib.suppress(Exception):
        recover.settle(registry)
        left = registry.catalog.by_id(table.id)
        if left is not None and (left.database, left.name) == (table.database, table.name):
            drop(registry, left)


def truncate(registry: Registry, table: Table) -> None:
    """Remove all rows of a table. Its row numbers begin again, and so does its vectors' dimension."""
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        columns = tuple(dataclasses.replace(c, dimension=None, model=None, segments=()) for c in table.columns)
        after = dataclasses.replace(table, columns=columns, rows=0, parts=(), indexes=unbuilt(table))
        registry.save(registry.catalog.with_pending(Pending("truncate", table, after)))
        recover.settle(registry)
        recover.sweep(registry)


def rename(registry: Registry, statement: str, pairs: Sequence[tuple[Table, str, str]]) -> None:
    """RENAME TABLE of one table with vector columns; pairs: the table and its new database and name."""
    if len(pairs) != 1:
        raise UnsupportedStatement("rename tables with vector columns one statement each")
    _named(registry, "rename", statement, *pairs[0])


def exchange(registry: Registry, statement: str, table: Table, database: str, name: str) -> None:
    """EXCHANGE TABLES of a table with vector columns and another one, whose database and name it gets."""
    _named(registry, "exchange", statement, table, database, name)


def _named(registry: Registry, kind: str, statement: str, table: Table, database: str, name: str) -> None:
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        after = dataclasses.replace(table, database=database, name=name)
        registry.save(registry.catalog.with_pending(Pending(kind, table, after)))
        try:
            registry.engine.run(statement, user=True)
        finally:
            recover.settle(registry)


def alter(
    registry: Registry,
    indexes: Indexes,
    table: Table,
    tokens: Sequence[Token],
    first: int,
    sql: str,
    params: Mapping[str, Any],
) -> None:
    """ALTER TABLE: each of its commands on the shape, on the physical table, or on both, as it needs."""
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        for a, b, tail in _commands(list(tokens), first):
            if not _alter_index(indexes, table, list(tokens), a, b, sql):
                command = sql[tokens[a].start : tokens[b - 1].end]
                after = f" {sql[tokens[tail].start : tokens[-1].end]}" if tail < len(tokens) else ""
                _alter_one(registry, indexes, table, list(tokens[a:b]), command, after, params, sql)
            table = registry.catalog.by_id(table.id) or table


def _commands(tokens: Sequence[Token], first: int) -> list[tuple[int, int, int]]:
    """The changes of an ALTER, as [first, last) tokens without brackets, and where SETTINGS for all of them begin."""
    if tokens[first].text != "(":
        return [(a, b, len(tokens)) for a, b in split_list(tokens, first, len(tokens))]
    found, at = [], first
    while at < len(tokens) and tokens[at].text == "(":
        close = matching(tokens, at)
        found.append((at + 1, close))
        at = close + 2 if close + 1 < len(tokens) and tokens[close + 1].text == "," else close + 1
    return [(a, b, at) for a, b in found]


def _alter_index(indexes: Indexes, table: Table, tokens: Sequence[Token], first: int, last: int, sql: str) -> bool:
    """ADD, DROP, CLEAR or MATERIALIZE INDEX, where it is about a vector index; whether it was."""
    words = [t.upper for t in tokens[first:last]]
    if len(words) < 3 or words[1] != "INDEX":
        return False
    verb, at = words[0], first + 2
    conditional = words[2] == "IF"
    while tokens[at].upper in ("IF", "NOT", "EXISTS"):
        at += 1
    name = tokens[at].name or ""
    if verb == "ADD":
        written = definition.read(tokens, at, last, sql)
        if written:
            indexes.add(table, written.entry, if_not_exists=conditional)
        return written is not None
    if table.index(name) is None:
        if verb == "MATERIALIZE" and not conditional and not _has_plain_index(indexes.registry, table, name):
            indexes.build(table, name)  # which says that there is none
        return False
    work = {"DROP": indexes.drop, "CLEAR": indexes.clear, "MATERIALIZE": indexes.build}.get(verb)
    if work is None:
        return False
    work(table, name)
    return True


def _has_plain_index(registry: Registry, table: Table, name: str) -> bool:
    where = f"database = '{INTERNAL}' AND table = {quote_string(table.id)} AND name = {quote_string(name)}"
    return bool(registry.engine.scalar(f"SELECT count() FROM system.data_skipping_indices WHERE {where}"))


def _alter_one(
    registry: Registry,
    indexes: Indexes,
    table: Table,
    tokens: Sequence[Token],
    command: str,
    after: str,
    params: Mapping[str, Any],
    sql: str,
) -> None:
    words = [t.upper for t in tokens]
    verb = words[0]
    run = partial(registry.engine.run, params=params, user=True)
    on_physical, on_shape = f"ALTER TABLE {registry.physical(table)}", f"ALTER TABLE {registry.shape(table)}"
    named = _named_column(tokens)
    column = table.column(named) if named else None
    if verb in _REFUSED:
        raise UnsupportedStatement(
            f"ALTER TABLE … {verb} moves rows without their vectors, so it is refused on {table.full_name}; "
            "use INSERT INTO … SELECT"
        )
    if verb == "UPDATE" and vector_updates.update(registry, indexes, table, tokens, sql, params):
        return
    if column and verb == "CLEAR":
        vector_updates.check_clear(tokens, column.name)
        with Revision(registry, indexes, table) as revision:
            revision.clear(column.name)
        return
    if verb == "CLEAR" and named in reading(registry.engine, table):
        command = anew(registry.engine, table, named or "")
    if verb in _ROW_CHANGES or " ".join(words[:2]) in _ROW_CHANGES:
        with parts.mutating(registry, table):
            run(f"{on_physical} {command}{after}")
        return
    if (column and verb == "MODIFY") or (column and verb == "ALTER"):
        raise UnsupportedStatement(f"{column.name} is a vector column; it can be renamed or dropped, not modified")
    if column and verb in ("DROP", "RENAME"):
        _alter_vectors(registry, table, column.name, tokens[-1].name if verb == "RENAME" else None)
        return
    if " ".join(words[:2]) in ("MODIFY ORDER", "RESET SETTING"):
        run(f"{on_shape} {command}{after}")
        return
    with _altering(registry, table, table) as verify:
        run(f"{on_shape} {command}{after}")
        verify()
        shape.check_computed(registry.engine, table)
        if verb == "ADD" and named:
            check_added(registry, table, named)
        if not (verb == "ADD" and _added_vectors(registry, table, named)):
            run(f"{on_physical} {by_row(registry.engine, table, command)}{after}")
            fill(registry, table)


@contextlib.contextmanager
def _altering(registry: Registry, table: Table, after: Table) -> Iterator[Callable[[], None]]:
    """Change the shape inside, call what is given, then change the physical table; where that fails or is cut off, the
    shape is as it was.
    """
    shape_before = recover.definition(registry, INTERNAL, table.id)
    before = recover.definition(registry, table.database, table.name)
    assert shape_before and before, "the catalog names the table"
    recover.drop_kept_shape(registry, table)
    recover.keep_shape(registry, table, shape_before)
    on_disk = parts.definitions(registry, table)
    registry.save(registry.catalog.with_pending(Pending("alter", table, after, (shape_before, before))))
    verify = partial(parts.check_definition, registry, table, on_disk)
    try:
        yield verify
        verify()
    finally:
        recover.settle(registry)
        recover.drop_kept_shape(registry, table)


def _named_column(tokens: Sequence[Token]) -> str | None:
    at = 1
    while at < len(tokens) and tokens[at].upper in ("COLUMN", "IF", "EXISTS", "NOT"):
        at += 1
    return tokens[at].name if at < len(tokens) else None


def _added_vectors(registry: Registry, table: Table, named: str | None) -> bool:
    """A new Array(Float32) column becomes a vector column; where the table has rows, they have no vector yet."""
    found = shape.vector_columns(registry.engine, table.id) or ()
    fresh = [c for c in found if c.name == named]
    if not fresh:
        return False
    if table.column(fresh[0].name) is not None:  # IF NOT EXISTS
        return True
    added = new_column(registry, table, fresh[0].name)
    if table.rows:
        added = dataclasses.replace(added, segments=(presence.hollow(0, table.rows),), optional=True)
    after = dataclasses.replace(table, columns=(*table.columns, added))
    announced = registry.catalog.pending
    assert announced is not None, "the shape is being altered"
    registry.save(registry.catalog.with_pending(dataclasses.replace(announced, after=after)))
    registry.publish(after)
    registry.engine.run(f"ALTER TABLE {registry.physical(table)} ADD COLUMN {shape.alias_of(table, added)}")
    return True


def new_column(registry: Registry, table: Table, name: str) -> VectorColumn:
    """A vector column that the table does not have yet, with a folder of its own, which is made."""
    taken = {c.folder for c in table.columns}
    column = VectorColumn(name, next(f"column-{i}" for i in range(1000) if f"column-{i}" not in taken))
    files.make_folder(registry.folder / "vectors" / table.id / column.folder)
    return column


def make_optional(registry: Registry, table: Table, names: Collection[str]) -> None:
    """Let rows come without a vector in these columns, as in any that is added to a table with rows."""
    with registry.write_lock:
        recover.settle(registry)
        table = registry.current(table)
        columns = tuple(dataclasses.replace(c, optional=c.optional or c.name in names) for c in table.columns)
        if columns != table.columns:
            registry.save(registry.catalog.with_table(dataclasses.replace(table, columns=columns)))


def add_filled(registry: Registry, table: Table, column: VectorColumn, *, replaces: bool = False) -> None:
    """Add a vector column with its vectors, whose segments lie in its folder, one vector for each row of the table.

    replaces: it takes the place of an Array(Float32) column of its name that ClickHouse has, and whose values go.
    Raises QueryError as ClickHouse does, for instance where there is a column of the name; then nothing has changed.
    """
    command = f"ADD COLUMN {quote_name(column.name)} Array(Float32)"
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        files.sync_folder(registry.folder / "vectors" / table.id / column.folder)
        after = dataclasses.replace(table, columns=(*table.columns, column))
        if replaces:
            shape.check_computed(registry.engine, after)
            shape.check_unread(registry.engine, table, after)
        with _altering(registry, table, after) as verify:
            if not replaces:
                registry.engine.run(f"ALTER TABLE {registry.shape(table)} {command}")
                verify()
            registry.publish(after)
            verb, alias = "MODIFY" if replaces else "ADD", shape.alias_of(table, column)
            registry.engine.run(f"ALTER TABLE {registry.physical(table)} {verb} COLUMN {alias}")


def _alter_vectors(registry: Registry, table: Table, name: str, new_name: str | None) -> None:
    kept = tuple(c for c in table.columns if c.name != name)
    if new_name is None and not kept:
        raise UnsupportedStatement(f"{name} is the last vector column of {table.full_name}: drop the table instead")
    column = table.column(name)
    assert column is not None, "the caller found it"
    if new_name is not None:
        kept = tuple(dataclasses.replace(c, name=new_name) if c.name == name else c for c in table.columns)
    indexes = tuple(
        dataclasses.replace(i, column=new_name) if new_name is not None and i.column == name else i
        for i in table.indexes
        if new_name is not None or i.column != name
    )
    after = dataclasses.replace(table, columns=kept, indexes=indexes)
    if new_name is None:
        command = f"DROP COLUMN {quote_name(name)}"
    else:
        command = f"RENAME COLUMN {quote_name(name)} TO {quote_name(new_name)}"
    with _altering(registry, table, after) as verify:
        registry.engine.run(f"ALTER TABLE {registry.shape(table)} {command}")
        verify()
        registry.engine.run(f"ALTER TABLE {registry.physical(table)} {command}")
    recover.sweep(registry)


def delete(registry: Registry, indexes: Indexes, table: Table, statement: str, params: Mapping[str, Any]) -> None:
    """DELETE FROM, or a lightweight UPDATE: ClickHouse's, with the planner told to look again; vectors are ours."""
    with registry.write_lock, registry.gate.writing():
        recover.settle(registry)
        table = registry.current(table)
        if vector_updates.update(registry, indexes, table, read(statement).words, statement, params):
            return
        with parts.mutating(registry, table):
            registry.engine.run(statement, params=params, user=True)
