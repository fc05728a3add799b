"""What the metadata of a part says: the model that made its vectors, and how many rows have none (`clipql embed`)."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from clipql.errors import IngestError
from clipql.storage.files import read_plain

_LARGEST = 1 << 20
_FOLDERS = ("metadata", "img_emb", "text_emb", "images", "texts")


def part_model(metadata: Path, schema: pa.Schema) -> str | None:
    """The model that made a part's vectors: from its Parquet file, or from `model.json` in the folder of the parts."""
    named = (schema.metadata or {}).get(b"clipql.model")
    if named:
        return str(named.decode("utf-8", "replace"))
    folder = metadata.parent.parent if metadata.parent.name in _FOLDERS else metadata.parent
    path = folder / "model.json"
    try:
        told = json.loads(read_plain(path, most=_LARGEST, follow=True))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
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
    return int(said[:18]) if said.isdigit() and "error" in schema.names else 0
