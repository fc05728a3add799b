"""What searches will need is loaded when a server has started, so that the first of them need not wait for it.

What must stay true: it has ended before the database is closed, as ClickHouse must not be used after that.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import numpy as np

from clipql.database import Database
from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError
from clipql.tables.registry import INTERNAL

# tables that are searched once; rows of one without an index that are not too many for that
MOST_TABLES, FEW_ROWS = 16, 100_000


class Warming:
    """Loads code, indexes, row files and a model, in a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._acting = Acting(EngineUser())
        self._thread = threading.Thread(target=self._run, name="clipql warming", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End it; False where it has not ended after so long."""
        self._database.registry.engine.cancel(self._acting)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(ClipqlError), self._database.registry.engine.act(self._acting):
            self._search()
            # where there is no model, a search by words will say so
            encoders, tables = self._database.encoders, self._database.registry.catalog.tables
            if not self._acting.cancelled:
                encoders.texts(["a picture"], encoders.usual(tables))
        gc.freeze()

    def _search(self) -> None:
        for table in self._database.registry.catalog.tables[:MOST_TABLES]:
            for column in table.columns:
                if self._acting.cancelled:
                    return
                indexed = any(i.column == column.name for i in table.indexes)
                if column.dimension and table.database != INTERNAL and (indexed or table.rows < FEW_ROWS):
                    with contextlib.suppress(ClipqlError):  # it may be damaged, or gone by now
                        vector = np.ones(column.dimension, np.float32)
                        self._database.search(table.full_name, vector=vector, column=column.name, k=1)
