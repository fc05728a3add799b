"""Building an ivf index: learn from a sample, assign and encode in one pass, lay out, calibrate, commit.

Every stage reads the stored rows in chunks; besides scratch files and a few numbers a list, nothing grows with the
table. The same rows, captions and seed give the same files, whatever the number of threads, and whether a build was
cut off and resumed or not.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.folder import VERSION, NewFolder
from clipql.index.ivf import codes, kernels, state
from clipql.index.ivf.bounds import spanned
from clipql.index.ivf.buckets import Buckets
from clipql.index.ivf.calibrate import Owned, measure
from clipql.index.ivf.forecast import check_room, forecast
from clipql.index.ivf.geometry import Floats, Space, Workers, fitted_space, unit_rows
from clipql.index.ivf.knobs import Curves
from clipql.index.ivf.learn import FEWEST_ROWS, learn, spread
from clipql.index.ivf.model import Model, coder_arrays, own_coder_arrays, scale_told
from clipql.index.ivf.place import KEPT, Progressed, beginning, lay_out, limits, place, record
from clipql.index.ivf.ranges import SPAN
from clipql.index.ivf.routing import Followed, buckets_for
from clipql.index.ivf.search import IvfIndex, arrays_of, open_index
from clipql.index.ivf.standin import Queries, StandIn
from clipql.index.ivf.train import Assigner, Lists
from clipql.index.ivf.truth import Truth
from clipql.storage.vectors.metrics import Metric

ROWS_PER_LIST, FEWEST_PER_LIST = 64, 16
MOST_LISTS = 1_000_000  # by default; so many can still be learnt from the largest sample
MOST_ROWS, MOST_NUMBERS = 2**32, 8192
FITTED_ON = 40_000  # residuals, and as many queries of each kind, that the coder is fitted to
CALIBRATED_ON = 200  # queries of each kind
OWNED = 1000  # queries whose own rows are looked up
TOLD_APART = 0.98  # of rows and of captions, by their means, for a query's kind to be believed
FORETOLD = 1_000_000  # rows from which on a forecast is worth the second it takes
ENCODED = 65_536  # lists turned into numbers at once
Progress = Callable[[str, int, int], None]


def build(
    vectors: Vectors,
    metric: Metric,
    folder: str | Path,
    *,
    queries: Vectors | None = None,
    lists: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    threads: int | None = None,
    work: str | Path | None = None,
    identity: str = "",
    model: Model | None = None,
    shared: bool = False,
) -> IvfIndex:
    """Index the rows of `vectors` in `folder`, replacing what is there only when all is written.

    queries: vectors whose row i is a query that row i answers, its caption's; they shape the codes and give the
    recall curve of text; queries made of the rows stand in for them (`standin`). lists: how many, by default one for
    64 rows. progress(stage, done, total) is called often.
    work: a folder to build in; where a build of vectors of the same identity was cut off there, this one goes on.
    identity: changes whenever the vectors or the queries do. model: what another index learnt, used instead of learning
    from these rows; `lists` is its own then. shared: keep what was learnt so that others may be built with it. Raises
    VectorIndexError for fewer than 1,000 rows, or a model of another metric or dimension.
    """
    begun, rows = time.perf_counter(), vectors.rows
    if rows < FEWEST_ROWS:
        raise VectorIndexError(
            f"an ivf index needs {FEWEST_ROWS} rows to learn from; the column has {rows}: scan it instead"
        )
    if vectors.dimension > MOST_NUMBERS:
        raise VectorIndexError(
            f"an ivf index holds vectors of at most {MOST_NUMBERS:,} numbers, as it turns them by a square matrix; "
            f"the column's have {vectors.dimension:,}: they are scanned"
        )
    if rows > MOST_ROWS:
        raise VectorIndexError(f"an ivf index holds at most {MOST_ROWS:,} rows; the column has {rows:,}")
    if queries is not None and (queries.rows < rows or queries.dimension != vectors.dimension):
        raise VectorIndexError(
            f"queries hold {queries.rows} vectors of {queries.dimension} numbers; "
            f"they must pair with {rows} rows of {vectors.dimension}"
        )
    if model is not None and (model.metric, model.known.space.mean.size) != (metric, vectors.dimension):
        raise VectorIndexError(
            f"the model is of {model.known.space.mean.size} numbers by {model.metric.value}; the index is of "
            f"{vectors.dimension} by {metric.value}"
        )
    count = model.known.lists.count if model else lists_for(rows, lists)
    workers = Workers(threads or os.cpu_count() or 1)
    told = f"{VERSION} {metric.value} {rows} {vectors.dimension} {count} {seed} {queries is not None} {identity}"
    told += f" {KEPT} {model.identity if model else ''}"
    try:
        _weigh(vectors, metric, count, model is None, Path(folder).parent, Path(work) if work else None, progress)
        with NewFolder(Path(folder), Path(work) if work else None) as new:
            job = _Job(
                vectors,
                queries,
                metric,
                rows,
                count,
                seed,
                told,
                workers,
                new,
                progress or (lambda *_: None),
                model,
                shared or model is not None,
            )
            meta = job.run()
            meta["build_seconds"] = round(time.perf_counter() - begun, 3)
            new.commit(meta)
    finally:
        workers.close()
    return open_index(folder, vectors)


def _weigh(
    vectors: Vectors,
    metric: Metric,
    lists: int,
    learns: bool,
    folder: Path,
    work: Path | None,
    progress: Progress | None,
) -> None:
    """Tell what a long build will take, and refuse one that cannot fit; what was built before in `work` is there."""
    told = progress is not None and vectors.rows >= FORETOLD
    needed = forecast(vectors, metric, lists, folder if told else None, learns=learns)
    check_room(needed, folder, sum(f.stat().st_size for f in work.glob("*")) if work else 0)
    if progress is not None and told:
        progress(f"forecast: {needed.text()}", 0, 0)


def lists_for(rows: int, wanted: int | None = None) -> int:
    """The number of lists an index of so many rows is built with."""
    return max(1, min(wanted or min(rows // ROWS_PER_LIST, MOST_LISTS), rows // 4))


def lists_for_shards(rows: int, shards: int, wanted: int | None = None) -> int:
    """The number of lists that the indexes of shards, of so many rows together, share.

    As for one table of all rows, but so that a list has 16 rows on each shard: with fewer the lists, which each shard
    keeps, would outgrow the codes.
    """
    return wanted or max(1, min(lists_for(rows), rows // shards // FEWEST_PER_LIST))


@dataclass(frozen=True)
class _Job:
    vectors: Vectors
    captions: Vectors | None
    metric: Metric
    rows: int
    lists: int
    seed: int
    identity: str
    workers: Workers
    folder: NewFolder
    progress: Progress
    model: Model | None
    shared: bool

    def run(self) -> dict[str, Any]:
        known = self.model.known if self.model else self._begun()
        space = known.space
        truth = self._truth(space)
        longest = self._pass(space, known, truth)
        return {**self._calibrated(known, truth), "longest_code": longest}

    def _begun(self) -> state.Known:
        """What was learnt before the build was cut off, or is now."""
        known = state.load_known(self.folder.path, self.identity, self.metric)
        if known is None:
            self.folder.clear()
            known = self._learned()
            state.save_known(self.folder.path, self.identity, known)
        return known

    def _learned(self) -> state.Known:
        some = self.vectors.take(spread(self.rows, 100_000, (self.seed, 0)))
        space = fitted_space(self.metric, some, self.workers)
        lists = learn(self.vectors, space, self.lists, self.folder.path, self.seed, self.workers, self.progress)
        return state.Known(space, lists, *self._coder(space, lists))

    def _queries(self, space: Space) -> Queries:
        """The captions, or what stands in for them."""
        return self.captions or StandIn(self.vectors, space, self.seed, self.workers)

    def _asked(self, space: Space, rows: NDArray[np.int64], raw: Floats) -> Floats:
        """Queries of each kind: the rows themselves and their captions. Each kind counts the same, whatever its length
        (a dot product's queries may be of any).
        """
        good = space.rows(raw, self.workers)[1]
        asked = [space.queries(raw[good]), space.queries(self._queries(space).take(rows[good]))]
        return np.concatenate([q / max(float(np.sqrt((q * q).sum(1).mean())), 1e-20) for q in asked])

    def _coder(self, space: Space, lists: Lists) -> tuple[codes.Coder, float]:
        """The coder of rows, and the deviation of their estimates in units of scale times length."""
        rows = spread(self.rows, FITTED_ON, (self.seed, 6))
        raw = self.vectors.take(rows)
        y, good = space.rows(raw, self.workers)
        rows, raw, y = rows[good], raw[good], y[good]
        owner = Assigner(lists, self.workers)(y)
        residuals = y - lists.small[owner] * lists.scale[owner, None]
        asked = self._asked(space, rows, raw)
        coder = codes.fitted_coder(residuals, asked, np.random.default_rng((self.seed, 5)))
        few = slice(0, len(rows), max(1, len(rows) // 2000))
        coded, scale, _ = coder.encode(residuals[few], self.workers)
        errors = []
        for v in asked[:: max(1, len(rows) // 50)]:
            turned = coder.query @ v
            out = np.empty(len(coded), np.float32)
            kernels.estimates(coded, scale, turned, coder.word_block, coder.word_weight, out)
            unit = np.maximum(scale * np.sqrt((turned * turned).sum()), 1e-30)
            errors.append((out - residuals[few] @ v) / unit)
        return coder, float(np.sqrt(np.mean(np.square(errors))))

    def _truth(self, space: Space) -> Truth:
        rng = np.random.default_rng((self.seed, 7))
        held = np.sort(rng.choice(self.rows, min(CALIBRATED_ON, self.rows // 10), replace=False, shuffle=False))
        held = held[space.rows(self.vectors.take(held), self.workers)[1]]
        asked = [self.vectors.take(held), self._queries(space).take(held)]
        queries, rows = np.concatenate(asked), np.tile(held, len(asked))
        sound = np.flatnonzero(np.isfinite(queries).all(1) & queries.any(1))
        sound = sound[[space.reaches(space.query(q)) for q in queries[sound]]]
        kind = np.repeat(np.arange(len(asked)), len(held))
        return Truth(space, queries[sound], rows[sound], kind[sound], self.workers)

    def _pass(self, space: Space, known: state.Known, truth: Truth) -> float:
        """Assign and encode all rows, from where a build before this one came; write all arrays. Returns the length of
        the longest code.
        """
        folder, count, lists = self.folder.path, len(limits(known.lists, self.rows)) - 1, known.lists
        so_far = state.load_pass(folder, self.identity)
        if so_far is None:
            if self.model:
                self.folder.clear()
            so_far = beginning(lists.count, count, 0 if self.model else buckets_for(self.vectors, lists), truth)
        truth.score, truth.rows = so_far.score, so_far.rows
        with contextlib.ExitStack() as files:
            buckets = files.enter_context(Buckets(folder, "placed", count, record(known.coder), so_far.sizes.tolist()))
            followed = None
            if self.model is None:
                followed = Followed(self.vectors, lists, folder, self.seed, so_far.followed.tolist())
                files.enter_context(followed.buckets)
            done = place(
                self.vectors, space, lists, known.coder, buckets, followed, truth, so_far, self.workers,
                lambda row: self.progress("encode", row, self.rows),
                lambda told: state.save_pass(folder, self.identity, told),
            )  # fmt: skip
            start, longest = lay_out(buckets, self.folder, done, known.coder, space.biased)
            self._save(space, known, done, start, followed)
        return longest

    def _save(
        self,
        space: Space,
        known: state.Known,
        done: Progressed,
        start: NDArray[np.int64],
        followed: Followed | None,
    ) -> None:
        coder, lists = known.coder, known.lists
        small: dict[str, NDArray[Any]] = {
            "start": start,
            "list_small": lists.small,
            "list_unit": lists.scale,
            "parents": lists.parents,
            "edges": lists.edges,
            "turn": coder.query,
            "word_block": coder.word_block,
            "word_weight": coder.word_weight,
            "shape": coder.shape,
            SPAN: spanned(coder)[0],
            "mean": space.mean,
            **(self.model.ranking if self.model else self._ranking(space, lists, done, followed)),
            **(coder_arrays(coder) if self.shared else own_coder_arrays(coder)),
        }
        for name, array in small.items():
            self.folder.save(name, array)

    def _ranking(
        self, space: Space, lists: Lists, done: Progressed, followed: Followed | None
    ) -> dict[str, NDArray[Any]]:
        """What lists are ranked by: codes of where queries find their nearest rows."""
        assert followed is not None, "only where a model is at hand are rows not followed"
        size = np.maximum(done.counts, 1)
        bias = (-0.5 * done.square / size if space.biased else np.zeros(len(size))).astype(np.float32)
        to = self.folder.scratch("towards", lists.small.shape, np.float32)
        for a in range(0, lists.count, ENCODED):
            to[a : a + ENCODED] = lists.centroids(a, a + ENCODED)
        lift = np.zeros(lists.count, np.float32)
        queries = self._queries(space)
        followed.pull(
            space, lambda rows, stored: space.queries(self._of_rows(rows, stored, queries)), to, lift, self.workers,
            lambda done, total: self.progress("route", done, total),
        )  # fmt: skip
        middle = _mean(to)  # what is left out here is the same for every list, and so does not change their order
        rows = spread(self.rows, FITTED_ON, (self.seed, 6))
        asked = self._asked(space, rows, self.vectors.take(rows))
        some = np.asarray(to[:: max(1, len(to) // FITTED_ON)]) - middle
        coder = codes.fitted_coder(some, asked, np.random.default_rng((self.seed, 10)))
        words, scale = np.empty((len(to), coder.words), np.uint64), np.empty(len(to), np.float32)
        for a in range(0, len(to), ENCODED):
            part = slice(a, a + ENCODED)
            words[part], scale[part], _ = coder.encode(to[part] - middle, self.workers)
        return {
            "list_codes": words,
            "list_scale": scale,
            "list_bias": bias + lift,
            "list_spread": np.sqrt(done.energy / size).astype(np.float32),
            "list_turn": coder.query,
            "list_word_block": coder.word_block,
            "list_word_weight": coder.word_weight,
        }

    def _of_rows(self, rows: NDArray[np.int64], stored: NDArray[np.floating], queries: Queries) -> Floats:
        """The queries of rows that are at hand."""
        return queries.made_of(rows, stored) if isinstance(queries, StandIn) else queries.take(rows)

    def _calibrated(self, known: state.Known, truth: Truth) -> dict[str, Any]:
        """meta.json's content, with the curves of the index as written so far."""
        means = self._means()
        meta: dict[str, Any] = {
            "version": VERSION,
            "kind": "ivf",
            "metric": self.metric.value,
            "dimension": self.vectors.dimension,
            "rows": self.rows,
            "learned_rows": self.rows,
            "parameters": {
                "lists": known.lists.count,
                "parents": len(known.lists.parents),
                "seed": self.seed,
                "bits": known.coder.bits.tolist(),
                "captions": self.captions is not None,
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

        image = measure(index, truth, which[:split], self._owned(known.space, None), self.workers.threads, tick)
        asked = self._owned(known.space, self._queries(known.space))
        text = measure(index, truth, which[split:], asked, self.workers.threads, tick)
        meta["curves"] = replace(means, image=image, text=text).to_meta()
        return meta

    def _owned(self, space: Space, queries: Queries | None) -> Owned:
        """Queries for calibration whose own rows are looked up: stored rows, or queries of them."""
        rows = spread(self.rows, min(OWNED, self.rows // 10) if queries else 0, (self.seed, 12))
        rows = rows[space.rows(self.vectors.take(rows), self.workers)[1]]
        asked = self.vectors.take(rows) if queries is None else queries.take(rows)
        sound = np.flatnonzero(np.isfinite(asked).all(1) & asked.any(1))
        sound = sound[[space.reaches(space.query(q)) for q in asked[sound]]]
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
