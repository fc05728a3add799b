"""Ranking the lists of ivf indexes once for all shards, where a SELECT is split.

What must stay true: without this, or with an outdated ranking, answers are the same: a shard that gets
lists of another model ranks its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.cluster import shard_transfer
from clipql.cluster.partial_query import PartialQuery
from clipql.cluster.shard_map import ShardedTable, ShardMap, TrainedModel
from clipql.cluster.shard_transfer import PartFile
from clipql.errors import ClipqlError
from clipql.index import ivf
from clipql.index.base import Route
from clipql.index.ivf.knobs import DEFAULT_RECALL
from clipql.storage import files
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.lexer import matching
from clipql.syntax.reading import read

# has any replica of a shard do something: (shard, method, *arguments). Raises ClipqlError
CallShard = Callable[..., Any]


# the distances that sort rows as an index by one does
_SQUARES = (Metric.L2, Metric.L2_SQUARED)
_LIKE = {m: _SQUARES if m in _SQUARES else (m,) for m in Metric}


@dataclass(frozen=True)
class _Known:
    trained: TrainedModel
    router: ivf.Router


class Ranking:
    """What is ranked by, of every sharded table. Thread-safe. folder: for copies of it."""

    def __init__(self, folder: Path, call: CallShard) -> None:
        self._folder, self._call = folder, call
        self._known: dict[tuple[str, str], _Known] = {}
        self._fetching = threading.Lock()

    def refresh(self, map: ShardMap) -> None:
        """Fetch what the map names and is not here; what cannot be had now is had the next time."""
        with self._fetching:
            self._refresh(map)

    def _refresh(self, map: ShardMap) -> None:
        wanted = {(t.full_name, m.index): (t, m) for t in map.tables for m in t.models}
        found: dict[tuple[str, str], _Known] = {}
        for key, (table, trained) in wanted.items():
            known = self._known.get(key)
            if known is not None and known.trained.identity == trained.identity:
                found[key] = known
                continue
            for shard in range(len(table.shards)):
                with contextlib.suppress(ClipqlError):
                    found[key] = _Known(trained, self._fetched(table, trained, shard))
                    break
        gone = {k.trained.identity for k in self._known.values()} - {k.trained.identity for k in found.values()}
        self._known = found
        for identity in gone:
            files.remove(self._folder / identity)

    def _fetched(self, table: ShardedTable, trained: TrainedModel, shard: int) -> ivf.Router:
        of = (table.database, table.name, trained.index, trained.identity)
        listed: tuple[PartFile, ...] = self._call(shard, "model_files", *of, ivf.ROUTER_FILES)
        folder = self._folder / trained.identity
        files.make_folder(folder)
        for file in listed:
            read = partial(self._call, shard, "read_model", *of, file.name)
            shard_transfer.fetch(folder / file.name, file, read, "this process")
        return ivf.Router(folder)

    def routes(self, query: PartialQuery) -> tuple[Route, ...]:
        """The lists that a partial query probes, where it sorts by a distance to a vector; none where it does not."""
        found = []
        for known, vector in self._sorted_by(query):
            recall = float(query.settings.get("recall", DEFAULT_RECALL))
            nprobe = query.settings.get("nprobe")
            found.append(known.router.route(vector, recall, int(float(nprobe)) if nprobe else None))
        return tuple(found)

    def told(self, query: PartialQuery) -> list[str]:
        """The same for EXPLAIN."""
        return [
            f"lists of {known.trained.index} (ivf, {known.router.lists:,}) are ranked here, once for all shards"
            for known, _ in self._sorted_by(query)
        ]

    def _sorted_by(self, query: PartialQuery) -> list[tuple[_Known, NDArray[np.float32]]]:
        """The indexes by whose distance a partial query sorts its rows, and the vector that they are compared with."""
        if "LIMIT" not in query.tail or any(
            query.settings.get(name) in ("0", "false") for name in ("vector_index", "vector_plan")
        ):
            return []
        found = []
        for (full_name, _), known in self._known.items():
            for metric, words in _distances(query.tail) if full_name == f"{query.database}.{query.table}" else ():
                if metric not in _LIKE.get(known.router.metric, ()) or known.trained.column not in words:
                    continue
                for name, value in query.params.items():
                    if name in words and isinstance(value, np.ndarray) and value.shape == (known.router.dimension,):
                        vector = value.astype(np.float32)
                        if np.isfinite(vector).all():
                            found.append((known, vector))
        return found


def _distances(text: str) -> list[tuple[Metric, set[str]]]:
    """The distances that are called in a text, and the names that stand in each call."""
    tokens, found = read(text).tokens, []
    for at, token in enumerate(tokens[:-1]):
        metric = metric_named(token.text) if token.kind == "word" and tokens[at + 1].text == "(" else None
        if metric is not None:
            inside = tokens[at + 2 : matching(tokens, at + 1)]
            found.append((metric, {t.name for t in inside if t.name is not None}))
    return found
