"""The kinds of index, how each is built and opened. A library that a kind needs is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index.base import Index, Route, Vectors
from clipql.storage.catalog import IndexEntry
from clipql.storage.vectors.metrics import Metric

Progress = Callable[[str, int, int], None]
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
    """Build an index of an entry's kind in a folder that is there in full afterwards, or not at all.

    work, identity: where a build may go on that was cut off, and of what it must be. model: the folder of what was
    learnt for it elsewhere, for an ivf index.
    """
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

    return ivf.can_grow(folder)


def grow(entry: IndexEntry, folder: Path, place: Path, vectors: Vectors, progress: Progress) -> Index:
    """Write an index with the rows that came since, in another folder; see `clipql.index.ivf.grow`."""
    from clipql.index import ivf

    return ivf.grow(folder, place, vectors, progress=progress)


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
        return _opened(entry, folder, vectors)
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

        assert isinstance(index, ivf.IvfIndex)
        return index.routed(routes)
    return index


def knobs_for(entry: IndexEntry, settings: Mapping[str, str]) -> dict[str, Any]:
    """The search knobs among the settings in force that an index of this kind knows, under its own names."""
    found: dict[str, Any] = {}
    for setting, knob in KNOBS[entry.kind].items():
        if setting in settings:
            found[knob] = float(settings[setting])
    return found
