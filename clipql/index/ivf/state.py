"""What a build that is cut off leaves behind, so that the next one goes on instead of beginning again.

`learned.npz` holds what was learnt from the sample, `pass.npz` how far the pass over the rows is. Each is replaced
atomically, and both carry the identity of the column and the parameters they belong to: with another, or where a file
does not open, the build begins anew. The buckets are cut to the sizes that `pass.npz` tells.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Space
from clipql.index.ivf.place import Progressed
from clipql.index.ivf.train import Lists
from clipql.storage import files
from clipql.storage.vectors.metrics import Metric

LEARNED, PASS = "learned.npz", "pass.npz"
_IDENTITY = "identity"


@dataclasses.dataclass(frozen=True)
class Known:
    """All that the pass over the rows needs. error: of codes, see `build`."""

    space: Space
    lists: Lists
    coder: Coder
    error: float


def save_known(folder: Path, identity: str, known: Known) -> None:
    """Remember what was learnt."""
    space = known.space
    scale = np.array([space.unit, space.farthest, space.shortest])
    arrays = {"mean": space.mean, "scale": scale, "error": np.float64(known.error)}
    _save(folder / LEARNED, identity, {**arrays, **_prefixed("lists", known.lists), **_prefixed("coder", known.coder)})


def load_known(folder: Path, identity: str, metric: Metric) -> Known | None:
    """What was learnt for the same column and parameters, if it is there."""
    found = _load(folder / LEARNED, identity)
    if found is None:
        return None
    space = Space(metric, found["mean"], *found["scale"].tolist())
    return Known(space, Lists(**_part("lists", found)), Coder(**_part("coder", found)), float(found["error"]))


def save_pass(folder: Path, identity: str, progressed: Progressed) -> None:
    """Remember how far the pass is; call it when the buckets are synced."""
    _save(folder / PASS, identity, {n: np.asarray(v) for n, v in _fields(progressed).items()})


def load_pass(folder: Path, identity: str) -> Progressed | None:
    """How far the pass came, if it was begun."""
    found = _load(folder / PASS, identity)
    if found is None:
        return None
    values: dict[str, Any] = {**found, "next": int(found["next"])}
    return Progressed(**values)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _prefixed(name: str, value: Lists | Coder) -> dict[str, NDArray[Any]]:
    return {f"{name}.{field}": array for field, array in _fields(value).items()}


def _part(name: str, found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): array for key, array in found.items() if key.startswith(f"{name}.")}


def _save(path: Path, identity: str, arrays: Mapping[str, Any]) -> None:
    with files.new_file(path) as file:
        whole = io.BufferedWriter(file)
        named: dict[str, Any] = {_IDENTITY: np.array(identity), **arrays}
        np.savez(whole, **named)
        whole.flush()
        whole.detach()
    files.sync_folder(path.parent)


def _load(path: Path, identity: str) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            if str(found[_IDENTITY]) != identity:
                return None
            return {name: found[name] for name in found.files if name != _IDENTITY}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
