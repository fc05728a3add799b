"""The similarity that words without a meaning reach: what a search finds below it, it may have found by chance.

A model gives every text a vector, and some row is always the nearest. Random letters show how near that is for this
column's rows and this model: the null distribution of the best match. What must stay true: it is asked of the rows as
they are, and remembered only as long as the table has not changed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from clipql.engine.quoting import quote_name
from clipql.serve.models_at_hand import model_for
from clipql.serve.service import Request, Service
from clipql.storage.catalog import Table, VectorColumn

TEXTS, QUANTILE, REMEMBERED = 24, 0.9, 256
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def meaningless() -> list[str]:
    """The same texts of random letters each time."""
    random = np.random.default_rng(7)
    return ["".join(random.choice(_LETTERS, random.integers(5, 14))) for _ in range(TEXTS)]


class Chance:
    """Measures it, and remembers it. Call it in a thread of the pool."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: OrderedDict[tuple[object, ...], float | None] = OrderedDict()
        self._lock = threading.Lock()

    def similarity(self, table: Table, column: VectorColumn, asked: str | None = None) -> float | None:
        """The cosine that nine of ten such texts do not reach with their best match; None where there are no rows.

        asked: a model other than the column's.
        Raises NoModel, QueryError.
        """
        service = self._service
        encoders = service.database.encoders
        model = model_for(encoders, column, asked)
        key = (table.id, column.name, encoders.encoder(model).model, table.rows, len(table.parts))
        with self._lock:
            if key in self._known:
                return self._known[key]
        source = f"{quote_name(table.database)}.{quote_name(table.name)}"
        distance = f"cosineDistance({quote_name(column.name)}, {{query:Array(Float32)}})"
        sql = f"SELECT {distance} AS distance FROM {source} ORDER BY distance LIMIT 1"
        best = []
        for vector in encoders.texts(meaningless(), model):
            found = service.run(Request(sql, {"query": vector}), service.engine.acting).output.arrow()
            best += [1 - float(value.as_py()) for value in found.column(0)]
        reached = float(np.quantile(best, QUANTILE)) if best else None
        with self._lock:
            self._known[key] = reached
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return reached
