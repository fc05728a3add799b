"""What an index learns of a column, apart from its rows: where the lists are, the coder, and how lists are ranked.

Learnt once from rows of all shards and given to the build of each, it makes their indexes of one kind: a list is the
same place in all of them, so that the lists which a query looks into are ranked once (`router`) and hold everywhere.
An index that was built so has a model of the same identity in its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index.folder import META, check_files, read_meta
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Floats, Space
from clipql.index.ivf.state import Known
from clipql.index.ivf.train import Lists
from clipql.storage.vectors.metrics import Metric

# what rows are coded by, beyond what a search needs
CODER = ("coder_rows", "coder_bits", "coder_step")
# before the names of those arrays in an index that keeps no model for others
OWN = "own_"
# rows that each parent's lists held when they were learnt, in such an index
LEARNT_ROWS = "parent_rows"
LEARNED = ("mean", "parents", "edges", "list_small", "list_unit", "turn", "word_block", "word_weight", "shape")
RANKING = ("list_codes", "list_scale", "list_bias", "list_spread", "list_turn", "list_word_block", "list_word_weight")
FILES = (META, *(f"{name}.npy" for name in (*CODER, *LEARNED, *RANKING)))


@dataclass(frozen=True)
class Model:
    """identity: the same for equal models, wherever they lie. ranking: the arrays that lists are ranked by."""

    identity: str
    metric: Metric
    known: Known
    ranking: Mapping[str, NDArray[Any]]


def identity_of(meta: Mapping[str, Any]) -> str:
    """The identity of the model in an index, by its meta.json; empty where it keeps none for others."""
    known = meta.get("files", {})
    if any(name not in known for name in FILES if name != META):
        return ""
    told = [meta["metric"], *(known[name]["xxh3"] for name in FILES if name != META), *map(str, meta.get("scale", []))]
    return xxhash.xxh3_64_hexdigest(" ".join(told).encode())


def coder_arrays(coder: Coder) -> Mapping[str, NDArray[Any]]:
    """What is kept of a coder so that others may code rows as it does."""
    return dict(zip(CODER, (coder.rows, coder.bits, coder.step), strict=True))


def own_coder_arrays(coder: Coder) -> Mapping[str, NDArray[Any]]:
    """The same of an index that has no model for others, so that it can code rows that come later."""
    return {f"{OWN}{name}": array for name, array in coder_arrays(coder).items()}


def open_model(folder: Path) -> Model:
    """The model in a folder, of which no more than `FILES` need be there.

    Raises VectorIndexError where there is none, DatabaseDamaged for a file that is not as it was written.
    """
    meta, found = opened(folder, (*CODER, *LEARNED, *RANKING))
    lists = Lists(found["parents"], found["edges"], found["list_small"], found["list_unit"])
    coder = Coder(
        found["coder_rows"], found["turn"], found["coder_bits"], found["coder_step"], found["shape"],
        found["word_block"], found["word_weight"],
    )  # fmt: skip
    known = Known(space_of(meta, found["mean"]), lists, coder, float(meta["code_error"]))
    return Model(identity_of(meta), Metric(meta["metric"]), known, {name: found[name] for name in RANKING})


def space_of(meta: Mapping[str, Any], mean: Floats) -> Space:
    """The space of an index by its meta.json and its mean; before version 2, rows were taken as they are."""
    unit, farthest, shortest = meta.get("scale") or (1.0, None, 0.0)
    return Space(Metric(meta["metric"]), mean, unit, math.inf if farthest is None else farthest, shortest)


def scale_told(space: Space) -> list[float | None]:
    """What meta.json keeps of a space."""
    return [space.unit, space.farthest if math.isfinite(space.farthest) else None, space.shortest]


def opened(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """meta.json and these arrays of a model, checked and mapped. Raises as `open_model` does."""
    meta = read_meta(folder)
    if not identity_of(meta):
        raise VectorIndexError(f"the index in {folder} keeps no model that others could be built with")
    check_files(folder, meta, [f"{name}.npy" for name in names])
    try:
        return meta, {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names}
    except (ValueError, OSError) as error:
        raise DatabaseDamaged(f"{folder} does not open as a model ({error})") from error
