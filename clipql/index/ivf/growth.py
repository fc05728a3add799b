"""New rows into the lists that an index has: coded as its rows are, and merged into its arrays, list by list.

The coder stays what it was. Where rows of a parent have become many more, its lists are learnt anew (`balance`); each
time an index has grown by a quarter, how lists are ranked and what recall is got are learnt from all rows, as in a
build. What must stay true: the index that is grown is not touched; memory is bounded, and the old arrays are read once,
in order; a shared model's lists are those of others too, and are only added to.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.folder import META, NewFolder, read
from clipql.index.ivf.arrays import Arrays
from clipql.index.ivf.balance import Relearnt, relearn, rows_of_parents, unlike
from clipql.index.ivf.bounds import Bounds
from clipql.index.ivf.build import lists_for
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.fitting import ROUTE, Fitting, Tally, route_coder
from clipql.index.ivf.geometry import Floats, Workers
from clipql.index.ivf.learn import CHUNK, chunks
from clipql.index.ivf.merge import OF_ROWS, merge, stretches
from clipql.index.ivf.model import CODER, LEARNT_ROWS, OWN, RANKING, space_of
from clipql.index.ivf.opening import arrays_of, open_index
from clipql.index.ivf.place import record, records_of
from clipql.index.ivf.ranges import BOUNDS
from clipql.index.ivf.routing import CAPTIONS_PER_PARENT, Followed, pull
from clipql.index.ivf.search import IvfIndex
from clipql.index.ivf.state import Known
from clipql.index.ivf.synthetic_queries import Queries
from clipql.index.ivf.train import Assigner, Integers, Lists

MOST_AT_ONCE = 4_000_000  # rows that are added by one growth, or dealt again: 400 MB of records
MEASURED_AGAIN = 1.25  # times the rows that recall was measured with
MOST_FOLLOWED = 65_536  # rows of a parent that its new lists are ranked by
Progress = Callable[[str, int, int], None]


def can_grow(folder: str | Path) -> bool:
    """Whether an index keeps what new rows are coded by, which those that were built before did not."""
    return _coder_prefix(read(Path(folder))) is not None


def grow(
    folder: str | Path,
    place: str | Path,
    vectors: Vectors,
    *,
    queries: Vectors | None = None,
    lists: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> IvfIndex:
    """Write, in the folder `place`, the index in `folder` with the rows that came after those it covers, MOST_AT_ONCE
    at most. vectors: the rows that it covers, as they were, and the new ones. queries, lists: as `build` got them;
    without the captions that it was built with, its lists stay as they are.

    Raises VectorIndexError for an index that keeps no coder, DatabaseDamaged for a file that is not as it was written.
    """
    begun, source = time.perf_counter(), Path(folder)
    meta, arrays = read(source), arrays_of(source)
    prefix = _coder_prefix(meta)
    if prefix is None:
        raise VectorIndexError(f"the index in {source} keeps no coder, so no rows can be added to it: build it anew")
    workers = Workers(threads or os.cpu_count() or 1)
    first, last = int(meta["rows"]), min(vectors.rows, int(meta["rows"]) + MOST_AT_ONCE)
    told = {name: value for name, value in meta.items() if name not in ("files", "hash")}
    told |= {"rows": last, "learned_rows": meta.get("learned_rows", first)}
    told["measured"] = meta.get("measured") or {"rows": told["learned_rows"], "lists": len(arrays.list_scale)}
    try:
        with NewFolder(Path(place)) as new:
            fitting = Fitting(
                vectors, queries, space_of(meta, arrays.mean), last, int(meta["parameters"]["seed"]), workers, new,
                progress or (lambda *_: None),
            )  # fmt: skip
            most = _Growth(source, meta, arrays, prefix, first, fitting, lists).write(told)
            if told.get("longest_code") is not None:
                told["longest_code"] = max(float(told["longest_code"]), most)
            told["build_seconds"] = round(float(meta.get("build_seconds", 0.0)) + time.perf_counter() - begun, 3)
            new.commit(told)
    finally:
        workers.close()
    return open_index(place, vectors)


def _coder_prefix(meta: dict[str, Any]) -> str | None:
    files = meta["files"]
    found = (p for p in ("", OWN) if all(f"{p}{name}.npy" in files for name in CODER))
    return next(found, None) if f"{BOUNDS}.npy" in files and META not in files else None


@dataclass(frozen=True)
class _Growth:
    """source, meta, arrays: the index as it was. prefix: before the names of its coder's arrays. first: the first row
    that is new; fitting has the last.
    """

    source: Path
    meta: dict[str, Any]
    arrays: Arrays
    prefix: str
    first: int
    fitting: Fitting
    wanted: int | None

    def write(self, told: dict[str, Any]) -> float:
        """Write all arrays; what meta.json is to say of them goes to `told`. Returns the length of the longest new
        code.
        """
        fitting, arrays = self.fitting, self.arrays
        lists, coder = Lists(arrays.parents, arrays.edges, arrays.list_small, arrays.list_unit), self._coder()
        records, _ = self._coded(_numbered(chunks(fitting.vectors, fitting.rows, CHUNK, self.first)), lists, coder)
        number, changed = np.arange(lists.count), dict[str, NDArray[Any]]()
        rows_of = self._unlike(lists, records) if self._is_balanced() else {}
        if rows_of:
            size = fitting.rows / lists_for(fitting.rows, self.wanted)
            seed = (fitting.seed, 13, fitting.rows)
            again = relearn(fitting.vectors, fitting.space, lists, rows_of, size, seed, fitting.workers)
            lists, number = again.lists, again.number
            rows = np.sort(np.concatenate([*rows_of.values()]))
            dealt, length = self._coded(self._taken(rows), lists, coder)
            stay = records[np.isin(records["row"], rows, invert=True)]
            stay["list"] = np.where(stay["list"] >= 0, number[stay["list"]], -1)
            records, changed = np.concatenate([stay, dealt]), self._changed(again, dealt, length)
            told["parameters"] = told["parameters"] | {"lists": lists.count, "parents": len(lists.parents)}
        records = records[np.argsort(records["list"], kind="stable")]
        start, most = merge(fitting.folder, self.source, arrays, records, number, lists.count)
        for name in self.meta["files"]:
            array = name.removesuffix(".npy")
            if array in changed:
                fitting.folder.save(array, changed[array])
            elif array not in (*OF_ROWS.values(), "start"):
                shutil.copyfile(self.source / name, fitting.folder.path / name)
        due = fitting.rows >= MEASURED_AGAIN * int(told["measured"]["rows"])
        if due and self._is_balanced() and fitting.rows == fitting.vectors.rows:
            spread = changed.get("list_spread", arrays.list_spread)
            told |= self._fitted_again(Known(fitting.space, lists, coder, float(told["code_error"])), start, spread)
        return most

    def _coder(self) -> Coder:
        arrays = self.arrays
        own = [np.load(self.source / f"{self.prefix}{name}.npy") for name in CODER]
        return Coder(own[0], np.array(arrays.turn), own[1], own[2], arrays.shape, arrays.word_block, arrays.word_weight)

    def _is_balanced(self) -> bool:
        """Whether lists may be learnt anew: all that this takes is there, and nobody else has the same."""
        files, captions = self.meta["files"], bool(self.meta["parameters"]["captions"])
        there = all(f"{name}.npy" in files for name in (*ROUTE, LEARNT_ROWS))
        return self.prefix == OWN and there and captions == (self.fitting.captions is not None)

    def _coded(
        self, blocks: Iterable[tuple[Integers, NDArray[np.floating]]], lists: Lists, coder: Coder
    ) -> tuple[NDArray[Any], Floats]:
        """The records of rows and the |z|² of each. blocks: row numbers, with the rows as they are stored."""
        space, workers = self.fitting.space, self.fitting.workers
        assign, bounds = Assigner(lists, workers), Bounds(coder)
        found, lengths, done = [np.empty(0, record(coder))], [np.empty(0, np.float32)], 0
        for rows, block in blocks:
            y, good = space.rows(block, workers)
            owner = np.where(good, assign(y), -1)
            records, length = records_of(0, y, owner, lists, coder, bounds, workers)
            records["row"] = rows
            found.append(records)
            lengths.append(length)
            done += len(rows)
            self.fitting.progress("add rows", done, 0)
        return np.concatenate(found), np.concatenate(lengths)

    def _taken(self, rows: Integers) -> Iterator[tuple[Integers, NDArray[np.floating]]]:
        for a in range(0, len(rows), CHUNK):
            yield rows[a : a + CHUNK], self.fitting.vectors.take(rows[a : a + CHUNK])

    def _unlike(self, lists: Lists, records: NDArray[Any]) -> dict[int, Integers]:
        """The rows of each parent whose lists are to be learnt anew, with those of `records` that come to them."""
        start, edges, placed = self.arrays.start, lists.edges, records[records["list"] >= 0]
        counts = np.diff(start) + np.bincount(placed["list"], minlength=lists.count)
        size = self.fitting.rows / lists_for(self.fitting.rows, self.wanted)
        learnt = np.load(self.source / f"{LEARNT_ROWS}.npy")
        parent = np.searchsorted(edges, placed["list"], side="right") - 1
        found = {}
        for one in unlike(rows_of_parents(edges, counts), learnt, size, len(records), MOST_AT_ONCE).tolist():
            old = self.arrays.rows[start[edges[one]] : start[edges[one + 1]]]
            found[one] = np.sort(np.concatenate([old, placed["row"][parent == one]]).astype(np.int64))
        return found

    def _changed(self, again: Relearnt, dealt: NDArray[Any], length: Floats) -> dict[str, NDArray[Any]]:
        """The arrays of lists after some were learnt anew. dealt: the records of all rows that were in those, and the
        |z|² of each.
        """
        lists, fitting, arrays = again.lists, self.fitting, self.arrays
        placed, owner = dealt["list"] >= 0, dealt["list"][dealt["list"] >= 0]
        tally = Tally(
            np.bincount(owner, minlength=lists.count),
            np.bincount(owner, length[placed], lists.count).astype(np.float64),
            np.bincount(owner, -2 * dealt["bias"][placed], lists.count).astype(np.float64),
        )
        kept = {name: np.load(self.source / f"{name}.npy") for name in (*ROUTE, *RANKING, LEARNT_ROWS)}
        stays = np.flatnonzero(again.number >= 0)
        out: dict[str, NDArray[Any]] = {}
        for name in ("list_codes", "list_scale", "list_bias", "list_spread"):
            out[name] = np.zeros((lists.count, *kept[name].shape[1:]), kept[name].dtype)
            out[name][again.number[stays]] = kept[name][stays]
        coder, queries, bias = route_coder(kept), fitting.queries(), tally.bias(fitting.space)
        for parent in again.parents:
            a, b = int(lists.edges[parent]), int(lists.edges[parent + 1])
            to, lift = lists.centroids(a, b), np.zeros(b - a, np.float32)
            self._pull(dealt[(dealt["list"] >= a) & (dealt["list"] < b)], a, to, lift, queries)
            out["list_codes"][a:b], out["list_scale"][a:b], _ = coder.encode(to - kept["route_middle"], fitting.workers)
            out["list_bias"][a:b], out["list_spread"][a:b] = bias[a:b] + lift, tally.spread[a:b]
        learnt = np.zeros(len(lists.parents), np.int64)
        learnt[np.setdiff1d(np.arange(len(learnt)), again.parents)] = kept[LEARNT_ROWS][_same(arrays.edges, again)]
        learnt[again.parents] = rows_of_parents(lists.edges, tally.counts)[again.parents]
        out |= {"list_small": lists.small, "list_unit": lists.scale, "parents": lists.parents, "edges": lists.edges}
        return {**out, LEARNT_ROWS: learnt}

    def _pull(self, records: NDArray[Any], first: int, to: Floats, lift: Floats, queries: Queries) -> None:
        """Move `to` and `lift` of one parent's lists, from `first` on, to where queries find these rows."""
        fitting, n = self.fitting, len(records)
        if n < 2:
            return
        rng = np.random.default_rng((fitting.seed, 9, first, fitting.rows))
        records = records[np.sort(rng.choice(n, min(n, MOST_FOLLOWED), replace=False))]
        asked = np.sort(rng.choice(len(records), min(len(records), CAPTIONS_PER_PARENT), replace=False))
        rows = records["row"].astype(np.int64)
        stored = fitting.vectors.take(rows)
        captions = fitting.queries_of(rows[asked], stored[asked], queries)
        y, _ = fitting.space.rows(stored, fitting.workers)
        pull(y, records["list"] - first, captions, asked, fitting.space.biased, to, lift, fitting.workers)

    def _fitted_again(self, known: Known, start: Integers, spread: Floats) -> dict[str, Any]:
        """Learn from all rows how lists are ranked, and measure recall; returns what meta.json is to say of it."""
        fitting, lists = self.fitting, known.lists
        owner, square = _owners(fitting.folder, start, fitting.rows)
        truth = fitting.truth()
        followed = Followed(fitting.vectors, lists, fitting.folder.path, fitting.seed)
        with followed.buckets:
            for row, block in chunks(fitting.vectors, fitting.rows):
                y, good = fitting.space.rows(block, fitting.workers)
                truth.add(row, y, good)
                followed.add(row, block, owner[row : row + len(block)])
                fitting.progress("look at rows", row + len(block), fitting.rows)
            counts = np.diff(start)
            tally = Tally(counts, spread.astype(np.float64) ** 2 * counts, square)
            for name, array in fitting.ranking(lists, tally, followed).items():
                fitting.folder.save(name, array)
        meta = fitting.calibrated(known, truth, captions=fitting.captions is not None)
        return {name: meta[name] for name in ("curves", "measured", "parameters")}


def _numbered(
    blocks: Iterable[tuple[int, NDArray[np.floating]]],
) -> Iterator[tuple[Integers, NDArray[np.floating]]]:
    for first, block in blocks:
        yield np.arange(first, first + len(block)), block


def _same(edges: Integers, again: Relearnt) -> Integers:
    """The parents, as they were numbered before, whose lists stay."""
    gone = np.unique(np.searchsorted(edges, np.flatnonzero(again.number < 0), side="right") - 1)
    return np.setdiff1d(np.arange(len(edges) - 1), gone)


def _owners(folder: NewFolder, start: Integers, rows: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The list of each row, -1 for none, by the arrays in a folder; and the sum of |y|² over each list's rows, zeros
    where rows have no bias.
    """
    owner, square = folder.scratch("owner", (rows,), np.int32), np.zeros(len(start) - 1)
    owner[:] = -1
    placed = np.load(folder.path / "rows.npy", mmap_mode="r")
    bias = np.load(folder.path / "bias.npy", mmap_mode="r")
    for a, b in stretches(start):
        one, first, last = np.repeat(np.arange(a, b), np.diff(start[a : b + 1])), int(start[a]), int(start[b])
        owner[placed[first:last]] = one
        if len(bias):
            square[a:b] = np.bincount(one - a, -2 * bias[first:last], b - a)
    return owner, square
