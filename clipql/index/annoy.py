"""`annoy`: a forest of random trees by Spotify's Annoy, as ClickHouse's first vector index was.

For parity with what people know: quick to build, poor in recall unless many nodes are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index import folder as files
from clipql.index import found
from clipql.index.base import Candidates, Vectors, WithoutBounds
from clipql.storage.vectors.metrics import Metric

_FILE = "forest.annoy"
_METRICS = {Metric.L2: "euclidean", Metric.L2_SQUARED: "euclidean", Metric.COSINE: "angular", Metric.DOT: "dot"}
DEFAULT_TREES = 100
_BLOCK = 4_096


def _forest(dimension: int, metric: Metric) -> Any:
    try:
        import annoy as library
    except ImportError as error:
        raise VectorIndexError("an annoy index needs Annoy: pip install 'clipql[annoy]'") from error
    forest: Any = library.AnnoyIndex
    return forest(dimension, _METRICS[metric])


class AnnoyIndex(WithoutBounds):
    """An opened forest; made by `build` and `open_index`."""

    kind = "annoy"

    def __init__(self, forest: Any, metric: Metric, rows: int, vectors: Vectors) -> None:
        self._forest, self.metric, self._rows, self._vectors = forest, metric, rows, vectors
        self._trees = forest.get_n_trees()

    @property
    def rows_covered(self) -> int:
        """Rows 0 to this are in the forest."""
        return self._rows

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
        ties: bool = False,
    ) -> Candidates:
        """The k nearest rows; see `Index.search`. Knob: search_k, the nodes looked at (trees × rows asked for)."""
        search_k = found.number(knobs, "search_k", max(20_000, 100 * self._trees), "annoy", ("search_k", "recall"))

        def nearest(q: NDArray[np.float32], n: int) -> NDArray[np.int64]:
            named = self._forest.get_nns_by_vector(q.tolist(), n, search_k=max(search_k, n))
            return np.asarray(named, np.int64)

        return found.search(self._vectors, self.metric, self._rows, query, k, among, nearest, ties)

    def efforts(
        self, query: NDArray[np.float32], ks: Sequence[int], allowed: int, knobs: Mapping[str, float] | None = None
    ) -> list[float]:
        """See `Index.efforts`."""
        return found.efforts(ks, self._rows, allowed)


def build(
    vectors: Vectors,
    metric: Metric,
    folder: Path,
    *,
    options: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
) -> AnnoyIndex:
    """Build a forest over all rows, on disk. options: trees (100)."""
    rows = vectors.rows
    with files.NewFolder(folder) as new:
        forest = _forest(vectors.dimension, metric)
        forest.set_seed(1)
        forest.on_disk_build(str(new.path / _FILE))
        for first, block in vectors.blocks():
            for at in range(0, len(block), _BLOCK):
                for i, vector in enumerate(np.asarray(block[at : at + _BLOCK], np.float32).tolist()):
                    forest.add_item(first + at + i, vector)
                progress("items", min(first + at + _BLOCK, rows), rows)
        forest.build(options.get("trees") or DEFAULT_TREES)
        forest.unload()
        progress("trees", rows, rows)
        new.commit(
            {
                "version": files.VERSION,
                "kind": "annoy",
                "metric": metric.value,
                "rows": rows,
                "dimension": vectors.dimension,
            }
        )
    return open_index(folder, vectors)


def open_index(folder: Path, vectors: Vectors) -> AnnoyIndex:
    """Open what `build` wrote, mapped. Raises DatabaseDamaged, naming the file, where it is not as it was written."""
    meta = files.read(folder)
    files.verify(folder)
    metric = Metric(meta["metric"])
    forest = _forest(int(meta["dimension"]), metric)
    try:
        forest.load(str(folder / _FILE))
    except OSError as error:
        raise DatabaseDamaged(f"{folder / _FILE} does not open as a forest ({error}); rebuild the index") from error
    if forest.get_n_items() != meta["rows"]:
        raise DatabaseDamaged(f"{folder / _FILE} does not hold {meta['rows']:,} rows; rebuild the index")
    return AnnoyIndex(forest, metric, int(meta["rows"]), vectors)
