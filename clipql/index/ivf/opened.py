"""What an opened index is made of and tells of itself: its lists and codes, the recall measured at its build, the
routes that were given to it, and what speaks against its use. How it is searched is in `search`.

Nothing here changes after construction; `routed` and `ranking_for` give another value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipql.engine import memory
from clipql.errors import VectorIndexError
from clipql.index.base import EXACT_RECALL, Route, Vectors
from clipql.index.ivf import kernels, rescore, resident
from clipql.index.ivf.arrays import Arrays, prepared
from clipql.index.ivf.depth import Depth
from clipql.index.ivf.geometry import Floats
from clipql.index.ivf.knobs import DEFAULT_RECALL, Curves, careful, reached
from clipql.index.ivf.model import CODER, LEARNT_ROWS, OWN, identity_of, space_of
from clipql.index.ivf.packed import pack
from clipql.index.ivf.ranges import Ranges
from clipql.index.ivf.stored import stored_blocks, table_of
from clipql.storage.vectors import direct
from clipql.storage.vectors.metrics import Metric

CODE = {Metric.DOT: rescore.DOT, Metric.COSINE: rescore.COSINE, Metric.L2: rescore.L2, Metric.L2_SQUARED: rescore.L2}
REACH = 3.0  # deviations of a list's spread added to its score: what its best row, not its middle, may reach
# a row kept apart is compared by every search; with a larger share of them an exact scan is as good
APART_EFFORT, MOST_APART = 2.0, 0.05
# With more lists than this, and than so many for each one probed, only the lists of the nearest parents are ranked, an
# eighth of all at least.
RANKED_LISTS, RANKED_PER_PROBE = 8192, 64
_NO_FILTER, _NOT_ROUTED = np.empty(0, np.bool_), np.empty(0, np.int64)
_NO_FILTER.setflags(write=False)


class OpenedIndex:
    """k-means lists with small codes, and the stored vectors that they stand for."""

    kind = "ivf"

    def __init__(self, meta: Mapping[str, Any], arrays: Arrays, vectors: Vectors, ranges: Ranges | None = None) -> None:
        self._blocks = stored_blocks(vectors, int(meta["rows"]))
        self._cold = kernels.IN_MEMORY
        self._bytes = sum(a.nbytes for a in arrays)
        self._arrays, self._ranges = prepared(arrays), ranges
        if memory.on_disk(sum(b.nbytes for _, b in self._blocks) + self._bytes):
            self._arrays, self._cold = resident.kept(self._arrays)
        self._placed = int(arrays.start[-1])
        self._apart = arrays.rows[self._placed :].astype(np.int64)
        self._space = space_of(meta, arrays.mean)
        self._error = float(meta["code_error"])
        self._rows = int(meta["rows"])
        self._learned = int(meta.get("learned_rows", self._rows))
        measured = meta.get("measured") or {"rows": self._learned, "lists": len(arrays.list_scale)}
        self._balanced = f"{OWN}{CODER[0]}.npy" in meta.get("files", ()) and f"{LEARNT_ROWS}.npy" in meta["files"]
        self._seconds = float(meta.get("build_seconds", 0.0))
        self._curves = Curves.from_meta(meta)
        self._depth = Depth(
            self._curves,
            len(arrays.list_scale),
            self._rows,
            self._placed,
            max(1.0, self._rows / max(1, int(measured["rows"]))),
            max(1.0, len(arrays.list_scale) / max(1, int(measured["lists"]))),
        )
        self._files = direct.Files([b for _, b in self._blocks] if self._cold else [])
        self._table = table_of(self._blocks, self._files)
        self._told = pack(self._arrays, self._table)
        self._ways: dict[tuple[Any, ...], tuple[tuple[int, int, float] | None]] = {}
        self._routes: tuple[Route, ...] = ()
        self._ranked_for = 1
        self.model = identity_of(meta)

    @property
    def metric(self) -> Metric:
        return self._space.metric

    @property
    def rows_covered(self) -> int:
        return self._rows

    @property
    def learned_rows(self) -> int:
        """Rows that its lists were learnt from; those that came later were added to these lists."""
        return self._learned

    @property
    def balanced(self) -> bool:
        """Whether its lists grow with the rows that are added to it."""
        return self._balanced

    @property
    def lists(self) -> int:
        """Number of k-means lists."""
        return len(self._arrays.list_scale)

    @property
    def build_seconds(self) -> float:
        return self._seconds

    @property
    def curves(self) -> Curves:
        """Recall measured at build, by kind of query and setting."""
        return self._curves

    def routed(self, routes: Sequence[Route]) -> Self:
        """This index, which looks into lists as they were ranked elsewhere by the model that it was built with.

        A query that no route is for is ranked here, and so is one that needs more lists than its route names.
        """
        ours = tuple(r for r in routes if self.model and r.model == self.model and self._known(r.lists))
        if not ours:
            return self
        found = copy.copy(self)
        found._routes = ours
        return found

    def ranking_for(self, times: int) -> Self:
        """This index, which ranks as many lists as if so many times the lists were looked into."""
        found = copy.copy(self)
        found._ranked_for = times
        return found

    def _known(self, lists: NDArray[np.int32]) -> bool:
        return bool(len(lists) and lists.min() >= 0 and lists.max() < self.lists)

    @property
    def apart(self) -> NDArray[np.int64]:
        """The rows that are in no list: of no direction, or of another order of magnitude than the others."""
        return self._apart

    def measured_recall(self) -> dict[str, float]:
        """The recall of 10 measured at the build, by kind of query, at the setting that the default recall picks."""
        captions = self._curves.text if self._curves.text_mean is not None else []
        curves = (("image", self._curves.image), ("text", captions))
        return {kind: reached(points, careful(DEFAULT_RECALL)) for kind, points in curves if points}

    def distances(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 (n,): what is between a query and each of these rows, by the index's metric."""
        found = rescore.distances(self._table, CODE[self.metric], np.ascontiguousarray(query, np.float32), rows)
        return np.asarray(np.sqrt(found) if self.metric is Metric.L2 else found, np.float64)

    def lists_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 (n,): the list that each of these rows is in, -1 for none."""
        at = np.full(self._rows, -1, np.int32)
        at[rows] = 0
        places = np.flatnonzero(at[self._arrays.rows[: self._placed]] == 0)
        at[rows] = -1
        at[self._arrays.rows[places]] = np.searchsorted(self._arrays.start, places, side="right") - 1
        return at[rows].astype(np.int64)

    def ranked(self, query: NDArray[np.float32], most: int) -> NDArray[np.int32]:
        """So many lists, the most promising for a query first."""
        return ranked_lists(self._arrays, self._space.query(query), min(most, self.lists))

    def bytes_per_row(self) -> float:
        """Size of the index beyond the vectors, for each row covered."""
        bounds = self._ranges.kept.nbytes if self._ranges else 0
        return (self._bytes + bounds) / max(1, self._rows)

    def doubt(self, query: NDArray[np.float32], knobs: Mapping[str, float]) -> str:
        """See `Index.doubt`."""
        if self._certain(knobs):
            return ""
        return self._doubted(self._curves.kind_of(np.ascontiguousarray(query, np.float32)), knobs)

    def _certain(self, knobs: Mapping[str, float]) -> bool:
        """Whether there is no doubt, whatever the query."""
        if "nprobe" in knobs or "rescore" in knobs:
            return True
        recall = float(knobs.get("recall", DEFAULT_RECALL))
        return recall < 1 and not self.spread_out() and not self._curves.doubtful(recall)

    def _doubted(self, kind: str, knobs: Mapping[str, float]) -> str:
        if "nprobe" in knobs or "rescore" in knobs:
            return ""
        recall = float(knobs.get("recall", DEFAULT_RECALL))
        if recall >= 1:
            return EXACT_RECALL
        return self.spread_out() or self._curves.doubt(kind, recall)

    def standing(self) -> str:
        """See `Index.standing`."""
        doubts = [d for kind in self._curves.kinds() if (d := self._curves.doubt(kind, DEFAULT_RECALL))]
        if self.spread_out() or len(doubts) == len(self._curves.kinds()):
            return f"exact scan: {self.spread_out() or '; '.join(doubts)}"
        return "; ".join(["in use", *(f"exact scan where {d}" for d in doubts)])

    def spread_out(self) -> str:
        """What keeps the index from use if too many rows lie apart."""
        if self.metric is Metric.COSINE or len(self._apart) <= MOST_APART * self._rows:
            return ""
        return f"{len(self._apart):,} of {self._rows:,} rows are of other orders of magnitude than the codes'"

    def _routed(self, q: Floats, nprobe: int) -> NDArray[np.int64]:
        """So many lists as they were ranked elsewhere; none where that was not done for this query, or for fewer."""
        for route in self._routes:
            if len(route.lists) >= nprobe and np.array_equal(route.query, q):
                return route.lists[:nprobe].astype(np.int64)
        return _NOT_ROUTED

    def _filter(self, among: NDArray[np.bool_] | None) -> tuple[NDArray[np.bool_], int]:
        if among is None:
            return _NO_FILTER, self._rows
        mask = np.ascontiguousarray(among, np.bool_).view()
        mask.setflags(write=False)  # masks of all kinds alike, or the kernels are compiled for each kind
        if mask.ndim != 1 or len(mask) < self._rows:
            raise VectorIndexError(f"the filter has shape {mask.shape}; the index covers {self._rows} rows")
        return mask, int(np.count_nonzero(mask[: self._rows]))

    def _kind(self, q: Floats, v: Floats) -> str:
        """The kind of a query, of which v is what the space turned it into."""
        return self._curves.kind_of_unit(v) if self.metric is Metric.COSINE else self._curves.kind_of(q)


def ranked_lists(arrays: Arrays, v: Floats, nprobe: int) -> NDArray[np.int32]:
    """The lists that a search of so many would look into for a query as the space turned it, int32, best first."""
    found: NDArray[np.int64] = kernels.rank(arrays, v, nprobe, REACH, ranked_for(len(arrays.list_scale), nprobe))
    return found.astype(np.int32)


def ranked_for(lists: int, nprobe: int) -> int:
    """How many lists are ranked to look into so many of them."""
    return max(RANKED_LISTS, RANKED_PER_PROBE * nprobe, lists // 8)
