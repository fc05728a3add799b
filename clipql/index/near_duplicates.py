"""Near duplicates within one column: pairs nearer than a bound, looked for within lists of rows that lie together.

All pairs are compared where they are few. Else rows are dealt to the lists of a k-means over their leading principal
components; each row is compared with those that have its list among their nearest few. How many lists that takes is
chosen by true pairs of sample rows, found by comparing these with all: what is told is the share of them that is found.
What must stay true: each pair that is given is within the bound, by float64; memory is a few numbers a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipql.index import kmeans
from clipql.index.cut import Cut
from clipql.index.within import PairsWithin, Side
from clipql.storage.vectors.device import Device
from clipql.storage.vectors.metrics import Metric

Progress = Callable[[str, int, int], None]
# so many pairs are all compared
FEW_PAIRS = 500_000_000
# of the components that rows are dealt by, the rows that these are learnt from, and the rows of a list
COMPONENTS, LEARNT, PER_LIST, MOST_LISTS = 64, 65_536, 256, 8_192
# lists that a row may be looked for in, and the sample rows that choose how many: until there are enough true pairs
DEPTHS, SAMPLE, SAMPLES, ENOUGH = (1, 2, 4, 8, 16), 512, 16, 1_000
ROWS_AT_ONCE = 16_384
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def forecast(rows: int, dimension: int, pairs_a_second: float) -> dict[str, float]:
    """What the search of so many rows will take: `pairs` that are compared, `seconds`, and `bytes` of memory."""
    pairs = rows * rows / 2
    if pairs > FEW_PAIRS:
        lists = _lists(rows)
        pairs = rows * (4 * rows / lists) + rows * lists * COMPONENTS / dimension
    return {"pairs": pairs, "seconds": pairs / pairs_a_second, "bytes": rows * (8 + 4 * DEPTHS[-1]) + 256e6}


def _lists(rows: int) -> int:
    return max(16, min(MOST_LISTS, rows // PER_LIST))


@dataclass
class NearDuplicates:
    """The search in one side with itself. recall: the share of true pairs wanted, and then that of the sample found.

    device: of products, where many are made at once. depth: how many lists a row is looked for in; 0 where all pairs
    were compared. checked: true pairs of the sample.
    """

    metric: Metric
    side: Side
    bound: float
    recall: float = 0.999
    progress: Progress = lambda stage, done, total: None
    check: Callable[[], None] = lambda: None
    device: Device | None = None
    depth: int = 0
    checked: int = 0
    compared: int = field(default=0, init=False)

    def pairs(self) -> Iterator[Pairs]:
        """Row numbers of both of each pair, int64 (n,); a pair may come more than once."""
        n = len(self.side)
        if n * n / 2 <= FEW_PAIRS or self.recall >= 1:
            yield from self._within(self.side, self.side, "compared", 0, 1)
            self.recall = 1.0
            return
        lists = self._dealt()
        self.depth = self._chosen(lists)
        order = np.argsort(lists[:, 0], kind="stable")
        count = int(lists[:, : self.depth].max()) + 1
        own = np.searchsorted(lists[order, 0], np.arange(count + 1))
        entries = lists[:, : self.depth].ravel()
        visits = np.argsort(entries, kind="stable")
        ends = np.searchsorted(entries[visits], np.arange(count + 1))

        def sides(at: int) -> tuple[Side, Side]:
            ours = np.sort(order[own[at] : own[at + 1]])
            theirs = np.sort(visits[ends[at] : ends[at + 1]] // self.depth)
            return self._some(ours), self._some(theirs)

        # the rows of a list are too few to choose for them, so all are cut as the largest one is best cut
        largest = int(np.argmax(np.diff(own) * np.diff(ends)))
        cut_to = PairsWithin(self.metric, *sides(largest), self.bound).best_cut()
        for at in range(count):
            yield from self._within(*sides(at), "lists", at, count, cut_to)

    def _some(self, places: NDArray[np.int64]) -> Side:
        rows = places if self.side.chosen is None else self.side.chosen[places]
        return Side(self.side.store, self.side.rows, rows)

    def _within(
        self, left: Side, right: Side, stage: str, done: int, total: int, cut_to: Cut | None = None
    ) -> Iterator[Pairs]:
        search = PairsWithin(self.metric, left, right, self.bound, device=self.device, cut_to=cut_to)

        def check() -> None:
            self.check()
            self.progress(stage, done, total)

        for found in search.find(check):
            near = found.distances > self.bound if self.metric is Metric.DOT else found.distances < self.bound
            near &= found.left != found.right
            yield found.left[near], found.right[near]
        self.compared += search.cost.rows_scanned

    def _dealt(self) -> NDArray[np.int32]:
        """The nearest lists of every row, int32 (rows, DEPTHS[-1])."""
        n, rng = len(self.side), np.random.default_rng(0)
        places = np.sort(rng.choice(n, min(n, LEARNT), replace=False))
        sample = self._prepared(places)
        mean = sample.mean(0)
        sample -= mean
        _, vectors = np.linalg.eigh((sample.T @ sample).astype(np.float64))
        basis = np.ascontiguousarray(vectors[:, ::-1][:, :COMPONENTS], np.float32)
        self.check()
        k = min(_lists(n), len(places) // 8)
        centroids = kmeans.train(sample @ basis, k, check=self.check)
        lists = np.empty((n, min(DEPTHS[-1], k)), np.int32)
        for at in range(0, n, ROWS_AT_ONCE):
            self.check()
            self.progress("rows dealt to lists", at, n)
            x = (self._prepared(np.arange(at, min(n, at + ROWS_AT_ONCE))) - mean) @ basis
            lists[at : at + len(x)], _ = kmeans.nearest(x, centroids, lists.shape[1])
        return lists

    def _prepared(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        x = self.side.store.take(places if self.side.chosen is None else self.side.chosen[places])
        if self.metric is Metric.COSINE:
            lengths = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
            x = np.asarray(x / np.where(lengths > 0, lengths, 1), np.float32)
        return x

    def _chosen(self, lists: NDArray[np.int32]) -> int:
        """How many lists find enough of the true pairs of sample rows."""
        n, rng = len(self.side), np.random.default_rng(1)
        found: list[Pairs] = []
        size = max(1, min(SAMPLE, FEW_PAIRS // n))
        rounds = max(1, min(SAMPLES, FEW_PAIRS // (size * n)))
        for at, places in enumerate(np.array_split(rng.permutation(n)[: size * rounds], rounds)):
            ours = self._some(np.sort(places))
            found += self._within(ours, self.side, "sample rows compared with all", at, rounds)
            self.checked = sum(len(left) for left, _ in found)
            if self.checked >= ENOUGH:
                break
        if not self.checked:
            self.recall = 1.0
            return DEPTHS[1]
        left, right = (np.concatenate(side) for side in zip(*found, strict=True))
        if self.side.chosen is not None:
            left, right = (np.searchsorted(self.side.chosen, rows) for rows in (left, right))
        wanted, share = self.recall, 0.0
        for depth in (d for d in DEPTHS if d <= lists.shape[1]):
            met = (lists[right, :depth] == lists[left, :1]).any(1) | (lists[left, :depth] == lists[right, :1]).any(1)
            share = float(met.mean())
            if share >= wanted:
                break
        self.recall = share
        return depth
