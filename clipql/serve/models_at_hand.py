"""Which models a search may be made with: that of the column, or another on this machine that gives vectors as long.

What must stay true: a request names a model by a name that the server itself has given, never a folder; and what is
not at hand is told with the name to get it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipql.encode.names import canonical
from clipql.encode.service import Encoders
from clipql.errors import ModelError
from clipql.serve.search_request import NoModel, wrong
from clipql.storage.catalog import VectorColumn


def models(encoders: Encoders) -> list[Mapping[str, Any]]:
    """Name and dimension of each model on this machine."""
    from clipql.encode.models import installed

    return [{"name": found.name, "dimension": found.model.dimension} for found in installed(encoders.cached)]


def model_for(encoders: Encoders, column: VectorColumn, asked: str | None) -> str | None:
    """The name of the model whose vectors are looked for in a column; None for the usual one. Raises NoModel."""
    if asked is not None and asked not in {m["name"] for m in models(encoders)}:
        raise wrong(f"model: {asked[:80]!r} is none of those at hand, which /api/models lists")
    name = asked or encoders.default or column.model
    try:
        encoder = encoders.encoder(name)
    except ModelError as error:
        raise NoModel(str(error), name) from error
    if encoder.dimension != column.dimension:
        said = (
            f"the model {encoder.model} gives {encoder.dimension} numbers, and {column.name} holds {column.dimension}"
        )
        raise NoModel(f"{said}: name the model that its vectors were made with", column.model)
    return name


def choice(
    encoders: Encoders, column: VectorColumn, at_hand: Sequence[Mapping[str, Any]]
) -> tuple[str | None, list[str]]:
    """The model by which a column is searched for words and pictures, None for none, and others that may do it, too.

    at_hand: as `models` gives them.
    """
    try:
        usual = encoders.encoder(model_for(encoders, column, None)).model
    except ModelError:
        usual = None
    fitting = [m["name"] for m in at_hand if m["dimension"] == column.dimension]
    return usual, [name for name in fitting if usual is None or canonical(name) != canonical(usual)]
