"""Indexes of shards: built once on one replica of each shard, and copied from there file by file.

The ivf indexes of all shards have the same lists: one replica learns them from rows of all shards, and each shard sorts
its own rows into them. Other kinds learn nothing, and each shard builds its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from clipql.cluster.quorum import UNFIT, Quorum
from clipql.cluster.replica import ReplicaInfo
from clipql.cluster.shard_map import ShardedTable, TrainedModel
from clipql.cluster.training import Draw
from clipql.errors import ClipqlError, ReplicaUnavailable, StorageError, VectorError, VectorIndexError
from clipql.index import ivf, kinds
from clipql.storage.catalog import IndexEntry
from clipql.tables.index_entries import Learned, behind

# what was learnt of so many times fewer rows is learnt again
OUTGROWN = 2
# a build is begun again so often where the replica that learnt is lost
ATTEMPTS = 3


class IndexBuilds:
    """Builds and copies indexes."""

    def __init__(self, quorum: Quorum) -> None:
        self._quorum = quorum
        self._failed = set[tuple[str, int, str]]()

    def build(self, table: ShardedTable, index: str | None) -> None:
        """Build an index on all shards, or (None) those that have fallen behind on the shards where they have.

        Raises ReplicaUnavailable where no replica of a shard can, and VectorIndexError for an index that was named:
        without the others, searches are slower and not wrong.
        """
        infos = [self._info(shard) for shard in range(len(table.shards))]
        known = {i.name: i for info in reversed(infos) for i in info.indexes.get(table.full_name, ())}
        if index is not None and index not in known:
            raise VectorIndexError(
                f"{table.full_name} has no vector index {index}; it has {', '.join(known) or 'none'}"
            )
        for name in known if index is None else [index]:
            wanted = [s for s, info in enumerate(infos) if index is not None or _wants(table, s, info, name)]
            if wanted:
                unbuildable = () if index is not None else (VectorError, VectorIndexError, StorageError)
                with contextlib.suppress(*unbuildable):
                    self._build(table, known[name], wanted, anew=index is not None)

    def finish(self) -> None:
        """Build what was begun with a model and is not there on some shards, as the one who had it built was lost.

        What fails is not tried again.
        """
        for table in self._quorum.map.tables:
            for model in table.models:
                with contextlib.suppress(*UNFIT):
                    wanted = [
                        shard
                        for shard in range(len(table.shards))
                        if (table.full_name, shard, model.identity) not in self._failed
                        and _lacks(table, shard, self._info(shard), model)
                    ]
                    source = self._with_model(table, model) if wanted else None
                    if source is not None:
                        self._finish(table, model, source, wanted)

    def _finish(self, table: ShardedTable, model: TrainedModel, source: tuple[int, str], wanted: Sequence[int]) -> None:
        for shard in wanted:
            try:
                self._build_with(table, model, source, [shard])
            except ReplicaUnavailable:  # the next time, if it is there again
                continue
            except ClipqlError:
                self._failed.add((table.full_name, shard, model.identity))

    def _info(self, shard: int) -> ReplicaInfo:
        info: ReplicaInfo = self._quorum.call_any(shard, "info")
        return info

    def _build(self, table: ShardedTable, entry: IndexEntry, wanted: Sequence[int], *, anew: bool) -> None:
        if entry.kind == "ivf":
            self._build_alike(table, entry, wanted, anew)
            return

        def build(shard: int) -> None:
            rows = table.snapshot(shard).rows
            self._quorum.call_any(shard, "build_index", table.database, table.name, entry.name, rows)

        self._each(wanted, build)

    def _each(self, wanted: Sequence[int], build: Callable[[int], None]) -> None:
        def one(shard: int) -> None:
            build(shard)
            self.even_out(shard)

        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            for future in [pool.submit(one, shard) for shard in wanted]:
                future.result()

    # with the same lists

    def _build_alike(self, table: ShardedTable, entry: IndexEntry, wanted: Sequence[int], anew: bool) -> None:
        """Build with the model of the map, or with a new one, which the map names before the first is built with it."""
        rows = [self._rows(table, shard, entry) for shard in range(len(table.shards))]
        if max(rows) < kinds.FEWEST_ROWS:
            return
        known = table.model(entry.name)
        for attempt in range(ATTEMPTS):
            try:
                source = None if anew or known is None else self._with_model(table, known)
                if known is None or source is None or sum(rows) > OUTGROWN * known.rows:
                    known, source = self._train(table, entry, rows)
                    self._quorum.commit(self._quorum.map.with_table(self._latest(table).with_model(entry.name, known)))
                    anew, wanted = False, range(len(table.shards))
                self._build_with(table, known, source, wanted)
            except ReplicaUnavailable:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                break
        for shard, node in self._quorum.replicas_of(table):
            with contextlib.suppress(*UNFIT):
                self._quorum.replicas.call(shard, node, "forget_training", table.database, table.name, entry.name)

    def _latest(self, table: ShardedTable) -> ShardedTable:
        return self._quorum.table(table.database, table.name)

    def _rows(self, table: ShardedTable, shard: int, entry: IndexEntry) -> int:
        """Rows of a shard that have a vector for an index."""
        rows = table.snapshot(shard).rows
        return rows if entry.column not in table.optional else _vectors(table, shard, self._info(shard), entry)[0]

    def _train(
        self, table: ShardedTable, entry: IndexEntry, rows: Sequence[int]
    ) -> tuple[TrainedModel, tuple[int, str]]:
        """Have a replica learn from rows of all shards; what it learnt, and which replica it was.

        rows: of each shard, those that have a vector.
        """
        lists = ivf.lists_for_shards(sum(rows), len(rows), entry.options.get("lists"))
        share = min(1.0, ivf.sample_for(lists) / sum(rows))
        nodes = self._quorum.map.nodes
        draws = tuple(
            Draw(shard, nodes[shard], round(n * share), table.snapshot(shard).rows)
            for shard, n in enumerate(rows)
            if round(n * share)
        )
        why: ClipqlError = ReplicaUnavailable(f"no replica of {table.full_name} can learn")
        for shard, node in self._quorum.replicas_of(table):
            try:
                identity = self._quorum.replicas.train(
                    shard, node, table.database, table.name, entry.name, lists, draws
                )
            except UNFIT as error:
                why = error
            else:
                return TrainedModel(entry.name, entry.column, identity, sum(rows)), (shard, node)
        raise why

    def _with_model(self, table: ShardedTable, known: TrainedModel) -> tuple[int, str] | None:
        """A replica that has a model, in its index or as it learnt it."""
        named = (table.database, table.name, known.index, known.identity)
        for shard, node in self._quorum.replicas_of(table):
            with contextlib.suppress(*UNFIT):
                if self._quorum.replicas.call(shard, node, "has_model", *named):
                    return shard, node
        return None

    def _build_with(
        self, table: ShardedTable, model: TrainedModel, source: tuple[int, str], wanted: Sequence[int]
    ) -> None:
        def build(shard: int) -> None:
            rows = table.snapshot(shard).rows
            why: ClipqlError = ReplicaUnavailable(f"shard {shard} has no replica")
            for node in self._quorum.map.nodes[shard]:
                try:
                    self._quorum.replicas.build(shard, node, table.database, table.name, rows, model, source)
                except UNFIT as error:
                    why = error
                else:
                    return
            raise why

        self._each(wanted, build)

    def even_out(self, shard: int, also: Sequence[str] = ()) -> None:
        """Have the replicas of a shard, and those on nodes `also`, copy what another of them has built: with the model
        of the map, over more rows.
        """
        infos: dict[str, ReplicaInfo] = {}
        for node in (*self._quorum.map.nodes[shard], *also):
            with contextlib.suppress(*UNFIT):
                infos[node] = self._quorum.replicas.call(shard, node, "info")
        for table in self._quorum.map.tables:
            for name in {i.name for h in infos.values() for i in h.indexes.get(table.full_name, ())}:
                built = {n: e for n, h in infos.items() if (e := _index_of(h, table, name)) is not None}
                model = table.model(name)
                worth = {n: (_fits(infos[n], table, name, model), e.rows) for n, e in built.items()}
                source = max(built, key=lambda n: worth[n])
                for node in built:
                    if worth[node] < worth[source]:
                        # without it, a replica is slower and not wrong
                        with contextlib.suppress(ClipqlError):
                            self._quorum.replicas.adopt(shard, node, table.database, table.name, built[source], source)


def _index_of(info: ReplicaInfo, table: ShardedTable, name: str) -> IndexEntry | None:
    return next((i for i in info.indexes.get(table.full_name, ()) if i.name == name), None)


def _fits(info: ReplicaInfo, table: ShardedTable, index: str, model: TrainedModel | None) -> bool:
    """Whether a replica has an index that was built with the model."""
    return model is not None and info.models.get(table.full_name, {}).get(index) == model.identity


def _lacks(table: ShardedTable, shard: int, info: ReplicaInfo, model: TrainedModel) -> bool:
    """Whether a shard that is to have an index built with a model has none, by one of its replicas."""
    entry = _index_of(info, table, model.index)
    enough = entry is not None and _vectors(table, shard, info, entry)[0] >= kinds.FEWEST_ROWS
    return enough and not _fits(info, table, model.index, model)


def _vectors(table: ShardedTable, shard: int, info: ReplicaInfo, entry: IndexEntry) -> tuple[int, int]:
    """Rows of a shard that have a vector for an index, and those that it was built from."""
    return info.vectors.get(table.full_name, {}).get(entry.name, (table.snapshot(shard).rows, entry.rows))


def _wants(table: ShardedTable, shard: int, info: ReplicaInfo, index: str) -> bool:
    """Whether an index of a shard has fallen behind its rows, or is not built with the model that it should be."""
    entry, model = _index_of(info, table, index), table.model(index)
    if entry is None:
        return False
    rows, known = _vectors(table, shard, info, entry)
    return behind(entry, rows, Learned(known)) or (model is not None and _lacks(table, shard, info, model))
