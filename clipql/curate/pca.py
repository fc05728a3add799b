"""Mean, covariance and principal components of a vector column, in one pass of products of matrices.

What must stay true: memory does not grow with the rows; blocks are multiplied in float32 and summed in float64; a
component's sign is such that its largest number is positive, so that the same rows give the same components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.tables import chosen_rows, known_column
from clipql.errors import VectorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipql.database import Database
    from clipql.storage.vectors.store import ColumnStore

# rows that are multiplied at once
BLOCK = 8_192
Wide = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, repr=False)
class Moments(Brief):
    """rows: how many; mean (d,) and covariance (d, d), float64, of a sample: divided by rows - 1."""

    rows: int
    mean: Wide
    covariance: Wide


@dataclass(frozen=True, repr=False)
class PCA(Brief):
    """components (k, d), of length 1, those of the largest variance first; variances (k,); share: of all variance."""

    rows: int
    mean: Wide
    components: Wide
    variances: Wide
    share: float

    @property
    def weights(self) -> NDArray[np.float32]:
        """With `bias`, what `vectorLinear` takes to give a row's coordinates."""
        return self.components.astype(np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        """Minus the coordinates of the mean, (k,)."""
        return (-self.components @ self.mean).astype(np.float32)

    def transform(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """The coordinates (n, k) of vectors (n, d)."""
        return np.asarray(np.asarray(vectors, np.float32) @ self.weights.T + self.bias, np.float32)


def moments(
    db: Database,
    table: str,
    column: str = "image_embedding",
    *,
    where: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Moments:
    """Mean and covariance of the rows that meet a condition. Raises UnknownTable, VectorError or QueryError."""
    from clipql.storage.vectors.kernels import as_float32  # loads the compiler

    known, store = known_column(db, table, column)
    rows = chosen_rows(db, known, where)
    total = known.rows if rows is None else len(rows)
    if total < 2:
        raise VectorError(f"{known.full_name} has {total} rows to look at; a covariance takes two")
    size, done = store.dimension, 0
    first = np.asarray(store.take(np.array([0 if rows is None else rows[0]]))[0], np.float64)
    # of differences from one of the rows, so that float32 does not lose them beside a large mean
    sums, products, near = np.zeros(size), np.zeros((size, size)), first.astype(np.float32)
    for block in _blocks(store, rows):
        db.registry.engine.check_cancelled()
        progress(done, total)
        x = as_float32(block)
        x -= near
        sums += x.sum(0, dtype=np.float64)
        products += x.T @ x
        done += len(x)
    mean = sums / total
    return Moments(total, mean + first, (products - total * np.outer(mean, mean)) / (total - 1))


def pca(
    db: Database,
    table: str,
    column: str = "image_embedding",
    *,
    k: int = 64,
    where: str | None = None,
    progress: Progress = lambda done, total: None,
) -> PCA:
    """The k principal components of the rows that meet a condition. Raises as `moments` does."""
    found = moments(db, table, column, where=where, progress=progress)
    if not 1 <= k <= len(found.mean):
        raise VectorError(f"{k} components of {len(found.mean)} numbers; expected 1 to {len(found.mean)}")
    values, vectors = np.linalg.eigh(found.covariance)
    chosen = vectors.T[::-1][:k]
    largest = chosen[np.arange(k), np.abs(chosen).argmax(1)]
    all_variance = float(np.maximum(values, 0).sum())
    variances = np.maximum(values[::-1][:k], 0)
    share = float(variances.sum() / all_variance) if all_variance else 1.0
    return PCA(found.rows, found.mean, chosen * np.sign(largest)[:, None], variances, share)


def _blocks(store: ColumnStore, rows: NDArray[np.int64] | None) -> Iterator[NDArray[Any]]:
    if rows is not None:
        for at in range(0, len(rows), BLOCK):
            yield store.take(rows[at : at + BLOCK])
        return
    for _, array in store.blocks():
        for at in range(0, len(array), BLOCK):
            yield array[at : at + BLOCK]
