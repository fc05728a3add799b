"""New rows into the lists that an index has: coded as its rows are, and merged into its arrays, list by list.

Nothing is learnt: the lists, the coder, how lists are ranked and what recall was measured stay what they are. What must
stay true: what comes out is what the pass of a build with the same lists and coder gives, in another order within a
list; the index that is grown is not touched; memory is bounded, and the old arrays are read once, in order.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorIndexError
from clipql.index.base import Vectors
from clipql.index.folder import META, NewFolder, read
from clipql.index.ivf import kernels
from clipql.index.ivf.bounds import Bounds, longest
from clipql.index.ivf.codes import Coder
from clipql.index.ivf.geometry import Workers
from clipql.index.ivf.learn import CHUNK, chunks
from clipql.index.ivf.model import CODER, OWN, space_of
from clipql.index.ivf.place import records_of
from clipql.index.ivf.ranges import BOUNDS
from clipql.index.ivf.search import IvfIndex, arrays_of, open_index
from clipql.index.ivf.train import Assigner, Lists

MOST_AT_ONCE = 4_000_000  # rows that are added by one growth: 400 MB of records
_COPIED = 2_000_000  # codes that are copied at once
# what a row has in each array of an index, by its name in a record
_OF_ROWS = {"code": "codes", "scale": "scale", "bias": "bias", "bound": BOUNDS, "row": "rows"}


def can_grow(folder: str | Path) -> bool:
    """Whether an index keeps what new rows are coded by, which those that were built before did not."""
    return _coder_prefix(read(Path(folder))) is not None


def grow(
    folder: str | Path,
    place: str | Path,
    vectors: Vectors,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    threads: int | None = None,
) -> IvfIndex:
    """Write, in the folder `place`, the index in `folder` with the rows that came after those it covers, MOST_AT_ONCE
    at most. vectors: the rows that it covers, as they were, and the new ones.

    Raises VectorIndexError for an index that keeps no coder, DatabaseDamaged for a file that is not as it was written.
    """
    begun, source = time.perf_counter(), Path(folder)
    meta, arrays = read(source), arrays_of(source)
    prefix = _coder_prefix(meta)
    if prefix is None:
        raise VectorIndexError(f"the index in {source} keeps no coder, so no rows can be added to it: build it anew")
    first, last = int(meta["rows"]), min(vectors.rows, int(meta["rows"]) + MOST_AT_ONCE)
    workers = Workers(threads or os.cpu_count() or 1)
    try:
        records = _coded(source, prefix, meta, arrays, vectors, first, last, workers, progress or (lambda *_: None))
    finally:
        workers.close()
    with NewFolder(Path(place)) as new:
        changed = {f"{name}.npy" for name in (*_OF_ROWS.values(), "start")}
        for name in meta["files"]:
            if name not in changed:
                shutil.copyfile(source / name, new.path / name)
        most = _merge(new, source, arrays, records)
        told = {name: value for name, value in meta.items() if name not in ("files", "hash")}
        told |= {"rows": last, "learned_rows": meta.get("learned_rows", first)}
        if told.get("longest_code") is not None:
            told["longest_code"] = max(float(told["longest_code"]), most)
        told["build_seconds"] = round(float(meta.get("build_seconds", 0.0)) + time.perf_counter() - begun, 3)
        new.commit(told)
    return open_index(place, vectors)


def _coder_prefix(meta: dict[str, Any]) -> str | None:
    files = meta["files"]
    found = (p for p in ("", OWN) if all(f"{p}{name}.npy" in files for name in CODER))
    return next(found, None) if f"{BOUNDS}.npy" in files and META not in files else None


def _coded(
    source: Path,
    prefix: str,
    meta: dict[str, Any],
    arrays: kernels.Arrays,
    vectors: Vectors,
    first: int,
    last: int,
    workers: Workers,
    progress: Callable[[str, int, int], None],
) -> NDArray[Any]:
    """The records of rows [first, last), sorted by list; those that are in none come first."""
    own = [np.load(source / f"{prefix}{name}.npy") for name in CODER]
    coder = Coder(own[0], np.array(arrays.turn), own[1], own[2], arrays.shape, arrays.word_block, arrays.word_weight)
    lists = Lists(arrays.parents, arrays.edges, arrays.list_small, arrays.list_unit)
    space, assign, bounds = space_of(meta, arrays.mean), Assigner(lists, workers), Bounds(coder)
    found = []
    for row, block in chunks(vectors, last, CHUNK, first):
        y, good = space.rows(block, workers)
        owner = np.where(good, assign(y), -1)
        found.append(records_of(row, y, owner, lists, coder, bounds, workers)[0])
        progress("add rows", row + len(block) - first, last - first)
    records = np.concatenate(found)
    return records[np.argsort(records["list"], kind="stable")]


def _merge(new: NewFolder, source: Path, arrays: kernels.Arrays, records: NDArray[Any]) -> float:
    """Write the arrays of rows, old ones before new ones in each list; returns the length of the longest new code."""
    apart = int(np.searchsorted(records["list"], 0))
    placed, unplaced = records[apart:], records[:apart]
    lists = len(arrays.start) - 1
    added = np.bincount(placed["list"], minlength=lists).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(added)])  # new rows in the lists before each
    start = arrays.start + before
    new.save("start", start)
    count, old = int(start[-1]), int(arrays.start[-1])
    kept = {name: np.load(source / f"{file}.npy", mmap_mode="r") for name, file in _OF_ROWS.items()}
    for name, array in kept.items():
        biased = name != "bias" or len(array) > 0
        rows = count + (len(array) - old + apart if name == "row" else 0)
        out = new.create(_OF_ROWS[name], (rows if biased else 0, *array.shape[1:]), array.dtype)
        if not len(out):
            continue
        for a, b in _stretches(arrays.start):
            shift = np.repeat(before[a:b], np.diff(arrays.start[a : b + 1]))
            span = slice(int(arrays.start[a]), int(arrays.start[b]))
            out[np.arange(span.start, span.stop) + shift] = array[span]
        # the n-th new row lies behind all old ones of its list, and n new ones
        out[arrays.start[placed["list"] + 1] + np.arange(len(placed))] = placed[name]
        if name == "row":
            out[count:] = np.concatenate([array[old:], unplaced["row"]])
    code = np.ascontiguousarray(placed["code"])
    return float(longest(code, arrays.word_block, arrays.word_weight, len(arrays.turn))) if len(code) else 0.0


def _stretches(start: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of lists [a, b) with not too many rows, but one list at least."""
    found, a, lists = [], 0, len(start) - 1
    while a < lists:
        b = max(a + 1, int(np.searchsorted(start, start[a] + _COPIED, side="right")) - 1)
        found.append((a, min(b, lists)))
        a = found[-1][1]
    return found
