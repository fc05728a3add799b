"""The one protocol that every index speaks; `flat` (the exact scan) speaks it too and is the oracle of the others.

What must stay true: an index never holds the only copy of anything; it answers with row numbers and *exact*
distances, recomputed from the stored vectors; its knobs are arguments of a search, never state; two searches at
once never disturb each other (scratch memory belongs to the call).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clipql.storage.vectors.metrics import Metric


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


@dataclass(frozen=True)
class Cost:
    """What one search did. Counts of rows, codes and lists; seconds by stage. lists_routed: ranked elsewhere."""

    rows_scanned: int = 0
    codes_scanned: int = 0
    lists_probed: int = 0
    lists_routed: int = 0
    rows_rescored: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """What a search found, nearest first.

    rows: uint64 (n,); distances: float64 (n,), exact, by the metric searched with; ties are in row order.
    """

    rows: NDArray[np.uint64]
    distances: NDArray[np.float64]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Route:
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
    ) -> Candidates:
        """The k nearest rows to a (d,) query.

        among: bool (rows,), True where a row may be returned (a filter or the live rows); None for all.
        knobs: this index's own search settings by name (`nprobe`, `rescore`, `ef`, …); missing ones have defaults.
        """
