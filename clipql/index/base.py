"""The one protocol that every index speaks; `flat` (the exact scan) speaks it too and is the oracle of the others.

What must stay true: an index never holds the only copy of anything; it answers with row numbers and *exact*
distances, recomputed from the stored vectors; its knobs are arguments of a search, never state; two searches at
once never disturb each other (scratch memory belongs to the call).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.storage.vectors.metrics import Metric

EXACT_RECALL = "recall = 1 is an exact scan"
TIED = 2.0**-22  # relative to a distance: what Float32 may take for the same


class Vectors(Protocol):
    """The stored vectors of one column, as an index sees them: memory-mapped blocks in row order.

    Rows are float16 or float32, as stored; a column may mix both, one type per block.
    """

    @property
    def rows(self) -> int:
        """Number of rows; row numbers are 0 to rows - 1."""

    @property
    def dimension(self) -> int:
        """Numbers in each vector."""

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[np.floating]]]:
        """Mapped views covering rows [first, last): pairs of first row and (n, d) array, in order, without gaps."""

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 (n, d) copies of these rows, in the order given."""


@dataclass(frozen=True, repr=False)
class Cost(Brief):
    """What one search did. Counts of rows, codes and lists; seconds by stage. lists_routed: ranked elsewhere.

    proven: searches whose codes ruled rows out by bounds, so that the answer is that of a scan of all.
    """

    rows_scanned: int = 0
    codes_scanned: int = 0
    lists_probed: int = 0
    lists_routed: int = 0
    rows_rescored: int = 0
    proven: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def plus(self, other: Cost, prefix: str = "") -> Cost:
        """Both. prefix: of the other's stages, for those that shall be told apart."""
        seconds = dict(self.seconds)
        for stage, spent in other.seconds.items():
            seconds[prefix + stage] = seconds.get(prefix + stage, 0.0) + spent
        return Cost(
            rows_scanned=self.rows_scanned + other.rows_scanned,
            codes_scanned=self.codes_scanned + other.codes_scanned,
            lists_probed=self.lists_probed + other.lists_probed,
            lists_routed=self.lists_routed + other.lists_routed,
            rows_rescored=self.rows_rescored + other.rows_rescored,
            proven=self.proven + other.proven,
            seconds=seconds,
        )


@dataclass(frozen=True, repr=False)
class Candidates(Brief):
    """What a search found, nearest first.

    rows: uint64 (n,); distances: float64 (n,), exact, by the metric searched with; ties are in row order.
    """

    rows: NDArray[np.uint64]
    distances: NDArray[np.float64]
    cost: Cost = field(default_factory=Cost)

    def first(self, n: int) -> Candidates:
        """The first n."""
        return Candidates(self.rows[:n], self.distances[:n], self.cost)


@dataclass(frozen=True, repr=False)
class Route(Brief):
    """The lists that a query looks into, ranked elsewhere for indexes that share them.

    model: what the lists are of, see `ivf.model`. query: float32 (d,). lists: int32 (n,), the most promising first.
    """

    model: str
    query: NDArray[np.float32]
    lists: NDArray[np.int32]


@runtime_checkable
class Index(Protocol):
    """Answers nearest-neighbour searches over the rows it covers."""

    @property
    def kind(self) -> str:
        """'flat', 'ivf', 'hnsw' or 'annoy'."""

    @property
    def metric(self) -> Metric:
        """The distance it was built for."""

    @property
    def rows_covered(self) -> int:
        """Rows 0 to rows_covered - 1 are in the index; newer ones are the caller's to scan."""

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
        ties: bool = False,
    ) -> Candidates:
        """The k nearest rows to a (d,) query.

        among: bool (rows,), True where a row may be returned (a filter or the live rows); None for all.
        knobs: this index's own search settings by name (`nprobe`, `rescore`, `ef`, …); missing ones have defaults.
        ties: also the rows whose distance Float32 cannot tell from the k-th's, where the search looks: all of the
        equal vectors, however many.
        """

    def efforts(
        self, query: NDArray[np.float32], ks: Sequence[int], allowed: int, knobs: Mapping[str, float] | None = None
    ) -> list[float]:
        """What searches for so many rows will cost, each in rows that an exact scan compares on one core meanwhile.

        allowed: how many rows a filter lets through.
        """

    @property
    def has_bounds(self) -> bool:
        """Whether `within` can rule rows out."""

    def within(
        self, query: NDArray[np.float32], distance: float, among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Rows, ascending, among which are all that are at most so far (by dotProduct: at least so near), for the
        caller to compare. None where a scan of all costs less, or nothing can be ruled out.
        """

    def doubt(self, query: NDArray[np.float32], knobs: Mapping[str, float]) -> str:
        """Why an exact scan should answer this query instead, if it should: recall 1 is asked, or more recall than was
        measured for queries of its kind.
        """

    def standing(self) -> str:
        """'in use', or which searches are exact scans instead and why, as `clipql.indexes` shows it."""


@runtime_checkable
class SearchesMany(Protocol):
    """An index that searches for many queries in one call."""

    def search_each(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
    ) -> list[Candidates | None]:
        """What `Index.search`, with ties, gives for each of the queries (n, d); None for one to be searched for alone,
        also where there is a doubt.
        """


class WithoutBounds:
    """An index that can rule no row out, and measures no recall of its own."""

    has_bounds = False

    def doubt(self, query: NDArray[np.float32], knobs: Mapping[str, float]) -> str:
        """See `Index.doubt`."""
        return EXACT_RECALL if float(knobs.get("recall", 0)) >= 1 else ""

    def standing(self) -> str:
        """See `Index.standing`."""
        return "in use"

    def within(
        self, query: NDArray[np.float32], distance: float, among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """See `Index.within`."""
        return None


def nearest(
    rows: NDArray[np.integer], distances: NDArray[np.float64], k: int, metric: Metric, cost: Cost, *, ties: bool = False
) -> Candidates:
    """The k nearest in order, and those that tie with the k-th if wanted; NaN last, equal ones by row."""
    order = np.lexsort((rows, -distances if metric.larger_is_nearer else distances))
    n = min(k, len(order))
    if ties and 0 < n < len(order):
        n = within_float32(distances[order], n)
    return Candidates(rows[order[:n]].astype(np.uint64), distances[order[:n]], cost)


def within_float32(distances: NDArray[np.float64], k: int) -> int:
    """How many of distances in order, of either direction, come no later than those that tie with the k-th as Float32.

    A little more than the half unit that Float32 rounds, for a square and its root.
    """
    kth = float(distances[k - 1])
    if math.isnan(kth):
        return len(distances)
    if k < len(distances) and abs(float(distances[k]) - kth) > TIED * abs(kth):  # nearly always
        return k
    tied: NDArray[np.bool_] = np.abs(distances[k:] - kth) <= TIED * abs(kth)
    return k + (len(tied) if tied.all() else int(np.argmin(tied)))
