"""The exact scan, on every core, straight from the mapped segments: an index, and the oracle of all others.

The scan works on a *key*, a weighted sum of distances (one term for an ordinary search, several where a query adds
distances up), smallest first. What must stay true: it returns every row whose float64 key could be among the k
smallest, ties included: kernels compute in float32, so rows within their rounding error of the k-th are kept and
decided in float64.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Candidates, Cost, WithoutBounds, nearest
from clipql.index.cores import each_core, threads, workers
from clipql.storage.vectors import chosen, kernels
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

_LARGEST = float(np.finfo(np.float32).max)
BLOCK_BYTES = 4 << 20
# rows that are gathered at once: half a megabyte of 512 half floats, which stays in the cache
FEW = 512
# float32 sums of a few thousand products, in any order, stay well within this of the float64 value
ROUNDING = 2e-5
# of that, what float64 sums of a few distances may be off
ADDED = 1e-6
# above this norm squares leave float32; such columns are scanned in float64
WIDE = 1e15
# float32 below which numbers lose digits, and the smallest there is
TINY_FLOAT, SMALLEST_FLOAT = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).smallest_subnormal)


class Codes(Protocol):
    """The codes of a column's rows, where there are some: see `index.bounded`."""

    def file(self) -> Any:
        """The `bounded.file.CodeFile` to search with, or None."""

    def distrust(self, error: Exception) -> None:
        """What `file` gave is damaged: do not give it again."""


@dataclass(frozen=True)
class Term:
    """`weight` times the distance of a column's vectors to a query vector, float64 (d,).

    rounded: the distance is a Float32 to who asks, so rows that this cannot tell apart tie. codes: those of the column.
    single: the query in float32, where it is at hand.
    """

    store: ColumnStore
    metric: Metric
    query: NDArray[np.float64]
    weight: float = 1.0
    rounded: bool = False
    codes: Codes | None = None
    single: NDArray[np.float32] | None = None

    @property
    def narrow(self) -> NDArray[np.float32]:
        """The query in float32, as indexes take it."""
        if self.single is not None:
            return self.single
        with np.errstate(over="ignore"):
            return self.query.astype(np.float32)

    @property
    def wide(self) -> bool:
        """Whether float32 does not hold the squares or products of its numbers; a cosine needs none that are large."""
        if self.metric is Metric.COSINE:
            return False
        return max(self.store.largest, float(np.abs(self.query).max(initial=0))) > WIDE

    @property
    def rounding(self) -> tuple[float, float]:
        """Relative and absolute bound on the error of a float32 distance, weight included."""
        scale = abs(self.weight)
        if self.metric is Metric.COSINE:
            return 0.0, scale * ROUNDING
        if self.metric is Metric.DOT:
            length = self.store.largest * float(np.linalg.norm(self.query))
            return 0.0, scale * (ROUNDING * length + self._vanishing)
        with np.errstate(invalid="ignore"):
            lost = float(np.linalg.norm(self.query - self.narrow)) if not self.wide else 0.0
        if self.metric is Metric.L2:
            return ROUNDING, scale * (lost + math.sqrt(self._vanishing))
        # |x - q| is off by `lost` at most, and (a + b)² <= a² (1 + e) + b² (1 + 1/e)
        return 2 * ROUNDING if lost else ROUNDING, scale * (lost * lost * (1 + 1 / ROUNDING) + self._vanishing)

    @property
    def _vanishing(self) -> float:
        """What a sum of products loses where they are too small for float32."""
        return self.store.dimension * SMALLEST_FLOAT


def distances_between(term: Term, first: int, last: int, out: NDArray[Any]) -> None:
    """Weighted distances of rows [first, last) into out, float32 (last - first,)."""
    for start, block in term.store.blocks(first, last):
        weighted(term, block, out[start - first : start - first + len(block)])


def weighted(term: Term, block: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Weighted distances of a block's rows, float32."""
    part = np.empty(len(block), np.float32) if out is None else out
    kernels.distances(term.metric, block, term.query, part, wide=term.wide)
    if term.weight != 1.0:
        part *= term.weight
    return part


def exact(terms: Sequence[Term], rows: NDArray[Any]) -> NDArray[np.float64]:
    """The key of these rows, recomputed in float64 from the stored vectors; the same for a row whatever the others."""
    if len(rows) < FEW:
        return exact_here(terms, rows)
    total = np.zeros(len(rows))

    def some(first: int, last: int) -> None:
        total[first:last] = exact_here(terms, rows[first:last])

    each_core(len(rows), some)
    return total


def exact_here(terms: Sequence[Term], rows: NDArray[Any]) -> NDArray[np.float64]:
    """The same in the calling thread."""
    if len(terms) == 1 and terms[0].weight == 1.0:  # nearly always
        found = terms[0].store.distances(terms[0].metric, rows, terms[0].query)
        return as_float32(found) if terms[0].rounded else found
    total = np.zeros(len(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        for term in terms:
            found = term.store.distances(term.metric, rows, term.query)
            total += term.weight * (as_float32(found) if term.rounded else found)
    return total


def as_float32(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances rounded to Float32, but for those that it does not hold, which stay apart from each other."""
    return chosen.as_float32(distances, TINY_FLOAT, kernels.LARGEST_FLOAT)


@dataclass
class _Share:
    """What one thread has found: candidate rows and keys, and the k-th smallest key so far."""

    rows: NDArray[np.int64]
    keys: NDArray[np.float32]
    used: int = 0
    limit: float = np.inf
    scanned: int = 0

    def tighten(self, k: int, slack: Callable[[float], float]) -> None:
        keys = self.keys[: self.used]
        if self.used <= k:
            return
        self.limit = float(np.partition(keys, k - 1)[k - 1])
        kept = np.flatnonzero(keys <= slack(self.limit))
        self.rows[: len(kept)], self.keys[: len(kept)] = self.rows[kept], keys[kept]
        self.used = len(kept)

    def room(self, more: int) -> None:
        if self.used + more > len(self.rows):
            size = 2 * (self.used + more)
            self.rows, self.keys = np.resize(self.rows, size), np.resize(self.keys, size)


class Scan:
    """One exact scan over rows [first, rows) of some terms, among the rows that a mask allows."""

    def __init__(
        self, terms: Sequence[Term], rows: int, among: NDArray[np.bool_] | None = None, *, first: int = 0
    ) -> None:
        self._terms, self._rows, self._among, self._first = terms, rows, among, first
        self._relative = max(t.rounding[0] for t in terms)
        self._absolute = sum(t.rounding[1] for t in terms)
        width = max(t.store.dimension for t in terms) * 2
        self._step = max(64, BLOCK_BYTES // max(width, 1))
        self._stop = threading.Event()

    def slack(self, limit: float) -> float:
        """A key with what float32 may be off: rows up to it are decided in float64."""
        # both the k-th and the row compared with it may be off, in opposite directions
        off = limit + 2 * (self._relative * abs(limit) + self._absolute) if np.isfinite(limit) else limit
        return off if off <= _LARGEST else np.inf  # which float32 keys can be compared with

    def nearest(self, k: int) -> Candidates:
        """The rows that may be among the k smallest keys, smallest first; more than k where keys tie at the edge."""
        began = time.perf_counter()
        found = self._shares(k, np.inf)
        rows, keys = self._joined(found)
        if len(rows) > k:
            rows = rows[keys <= self.slack(float(np.partition(keys, k - 1)[k - 1]))]
        return self.cut(self.decided(rows, began, sum(s.scanned for s in found)), k)

    def cut(self, found: Candidates, k: int) -> Candidates:
        """The first k, and those that tie with the k-th, or may where ClickHouse adds up in another order."""
        if len(found.rows) <= k or np.isnan(found.distances[k - 1]):
            return found
        limit = self.edge(found.distances[k - 1])
        return found.first(int(np.searchsorted(found.distances, limit, side="right")))

    def edge(self, kth: float) -> float:
        """The largest key that may tie with the k-th."""
        return kth + ADDED * (self.slack(kth) - kth) if np.isfinite(kth) else kth

    def nearest_of(self, chosen: NDArray[np.int64], k: int) -> Candidates:
        """The same among a few rows, given by their numbers in ascending order: just those are read."""
        began = time.perf_counter()
        keys = np.empty(len(chosen), np.float32)

        def work(first: int, last: int) -> None:
            for at in range(first, last, FEW):
                rows = chosen[at : min(last, at + FEW)]
                keys[at : at + len(rows)] = self._gathered(int(rows[0]), int(rows[-1]) + 1, rows)

        if len(chosen) < FEW:
            work(0, len(chosen))
        else:
            each_core(len(chosen), work)
        np.nan_to_num(keys, copy=False, nan=np.inf, posinf=np.inf, neginf=-np.inf)
        kept = chosen
        if len(chosen) > k:
            kept = chosen[keys <= self.slack(float(np.partition(keys, k - 1)[k - 1]))]
        return self.cut(self.decided(kept, began, len(chosen)), k)

    def within(self, radius: float, most: int) -> Candidates | int:
        """All rows whose key is at most `radius`, and those so near to it that rounding decides; smallest first.

        Where there are more than `most`, only their number.
        """
        began = time.perf_counter()
        found = self._shares(None, radius)
        rows, _ = self._joined(found)
        if len(rows) > most:
            return len(rows)
        return self.decided(rows, began, sum(s.scanned for s in found))

    def all(self) -> NDArray[np.float32]:
        """The key of every row, float32 (rows,), NaN where it is NaN. The mask is not applied."""
        out = np.empty(self._rows, np.float32)
        self._on_all_cores(lambda first, last: self._fill(first, last, out[first:last]))
        if len(self._terms) == 1 and self._terms[0].metric is Metric.COSINE and self._terms[0].weight == 1:
            np.maximum(out, 0, out=out)  # as in ClickHouse, rounding takes no distance below 0; NaN stays
        return out

    def _fill(self, first: int, last: int, out: NDArray[Any]) -> None:
        scratch = np.empty(min(self._step, last - first), np.float32)
        for a in range(first, last, self._step):
            b = min(last, a + self._step)
            self._key(a, b, out[a - first : b - first], scratch[: b - a])

    def _key(self, a: int, b: int, out: NDArray[Any], scratch: NDArray[Any]) -> None:
        distances_between(self._terms[0], a, b, out)
        for term in self._terms[1:]:
            distances_between(term, a, b, scratch)
            out += scratch

    def _shares(self, k: int | None, radius: float) -> list[_Share]:
        shares: list[_Share] = []

        def work(first: int, last: int) -> None:
            share = _Share(np.empty(2 * self._step, np.int64), np.empty(2 * self._step, np.float32))
            shares.append(share)
            self._search(first, last, k, radius, share)

        self._on_all_cores(work)
        return shares

    def _search(self, first: int, last: int, k: int | None, radius: float, share: _Share) -> None:
        share.limit = radius
        out, scratch = np.empty(self._step, np.float32), np.empty(self._step, np.float32)
        for a in range(first, last, self._step):
            if self._stop.is_set():
                return
            b = min(last, a + self._step)
            if self._among is None:
                key = out[: b - a]
                self._key(a, b, key, scratch[: b - a])
                if k is not None:  # NaN sorts last, as in ClickHouse's ORDER BY; it is within no radius
                    np.nan_to_num(key, copy=False, nan=np.inf, posinf=np.inf, neginf=-np.inf)
            else:
                chosen = np.flatnonzero(self._among[a:b])
                if not len(chosen):
                    continue
                key = self._masked(a, b, chosen, out, scratch)
            share.scanned += b - a if self._among is None else len(chosen)
            share.room(b - a)
            share.used = kernels.collect(key, a, self.slack(share.limit), share.rows, share.keys, share.used)
            if k is not None and share.used > max(4 * k, self._step // 2):
                share.tighten(k, self.slack)

    def _masked(self, a: int, b: int, chosen: NDArray[Any], out: NDArray[Any], scratch: NDArray[Any]) -> NDArray[Any]:
        """Keys of a block of which only the chosen rows count: the others get NaN, which no search keeps."""
        key = out[: b - a]
        if len(chosen) > (b - a) // 4:
            self._key(a, b, key, scratch[: b - a])
            keep = np.full(b - a, np.nan, np.float32)
            keep[chosen] = np.where(np.isnan(key[chosen]), np.inf, key[chosen])
            key[:] = keep
        else:
            values = self._gathered(a, b, chosen + a)
            key[:] = np.nan
            key[chosen] = np.where(np.isnan(values), np.inf, values)
        return key

    def _gathered(self, a: int, b: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Keys of single rows of a block: the rows are brought together first, so that the kernels run over them."""
        total = np.zeros(len(rows), np.float32)
        for term in self._terms:
            for start, block in term.store.blocks(a, b):
                inside = (rows >= start) & (rows < start + len(block))
                wanted = rows[inside] - start
                term.store.ask(block, wanted)
                total[inside] += weighted(term, block[wanted])
        return total

    def _joined(self, shares: Sequence[_Share]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if not shares:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return (
            np.concatenate([s.rows[: s.used] for s in shares]),
            np.concatenate([s.keys[: s.used] for s in shares]),
        )

    def decided(self, rows: NDArray[np.int64], began: float, scanned: int) -> Candidates:
        """These rows by their keys in float64, smallest first, ties by row."""
        scan_seconds = time.perf_counter() - began
        keys = exact(self._terms, rows)
        order = np.lexsort((rows, keys))
        cost = Cost(
            rows_scanned=scanned,
            rows_rescored=len(rows),
            seconds={"scan": scan_seconds, "rescore": time.perf_counter() - began - scan_seconds},
        )
        return Candidates(rows[order].astype(np.uint64), keys[order], cost)

    def _on_all_cores(self, work: Callable[[int, int], None]) -> None:
        n = threads()
        span = self._rows - self._first
        if n == 1 or span * self._terms[0].store.dimension < 1 << 18:
            work(self._first, self._rows)
            return
        edges = [self._first + span * i // n for i in range(n + 1)]
        futures = [workers().submit(work, a, b) for a, b in itertools.pairwise(edges)]
        try:
            for future in futures:
                future.result()
        except BaseException:  # Ctrl-C reaches this thread: the others stop at their next block
            self._stop.set()
            raise


class FlatIndex(WithoutBounds):
    """The exact scan as an index: covers every row, needs no files, has no knobs."""

    kind = "flat"

    def __init__(self, store: ColumnStore, metric: Metric) -> None:
        self._store, self.metric = store, metric

    @property
    def rows_covered(self) -> int:
        """All rows of the column."""
        return self._store.rows

    def search(
        self,
        query: NDArray[np.floating[Any]],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
        ties: bool = False,
    ) -> Candidates:
        """The k nearest rows, exactly, nearest first; ties in row order."""
        if knobs:
            raise VectorIndexError(f"a flat index has no knob {', '.join(sorted(knobs))}: it is always exact")
        weight = -1.0 if self.metric.larger_is_nearer else 1.0
        term = Term(self._store, self.metric, np.asarray(query, np.float64), weight)
        found = Scan([term], self._store.rows, among).nearest(k)
        return nearest(found.rows, weight * found.distances, k, self.metric, found.cost, ties=ties)

    def efforts(
        self, query: NDArray[np.float32], ks: Sequence[int], allowed: int, knobs: Mapping[str, float] | None = None
    ) -> list[float]:
        """See `Index.efforts`."""
        return [self._store.rows / threads()] * len(ks)
