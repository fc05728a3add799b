"""Which file the picture of a row is in, as a search told just before, or as the row file has it.

A page of results is followed by a request for each of its pictures, and asking ClickHouse for the name of one takes as
long as the search did. What must stay true: a name is the row's own as the table is now. It is remembered for one
version of the table's rows, and not used at all where rows go by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clipql.errors import DatabaseDamaged
from clipql.serve.service import Service
from clipql.storage.catalog import Table
from clipql.syntax.recent import Recent

REMEMBERED = 20_000


class PictureNames:
    """Remembers them. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._told: Recent[tuple[str, int, str, int], str | None] = Recent(REMEMBERED)

    def version(self, table: Table) -> int:
        """Of a table's rows, to be asked for before they are read."""
        return self._service.registry.version(table.id)

    def tell(self, table: Table, version: int, column: str, rows: Iterable[tuple[int, Any]]) -> None:
        """Names by the numbers of rows, as they were read at a version."""
        for row, name in rows:
            self._told.keep((table.id, version, column, row), name if isinstance(name, str) else "")

    def find(self, table: Table, column: str, row: int) -> str | None:
        """The name of a row's file, "" where it names none; None where it is not known without asking ClickHouse."""
        if self._service.registry.traits(table).expires:
            return None
        key = (table.id, self.version(table), column, row)
        name = self._told.find(key)
        if name is None:
            name = self._in_row_file(table, column, row)
            if name is not None:
                self._told.keep(key, name)
        return name

    def _in_row_file(self, table: Table, column: str, row: int) -> str | None:
        rows = self._service.database.indexes.rows
        reader = rows.reader(table)
        if reader is None or column not in reader.types or not 0 <= row < min(reader.rows, table.rows):
            return None
        alive = self._service.registry.alive(table)
        if alive is not None and not alive[row]:
            return None
        try:
            name = reader.take([row], [column])[column][0].as_py()
        except DatabaseDamaged as error:
            rows.distrust(table, error)
            return None
        return name if isinstance(name, str) else ""
