"""What tables with vector columns there are, and their mapped vectors, while a database is open.

What must stay true: the catalog in memory equals the manifest on disk; a store is published before rows that need it
can be read; the SQL function behind every vector column reads the stores published last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.engine import native_reader as native
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import ClipqlError, ReadOnly, UnknownTable
from clipql.storage import catalog as manifest
from clipql.storage.announced import Announcements
from clipql.storage.catalog import Catalog, Table, VectorColumn
from clipql.storage.vectors.store import ColumnStore
from clipql.syntax.reading import read
from clipql.tables import unopened
from clipql.tables.code_files import CodeFiles
from clipql.tables.computed import BLOCK, SHIFT, Computed
from clipql.tables.read_write_lock import ReadWriteLock

# holds an empty table of each shape (the columns as the user wrote them) and rows on their way into a table
INTERNAL = manifest.INTERNAL
FUNCTION = "_clipql_vector"
# computed of the vectors of a row, by a name of `computed.name_of`: the functions for each type of the value
GROUPED = FUNCTION + "_grouped"  # computed of the vectors of a group of rows
NUMBERS = {"Float32": FUNCTION + "_number", "Float64": FUNCTION + "_wide_number", "UInt64": FUNCTION + "_whole_number"}
ARRAYS = FUNCTION + "_made"  # the float32 numbers that a head makes of a vector
_WITHIN = BLOCK - 1
_blocks: Mapping[str, Mapping[int, memoryview]] = {}  # numbers at hand of the database that answers
ROW = "_row"


@dataclass(frozen=True)
class Traits:
    """stored: the columns whose values MergeTree stores, in order. expires: whether rows or values go by themselves, by
    a TTL.
    """

    stored: tuple[str, ...]
    expires: bool


class Registry:
    """The tables with vector columns of one open database.

    write_lock is held by whoever changes the catalog; gate by planned queries (reading) and by statements that take
    rows, columns or tables away (writing).
    """

    _current: ClassVar[Registry | None] = None
    _registered: ClassVar[bool] = False

    def __init__(self, folder: Path, engine: Engine, catalog: Catalog, *, reads_of: Path | None = None) -> None:
        """reads_of: the database of which the folder is a reader's snapshot."""
        self.folder, self.engine, self._catalog, self.reads_of = folder, engine, catalog, reads_of
        self._announcements = Announcements(folder)
        self.settling = False  # a snapshot is brought to the last commit: the one change that a reader makes
        self.write_lock, self.gate = threading.RLock(), ReadWriteLock()
        self._stores: dict[str, ColumnStore] = {}
        self.computed = Computed(self._stores)
        self.codes = CodeFiles(lambda: self.folder)
        self._alive: dict[str, tuple[int, NDArray[np.bool_] | None]] = {}
        self._versions: dict[str, int] = {}
        self.changes = 0  # statements so far that may have changed what a name or a setting means
        self._traits: dict[str, tuple[int, Traits]] = {}
        self.seen_parts: dict[tuple[str, str], frozenset[str]] = {}
        for table in catalog.tables:
            self.publish(table)
        if not reads_of:  # whose engine opens later, perhaps when that of another database is closed
            self.answer()
        if not Registry._registered:
            engine.register(FUNCTION, _vector, ["String", "UInt64"], "String")
            engine.register(ARRAYS, _made, ["String", "UInt64"], "String")
            engine.register(GROUPED, _grouped, ["String", "String"], "String")
            for kind, name in NUMBERS.items():
                engine.register(name, _number, ["String", "UInt64"], kind)
            Registry._registered = True

    @property
    def database(self) -> str:
        """The current database of whoever acts."""
        acting = self.engine.acting
        return acting.database or acting.user.database

    @database.setter
    def database(self, name: str) -> None:
        self.engine.acting.user.database = name

    @property
    def hidden(self) -> set[str]:
        """Names of the temporary tables of whoever acts."""
        return self.engine.acting.user.hidden

    @property
    def catalog(self) -> Catalog:
        """The catalog as it is on disk."""
        return self._catalog

    def save(self, catalog: Catalog) -> None:
        """Write a new catalog durably, then make it the one in force. Raises ReadOnly for a reader."""
        if self.reads_of and not self.settling:
            raise ReadOnly("this", self.reads_of)
        catalog = dataclasses.replace(catalog, serial=self._catalog.serial + 1)
        self._announcements.save(catalog)
        self._catalog = catalog

    def assume(self, catalog: Catalog) -> None:
        """Go on by a catalog that could not be written: the change under way has come about all the same, so reads
        must know of it. What was announced stays announced, and the next write, or the next open, writes it.
        """
        self._catalog = dataclasses.replace(catalog, pending=self._catalog.pending, serial=self._catalog.serial)
        self.announce()

    def announce(self) -> None:
        """A statement may have changed rows or definitions that the manifest says nothing of: readers shall look."""
        with contextlib.suppress(OSError):
            self._announcements.add()

    def answer(self) -> None:
        """Have the SQL functions behind vector columns read this database: one engine is open at a time."""
        global _blocks
        Registry._current, _blocks = self, self.computed.blocks

    def move(self, folder: Path, catalog: Catalog) -> None:
        """Go on with a later snapshot. No query may run."""
        self.folder, before, self._catalog = folder, self._catalog, catalog
        self._announcements = Announcements(folder)
        for table in before.tables:
            if catalog.by_id(table.id) is None:
                self.withdraw(table.id)
        for table in catalog.tables:
            self.publish(table)
        self.touched()
        self.seen_parts.clear()
        self.changes += 1

    def find(self, database: str | None, name: str) -> Table | None:
        """The table of this name if it has vector columns; `database` None means the current one."""
        if database is None and name in self.hidden:
            return None
        return self._catalog.table(database or self.database, name)

    def current(self, table: Table) -> Table:
        """A table as the catalog has it now: what was looked up before the lock was had may be old by then.

        Raises UnknownTable where it is gone.
        """
        found = self._catalog.by_id(table.id) or self._catalog.table(table.database, table.name)
        if found is None:
            raise UnknownTable(f"{table.full_name} was dropped meanwhile")
        return found

    def column_folder(self, table: Table, column: str) -> Path:
        """Where the segments of a column lie."""
        found = table.column(column)
        if found is None:
            raise ClipqlError(f"{table.full_name} has no vector column {column}")
        return self.folder / "vectors" / table.id / found.folder

    def table_folder(self, table: Table) -> Path:
        """Where the segments of a table lie."""
        return self.folder / "vectors" / table.id

    def publish(self, table: Table) -> None:
        """Map the segments of a table, so that its vectors can be read."""
        self._versions[table.id] = self.version(table.id) + 1
        for column in table.columns:
            handle = self.handle(table, column)
            folder, known = self.folder / "vectors" / table.id / column.folder, self._stores.get(handle)
            store = self._stores[handle] = ColumnStore(folder, column, known)
            if known is not None and not store.continues(known):
                self.computed.forget(table.id)

    def handle(self, table: Table, column: VectorColumn) -> str:
        """What the SQL functions behind vector columns know a column by."""
        return f"{table.id}/{column.folder}"

    def withdraw(self, id: str) -> None:
        """Forget the stores of a table that is gone."""
        for handle in [h for h in self._stores if h.startswith(f"{id}/")]:
            del self._stores[handle]
        self.computed.forget(id)
        self._alive.pop(id, None)

    def store(self, table: Table, column: str) -> ColumnStore:
        """The mapped vectors of a column."""
        found = table.column(column)
        assert found is not None, "the recogniser only names columns of the table"
        return self._stores[self.handle(table, found)]

    def vector(self, handle: str, row: int) -> bytes:
        """One vector by its column's handle, as the bytes of an Array(Float32)."""
        return self._stores[handle].vector_bytes(row)

    def physical(self, table: Table) -> str:
        """The quoted name of a table's MergeTree half."""
        return f"{quote_name(table.database)}.{quote_name(table.name)}"

    def shape(self, table: Table) -> str:
        """The quoted name of the empty table that has the user's own definition."""
        return f"{INTERNAL}.{quote_name(table.id)}"

    def touched(self, ids: Iterable[str] | None = None) -> None:
        """Rows of these tables (or of all) may have been deleted or changed: look again before the next search."""
        for id in list(self._versions) if ids is None else ids:
            self._alive.pop(id, None)
            self._versions[id] = self.version(id) + 1

    def version(self, id: str) -> int:
        """A number that is another one after each change of a table's rows or columns."""
        return self._versions.get(id, 0)

    def traits(self, table: Table) -> Traits:
        """What holds of a table until its definition changes."""
        version = self.version(table.id)
        known = self._traits.get(table.id)
        if known is None or known[0] != version:
            columns = unopened.columns(self.folder / "engine", table) if self.reads_of else None
            if columns is not None:
                kinds = ("", "DEFAULT", "MATERIALIZED")
                stored = tuple(n for n, kind in columns if kind in kinds and table.column(n) is None)
                known = self._traits[table.id] = (version, Traits(stored, False))
                return known[1]
            names = self.engine.arrow(
                f"SELECT name FROM system.columns WHERE database = '{INTERNAL}' AND table = {quote_string(table.id)} "
                "AND default_kind IN ('', 'DEFAULT', 'MATERIALIZED') ORDER BY position"
            ).column(0)
            stored = tuple(n for n in names.to_pylist() if table.column(n) is None)
            known = (version, Traits(stored, self._has_ttl(table)))
            self._traits[table.id] = known
        return known[1]

    def alive(self, table: Table) -> NDArray[np.bool_] | None:
        """Which rows are there, bool (table.rows,); None where all are.

        Rows with a TTL may go at any time, so for such a table the answer is not kept.
        """
        known = self._alive.get(table.id)
        if known is None:
            known = self._look(table)
            if not self.expires(table):
                self._alive[table.id] = known
        rows, mask = known
        if mask is None or rows == table.rows:
            return mask
        grown = np.ones(table.rows, np.bool_)  # rows that came after the look are there
        grown[:rows] = mask[: table.rows]
        return grown

    def present(
        self, table: Table, columns: Iterable[str], among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_] | None:
        """Those of some rows, bool (table.rows,), that have a vector in each of the columns; None for all.

        among: the rows, by default those that are there.
        """
        found = self.alive(table) if among is None else among
        for column in columns:
            there = self.store(table, column).there
            if there is not None:
                found = there[: table.rows] if found is None else found & there[: table.rows]
        return found

    def absent(self, table: Table, column: str) -> int:
        """How many rows that are there have no vector in a column."""
        there, alive = self.store(table, column).there, self.alive(table)
        if there is None:
            return 0
        lacking = ~there[: table.rows]
        return int(np.count_nonzero(lacking if alive is None else lacking & alive))

    def _look(self, table: Table) -> tuple[int, NDArray[np.bool_] | None]:
        name, rows = self.physical(table), table.rows
        if self.reads_of and unopened.all_there(self.folder / "engine", table):
            return rows, None
        count = self.engine.scalar(f"SELECT count() FROM {name} WHERE {ROW} < {rows}")
        if count == rows:
            return rows, None
        mask = np.zeros(rows, np.bool_)
        mask[self.row_numbers(f"SELECT {ROW} FROM {name} WHERE {ROW} < {rows}")] = True
        return rows, mask

    def _has_ttl(self, table: Table) -> bool:
        """Whether a table has a TTL, or a column of it."""
        where = f"database = {quote_string(INTERNAL)} AND name = {quote_string(table.id)}"
        definition = str(self.engine.scalar(f"SELECT create_table_query FROM system.tables WHERE {where}"))
        return any(token.upper == "TTL" for token in read(definition).tokens)

    def expires(self, table: Table) -> bool:
        """Whether rows of a table go by themselves, by a TTL."""
        if self.reads_of and unopened.columns(self.folder / "engine", table) is not None:
            return False
        where = f"database = {quote_string(INTERNAL)} AND name = {quote_string(table.id)}"
        return " TTL " in str(self.engine.scalar(f"SELECT engine_full FROM system.tables WHERE {where}"))

    def row_numbers(
        self, sql: str, params: Mapping[str, Any] | None = None, tables: Mapping[str, pa.Table] | None = None
    ) -> NDArray[np.uint64]:
        """The row numbers that a query of one UInt64 column gives; with parameters, it is (made of) a user's query."""
        user = params is not None
        # twice as fast as RowBinary
        return native.numbers(self.engine.query(sql, "Native", params=params, tables=tables, user=user).data)

    def close(self) -> None:
        """Unmap everything."""
        self._stores.clear()
        self.computed = Computed(self._stores)
        if Registry._current is self:
            global _blocks
            Registry._current, _blocks = None, {}


def _vector(handle: str, row: int) -> bytes:
    registry = Registry._current
    if registry is None:
        raise ClipqlError("no clipql database is open")
    return registry.vector(handle, row)


def _number(name: str, row: int) -> Any:
    try:  # a call for each row is most of what a statement of such numbers takes
        return _blocks[name][row >> SHIFT][row & _WITHIN]
    except (KeyError, IndexError):
        registry = Registry._current
    if registry is None:
        raise ClipqlError("no clipql database is open")
    return registry.computed.number(name, row)


def _made(name: str, row: int) -> bytes:
    registry = Registry._current
    if registry is None:
        raise ClipqlError("no clipql database is open")
    return registry.computed.array(name, row)


def _grouped(name: str, rows: str) -> bytes:
    registry = Registry._current
    if registry is None:
        raise ClipqlError("no clipql database is open")
    return registry.computed.grouped(name, rows)
