"""The opened index: from a query and knobs to exactly k rows.

What must stay true: k rows come back whenever k rows qualify. A search that finds fewer looks into more lists, in the
end into all of them, and rows that are in no list (cosine distance NaN) come last. A filter that lets few rows pass is
answered exactly, row by row. Nothing here changes after construction, so any number of threads may search at once.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine import memory
from clipql.errors import VectorIndexError
from clipql.index.base import EXACT_RECALL, TIED, Candidates, Cost, Route, Vectors, nearest
from clipql.index.ivf import kernels, many, rescore, resident
from clipql.index.ivf.depth import Depth, compared, slack_of
from clipql.index.ivf.geometry import Floats
from clipql.index.ivf.knobs import DEFAULT_RECALL, Curves, careful, reached
from clipql.index.ivf.model import CODER, LEARNT_ROWS, OWN, identity_of, space_of
from clipql.index.ivf.ranges import Ranges
from clipql.index.ivf.stored import stored_blocks, table_of
from clipql.storage.vectors import direct
from clipql.storage.vectors.metrics import Metric

_CODE = {Metric.DOT: rescore.DOT, Metric.COSINE: rescore.COSINE, Metric.L2: rescore.L2, Metric.L2_SQUARED: rescore.L2}
REACH = 3.0  # deviations of a list's spread added to its score: what its best row, not its middle, may reach
SPARSE = 0.1  # share of rows that a filter leaves below which their codes are not read before it is asked
ALIKE = 1e-5  # relative: codes of equal vectors may differ by what a product of matrices rounds
# measured at 512 numbers: 10 ns to read a code and 450 to rescore a row, 78 to compare it in a scan
CODE_EFFORT, ROW_EFFORT = 0.13, 5.8
# a row kept apart is compared by every search; with a larger share of them an exact scan is as good
APART_EFFORT, MOST_APART = 2.0, 0.05
# With more lists than this, and than so many for each one probed, only the lists of the nearest parents are ranked, an
# eighth of all at least.
RANKED_LISTS, RANKED_PER_PROBE = 8192, 64
_MAPPED = contextlib.nullcontext(np.uint64(direct.NOWHERE))
_NO_FILTER, _NOT_ROUTED = np.empty(0, np.bool_), np.empty(0, np.int64)
_NO_FILTER.setflags(write=False)


class IvfIndex:
    """k-means lists with small codes, rescored exactly from the stored vectors. Made by `build` and `open_index`."""

    kind = "ivf"

    def __init__(
        self, meta: Mapping[str, Any], arrays: kernels.Arrays, vectors: Vectors, ranges: Ranges | None = None
    ) -> None:
        self._blocks = stored_blocks(vectors, int(meta["rows"]))
        self._cold = kernels.IN_MEMORY
        if memory.on_disk(sum(b.nbytes for _, b in self._blocks) + sum(a.nbytes for a in arrays)):
            arrays, self._cold = resident.kept(arrays)
        self._bytes = sum(a.nbytes for a in arrays)
        self._arrays, self._ranges = kernels.in_bfloat16(arrays), ranges
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

    def routed(self, routes: Sequence[Route]) -> IvfIndex:
        """This index, which looks into lists as they were ranked elsewhere by the model that it was built with.

        A query that no route is for is ranked here, and so is one that needs more lists than its route names.
        """
        ours = tuple(r for r in routes if self.model and r.model == self.model and self._known(r.lists))
        if not ours:
            return self
        found = copy.copy(self)
        found._routes = ours
        return found

    def ranking_for(self, times: int) -> IvfIndex:
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
        found = rescore.distances(self._table, _CODE[self.metric], np.ascontiguousarray(query, np.float32), rows)
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
            distances = np.concatenate([distances, rescore.distances(self._table, _CODE[self.metric], q, rest)])
            counts[2] += len(rest)
        if len(rows) < wanted:
            return self._exactly(q, k, among, begun, ties)
        cost = Cost(
            codes_scanned=int(counts[0]),
            lists_probed=int(counts[1]),
            lists_routed=len(self._routed(q, nprobe)),
            rows_rescored=int(counts[2]),
            seconds=_stages(counts, time.perf_counter() - begun),
        )
        return self._answer(rows, distances, k, cost, ties)

    def _way(
        self, q: Floats, v: Floats, k: int, matching: int, knobs: Mapping[str, float]
    ) -> tuple[int, int, float] | None:
        """The lists to look into, the rows to keep by their codes and the slack of those, for a query, of which v is
        what the space turned it into; None where all rows are to be compared.
        """
        kind = "" if _told(knobs) else self._kind(q, v)
        setting = self._depth.setting(kind, knobs)
        kept = compared(setting.rescore, k, knobs)
        blank = self.metric is Metric.COSINE and not v.any()
        if matching <= kept or blank or not self._space.reaches(v) or self._doubted(kind, knobs):
            return None
        slack = slack_of(setting)
        return self._depth.widened(setting.nprobe, k, matching, kind, knobs), kept, slack

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
        ranked = np.array([_ranked(self.lists, self._ranked_for * n) for n in nprobe.tolist()])
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
                self._arrays,
                self._table,
                _CODE[self.metric],
                asked,
                self._space.unit,
                mask,
                wanted,
                REACH,
                self._cold,
                matching < SPARSE * self._rows,
                self.metric is Metric.L2,
                context,
                into,
            )
        seconds = (time.perf_counter() - begun) / len(some)
        rows, size = into.rows.astype(np.uint64), into.size.tolist()
        for z, i in enumerate(some):
            n, counts = int(into.found[z]), into.counts[z]
            if size[z] < wanted or n < wanted:
                continue
            compared = into.distances[z, :n] ** 2 if self.metric is Metric.L2 else into.distances[z, :n]
            if counts[2] == kept[z] and self._hides_ties(compared, wanted, into.edge[z]):
                continue
            codes, lists, rescored = counts[:3].tolist()
            spent = _stages(counts, seconds)
            cost = Cost(codes_scanned=codes, lists_probed=lists, rows_rescored=rescored, seconds=spent)
            found[i] = Candidates(rows[z, : size[z]], into.distances[z, : size[z]], cost)
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

    def doubt(self, query: NDArray[np.float32], knobs: Mapping[str, float]) -> str:
        """See `Index.doubt`."""
        return self._doubted(self._curves.kind_of(np.ascontiguousarray(query, np.float32)), knobs)

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

    def _hides_ties(self, distances: NDArray[np.float64], k: int, edge: Floats) -> bool:
        """Whether rows that were not compared may tie with the k-th: they could score as much, and either there are
        others that do, or it is itself the least promising that was compared.
        """
        kth_score, unseen, least_promising = edge.tolist()
        if len(distances) < k or not unseen >= kth_score:
            return False
        ordered = np.sort(-distances if self.metric.larger_is_nearer else distances)
        kth, limit = ordered[k - 1], 2 * TIED * abs(ordered[k - 1])  # of squares, under L2
        tied = np.count_nonzero(np.abs(ordered - kth) <= limit) > 1
        return bool(tied or least_promising <= unseen + ALIKE * abs(unseen))

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
                self._arrays,
                self._table,
                _CODE[self.metric],
                q,
                v,
                self._space.unit,
                mask,
                k,
                nprobe,
                kept,
                REACH,
                np.float32(slack * self._error),
                _ranked(self.lists, self._ranked_for * nprobe),
                self._cold,
                self._routed(q, nprobe),
                sparse,
                context,
            )
        return found

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

    def _exactly(self, q: Floats, k: int, among: NDArray[np.bool_] | None, begun: float, ties: bool) -> Candidates:
        rows = np.arange(self._rows) if among is None else np.flatnonzero(among[: self._rows])
        if self._cold != kernels.IN_MEMORY and len(rows) < SPARSE * self._rows:
            rescore.ask(self._table, rows, q.size)
        distances = rescore.distances(self._table, _CODE[self.metric], q, rows)
        cost = Cost(rows_scanned=len(rows), rows_rescored=len(rows), seconds={"search": time.perf_counter() - begun})
        return self._answer(rows, distances, k, cost, ties)

    def _kind(self, q: Floats, v: Floats) -> str:
        """The kind of a query, of which v is what the space turned it into."""
        return self._curves.kind_of_unit(v) if self.metric is Metric.COSINE else self._curves.kind_of(q)


def _told(knobs: Mapping[str, float] | None) -> bool:
    """Whether knobs say all of a setting, so that the kind of the query decides nothing."""
    return knobs is not None and "nprobe" in knobs and "rescore" in knobs


def ranked_lists(arrays: kernels.Arrays, v: Floats, nprobe: int) -> NDArray[np.int32]:
    """The lists that a search of so many would look into for a query as the space turned it, int32, best first."""
    found: NDArray[np.int64] = kernels.rank(arrays, v, nprobe, REACH, _ranked(len(arrays.list_scale), nprobe))
    return found.astype(np.int32)


def _ranked(lists: int, nprobe: int) -> int:
    return max(RANKED_LISTS, RANKED_PER_PROBE * nprobe, lists // 8)


def _stages(counts: NDArray[np.int64], seconds: float) -> dict[str, float]:
    """Seconds of each stage of the last probe, by its share of the cycles; what came before counts as ranking."""
    began, ranked, scanned, ended = counts[3:7].tolist()
    spent = max(0, ranked - began), max(0, scanned - ranked), max(0, ended - scanned)
    if not sum(spent):  # a processor without a counter that programs may read
        return {"search": seconds}
    rank, scan, rescored = (seconds * part / sum(spent) for part in spent)
    return {"rank": rank, "scan": scan, "rescore": rescored}
