"""The kinds of index, how each is built and opened. A library that a kind needs is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index import partial
from clipql.index.base import Index, Route, Vectors
from clipql.storage.catalog import IndexEntry
from clipql.storage.vectors.metrics import Metric

Progress = Callable[[str, int, int], None]
_NONE = np.empty(0, np.int64)
# below this many rows an exact scan is as fast as any index
FEWEST_ROWS = 1_000
# the search settings of ClickHouse's documentation, and ours, by the kind that knows them
KNOBS: Mapping[str, Mapping[str, str]] = {
    "ivf": {"nprobe": "nprobe", "rescore": "rescore", "recall": "recall"},
    "hnsw": {"hnsw_candidate_list_size_for_search": "ef", "recall": "recall"},
    "annoy": {"annoy_index_search_k_nodes": "search_k", "recall": "recall"},
    "flat": {},
}


def build(
    entry: IndexEntry,
    vectors: Vectors,
    folder: Path,
    *,
    queries: Vectors | None,
    progress: Progress,
    work: Path,
    identity: str,
    model: Path | None = None,
) -> Index:
    """Build an index of an entry's kind, over the rows that have a vector, in a folder that is there in full
    afterwards, or not at all.

    work, identity: where a build may go on that was cut off, and of what it must be. model: the folder of what was
    learnt for it elsewhere, for an ivf index.
    """
    there: NDArray[np.bool_] | None = getattr(vectors, "there", None)
    if there is not None:
        numbers = np.flatnonzero(there)
        dense, asked = partial.Dense(vectors, numbers), _asked(queries, numbers)
        inner = _built(entry, dense, folder, asked, progress, work, identity, model)
        partial.note(folder, numbers, vectors.rows)
        return partial.PartialIndex(inner, vectors, vectors.rows, numbers, _NONE)
    return _built(entry, vectors, folder, _asked(queries), progress, work, identity, model)


def _asked(queries: Vectors | None, numbers: NDArray[np.int64] | None = None) -> Vectors | None:
    """The queries of these rows, of all by default; None where some have none."""
    there: NDArray[np.bool_] | None = getattr(queries, "there", None)
    if queries is None or (there is not None and (numbers is None or not there[numbers].all())):
        return None
    return queries if numbers is None else partial.Dense(queries, numbers)


def changing(index: Index, vectors: Vectors, changed: Sequence[int]) -> Index:
    """An index of a column in which these rows were given other vectors since it was built."""
    if not changed:
        return index
    rows = np.asarray(changed, np.int64)
    if isinstance(index, partial.PartialIndex):
        return index.changing(vectors, rows)
    return partial.PartialIndex(index, vectors, index.rows_covered, None, rows)


def _built(
    entry: IndexEntry,
    vectors: Vectors,
    folder: Path,
    queries: Vectors | None,
    progress: Progress,
    work: Path,
    identity: str,
    model: Path | None,
) -> Index:
    metric = Metric(entry.metric)
    if entry.kind == "ivf":
        from clipql.index import ivf

        return ivf.build(
            vectors, metric, folder, queries=queries, lists=entry.options.get("lists"), progress=progress, work=work,
            identity=identity, model=ivf.open_model(model) if model else None,
        )  # fmt: skip
    if entry.kind == "hnsw":
        from clipql.index import hnsw

        return hnsw.build(vectors, metric, folder, options=entry.options, progress=progress)
    if entry.kind == "annoy":
        from clipql.index import annoy

        return annoy.build(vectors, metric, folder, options=entry.options, progress=progress)
    raise VectorIndexError(f"index {entry.name}: a {entry.kind} index has nothing to build")


def can_grow(entry: IndexEntry, folder: Path) -> bool:
    """Whether rows that come later can be added to an index."""
    if entry.kind != "ivf":
        return False
    from clipql.index import ivf

    return not entry.changed and ivf.can_grow(folder)


def grow(
    entry: IndexEntry, folder: Path, place: Path, vectors: Vectors, queries: Vectors | None, progress: Progress
) -> Index:
    """Write an index with the rows that came since and have a vector, elsewhere; see `clipql.index.ivf.grow`."""
    from clipql.index import ivf

    lists, known = entry.options.get("lists"), partial.noted(folder)
    there: NDArray[np.bool_] | None = getattr(vectors, "there", None)
    if known is None and there is None:
        return ivf.grow(folder, place, vectors, queries=_asked(queries), lists=lists, progress=progress)
    before, covered = known or (np.arange(entry.rows), entry.rows)
    came = np.arange(covered, vectors.rows)
    numbers = np.concatenate([before, came if there is None else came[there[covered:]]])
    dense, asked = partial.Dense(vectors, numbers), _asked(queries, numbers)
    inner = ivf.grow(folder, place, dense, queries=asked, lists=lists, progress=progress)
    if inner.rows_covered < len(numbers):  # as many as are added at once
        covered, numbers = int(numbers[inner.rows_covered]), numbers[: inner.rows_covered]
    else:
        covered = vectors.rows
    partial.note(place, numbers, covered)
    return partial.PartialIndex(inner, vectors, covered, numbers, _NONE)


def forecast(entry: IndexEntry, vectors: Vectors, folder: Path) -> str:
    """What building an index will take, in words. folder: where."""
    if entry.kind != "ivf":
        return f"not known beforehand for {entry.kind}"
    from clipql.index import ivf

    lists = ivf.lists_for(vectors.rows, entry.options.get("lists"))
    return ivf.forecast(vectors, Metric(entry.metric), lists, folder).text()


def open_index(entry: IndexEntry, folder: Path, vectors: Vectors) -> Index:
    """Open what `build` made. Raises DatabaseDamaged, naming the file, where it is not as it was written."""
    try:
        known = partial.noted(folder)
        if known is None:
            return _opened(entry, folder, vectors)
        inner = _opened(entry, folder, partial.Dense(vectors, known[0]))
        return partial.PartialIndex(inner, vectors, known[1], known[0], _NONE)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # right hashes over what no build writes
        raise DatabaseDamaged(f"{folder} does not open as an index ({error!r}); rebuild the index") from error


def _opened(entry: IndexEntry, folder: Path, vectors: Vectors) -> Index:
    if entry.kind == "ivf":
        from clipql.index import ivf

        return ivf.open_index(folder, vectors)
    if entry.kind == "hnsw":
        from clipql.index import hnsw

        return hnsw.open_index(folder, vectors)
    if entry.kind == "annoy":
        from clipql.index import annoy

        return annoy.open_index(folder, vectors)
    raise VectorIndexError(f"index {entry.name}: {entry.kind} has no files")


def routed(index: Index, routes: Sequence[Route]) -> Index:
    """The index, which looks into lists as they were ranked elsewhere, if it has such lists."""
    if index.kind == "ivf" and routes:
        from clipql.index import ivf

        assert isinstance(index, (ivf.IvfIndex, partial.PartialIndex))
        return index.routed(routes)
    return index


def knobs_for(entry: IndexEntry, settings: Mapping[str, str]) -> dict[str, Any]:
    """The search knobs among the settings in force that an index of this kind knows, under its own names."""
    found: dict[str, Any] = {}
    for setting, knob in KNOBS[entry.kind].items():
        if setting in settings:
            found[knob] = float(settings[setting])
    return found
