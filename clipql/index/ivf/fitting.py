"""What is fitted to an index's queries once its rows are in lists: how lists are ranked, and what recall is measured.

A build does it once, `growth` again when lists have changed enough. The queries are stored rows and their captions, or
synthetic queries. What must stay true: the same rows, captions and seed give the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.base import Vectors
from clipql.index.folder import VERSION, NewFolder
from clipql.index.ivf import codes
from clipql.index.ivf.calibrate import Owned, measure
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Floats, Space, Workers, unit_rows
from clipql.index.ivf.knobs import FOREIGN_LISTS, Curves
from clipql.index.ivf.learn import Progress, spread
from clipql.index.ivf.model import RANKING, scale_told
from clipql.index.ivf.opening import arrays_of
from clipql.index.ivf.routing import Followed
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.state import Known
from clipql.index.ivf.synthetic_queries import Queries, SyntheticQueries
from clipql.index.ivf.train import Lists
from clipql.index.ivf.truth import Truth

FITTED_ON = 40_000  # residuals, and as many queries of each kind, that a coder is fitted to
CALIBRATED_ON = 200  # queries of each kind
OWNED = 1000  # queries whose own rows are looked up
TOLD_APART = 0.98  # of rows and of captions, by their means, for a query's kind to be believed
ENCODED = 65_536  # lists turned into numbers at once
# what lists that come later are coded by, beyond what a search needs: the coder's, and the mean of what was coded
ROUTE = ("route_rows", "route_bits", "route_step", "route_middle")


@dataclass(frozen=True)
class Tally:
    """Of each list, (l,): rows, the sum of |z|² of their residuals, and the sum of their |y|²."""

    counts: NDArray[np.int64]
    energy: NDArray[np.float64]
    square: NDArray[np.float64]

    @property
    def size(self) -> NDArray[np.int64]:
        return np.maximum(self.counts, 1)

    @property
    def spread(self) -> Floats:
        """`list_spread` of an index."""
        return np.sqrt(self.energy / self.size).astype(np.float32)

    def bias(self, space: Space) -> Floats:
        """The mean bias of each list's rows."""
        return (-0.5 * self.square / self.size if space.biased else np.zeros(len(self.counts))).astype(np.float32)


def route_coder(found: dict[str, NDArray[Any]]) -> Coder:
    """The coder of lists, by its arrays in an index (ROUTE and RANKING); it can `encode`."""
    rows = found["route_rows"] if found["route_rows"].size else np.ascontiguousarray(found["list_turn"].T)
    return Coder(
        rows, found["list_turn"], found["route_bits"], found["route_step"], np.empty(0, np.float32),
        found["list_word_block"], found["list_word_weight"],
    )  # fmt: skip


@dataclass(frozen=True)
class Fitting:
    """Rows [0, rows) of a column, with what they are fitted with."""

    vectors: Vectors
    captions: Vectors | None
    space: Space
    rows: int
    seed: int
    workers: Workers
    folder: NewFolder
    progress: Progress

    def queries(self) -> Queries:
        """The captions, or synthetic queries."""
        return self.captions or SyntheticQueries(self.vectors, self.space, self.seed, self.workers)

    def queries_of(self, rows: NDArray[np.int64], stored: NDArray[np.floating], queries: Queries) -> Floats:
        """The queries of rows that are at hand, as the space turns them."""
        raw = queries.made_of(rows, stored) if isinstance(queries, SyntheticQueries) else queries.take(rows)
        return self.space.queries(raw)

    def asked(self, rows: NDArray[np.int64], raw: Floats) -> Floats:
        """Queries of each kind: the rows themselves and their captions. Each kind counts the same, whatever its length
        (a dot product's queries may be of any).
        """
        good = self.space.rows(raw, self.workers)[1]
        asked = [self.space.queries(raw[good]), self.space.queries(self.queries().take(rows[good]))]
        return np.concatenate([q / max(float(np.sqrt((q * q).sum(1).mean())), 1e-20) for q in asked])

    def truth(self) -> Truth:
        """The queries that recall is measured with; the rows are still to be added."""
        rng = np.random.default_rng((self.seed, 7))
        held = np.sort(rng.choice(self.rows, min(CALIBRATED_ON, self.rows // 10), replace=False, shuffle=False))
        held = held[self.space.rows(self.vectors.take(held), self.workers)[1]]
        asked = [self.vectors.take(held), self.queries().take(held)]
        queries, rows = np.concatenate(asked), np.tile(held, len(asked))
        sound = np.flatnonzero(np.isfinite(queries).all(1) & queries.any(1))
        sound = sound[[self.space.reaches(self.space.query(q)) for q in queries[sound]]]
        kind = np.repeat(np.arange(len(asked)), len(held))
        return Truth(self.space, queries[sound], rows[sound], kind[sound], self.workers)

    def ranking(self, lists: Lists, tally: Tally, followed: Followed) -> dict[str, NDArray[Any]]:
        """What lists are ranked by, RANKING: codes of where queries find their nearest rows; and ROUTE."""
        to = self.folder.scratch("towards", lists.small.shape, np.float32)
        for a in range(0, lists.count, ENCODED):
            to[a : a + ENCODED] = lists.centroids(a, a + ENCODED)
        lift = np.zeros(lists.count, np.float32)
        queries = self.queries()
        followed.pull(
            self.space, lambda rows, stored: self.queries_of(rows, stored, queries), to, lift, self.workers,
            lambda done, total: self.progress("route", done, total),
        )  # fmt: skip
        middle = _mean(to)  # what is left out here is the same for every list, and so does not change their order
        some_rows = spread(self.rows, FITTED_ON, (self.seed, 6))
        asked = self.asked(some_rows, self.vectors.take(some_rows))
        some = np.asarray(to[:: max(1, len(to) // FITTED_ON)]) - middle
        coder = codes.fitted_coder(some, asked, np.random.default_rng((self.seed, 10)))
        words, scale = np.empty((len(to), coder.words), np.uint64), np.empty(len(to), np.float32)
        for a in range(0, len(to), ENCODED):
            part = slice(a, a + ENCODED)
            words[part], scale[part], _ = coder.encode(to[part] - middle, self.workers)
        told: list[NDArray[Any]] = [words, scale, tally.bias(self.space) + lift, tally.spread]
        told += [coder.query, coder.word_block, coder.word_weight]
        # a rotation is the same either way, and is not kept twice
        rows = np.empty((0, 0), np.float32) if np.array_equal(coder.rows, coder.query.T) else coder.rows
        kept: list[NDArray[Any]] = [rows, coder.bits, coder.step, middle]
        return dict(zip((*RANKING, *ROUTE), (*told, *kept), strict=True))

    def calibrated(self, known: Known, truth: Truth, *, captions: bool) -> dict[str, Any]:
        """meta.json's content, with the curves of the index as written so far."""
        means = self._means()
        meta: dict[str, Any] = {
            "version": VERSION,
            "kind": "ivf",
            "metric": self.space.metric.value,
            "dimension": self.vectors.dimension,
            "rows": self.rows,
            "learned_rows": self.rows,
            "measured": {"rows": self.rows, "lists": known.lists.count},
            "parameters": {
                "lists": known.lists.count,
                "parents": len(known.lists.parents),
                "seed": self.seed,
                "bits": known.coder.bits.tolist(),
                "captions": captions,
            },
            "code_error": known.error,
            "scale": scale_told(known.space),
            "curves": means.to_meta(),
        }
        index = IvfIndex(meta, arrays_of(self.folder.path), self.vectors)
        which = np.arange(len(truth.own))
        split = int(np.searchsorted(truth.kind, 1))
        steps = [0]

        def tick() -> None:
            steps[0] += 1
            self.progress("calibrate", steps[0], 0)

        image = measure(index, truth, which[:split], self._owned(None), self.workers.threads, tick)
        own = self._owned(self.captions) if self.captions is not None else None
        # such queries get so many times the lists that their curve asks for, of as many that are ranked
        asked = index if self.captions is not None else index.ranking_for(FOREIGN_LISTS)
        text = measure(asked, truth, which[split:], own, self.workers.threads, tick)
        meta["curves"] = replace(means, image=image, text=text).to_meta()
        return meta

    def _owned(self, queries: Queries | None) -> Owned:
        """Queries for calibration whose own rows are looked up: stored rows, or captions of them."""
        rows = spread(self.rows, min(OWNED, self.rows // 10) if queries else 0, (self.seed, 12))
        rows = rows[self.space.rows(self.vectors.take(rows), self.workers)[1]]
        asked = self.vectors.take(rows) if queries is None else queries.take(rows)
        sound = np.flatnonzero(np.isfinite(asked).all(1) & asked.any(1))
        sound = sound[[self.space.reaches(self.space.query(q)) for q in asked[sound]]]
        return Owned(asked[sound], rows[sound])

    def _means(self) -> Curves:
        """Where the two kinds of query lie; no points yet."""
        rows = np.linspace(0, self.rows - 1, min(self.rows, 20_000)).astype(np.int64)
        unit = unit_rows(self.vectors.take(rows))
        image_mean = unit_rows(unit.mean(0, keepdims=True))[0]
        familiar = float(np.quantile(unit @ image_mean, 0.001))
        if self.captions is None:
            return Curves([], [], image_mean, None, familiar)
        captions = unit_rows(self.captions.take(rows))
        text_mean = unit_rows(captions.mean(0, keepdims=True))[0]
        told = min(
            np.mean(unit @ image_mean >= unit @ text_mean), np.mean(captions @ text_mean > captions @ image_mean)
        )
        return Curves([], [], image_mean, text_mean, familiar, bool(told >= TOLD_APART))


def _mean(x: Floats) -> Floats:
    """The mean of rows, of which there may be many on disk."""
    total = np.zeros(x.shape[1])
    for a in range(0, len(x), ENCODED):
        total += x[a : a + ENCODED].sum(0, dtype=np.float64)
    return np.asarray(total / len(x), np.float32)
