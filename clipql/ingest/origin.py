"""Which rows of a part have vectors, and whether parts were made by the model of their table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.encode.names import canonical
from clipql.errors import IngestError
from clipql.ingest.layout import DAMAGED, CheckedPart
from clipql.storage.catalog import Table


def rows_with_vectors(part: CheckedPart) -> NDArray[np.bool_] | None:
    """Which rows of a part to take, (rows,); None for all of them."""
    if not part.failed:
        return None
    path = part.files.metadata
    try:
        with pq.ParquetFile(path) as file:
            errors = file.read(columns=["error"]).column(0)
        kept: NDArray[np.bool_] = pc.equal(pc.fill_null(errors, ""), "").to_numpy()
    except DAMAGED as error:
        raise IngestError(f"{path}: its column error cannot be read ({error}); fetch it again") from error
    if len(kept) != part.rows or part.rows - int(kept.sum()) != part.failed:
        raise IngestError(
            f"{path} says that {part.failed:,} of its {part.rows:,} rows have an error, and its column error has "
            f"{len(kept) - int(kept.sum()):,} of {len(kept):,}; fetch it again"
        )
    return kept


def check_origins(table: Table, parts: Sequence[CheckedPart], model: str | None, link: bool) -> None:
    """Compare the models of parts with that of the command and those of the table's columns, and what linking needs.

    Raises IngestError, naming both models.
    """
    known: dict[str, tuple[str | None, str]] = {
        c.name: (c.model, f"column {c.name} of {table.full_name}") for c in table.columns if c.model
    }
    for part in parts:
        path = part.files.metadata
        if model and part.model and canonical(model) != canonical(part.model):
            raise IngestError(
                f"{path} says that {part.model} made its vectors, and --model says {model}: leave --model out"
            )
        name = part.model or model
        for column in part.vectors if name else ():
            before, where = known.setdefault(column, (name, str(path)))
            if canonical(before or "") != canonical(name or ""):
                raise IngestError(
                    f"the vectors of {path} were made by {name}, those of {where} by {before}: vectors of two models "
                    "cannot be compared, name another table"
                )
        if link and part.failed:
            raise IngestError(
                f"{part.files.name} has {part.failed:,} rows without vectors, which are left out, so its files cannot "
                "be used as they lie: ingest it without --link"
            )
