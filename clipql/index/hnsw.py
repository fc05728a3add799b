"""`hnsw`: a graph index by usearch, the library inside ClickHouse's own `vector_similarity` index.

For tables whose graph fits in memory, and for those who know its knobs. usearch keeps the search's breadth as a
setting of the index, so searches of different breadth wait for each other.
"""

from __future__ import annotations

import threading
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

_FILE = "graph.usearch"
_METRICS = {Metric.L2: "l2sq", Metric.L2_SQUARED: "l2sq", Metric.COSINE: "cos", Metric.DOT: "ip"}
DEFAULT_EF = 256
_BLOCK = 16_384


def _library() -> Any:
    try:
        from usearch import index
    except ImportError as error:
        raise VectorIndexError("an hnsw index needs usearch: pip install 'clipql[hnsw]'") from error
    return index


class HnswIndex(WithoutBounds):
    """An opened graph; made by `build` and `open_index`."""

    kind = "hnsw"

    def __init__(self, graph: Any, metric: Metric, rows: int, vectors: Vectors) -> None:
        self._graph, self.metric, self._rows, self._vectors = graph, metric, rows, vectors
        self._lock = threading.Lock()

    @property
    def rows_covered(self) -> int:
        """Rows 0 to this are in the graph."""
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
        """The k nearest rows; see `Index.search`. Knob: ef, the breadth of the search (256)."""
        ef = found.number(knobs, "ef", DEFAULT_EF, "hnsw", ("ef", "recall"))

        def nearest(q: NDArray[np.float32], n: int) -> NDArray[np.int64]:
            with self._lock:
                self._graph.expansion_search = max(ef, n)
                keys = self._graph.search(q, n).keys
            return np.asarray(keys, np.int64)

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
) -> HnswIndex:
    """Build a graph over all rows. options: quantization ('bf16'), connectivity (32), expansion_add (128)."""
    rows = vectors.rows
    graph = _library().Index(
        ndim=vectors.dimension,
        metric=_METRICS[metric],
        dtype=options.get("quantization", "bf16"),
        connectivity=options.get("connectivity") or 32,
        expansion_add=options.get("expansion_add") or 128,
        expansion_search=DEFAULT_EF,
    )
    for first, block in vectors.blocks():
        for at in range(0, len(block), _BLOCK):
            piece = np.asarray(block[at : at + _BLOCK], np.float32)
            graph.add(np.arange(first + at, first + at + len(piece), dtype=np.uint64), piece, copy=True)
            progress("graph", first + at + len(piece), rows)
    with files.NewFolder(folder) as new:
        graph.save(str(new.path / _FILE))
        new.commit(
            {
                "version": files.VERSION,
                "kind": "hnsw",
                "metric": metric.value,
                "rows": rows,
                "dimension": vectors.dimension,
            }
        )
    return HnswIndex(graph, metric, rows, vectors)


def open_index(folder: Path, vectors: Vectors) -> HnswIndex:
    """Open what `build` wrote, mapped. Raises DatabaseDamaged, naming the file, where it is not as it was written."""
    meta = files.read(folder)
    files.verify(folder)
    graph = _library().Index.restore(str(folder / _FILE), view=True)
    if graph is None or len(graph) != meta["rows"]:
        raise DatabaseDamaged(f"{folder / _FILE} does not hold {meta['rows']:,} rows; rebuild the index")
    return HnswIndex(graph, Metric(meta["metric"]), int(meta["rows"]), vectors)
