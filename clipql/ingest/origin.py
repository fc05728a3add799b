"""What a part says of its making: the model of its vectors, and which rows have none (`clipql embed` writes both)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.encode.names import canonical
from clipql.errors import IngestError
from clipql.storage.catalog import Table

if TYPE_CHECKING:
    from clipql.ingest.layout import CheckedPart

_FOLDERS = ("metadata", "img_emb", "text_emb", "images", "texts")


def part_model(metadata: Path, schema: pa.Schema) -> str | None:
    """The model that made a part's vectors: from its Parquet file, or from `model.json` in the folder of the parts."""
    named = (schema.metadata or {}).get(b"clipql.model")
    if named:
        return str(named.decode("utf-8", "replace"))
    folder = metadata.parent.parent if metadata.parent.name in _FOLDERS else metadata.parent
    path = folder / "model.json"
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IngestError(
            f"{path} should name the model of the vectors beside it and cannot be read: {error}"
        ) from error
    model = told.get("model") if isinstance(told, dict) else None
    if model is not None and not isinstance(model, str):
        raise IngestError(f"{path} names the model {model!r}; expected a name such as openai/clip-vit-base-patch32")
    return model


def rows_without_vectors(schema: pa.Schema) -> int:
    """How many rows of a part have an error in place of vectors."""
    said = (schema.metadata or {}).get(b"clipql.failed", b"0")
    return int(said) if said.isdigit() and "error" in schema.names else 0


def rows_with_vectors(part: CheckedPart) -> NDArray[np.bool_] | None:
    """Which rows of a part to take, (rows,); None for all of them."""
    if not part.failed:
        return None
    path = part.files.metadata
    try:
        errors = pq.read_table(path, columns=["error"]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise IngestError(f"{path}: its column error cannot be read ({error}); fetch it again") from error
    kept: NDArray[np.bool_] = pc.equal(pc.fill_null(errors, ""), "").to_numpy()
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
