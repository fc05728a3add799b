"""Building an ivf index: sample, train, assign, encode, calibrate, commit.

Every stage reads the stored rows in chunks; besides the sample's scratch file and a few numbers a row and a list,
nothing grows with the table. The same rows, captions and seed give the same files, whatever the number of threads.
"""

from __future__ import annotations

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
from clipql.index.ivf import codes, kernels
from clipql.index.ivf.calibrate import measure
from clipql.index.ivf.geometry import Floats, Space, Workers, column_mean
from clipql.index.ivf.place import CHUNK, Placed, chunks, place
from clipql.index.ivf.routing import Pull, learn_pull, no_pull
from clipql.index.ivf.search import IvfIndex, arrays_of, open_index
from clipql.index.ivf.settings import Curves
from clipql.index.ivf.train import Assigner, Lists, train
from clipql.index.ivf.truth import Truth
from clipql.vectors.metrics import Metric

FEWEST_ROWS = 1000
ROWS_PER_LIST = 64
SAMPLE_PER_LIST = 32
LARGEST_SAMPLE = 8_000_000
MOST_LISTS = 1_000_000  # by default; so many can still be trained on the largest sample
FITTED_ON = 40_000  # residuals, and as many queries of each kind, that the coder is fitted to
CALIBRATED_ON = 200  # queries of each kind
TOLD_APART = 0.98  # of rows and of captions, by their means, for a query's kind to be believed
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
) -> IvfIndex:
    """Index the rows of `vectors` in `folder`, replacing what is there only when all is written.

    queries: vectors whose row i is a query that row i answers, its caption's; they shape the codes and give the
    recall curve of text. lists: how many, by default one for 64 rows. progress(stage, done, total) is called often.
    Raises VectorIndexError for fewer than 1,000 rows.
    """
    begun, rows = time.perf_counter(), vectors.rows
    if rows < FEWEST_ROWS:
        raise VectorIndexError(
            f"an ivf index needs {FEWEST_ROWS} rows to learn from; the column has {rows}: scan it instead"
        )
    if queries is not None and (queries.rows < rows or queries.dimension != vectors.dimension):
        raise VectorIndexError(
            f"queries hold {queries.rows} vectors of {queries.dimension} numbers; "
            f"they must pair with {rows} rows of {vectors.dimension}"
        )
    count = max(1, min(lists or min(rows // ROWS_PER_LIST, MOST_LISTS), rows // 4))
    workers = Workers(threads or os.cpu_count() or 1)
    try:
        with NewFolder(Path(folder)) as new:
            job = _Job(vectors, queries, metric, rows, count, seed, workers, new, progress or (lambda *_: None))
            meta = job.run()
            meta["build_seconds"] = round(time.perf_counter() - begun, 3)
            new.commit(meta)
    finally:
        workers.close()
    return open_index(folder, vectors)


@dataclass(frozen=True)
class _Job:
    vectors: Vectors
    queries: Vectors | None
    metric: Metric
    rows: int
    lists: int
    seed: int
    workers: Workers
    folder: NewFolder
    progress: Progress

    def run(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        held = np.sort(rng.choice(self.rows, min(CALIBRATED_ON, self.rows // 10), replace=False))
        sample = self._sample(rng)
        some = np.linspace(0, len(sample) - 1, min(len(sample), 100_000)).astype(np.int64)
        space = Space(self.metric, column_mean(self.metric, self.vectors.take(sample[some]), self.workers))
        y = self._sampled(space, sample)
        lists = train(y, self.lists, rng, self.workers, lambda a, b: self.progress("train", a, b))
        owner = self._assign(space, lists)
        pull = self._pull(space, lists, owner, rng)
        coder, list_coder, error = self._coders(space, lists, owner, pull, rng)
        truth = self._truth(space, held)
        done = self._place(space, lists, owner, coder, truth)
        self._save(space, lists, coder, list_coder, pull, done)
        return self._calibrated(space, coder, error, truth, lists)

    def _sample(self, rng: np.random.Generator) -> NDArray[np.int64]:
        wanted = min(self.rows, max(SAMPLE_PER_LIST * self.lists, 20_000), LARGEST_SAMPLE)
        return np.sort(rng.choice(self.rows, wanted, replace=False))

    def _sampled(self, space: Space, sample: NDArray[np.int64]) -> Floats:
        """The sampled rows in the space, in a scratch file; unplaceable ones left out."""
        y, filled = self.folder.scratch("sample", (len(sample), self.vectors.dimension), np.float32), 0
        for a in range(0, len(sample), CHUNK):
            part, good = space.rows(self.vectors.take(sample[a : a + CHUNK]), self.workers)
            part = part[good]
            y[filled : filled + len(part)] = part
            filled += len(part)
            self.progress("sample", min(a + CHUNK, len(sample)), len(sample))
        if filled < FEWEST_ROWS // 2:
            raise VectorIndexError(
                f"only {filled} of {len(sample)} sampled rows have a direction; too few to learn from"
            )
        return y[:filled]

    def _assign(self, space: Space, lists: Lists) -> NDArray[np.int32]:
        assign, owner = Assigner(lists, self.workers), np.empty(self.rows, np.int32)
        for first, block in chunks(self.vectors, self.rows, 2 * CHUNK):
            y, good = space.rows(block, self.workers)
            owner[first : first + len(y)] = np.where(good, assign(y), -1)
            self.progress("assign", first + len(y), self.rows)
        return owner

    def _pull(self, space: Space, lists: Lists, owner: NDArray[np.int32], rng: np.random.Generator) -> Pull:
        captions = self.queries
        if captions is None:
            return no_pull(lists)
        return learn_pull(
            lists,
            owner,
            lambda rows: space.rows(self.vectors.take(rows), self.workers)[0],
            lambda rows: _as_queries(space, captions.take(rows)),
            space.biased,
            rng,
            self.workers,
            lambda a, b: self.progress("route", a, b),
        )

    def _coders(
        self, space: Space, lists: Lists, owner: NDArray[np.int32], pull: Pull, rng: np.random.Generator
    ) -> tuple[codes.Coder, codes.Coder, float]:
        """The coders of rows and of lists, and the deviation of rows' estimates in units of scale times length."""
        rows = np.sort(rng.choice(self.rows, min(self.rows, FITTED_ON), replace=False))
        rows = rows[owner[rows] >= 0]
        raw = self.vectors.take(rows)
        y, _ = space.rows(raw, self.workers)
        residuals = y - lists.small[owner[rows]] * lists.scale[owner[rows], None]
        images = _as_queries(space, raw)
        asked = [images] if self.queries is None else [images, _as_queries(space, self.queries.take(rows))]
        # each kind of query counts the same, whatever its length (a dot product's queries may be of any)
        asked = [q / max(float(np.sqrt((q * q).sum(1).mean())), 1e-20) for q in asked]
        coder = codes.fitted_coder(residuals, np.concatenate(asked), rng)
        towards = pull.to[:: max(1, lists.count // FITTED_ON)]
        list_coder = codes.fitted_coder(towards - pull.to.mean(0), np.concatenate(asked), rng)
        few = slice(0, len(rows), max(1, len(rows) // 2000))
        coded, scale, _ = coder.encode(residuals[few], self.workers)
        errors = []
        for v in np.concatenate([q[:: max(1, len(q) // 50)] for q in asked]):
            turned = coder.query @ v
            out = np.empty(len(coded), np.float32)
            kernels.estimates(coded, scale, turned, coder.word_block, coder.word_weight, out)
            unit = np.maximum(scale * np.sqrt((turned * turned).sum()), 1e-30)
            errors.append((out - residuals[few] @ v) / unit)
        return coder, list_coder, float(np.sqrt(np.mean(np.square(errors))))

    def _truth(self, space: Space, held: NDArray[np.int64]) -> Truth:
        asked = [self.vectors.take(held)] + ([] if self.queries is None else [self.queries.take(held)])
        queries, rows = np.concatenate(asked), np.tile(held, len(asked))
        sound = np.isfinite(queries).all(1) & queries.any(1)
        kind = np.repeat(np.arange(len(asked)), len(held))
        return Truth(space, queries[sound], rows[sound], kind[sound], self.workers)

    def _place(self, space: Space, lists: Lists, owner: NDArray[np.int32], coder: codes.Coder, truth: Truth) -> Placed:
        def seen(first: int, y: Floats, good: NDArray[np.bool_]) -> None:
            truth.add(first, y, good)
            self.progress("encode", first + len(y), self.rows)

        return place(self.vectors, space, lists, owner, coder, self.folder, self.workers, seen)

    def _save(
        self, space: Space, lists: Lists, coder: codes.Coder, list_coder: codes.Coder, pull: Pull, done: Placed
    ) -> None:
        # what is left out here is the same for every list, and so does not change their order
        list_codes, list_scale, _ = list_coder.encode(pull.to - pull.to.mean(0), self.workers)
        size = np.maximum(np.diff(done.start), 1)
        list_bias = -0.5 * done.square / size if space.biased else np.zeros(lists.count)
        small: dict[str, NDArray[Any]] = {
            "start": done.start,
            "list_codes": list_codes,
            "list_scale": list_scale,
            "list_bias": (list_bias + pull.lift).astype(np.float32),
            "list_small": lists.small,
            "list_unit": lists.scale,
            "list_spread": np.sqrt(done.energy / size).astype(np.float32),
            "parents": lists.parents,
            "edges": lists.edges,
            "turn": coder.query,
            "word_block": coder.word_block,
            "word_weight": coder.word_weight,
            "list_turn": list_coder.query,
            "list_word_block": list_coder.word_block,
            "list_word_weight": list_coder.word_weight,
            "shape": coder.shape,
            "mean": space.mean,
        }
        for name, array in small.items():
            self.folder.save(name, array)

    def _calibrated(self, space: Space, coder: codes.Coder, error: float, truth: Truth, lists: Lists) -> dict[str, Any]:
        """meta.json's content, with the curves of the index as written so far."""
        means = self._means()
        meta: dict[str, Any] = {
            "version": VERSION,
            "kind": "ivf",
            "metric": self.metric.value,
            "dimension": self.vectors.dimension,
            "rows": self.rows,
            "parameters": {
                "lists": lists.count,
                "parents": len(lists.parents),
                "seed": self.seed,
                "bits": coder.bits.tolist(),
                "captions": self.queries is not None,
            },
            "code_error": error,
            "curves": means.to_meta(),
        }
        index = IvfIndex(meta, arrays_of(self.folder.path), self.vectors)
        which = np.arange(len(truth.own))
        split = int(np.searchsorted(truth.kind, 1))
        steps = [0]

        def tick() -> None:
            steps[0] += 1
            self.progress("calibrate", steps[0], 0)

        image = measure(index, truth, which[:split], self.workers.threads, tick)
        text = measure(index, truth, which[split:], self.workers.threads, tick)
        meta["curves"] = replace(means, image=image, text=text).to_meta()
        return meta

    def _means(self) -> Curves:
        """Where the two kinds of query lie; no points yet."""
        rows = np.linspace(0, self.rows - 1, min(self.rows, 20_000)).astype(np.int64)
        unit = _unit(self.vectors.take(rows))
        image_mean = _unit(unit.mean(0, keepdims=True))[0]
        familiar = float(np.quantile(unit @ image_mean, 0.001))
        if self.queries is None:
            return Curves([], [], image_mean, None, familiar)
        captions = _unit(self.queries.take(rows))
        text_mean = _unit(captions.mean(0, keepdims=True))[0]
        told = min(
            np.mean(unit @ image_mean >= unit @ text_mean), np.mean(captions @ text_mean > captions @ image_mean)
        )
        return Curves([], [], image_mean, text_mean, familiar, bool(told >= TOLD_APART))


def _unit(x: Floats) -> Floats:
    """Rows scaled to length 1; zero and non-finite rows become zeros."""
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, 0)
    return np.asarray(x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1e-30), np.float32)


def _as_queries(space: Space, raw: Floats) -> Floats:
    """Vectors as the space turns queries, all at once; those that are not finite become zeros."""
    raw = np.where(np.isfinite(raw).all(1, keepdims=True), raw, 0).astype(np.float32)
    if space.metric is Metric.COSINE:
        return _unit(raw)
    return raw - space.mean if space.biased else raw
