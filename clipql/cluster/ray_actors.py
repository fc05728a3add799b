"""The Ray actors: the replicas of shards and the coordinator, and how they are reached.

Only this and `ray_connection.py` know Ray. What must stay true: the actor of a replica runs on the node whose disk has
it; a replica that cannot be reached is a ReplicaUnavailable; an error of clipql's comes back as itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipql.cluster import shard_map
from clipql.cluster.coordinator import Coordinator, started
from clipql.cluster.placement import in_force, placed, recovered_map
from clipql.cluster.ray_connection import NAMESPACE, library
from clipql.cluster.replica import Replica
from clipql.cluster.shard_map import ShardMap, ShardPart, TrainedModel, part_record
from clipql.cluster.training import Draw, Drawn
from clipql.errors import ClipqlError, ClusterError, ReplicaUnavailable
from clipql.index import ivf
from clipql.storage.catalog import IndexEntry
from clipql.version import __version__

COORDINATOR = "coordinator"
THREADS = 16
# threads of a replica that answer while all others are at work
CONTROL = {"control": 2}
TWICE_SECONDS, HEAL_SECONDS = 60.0, 5.0
PING_SECONDS, START_SECONDS = 10.0, 120.0


def node_ids() -> dict[str, str]:
    """The nodes that are there: Ray's id by name. Raises ClusterError where two have one name.

    One that went and came back may be there twice until Ray has noticed, which is waited for.
    """
    until = time.monotonic() + TWICE_SECONDS
    while True:
        found: dict[str, str] = {}
        twice = None
        for node in library().nodes():
            if node["Alive"]:
                twice = node["NodeName"] if node["NodeName"] in found else twice
                found[node["NodeName"]] = node["NodeID"]
        if twice is None:
            return found
        if time.monotonic() > until:
            raise ClusterError(f"two nodes are named {twice}: give each its own with `ray start --node-name=…`")
        time.sleep(0.2)


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def actor_name(shard: int, node: str) -> str:
    """What the actor of a replica is called."""
    return f"shard-{shard}@{node}"


def folder_of(data: str, shard: int, node: str) -> str:
    """Where a replica lies on its node."""
    return str(Path(data) / node / f"shard-{shard}")


class ReplicaActor:
    """A replica of a shard as an actor. It opens its database when it is first asked, so that an error comes back."""

    def __init__(self, folder: str, shard: int, node: str) -> None:
        self._where, self._opening = (folder, shard, node), threading.Lock()
        self._replica: Replica | None = None

    def do(self, method: str, *arguments: Any) -> Any:
        """Have the replica do something."""
        return getattr(self._opened(), method)(*arguments)

    def _opened(self) -> Replica:
        with self._opening:
            if self._replica is None:
                self._replica = Replica(*self._where)
            return self._replica

    def take(self, database: str, name: str, part: ShardPart, before: Sequence[str], source: str | None) -> ShardPart:
        """As `Replica.take`, from the replica that the actor `source` holds."""
        if source is None:
            return self._opened().take(database, name, part, before)
        other = actor(source)

        def fetch(table: str, fingerprint: str, file: str, offset: int, size: int) -> bytes:
            return bytes(result(other.do.remote("read", table, fingerprint, file, offset, size)))

        return self._opened().take(database, name, part, before, fetch)

    def adopt(self, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """As `Replica.adopt`, from the replica that the actor `source` holds."""
        other = actor(source)
        parts = result(other.do.remote("index_files", database, name, entry.name))

        def fetch(table: str, index: str, file: str, offset: int, size: int) -> bytes:
            return bytes(result(other.do.remote("read_index", table, index, file, offset, size)))

        self._opened().adopt(database, name, entry, parts, fetch)

    def train(self, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]) -> str:
        """As `Replica.train`, from rows that any replica of each shard gives."""

        def draw(one: Draw, first: int, last: int) -> Drawn:
            why: ClipqlError = ReplicaUnavailable(f"shard {one.shard} has no replica")
            for node in one.nodes:
                try:
                    other = actor(actor_name(one.shard, node))
                    drawn: Drawn = result(other.do.remote("sample", database, name, index, one, first, last))
                    return drawn
                except ReplicaUnavailable as error:
                    why = error
            raise why

        return self._opened().train(database, name, index, lists, draws, draw)

    def build(self, database: str, name: str, rows: int, model: TrainedModel, source: str) -> None:
        """As `Replica.build_with`, with the model that the actor `source` has."""
        of, other = (database, name, model.index, model.identity), actor(source)

        def fetch(file: str, offset: int, size: int) -> bytes:
            return bytes(result(other.do.remote("read_model", *of, file, offset, size)))

        files = result(other.do.remote("model_files", *of, ivf.MODEL_FILES))
        self._opened().build_with(database, name, model.index, rows, model.identity, files, fetch)

    def node(self) -> str:
        """The id of the node that it runs on, once its database is open."""
        self._opened()
        return str(library().get_runtime_context().get_node_id())


def actor(name: str) -> Any:
    """The handle of an actor. Raises ReplicaUnavailable."""
    try:
        return library().get_actor(name, NAMESPACE)
    except (ValueError, library().exceptions.RayError) as error:
        raise ReplicaUnavailable(f"{name} does not run") from error


def result(reference: Any, seconds: float | None = None) -> Any:
    """What an actor answers. Raises ReplicaUnavailable where it cannot, and clipql's errors as it raised them."""
    errors = library().exceptions
    try:
        return library().get(reference, timeout=seconds)
    except errors.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ClipqlError):
            raise cause from None
        told = str(cause or error).strip().splitlines() or [type(cause or error).__name__]
        raise ClusterError(f"a node failed: {told[-1]}") from error
    except errors.RayError as error:  # the process, the node or the network between is gone, or too slow
        raise ReplicaUnavailable(f"it does not answer ({type(error).__name__})") from error


class RayReplicas:
    """The replicas as actors, for the coordinator. data: where nodes keep them, each in a folder of its name."""

    def __init__(self, data: str) -> None:
        self._data = data

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Have a replica do something."""
        name = actor_name(shard, node)
        try:
            return result(actor(name).do.remote(method, *arguments), seconds)
        except ReplicaUnavailable as error:
            raise ReplicaUnavailable(f"shard {shard} on {node} is gone: {error}") from error

    def take(
        self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
        source: str | None,
    ) -> ShardPart:  # fmt: skip
        """Have a replica take a part in."""
        other = actor_name(shard, source) if source is not None else None
        taking = actor(actor_name(shard, node))
        try:
            taken: ShardPart = result(taking.take.remote(database, name, part, tuple(before), other))
        except ReplicaUnavailable as error:
            raise ReplicaUnavailable(f"shard {shard} on {node} is gone: {error}") from error
        return taken

    def adopt(self, shard: int, node: str, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """Have a replica take over an index that the replica on the node `source` has built."""
        adopting = actor(actor_name(shard, node))
        try:
            result(adopting.adopt.remote(database, name, entry, actor_name(shard, source)))
        except ReplicaUnavailable as error:
            raise ReplicaUnavailable(f"shard {shard} on {node} is gone: {error}") from error

    def train(
        self, shard: int, node: str, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]
    ) -> str:
        """Have a replica learn the lists of an index from rows of all shards."""
        learning = actor(actor_name(shard, node))
        return str(result(learning.train.remote(database, name, index, lists, tuple(draws))))

    def build(
        self, shard: int, node: str, database: str, name: str, rows: int, model: TrainedModel, source: tuple[int, str]
    ) -> None:
        """Have a replica build an index with a model that another replica has."""
        result(actor(actor_name(shard, node)).build.remote(database, name, rows, model, actor_name(*source)))

    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are there."""
        return tuple(node_ids())

    def start(self, shard: int, node: str) -> bool:
        """Start a replica where it does not run: on its node, which may have come back as another."""
        ids = node_ids()
        if node not in ids:
            raise ReplicaUnavailable(f"node {node} is not there")
        with contextlib.suppress(ReplicaUnavailable):
            known = actor(actor_name(shard, node)).node.options(concurrency_group="control")
            try:
                if result(known.remote(), PING_SECONDS) == ids[node]:
                    return False
            except ReplicaUnavailable as error:
                if isinstance(
                    error.__cause__, library().exceptions.GetTimeoutError
                ):  # it lives, and killing it helps none
                    raise ClusterError(f"shard {shard} on {node} is there and does not answer") from error
        self.stop(shard, node)
        ray = library()
        kind = ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=THREADS, concurrency_groups=CONTROL)(
            ReplicaActor
        )
        options = {"name": actor_name(shard, node), "namespace": NAMESPACE, "lifetime": "detached",
                   "get_if_exists": True, "scheduling_strategy": _on(ids[node])}  # fmt: skip
        made = kind.options(**options).remote(folder_of(self._data, shard, node), shard, node)
        result(made.node.remote(), START_SECONDS)
        return True

    def stop(self, shard: int, node: str) -> None:
        """Stop a replica; harmless where it does not run."""
        with contextlib.suppress(ReplicaUnavailable):
            library().kill(actor(actor_name(shard, node)), no_restart=True)


def found_map(data: str, without: Sequence[str]) -> ShardMap | None:
    """The map in force among those on the disks of the nodes that are there, or as their parts tell of it.

    None where there are neither. Raises ClusterError.
    """
    known = in_force(_found(data, f"shard-*/{shard_map.NAME}"), tuple(node_ids()), without)
    if known is not None:
        return known
    return recovered_map([part_record(c, f"a part on node {n}") for n, c in _found(data, "shard-*/parts/*/*.json")])


def _found(data: str, pattern: str) -> list[tuple[str, bytes]]:
    """Files on the disks of the nodes that are there, with the names of these."""
    look = library().remote(num_cpus=0, max_retries=3)(_look)
    folders = {name: (str(Path(data) / name), id) for name, id in node_ids().items()}
    asked_for = {n: look.options(scheduling_strategy=_on(id)).remote(f, pattern) for n, (f, id) in folders.items()}
    return [(node, content) for node, reference in asked_for.items() for content in result(reference, START_SECONDS)]


def _look(folder: str, pattern: str) -> list[bytes]:
    return [p.read_bytes() for p in sorted(Path(folder).glob(pattern))]


class CoordinatorActor:
    """The coordinator as an actor, which finds the map on the nodes' disks, or makes the first, wherever it starts."""

    def __init__(
        self, data: str, shard_count: int | None, replica_count: int, without: Sequence[str], heal_seconds: float
    ) -> None:
        self._how, self._beginning = (data, shard_count, replica_count, without), threading.Lock()
        self._heal_seconds = heal_seconds
        self._coordinator: Coordinator | None = None

    def do(self, method: str, *arguments: Any) -> Any:
        """Have the coordinator do something."""
        return getattr(self._begun(), method)(*arguments)

    def version(self) -> str:
        """The clipql that it runs."""
        return __version__

    def place(self) -> str:
        """The folder of the nodes that the replicas lie in."""
        return self._how[0]

    def state(self) -> bytes:
        """The map in force, as it travels."""
        return shard_map.encoded(self._begun().map)

    def _begun(self) -> Coordinator:
        with self._beginning:
            if self._coordinator is None:
                data, shard_count, replica_count, without = self._how
                replicas = RayReplicas(data)
                map = found_map(data, without)
                if map is None:
                    names = sorted(replicas.nodes())
                    map = ShardMap(placed(shard_count or len(names), replica_count, names))
                self._coordinator = started(replicas, map)
                watch = (threading.Event(), self._heal_seconds)
                threading.Thread(target=self._coordinator.watch, args=watch, name="clipql-heal", daemon=True).start()
            return self._coordinator


def coordinator(
    data: str,
    shard_count: int | None,
    replica_count: int,
    without: Sequence[str] = (),
    heal_seconds: float = HEAL_SECONDS,
    *,
    anywhere: bool = False,
) -> Any:
    """The coordinator's actor, started where there is none.

    anywhere: where it runs already, its data may lie in another folder.

    Raises ClusterError, also where what runs is not what is asked for, and leaves no actor that it started.
    """
    ray = library()
    with contextlib.suppress(ReplicaUnavailable):
        found = actor(COORDINATOR)
        map = shard_map.decoded(result(found.state.remote(), START_SECONDS), "the shard map")
        if (other := result(found.version.remote())) != __version__:
            raise ClusterError(f"the cluster runs clipql {other}, this is {__version__}: install one version on all")
        if without:
            raise ClusterError(
                f"the shards run already, {', '.join(without)} with them: stop them (clipql cluster ADDRESS stop) first"
            )
        each, where = max(len(nodes) for nodes in map.nodes), result(found.place.remote())
        asks = (shard_count or len(map.nodes), replica_count or each, where if anywhere else data)
        if asks != (len(map.nodes), each, where):
            raise ClusterError(
                f"the shards run already: {len(map.nodes)} with {each} replicas each, in {where}; asked for were "
                f"{asks[0]} with {asks[1]} in {asks[2]}. Leave that out to serve what runs"
            )
        return found
    if found_map(data, without) is None:
        if not replica_count:
            raise ClusterError(f"no node has shards in {data}: start them with `clipql serve --ray … --replicas N`")
        names = sorted(node_ids())
        placed(shard_count or len(names), replica_count, names)
    kind = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=THREADS)(CoordinatorActor)
    options = {"name": COORDINATOR, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    made = kind.options(**options).remote(data, shard_count, replica_count, tuple(without), heal_seconds)
    try:
        result(made.state.remote(), 300)
    except ClipqlError:
        stop_all()
        raise
    return made


def stop_all() -> None:
    """Stop every actor of clipql's."""
    ray = library()
    for known in ray.util.list_named_actors(all_namespaces=True):
        if known["namespace"] == NAMESPACE:
            with contextlib.suppress(ReplicaUnavailable):
                ray.kill(actor(known["name"]), no_restart=True)


def wait_any(references: Sequence[Any], seconds: float | None) -> list[Any]:
    """Those of the answers that are there once one is, or none after so many seconds."""
    ready, _ = library().wait(list(references), num_returns=1, timeout=seconds)
    return list(ready)


def resources() -> tuple[float, float]:
    """GPUs and processor cores of all nodes."""
    found = library().cluster_resources()
    return float(found.get("GPU", 0)), float(found.get("CPU", 0))


def pool(kind: type, count: int, *arguments: Any, gpu: bool) -> list[Any]:
    """Actors that go with this process, each on a GPU of its own, or wherever there is room."""
    made = library().remote(num_cpus=0, num_gpus=1 if gpu else 0, max_restarts=-1, max_task_retries=-1)(kind)
    return [made.options(scheduling_strategy="SPREAD").remote(*arguments) for _ in range(count)]


def stop_pool(actors: Sequence[Any]) -> None:
    """Stop actors of a pool."""
    for each in actors:
        library().kill(each, no_restart=True)
