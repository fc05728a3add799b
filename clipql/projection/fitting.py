"""Places in the plane for the rows of a column: which rows, by which directions, and where rows go that come later.

Vectors are taken at unit length, as search compares them by their angle. What must stay true: the same rows of the same
column get the same places each time; memory does not grow with the dimension, as vectors are read in blocks and kept in
a few principal directions (PCA: Pearson, "On lines and planes of closest fit to systems of points in space", 1901).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.projection.labels import Label
from clipql.storage.vectors.store import ColumnStore

PCA, UMAP = "pca", "umap"
MOST_POINTS = 200_000  # of more rows every second, third, … is taken, by its number
GROWN = 1.5  # times the rows that a projection was fitted to, beyond which it is fitted anew
DIRECTIONS = 50  # in which vectors are laid out: what is beyond is mostly noise, and takes time
_BLOCK = 8_192
_WITNESSES = 64  # vectors by which a column is known again
_REFERENCES, _NEIGHBOURS = 4_096, 3
Floats = NDArray[np.float32]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Projection:
    """rows: ascending numbers, int64 (n,). places: float32 (n, 2), within [-1, 1]. covered: rows of the column when it
    was fitted; looked: rows that have a place or were found to have no vector; step: every so many of them is there.
    axes: float32 (3, d), the centre and two directions, of PCA; None where new rows go to their neighbours.
    witness: a hash of some vectors."""

    method: str
    rows: NDArray[np.int64]
    places: Floats
    covered: int
    looked: int
    step: int
    witness: str
    axes: Floats | None = None
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Reduced:
    """Vectors in their principal directions: float32 (n, m), the rows, and the centre and directions, (1 + m, d)."""

    rows: NDArray[np.int64]
    values: Floats
    directions: Floats
    covered: int
    step: int
    witness: str


def sample(rows: int, most: int = MOST_POINTS) -> int:
    """Every how many rows one is taken, so that at most so many are."""
    return max(1, math.ceil(rows / most))


def numbers(first: int, last: int, step: int, there: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """The rows of [first, last) that are taken, ascending. there: bool (last,) or longer; None for all."""
    found = np.arange(-(-first // step) * step, last, step, dtype=np.int64)
    return found if there is None else found[there[found]]


def witness(store: ColumnStore, rows: int) -> str:
    """What the first so many rows of a column are known by: a hash of some of their vectors."""
    if rows == 0:
        return ""
    some = np.unique(np.linspace(0, rows - 1, _WITNESSES).astype(np.int64))
    return str(xxhash.xxh3_64_hexdigest(store.take(some).tobytes()))


def is_of(projection: Projection, store: ColumnStore) -> bool:
    """Whether a projection is of this column, as far as it goes."""
    return projection.looked <= store.rows and projection.witness == witness(store, projection.covered)


def reduced(store: ColumnStore, rows: NDArray[np.int64], covered: int, step: int, tell: Tell) -> Reduced:
    """The vectors of some rows in their principal directions. tell(stage, done, total) may raise, to stop it."""
    width = store.dimension
    total, square = np.zeros(width), np.zeros((width, width))
    done = 0
    for part in _unit_blocks(store, rows):
        tell("reading vectors", done, 2 * len(rows))
        total += part.sum(axis=0, dtype=np.float64)
        square += part.T @ part
        done += len(part)
    centre = total / max(1, len(rows))
    _, vectors = np.linalg.eigh(square - max(1, len(rows)) * np.outer(centre, centre))
    directions = np.ascontiguousarray(vectors[:, ::-1][:, :DIRECTIONS].T, np.float32)
    values = np.empty((len(rows), len(directions)), np.float32)
    at = 0
    for part in _unit_blocks(store, rows):
        tell("reading vectors", done + at, 2 * len(rows))
        values[at : at + len(part)] = (part - centre.astype(np.float32)) @ directions.T
        at += len(part)
    whole = np.vstack([centre.astype(np.float32)[None], directions])
    return Reduced(rows, values, whole, covered, step, witness(store, covered))


def by_pca(given: Reduced) -> Projection:
    """By the two directions in which the vectors differ most."""
    directions = np.zeros((2, given.directions.shape[1]), np.float32)
    found = given.directions[1:3]
    directions[: len(found)] = found
    places = np.zeros((len(given.rows), 2), np.float32)
    places[:, : len(found)] = given.values[:, :2]
    scale = float(np.abs(places).max()) if len(places) else 0.0
    factors = np.full(2, 1 / scale if scale > 0 else 1.0, np.float32)
    for axis in range(2):
        # eigenvectors have no sign of their own: the farthest point is on the positive side
        if len(places) and places[np.abs(places[:, axis]).argmax(), axis] < 0:
            factors[axis] *= -1
    axes = np.vstack([given.directions[:1], directions * factors[:, None]])
    return _made(PCA, given, places * factors, axes)


def by_layout(given: Reduced, places: Floats) -> Projection:
    """By places that a layout gave them, float32 (n, 2), of any scale."""
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    centred = places - middle
    scale = float(np.abs(centred).max())
    return _made(UMAP, given, centred / np.float32(scale if scale > 0 else 1.0), None)


def _made(method: str, given: Reduced, places: Floats, axes: Floats | None) -> Projection:
    inside = np.clip(places, -1, 1).astype(np.float32)
    return Projection(method, given.rows, inside, given.covered, given.covered, given.step, given.witness, axes)


def grown(projection: Projection, store: ColumnStore, rows: int, there: NDArray[np.bool_] | None) -> Projection:
    """With places for rows that came later: by PCA's directions, or amid the nearest of some that have a place."""
    fresh = numbers(projection.looked, rows, projection.step, there)
    if not len(fresh):
        return dataclasses.replace(projection, looked=max(rows, projection.looked))
    places = [_placed(projection, store, part) for part in _unit_blocks(store, fresh)]
    return dataclasses.replace(
        projection,
        rows=np.concatenate([projection.rows, fresh]),
        places=np.concatenate([projection.places, *places]),
        looked=rows,
    )


def _placed(projection: Projection, store: ColumnStore, part: Floats) -> Floats:
    if projection.axes is not None:
        return np.asarray(np.clip((part - projection.axes[0]) @ projection.axes[1:].T, -1, 1), np.float32)
    known = int(np.searchsorted(projection.rows, projection.covered))
    if known == 0:
        return np.zeros((len(part), 2), np.float32)
    chosen = np.unique(np.linspace(0, known - 1, _REFERENCES).astype(np.int64))
    cosines = part @ _unit(store.take(projection.rows[chosen])).T
    n = min(_NEIGHBOURS, len(chosen))
    nearest = np.argpartition(-cosines, n - 1, axis=1)[:, :n]
    weights = 1 / (1.0001 - np.take_along_axis(cosines, nearest, axis=1))
    places = projection.places[chosen[nearest]]
    found: Floats = (places * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
    return found


def _unit_blocks(store: ColumnStore, rows: NDArray[np.int64]) -> Iterator[Floats]:
    for at in range(0, len(rows), _BLOCK):
        yield _unit(store.take(rows[at : at + _BLOCK]))


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
