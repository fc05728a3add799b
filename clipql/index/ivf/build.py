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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.folder import VERSION, NewFolder
from clipql.index.ivf import codes, codescan, state
from clipql.index.ivf.balance import rows_of_parents
from clipql.index.ivf.bounds import spanned
from clipql.index.ivf.buckets import Buckets
from clipql.index.ivf.fitting import FITTED_ON, Fitting, Tally
from clipql.index.ivf.forecast import check_room, forecast
from clipql.index.ivf.geometry import Space, Workers, fitted_space
from clipql.index.ivf.learn import FEWEST_ROWS, learn, spread
from clipql.index.ivf.model import LEARNT_ROWS, RANKING, Model, coder_arrays, own_coder_arrays
from clipql.index.ivf.opening import open_index
from clipql.index.ivf.place import KEPT, Progressed, beginning, lay_out, limits, place, record
from clipql.index.ivf.ranges import SPAN
from clipql.index.ivf.routing import Followed, buckets_for
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.train import Assigner, Lists
from clipql.index.ivf.truth import Truth
from clipql.storage.vectors.metrics import Metric

ROWS_PER_LIST, FEWEST_PER_LIST = 64, 16
MOST_LISTS = 1_000_000  # by default; so many can still be learnt from the largest sample
MOST_ROWS, MOST_NUMBERS = 2**32, 8192
FORETOLD = 1_000_000  # rows from which on a forecast is worth the second it takes
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
    recall curve of text; without them queries are made of the rows (`synthetic_queries`). lists: how many, by default
    one for 64 rows. progress(stage, done, total) is called often.
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
        fitting = self._fitting(space)
        truth = fitting.truth()
        longest = self._pass(space, known, truth)
        meta = fitting.calibrated(known, truth, captions=self.captions is not None)
        return {**meta, "longest_code": longest}

    def _fitting(self, space: Space) -> Fitting:
        return Fitting(
            self.vectors, self.captions, space, self.rows, self.seed, self.workers, self.folder, self.progress
        )

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

    def _coder(self, space: Space, lists: Lists) -> tuple[codes.Coder, float]:
        """The coder of rows, and the deviation of their estimates in units of scale times length."""
        rows = spread(self.rows, FITTED_ON, (self.seed, 6))
        raw = self.vectors.take(rows)
        y, good = space.rows(raw, self.workers)
        rows, raw, y = rows[good], raw[good], y[good]
        owner = Assigner(lists, self.workers)(y)
        residuals = y - lists.small[owner] * lists.scale[owner, None]
        asked = self._fitting(space).asked(rows, raw)
        coder = codes.fitted_coder(residuals, asked, np.random.default_rng((self.seed, 5)))
        few = slice(0, len(rows), max(1, len(rows) // 2000))
        coded, scale, _ = coder.encode(residuals[few], self.workers)
        errors = []
        for v in asked[:: max(1, len(rows) // 50)]:
            turned = coder.query @ v
            out = np.empty(len(coded), np.float32)
            codescan.estimates(coded, scale, turned, coder.word_block, coder.word_weight, out)
            unit = np.maximum(scale * np.sqrt((turned * turned).sum()), 1e-30)
            errors.append((out - residuals[few] @ v) / unit)
        return coder, float(np.sqrt(np.mean(np.square(errors))))

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
            **(coder_arrays(coder) if self.shared else own_coder_arrays(coder)),
        }
        if self.model is not None:
            small.update(self.model.ranking)
        else:
            assert followed is not None, "only where a model is at hand are rows not followed"
            tally = Tally(done.counts, done.energy, done.square)
            ranking = self._fitting(space).ranking(lists, tally, followed)
            small.update({name: array for name, array in ranking.items() if name in RANKING or not self.shared})
            if not self.shared:
                small[LEARNT_ROWS] = rows_of_parents(lists.edges, done.counts)
        for name, array in small.items():
            self.folder.save(name, array)
