"""The opened index: from a query and knobs to exactly k rows.

What must stay true: k rows come back whenever k rows qualify. A search that finds fewer looks into more lists, in the
end into all of them, and rows that are in no list (cosine distance NaN) come last. A filter that lets few rows pass is
answered exactly, row by row. Nothing here changes after construction, so any number of threads may search at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import TIED, Candidates, Cost, nearest
from clipql.index.ivf import kernels, many, rescore
from clipql.index.ivf.depth import compared, slack_of
from clipql.index.ivf.geometry import Floats
from clipql.index.ivf.opened import APART_EFFORT, CODE, MOST_APART, REACH, OpenedIndex, ranked_for
from clipql.storage.vectors import direct
from clipql.storage.vectors.metrics import Metric

SPARSE = 0.1  # share of rows that a filter leaves below which their codes are not read before it is asked
KEPT_WAYS = 256  # what queries of one kind are searched by, with the same k, knobs and number of rows
ALIKE = 1e-5  # relative: codes of equal vectors may differ by what a product of matrices rounds
# measured at 512 numbers: 10 ns to read a code and 450 to rescore a row, 78 to compare it in a scan
CODE_EFFORT, ROW_EFFORT = 0.13, 5.8
_MAPPED = contextlib.nullcontext(np.uint64(direct.NOWHERE))


class IvfIndex(OpenedIndex):
    """k-means lists with small codes, rescored exactly from the stored vectors. Made by `build` and `open_index`."""

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
        ties: bool = False,
    ) -> Candidates:
        """The k nearest rows; see `Index.search`. Knobs: nprobe (lists), rescore (rows), recall (0 to 1, of 10)."""
        begun = time.perf_counter()
        v = self._space.query(query)
        q = np.ascontiguousarray(query, np.float32)
        if k <= 0:
            return self._answer(np.empty(0, np.int64), np.empty(0), 0, Cost(), ties)
        mask, matching = self._filter(among)
        way = self._way(q, v, k, matching, knobs or {})
        if way is None:
            return self._exactly(q, k, among, begun, ties)
        nprobe, kept, slack = way
        wanted = min(k, matching)
        while True:
            sparse = matching < SPARSE * self._rows
            rows, distances, counts, edge = self._probe(q, v, mask, wanted, nprobe, kept, sparse, slack)
            if len(rows) < wanted and nprobe < self.lists:
                nprobe = min(4 * nprobe, self.lists)
            elif ties and counts[2] == kept and self._hides_ties(distances, wanted, edge):
                kept *= 4
            else:
                break
        rest = self._apart
        if len(rest) and (self.metric is not Metric.COSINE or len(rows) < wanted):
            rest = rest[mask[rest]] if mask.size else rest
            rows = np.concatenate([rows, rest])
            distances = np.concatenate([distances, rescore.distances(self._table, CODE[self.metric], q, rest)])
            counts[2] += len(rest)
        if len(rows) < wanted:
            return self._exactly(q, k, among, begun, ties)
        codes, lists, rescored = counts[:3].tolist()
        seconds = _stages(counts, time.perf_counter() - begun)
        cost = Cost(
            codes_scanned=codes,
            lists_probed=lists,
            lists_routed=len(self._routed(q, nprobe)),
            rows_rescored=rescored,
            seconds=seconds,
        )
        return self._answer(rows, distances, k, cost, ties)

    def _way(
        self, q: Floats, v: Floats, k: int, matching: int, knobs: Mapping[str, float]
    ) -> tuple[int, int, float] | None:
        """The lists to look into, the rows to keep by their codes and the slack of those, for a query, of which v is
        what the space turned it into; None where all rows are to be compared.
        """
        kind = "" if _told(knobs) else self._kind(q, v)
        asked = (kind, k, matching, *knobs.items())
        known = self._ways.get(asked)
        if known is None:
            if len(self._ways) >= KEPT_WAYS:
                self._ways.clear()
            known = self._ways[asked] = self._way_of(kind, k, matching, knobs)
        blank = self.metric is Metric.COSINE and not v[0] and not v.any()
        return None if blank or not self._space.reaches(v) else known[0]

    def _way_of(
        self, kind: str, k: int, matching: int, knobs: Mapping[str, float]
    ) -> tuple[tuple[int, int, float] | None]:
        """The same for any query of a kind."""
        setting = self._depth.setting(kind, knobs)
        kept = compared(setting.rescore, k, knobs)
        if matching <= kept or self._doubted(kind, knobs):
            return (None,)
        return ((self._depth.widened(setting.nprobe, k, matching, kind, knobs), kept, slack_of(setting)),)

    def search_each(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        among: NDArray[np.bool_] | None = None,
        knobs: Mapping[str, float] | None = None,
    ) -> list[Candidates | None]:
        """As `search`, with ties, for each of the queries (n, d), in one call of the kernel. None for those that are to
        be searched for alone, as their first look did not do.
        """
        found: list[Candidates | None] = [None] * len(queries)
        mask, matching = self._filter(among)
        if k <= 0 or self._routes or (len(self._apart) and self.metric is not Metric.COSINE):
            return found
        begun = time.perf_counter()
        queries = np.ascontiguousarray(queries, np.float32)
        turned = [self._space.query(query) for query in queries]
        ways = [self._way(q, v, k, matching, knobs or {}) for q, v in zip(queries, turned, strict=True)]
        some = [i for i, way in enumerate(ways) if way is not None]
        if not some:
            return found
        nprobe, kept, slack = (np.array(each) for each in zip(*(way for way in ways if way is not None), strict=True))
        ranked = np.array([ranked_for(self.lists, self._ranked_for * n) for n in nprobe.tolist()])
        asked = many.Asked(
            queries[some],
            np.stack([turned[i] for i in some]),
            nprobe,
            kept,
            ranked,
            (self._error * slack).astype(np.float32),
        )
        wanted, into = min(k, matching), many.room(len(some), k)
        with direct.context() if self._cold else _MAPPED as context:
            many.search_each(
                self._told,
                CODE[self.metric],
                asked,
                self._space.unit,
                mask,
                wanted,
                REACH,
                self._cold,
                matching < SPARSE * self._rows,
                self.metric is Metric.L2,
                ALIKE,
                context,
                into,
            )
        stages = _stages_each(into.counts, (time.perf_counter() - begun) / len(some))
        rows, told = into.rows.astype(np.uint64), into.counts[:, :3].tolist()
        for z, (i, size, (codes, lists, rescored)) in enumerate(zip(some, into.size.tolist(), told, strict=True)):
            if size >= wanted:
                cost = Cost(0, codes, lists, 0, rescored, 0, stages[z])
                found[i] = Candidates(rows[z, :size], into.distances[z, :size], cost)
        return found

    def efforts(
        self, query: NDArray[np.float32], ks: Sequence[int], allowed: int, knobs: Mapping[str, float] | None = None
    ) -> list[float]:
        """See `Index.efforts`."""
        kind = self._curves.kind_of(np.ascontiguousarray(query, np.float32))
        setting, found = self._depth.setting(kind, knobs or {}), []
        for k in ks:
            codes = self._depth.widened(setting.nprobe, k, allowed, kind, knobs) / self.lists * self._placed
            rows = min(codes, compared(setting.rescore, k, knobs))
            found.append(CODE_EFFORT * codes + ROW_EFFORT * rows + APART_EFFORT * len(self._apart))
        return found

    @property
    def has_bounds(self) -> bool:
        """False for an index that was built before there were any."""
        return self._ranges is not None

    def within(
        self, query: NDArray[np.float32], distance: float, among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """See `Index.within`."""
        if self._ranges is None:
            return None
        mask, _ = self._filter(among)
        v = self._space.query(query)
        if not self._space.reaches(v) or len(self._apart) > MOST_APART * self._rows:
            return None
        q = np.ascontiguousarray(query, np.float32)
        found = self._ranges.candidates(v, self._space.score(q, v, distance), mask)
        if found is None or self.metric is Metric.COSINE or not len(self._apart):
            return found
        return np.union1d(found, self._apart[mask[self._apart]] if mask.size else self._apart)

    def _hides_ties(self, distances: NDArray[np.float64], k: int, edge: Floats) -> bool:
        """Whether rows that were not compared may tie with the k-th: they could score as much, and either there are
        others that do, or it is itself the least promising that was compared.
        """
        tied = 2 * TIED  # of squares, under L2
        return bool(rescore.hides_ties(distances, k, self.metric.larger_is_nearer, edge, tied, ALIKE))

    def _answer(
        self, rows: NDArray[np.int64], distances: NDArray[np.float64], k: int, cost: Cost, ties: bool
    ) -> Candidates:
        """The k nearest in order; NaN last, ties by row."""
        if self.metric is Metric.L2:
            distances = np.sqrt(distances)
        return nearest(rows, distances, k, self.metric, cost, ties=ties)

    def _probe(
        self,
        q: Floats,
        v: Floats,
        mask: NDArray[np.bool_],
        k: int,
        nprobe: int,
        kept: int,
        sparse: bool,
        slack: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], Floats]:
        with direct.context() if self._cold else _MAPPED as context:
            found: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], Floats] = kernels.search(
                self._told,
                CODE[self.metric],
                q,
                v,
                self._space.unit,
                mask,
                k,
                nprobe,
                kept,
                REACH,
                np.float32(slack * self._error),
                ranked_for(self.lists, self._ranked_for * nprobe),
                self._cold,
                self._routed(q, nprobe),
                sparse,
                context,
            )
        return found

    def _exactly(self, q: Floats, k: int, among: NDArray[np.bool_] | None, begun: float, ties: bool) -> Candidates:
        rows = np.arange(self._rows) if among is None else np.flatnonzero(among[: self._rows])
        if self._cold != kernels.IN_MEMORY and len(rows) < SPARSE * self._rows:
            rescore.ask(self._table, rows, q.size)
        distances = rescore.distances(self._table, CODE[self.metric], q, rows)
        cost = Cost(rows_scanned=len(rows), rows_rescored=len(rows), seconds={"search": time.perf_counter() - begun})
        return self._answer(rows, distances, k, cost, ties)


def _told(knobs: Mapping[str, float] | None) -> bool:
    """Whether knobs say all of a setting, so that the kind of the query decides nothing."""
    return knobs is not None and "nprobe" in knobs and "rescore" in knobs


def _stages(counts: NDArray[np.int64], seconds: float) -> dict[str, float]:
    """Seconds of each stage of the last probe, by its share of the cycles; what came before counts as ranking."""
    began, ranked, scanned, ended = counts[3:7].tolist()
    spent = max(0, ranked - began), max(0, scanned - ranked), max(0, ended - scanned)
    if not sum(spent):  # a processor without a counter that programs may read
        return {"search": seconds}
    rank, scan, rescored = (seconds * part / sum(spent) for part in spent)
    return {"rank": rank, "scan": scan, "rescore": rescored}


def _stages_each(counts: NDArray[np.int64], seconds: float) -> list[dict[str, float]]:
    """The same of many probes (n, 7), which took so many seconds each."""
    spent = np.maximum(0, np.diff(counts[:, 3:7], axis=1)).astype(np.float64)
    if not spent.any():
        return [{"search": seconds}] * len(counts)
    spent *= seconds / np.maximum(1, spent.sum(1, keepdims=True))
    return [{"rank": rank, "scan": scan, "rescore": rescored} for rank, scan, rescored in spent.tolist()]
