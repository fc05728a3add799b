"""A cluster with the calls of a database: what `clipql.connect("ray://…")` gives.

The process that connects merges what the shards answer, in a database of its own that holds no rows and goes when it
closes. What must stay true: a query sees the shard map that was in force when it began; what this process changed it
sees at once, what others changed within a second.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from clipql.cluster import ray_actors, ray_connection, shard_map
from clipql.cluster.ingest_checks import check
from clipql.cluster.partial_query import PartialQuery
from clipql.cluster.placeholder import Shape, declare, forget, one_shape
from clipql.cluster.placement import PartSpec
from clipql.cluster.quorum import UNFIT
from clipql.cluster.ranking import Ranking
from clipql.cluster.rebalance import Status, index_listing
from clipql.cluster.scatter import Scatter
from clipql.cluster.scatter_gather import Gathered, ScatterGather
from clipql.cluster.session import ClusterSession
from clipql.cluster.shard_map import ShardedTable, ShardMap
from clipql.database import Database
from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError, ClusterError, ReplicaUnavailable, UnknownTable
from clipql.ingest.forecast import IngestForecast
from clipql.ingest.layout import check_part, find_parts, parse_numbers
from clipql.ingest.pipeline import IngestProgress, IngestReport
from clipql.result import Result, Stats
from clipql.sql.search_text import Searched
from clipql.storage import places
from clipql.syntax.once import once

DATA = "~/.local/share/clipql-cluster"
LOOK_SECONDS, LEAVE_SECONDS = 1.0, 5.0
# the map that a statement sees
_PINNED: ContextVar[ShardMap | None] = ContextVar("clipql_pinned_map", default=None)


class ClusterDatabase(Database):
    """The tables of a cluster. Thread-safe."""

    def __init__(
        self,
        address: str,
        *,
        data: str | None = None,
        shards: int | None = None,
        replicas: int = 0,
        without: Sequence[str] = (),
        heal_seconds: float = ray_actors.HEAL_SECONDS,
        model: str | None = None,
    ) -> None:
        """Join the Ray at host:port (`local`: start one), and start the shards where they do not run.

        data: the folder on each node for its replicas, which lie in a folder of the node's name there. shards,
        replicas: for a new cluster (shards: one a node unless given); with replicas 0 none is made. without: nodes that
        are lost for good. heal_seconds: how often the coordinator looks for replicas to bring back.
        Raises ClusterError.
        """
        ray_connection.connect(address)
        self.data = str(Path(data or DATA).expanduser())
        try:
            self._coordinator = ray_actors.coordinator(
                self.data, shards, replicas, without, heal_seconds, anywhere=data is None
            )
        except BaseException:
            ray_connection.disconnect()
            raise
        self._folder = tempfile.mkdtemp(prefix="clipql-cluster-")
        weakref.finalize(self, places.remove_own, self._folder, os.getpid())  # where it is never closed
        try:
            super().__init__(Path(self._folder) / "merging", model=model)
            self.path = Path(address)
            self._known: dict[str, Shape] = {}
            self._broken: dict[tuple[str, str], ClipqlError] = {}
            self._changing = threading.RLock()
            self._scatter = Scatter(self._state(), self._state)
            self._ranking = Ranking(Path(self._folder) / "ranking", self._from_any)
            self.scatter_gather = ScatterGather(self._registry.engine, self.shape, self._run_on_shards)
            self.refresh()
        except BaseException:
            if hasattr(self, "_closing"):
                super().close()
            shutil.rmtree(self._folder, ignore_errors=True)
            ray_connection.disconnect()
            raise
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="clipql-map", daemon=True)
        self._watcher.start()

    @classmethod
    def at(cls, url: str, *, model: str | None = None) -> ClusterDatabase:
        """A cluster by its address, ray://host:port, as it runs. Raises ClusterError.

        With ?data=FOLDER, shards whose folders are there are started where none run.
        """
        found = urlsplit(url)
        options = dict(parse_qsl(found.query))
        if odd := set(options) - {"data"}:
            raise ClusterError(f"{url}: {', '.join(sorted(odd))} is not known; expected ray://host:port?data=FOLDER")
        return cls(found.netloc, data=options.get("data"), model=model)

    # the map

    def _state(self) -> ShardMap:
        """The map in force; what was known, where the coordinator cannot be reached."""
        try:
            return shard_map.decoded(ray_actors.result(self._coordinator.state.remote(), 30), "the shard map")
        except ClusterError:
            if hasattr(self, "_scatter"):
                return self._scatter.map
            raise

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.refresh()
            except ClipqlError:  # whoever asks next is told
                continue

    @property
    def map(self) -> ShardMap:
        """The shard map as this process knows it."""
        return self._scatter.map

    def refresh(self) -> None:
        """Look what changed."""
        with self._changing:
            map = self._state()
            self._scatter.forget_failures()
            before = {t.full_name: t for t in self._scatter.map.tables}
            self._scatter.map = map
            self._broken = {n: e for n, e in self._broken.items() if map.table(*n)}
            for table in map.tables:
                known, old = self._known.get(table.full_name), before.get(table.full_name)
                fixed = known is not None and all(d for d, _ in known.vectors.values())
                if table.definition and not (fixed and old and table.goes_on(old)):
                    try:
                        self._learn(table, known)
                        self._broken.pop((table.database, table.name), None)
                    except ClipqlError as error:  # whoever uses the table is told; the others are in order
                        self._broken[table.database, table.name] = error
            for name in set(self._known) - {t.full_name for t in map.tables}:
                forget(self._registry.engine, self._known.pop(name))
        self._ranking.refresh(map)

    def _learn(self, table: ShardedTable, known: Shape | None) -> None:
        found, why = [], None
        for shard in range(len(table.shards)):
            try:
                found.append(self._from_any(shard, "shape", table.database, table.name))
            except UNFIT as error:  # the others may be asked for a partial answer
                why = error
        if not found and why is not None:
            raise why
        shape = one_shape(found)
        if known is None or (known.listed, known.unlisted) != (shape.listed, shape.unlisted):
            declare(self._registry.engine, shape)
            self._result_types = None  # what is remembered is of the columns as they were
        self._known[table.full_name] = shape

    def _from_any(self, shard: int, method: str, *arguments: Any) -> Any:
        replicas = ray_actors.RayReplicas(self.data)
        why: ClipqlError = ReplicaUnavailable(f"shard {shard} has no replica")
        for node in self._scatter.map.nodes[shard]:
            try:
                return replicas.call(shard, node, method, *arguments, seconds=ray_actors.START_SECONDS)
            except UNFIT as error:
                why = error
        raise why

    def shape(self, database: str | None, name: str) -> Shape | None:
        """A sharded table as statements may use it. Raises what is wrong with it, where its shards do not fit."""
        if database is None and name in self._registry.hidden:  # a temporary table of this name
            return None
        if (error := self._broken.get((database or self._registry.database, name))) is not None:
            raise error
        return self._known.get(f"{database or self._registry.database}.{name}")

    def shapes(self) -> tuple[Shape, ...]:
        """All of them."""
        return tuple(self._known.values())

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Have all SELECTs of a statement see one map."""
        before = _PINNED.set(self._scatter.map)
        try:
            yield
        finally:
            _PINNED.reset(before)

    def _table(self, shape: Shape) -> ShardedTable:
        map = _PINNED.get() or self._scatter.map
        table = map.table(shape.database, shape.name)
        if table is None:
            raise UnknownTable(f"{shape.full_name} was dropped meanwhile")
        return table

    def definition(self, shape: Shape) -> str:
        """CREATE TABLE of it."""
        return self._table(shape).definition

    def listing(self) -> pa.Table:
        """All indexes of all replicas, for `clipql.indexes`."""
        return index_listing(self.status())

    def _run_on_shards(self, queries: Sequence[PartialQuery], shape: Shape) -> Sequence[Gathered]:
        partial = queries[0].settings.get("shards_partial") in ("1", "true")
        routed = [replace(query, routes=self._ranking.routes(query)) for query in queries]
        return self._scatter.run(self._table(shape), routed, partial=partial)

    def ranked(self, query: PartialQuery) -> list[str]:
        """Which lists of indexes are ranked here for a partial query, in words."""
        return self._ranking.told(query)

    def sql_many(self, text: str, params: Sequence[Mapping[str, Any]], /) -> list[Result]:
        """One SELECT for each set of parameters; where it is of one SELECT over shards, all go to them as one batch."""
        began = time.perf_counter()
        tables = self._session.many(text, params)
        if tables is None:
            return [self.sql(text, **given) for given in params]
        stats = Stats((time.perf_counter() - began) / len(tables))
        return [Result(table, stats) for table in tables]

    # changes

    def _order(self, method: str, *arguments: Any) -> Any:
        """Have the coordinator do something, and look at what changed."""
        try:
            return ray_actors.result(self._coordinator.do.remote(method, *arguments))
        finally:
            self.refresh()

    def create(self, database: str, name: str, definition: str, shards: int | None = None) -> None:
        """Make a table on the first `shards` shards, by default on all."""
        self._order("create", database, name, definition, shards)

    def alter(self, shape: Shape, statement: str, index: str, there: bool, lenient: bool) -> None:
        """Add an index to a table on every shard, or drop it. lenient: where it is so already, that is no error."""
        self._order("alter", shape.database, shape.name, statement, index, there, lenient)

    def add_column(self, shape: Shape, statement: str, column: str, lenient: bool) -> None:
        """Add a column of vectors to a table on every shard. lenient: where it is there, that is no error."""
        self._order("add_column", shape.database, shape.name, statement, column, lenient)

    def build(self, shape: Shape, index: str) -> None:
        """Build an index on every shard."""
        self._order("build", shape.database, shape.name, index)

    def drop(self, database: str, name: str) -> None:
        """Drop a table on every shard, whatever is wrong with it."""
        self._order("drop", database, name)

    def is_broken(self, database: str | None, name: str) -> bool:
        """Whether the shards of a table do not fit together, so that it can only be dropped."""
        return (database or self._registry.database, name) in self._broken

    def ingest(
        self,
        source: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        table: str = "laion",
        parts: str | None = None,
        model: str | None = None,
        shards: int | None = None,
        progress: Callable[[IngestProgress], None] | None = None,
        foretold: Callable[[IngestForecast], None] | None = None,
        **options: Any,
    ) -> IngestReport:
        """Deal LAION parts to the shards, which take them in side by side; what is there already is skipped.

        The files must lie where all nodes can read them. shards: how many shards a new table has, by default
        all. progress: told every second how far all shards are. foretold: is not called, as each node weighs
        what its own disk holds. There is no link: each replica keeps the files. Raises IngestError, ClusterError.
        """
        if odd := {n for n, v in options.items() if v}:
            raise ClusterError(f"{', '.join(sorted(odd))}: not for shards, whose replicas keep files of their own")
        sources = [source] if isinstance(source, (str, PathLike)) else list(source)
        found = [check_part(p) for p in find_parts(sources, parse_numbers(parts) if parts is not None else None)]
        specs = [
            PartSpec(
                p.fingerprint,
                p.rows - p.failed,
                tuple(str(f.resolve()) for f in (p.files.metadata, p.files.image, p.files.text) if f),
                p.model or model,
            )
            for p in found
            if p.rows > p.failed
        ]
        database, _, name = table.rpartition(".")
        database = database or self._registry.database
        there = self._scatter.map.table(database, name)
        known = {p.fingerprint for held in there.shards for p in held if p.taken} if there else set()
        new = [p for p in found if p.fingerprint not in known]
        check(self, database, name, new, model, self.shape(database, name), there)
        if not specs:
            return IngestReport(0, 0, 0, 0.0)
        report: IngestReport = self._watched(progress, database, name, specs, shards)
        return report

    def _watched(
        self,
        progress: Callable[[IngestProgress], None] | None,
        database: str,
        name: str,
        specs: Sequence[PartSpec],
        shards: int | None,
    ) -> Any:
        began = time.perf_counter()
        reference = self._coordinator.do.remote("ingest", database, name, specs, shards)
        try:
            while progress is not None and not ray_actors.wait_any([reference], LOOK_SECONDS):
                parts, rows, total = ray_actors.result(self._coordinator.do.remote("progress", database, name))
                seconds = time.perf_counter() - began
                progress(IngestProgress(f"{len(specs)} parts", parts, len(specs), rows, total, seconds))
            return ray_actors.result(reference)
        finally:
            self.refresh()

    def heal(self) -> list[Status]:
        """Start replicas on nodes that came back and have them catch up; how each replica is now."""
        found: list[Status] = self._order("heal")
        return found

    def status(self) -> list[Status]:
        """How each replica is."""
        found: list[Status] = ray_actors.result(self._coordinator.do.remote("status"))
        return found

    def move(self, shard: int, source: str | None, target: str) -> None:
        """Make a replica of a shard on another node, and give up the one on the node `source` if it is named."""
        self._order("move", shard, source, target)

    def rebalance(self) -> list[tuple[int, str | None, str]]:
        """Make missing replicas, and move replicas to nodes that have fewer: (shard, from, to) of each, from None
        for a new replica.
        """
        moves: list[tuple[int, str | None, str]] = self._order("rebalance")
        return moves

    # as a database

    @once
    def _session(self) -> ClusterSession:
        """The session of `sql`."""
        return self.session()

    def session(self) -> ClusterSession:
        """A session of its own."""
        return ClusterSession(self, self._registry, self._indexes, self.encoders)

    def _searched(self, table: str) -> Searched:
        shape = self.require(table)
        source = f"{quote_name(shape.database)}.{quote_name(shape.name)}"
        plain = [n for n, _ in shape.listed if n not in shape.vectors]
        return Searched(shape.full_name, source, tuple(shape.vectors), lambda: plain)

    def require(self, table: str) -> Shape:
        """A sharded table by its name. Raises UnknownTable."""
        database, _, name = table.rpartition(".")
        shape = self.shape(database or None, name)
        if shape is None:
            raise UnknownTable(
                f"there is no table {table} in the cluster; there are: {', '.join(self._known) or 'none'}"
            )
        return shape

    def _model_of(self, table: str, column: str) -> str | None:
        vector: Mapping[str, tuple[int | None, str | None]] = self.require(table).vectors
        return self.encoders.default or vector.get(column, (None, None))[1]

    def stop(self) -> None:
        """Stop the shards on all nodes; their folders stay."""
        ray_actors.stop_all()

    def close(self) -> None:
        """Leave the cluster, which goes on; harmless when called twice."""
        if not self._closed:
            self._stop.set()
            self._watcher.join(LEAVE_SECONDS)
            super().close()
            shutil.rmtree(self._folder, ignore_errors=True)
            ray_connection.disconnect()
