"""What a replica does so that the ivf indexes of all shards have the same lists: it gives rows, learns, and builds.

One replica learns, from rows of every shard; the others fetch what it learnt, by hash, and build their indexes with it.
What must stay true: the same rows are drawn whichever replicas give them; any step can be done again; what was learnt
twice from them is told apart by its identity, if it differs at all; a build that is done again with the same model over
the same rows does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from clipql.cluster import shard_transfer
from clipql.cluster.shard_transfer import PartFile
from clipql.database import Database
from clipql.errors import ClipqlError, ReplicaUnavailable
from clipql.index import ivf
from clipql.index.folder import read_meta
from clipql.index.ivf.learn import row_kind, spread
from clipql.index.rows import ArrayRows
from clipql.storage import files
from clipql.storage.catalog import IndexEntry, Table
from clipql.storage.vectors.metrics import Metric

DRAWN = 8_192  # rows that travel at once
DRAW = 12  # the place of these draws among those of `ivf`


@dataclass(frozen=True)
class Draw:
    """A shard, the nodes that have it, and how many (`rows`) of its `total` rows are to be learnt from, of those that
    have a vector.
    """

    shard: int
    nodes: tuple[str, ...]
    rows: int
    total: int


@dataclass(frozen=True)
class Drawn:
    """Rows of a shard as they are stored, (n, d), and those of their captions where there are such."""

    vectors: NDArray[Any]
    captions: NDArray[Any] | None


# gives rows [first, last) of a draw
DrawRows = Callable[[Draw, int, int], Drawn]
# gives bytes of a file of a model: (name, offset, size)
FetchModel = Callable[[str, int, int], bytes]


class Training:
    """The part of a `Replica` that learns. folder: for what is in the making; lock: held while the database changes."""

    def __init__(self, folder: Path, db: Database, lock: AbstractContextManager[Any], called: str) -> None:
        self._folder, self._db, self._lock, self._called = folder, db, lock, called
        self._learning = threading.Lock()  # a coordinator that was lost may have left a training that goes on
        files.remove(folder)

    def sample(self, database: str, name: str, index: str, draw: Draw, first: int, last: int) -> Drawn:
        """Rows [first, last) of a draw from all over the table, the same whichever replica gives them.

        Raises ReplicaUnavailable for a replica that lacks some of the rows there are.
        """
        table, entry = self._entry(database, name, index, draw.total)
        store, captions = self._db.registry.store(table, entry.column), self._db.indexes.captions(table, entry)
        among = np.arange(draw.total) if store.there is None else np.flatnonzero(store.there[: draw.total])
        if captions is not None and captions.there is not None and not captions.there[among].all():
            captions = None  # as in a build: a caption without a vector asks for nothing
        rows = among[spread(len(among), min(draw.rows, len(among)), (DRAW,))[first:last]]

        def stored(column: Any) -> NDArray[Any]:
            return np.asarray(column.take(rows), row_kind(column))

        return Drawn(stored(store), stored(captions) if captions is not None else None)

    def train(self, database: str, name: str, index: str, lists: int, draws: Sequence[Draw], draw: DrawRows) -> str:
        """Learn so many lists from rows of all shards; the identity of what was learnt. Raises VectorIndexError."""
        _, entry = self._entry(database, name, index)
        folder = self._place(database, name, index)
        with self._learning:
            try:
                with files.translated(folder, "learning"):
                    return self._learnt(folder, Metric(entry.metric), lists, draws, draw)
            except BaseException:
                files.remove(folder)
                raise

    def _learnt(self, folder: Path, metric: Metric, lists: int, draws: Sequence[Draw], draw: DrawRows) -> str:
        files.remove(folder)
        files.make_folder(folder)
        vectors, captions = _gathered(folder, draws, draw)
        ivf.build(
            ArrayRows(vectors), metric, folder / "model", lists=lists, shared=True,
            queries=ArrayRows(captions) if captions is not None else None,
        )  # fmt: skip
        del vectors, captions
        for file in folder.glob("*.npy"):
            file.unlink()
        return ivf.identity_of(read_meta(folder / "model"))

    def has_model(self, database: str, name: str, index: str, identity: str) -> bool:
        """Whether a model is here: in an index that was built with it, or as it was learnt."""
        try:
            return self._model(database, name, index, identity).exists()
        except ReplicaUnavailable:
            return False

    def identity(self, entry: IndexEntry) -> str:
        """The identity of the model that an index was built with; empty where there is none."""
        return self._identity(self._db.indexes.folder(entry)) if entry.folder else ""

    def model_files(
        self, database: str, name: str, index: str, identity: str, wanted: Sequence[str]
    ) -> tuple[PartFile, ...]:
        """These files of a model, for another replica. Raises ReplicaUnavailable where it is not here."""
        folder = self._model(database, name, index, identity)
        return shard_transfer.listed(folder / file for file in ivf.MODEL_FILES if file in wanted)

    def read_model(
        self, database: str, name: str, index: str, identity: str, file: str, offset: int, size: int
    ) -> bytes:
        """Bytes of a file of a model."""
        return shard_transfer.read(self._model(database, name, index, identity) / Path(file).name, offset, size)

    def build_with(
        self, database: str, name: str, index: str, rows: int, identity: str, parts: Sequence[PartFile],
        fetch: FetchModel,
    ) -> None:  # fmt: skip
        """Build an index with a model that another replica has; nothing where that was done already over all rows.

        rows: that there are. Raises ReplicaUnavailable for a replica that lacks some.
        """
        with self._lock:
            table, entry = self._entry(database, name, index, rows)
            if entry.rows == table.rows and self.identity(entry) == identity:
                return
            fetched = self._folder / f"fetched-{identity}"
            try:
                folder = self._model(database, name, index, identity)
            except ReplicaUnavailable:
                folder = fetched
                files.make_folder(folder)
            try:
                for part in parts if folder is fetched else ():
                    shard_transfer.fetch(folder / part.name, part, partial(fetch, part.name), self._called)
                self._db.indexes.build(table, index, model=folder)
            finally:
                files.remove(fetched)

    def forget(self, database: str, name: str, index: str) -> None:
        """Remove what was learnt here: indexes have it."""
        files.remove(self._place(database, name, index))

    def _place(self, database: str, name: str, index: str) -> Path:
        """Where what is learnt for an index lies until it is built everywhere."""
        return self._folder / quote(f"{database}.{name}", safe="") / f"index {quote(index, safe='')}"

    def _model(self, database: str, name: str, index: str, identity: str) -> Path:
        """Where a model lies: in the index that was built with it, or where it was learnt."""
        _, entry = self._entry(database, name, index)
        learnt = self._place(database, name, index) / "model"
        places = [learnt, *([self._db.indexes.folder(entry)] if entry.folder else [])]
        found = next((p for p in places if self._identity(p) == identity), None)
        if found is None:
            raise ReplicaUnavailable(
                f"{self._called} has no model {identity} of the index {index} of {database}.{name}"
            )
        return found

    @staticmethod
    def _identity(folder: Path) -> str:
        try:
            return ivf.identity_of(read_meta(folder))
        except ClipqlError:
            return ""

    def build(self, database: str, name: str, index: str, rows: int) -> None:
        """Build an index that learns nothing of other shards. rows: as in `build_with`."""
        with self._lock:
            self._db.indexes.build(self._entry(database, name, index, rows)[0], index)

    def _entry(self, database: str, name: str, index: str, rows: int = 0) -> tuple[Table, IndexEntry]:
        table = self._db.registry.find(database, name)
        entry = table.index(index) if table else None
        if table is None or entry is None:
            raise ReplicaUnavailable(f"{self._called} has no index {index} of {database}.{name} yet")
        if table.rows < rows:
            raise ReplicaUnavailable(
                f"{self._called} has {table.rows:,} of {rows:,} rows of {table.full_name}: it must catch up"
            )
        return table, entry


def _gathered(folder: Path, draws: Sequence[Draw], draw: DrawRows) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The rows of all shards one after the other, and their captions, in files."""
    empty = [draw(one, 0, 0) for one in draws]
    rows = sum(d.rows for d in draws)
    captioned = all(e.captions is not None for e in empty)

    def new(what: str, kinds: Sequence[NDArray[Any]]) -> NDArray[Any]:
        path = folder / f"{what}.npy"
        made = np.lib.format.open_memmap(path, "w+", np.result_type(*kinds), (rows, kinds[0].shape[1]))
        with path.open("r+b") as file:
            files.take_room(file.fileno(), path.stat().st_size)
        return made

    vectors = new("vectors", [e.vectors for e in empty])
    captions = new("captions", [e.captions for e in empty if e.captions is not None]) if captioned else None
    at = 0
    for drawn in _pieces(draws, draw):
        end = at + len(drawn.vectors)
        vectors[at:end] = drawn.vectors
        if captions is not None:
            captions[at:end] = drawn.captions
        at = end
    return vectors[:at], captions[:at] if captions is not None else None


def _pieces(draws: Sequence[Draw], draw: DrawRows) -> Iterator[Drawn]:
    for one in draws:
        for first in range(0, one.rows, DRAWN):
            yield draw(one, first, min(first + DRAWN, one.rows))
