"""Ray: the actors that hold copies of shards and the one that is the foreman, and how they are reached.

Nothing but this and `joining.py` knows Ray. What must stay true: an actor that holds a copy runs on the node whose disk
has it; a copy that cannot be reached is a HolderGone, an error of clipql's comes back as itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipql.cluster import shards
from clipql.cluster.foreman import Foreman, begun
from clipql.cluster.holder import Holder
from clipql.cluster.joining import NAMESPACE, library
from clipql.cluster.placing import in_force, placed, rebuilt
from clipql.cluster.shards import ShardMap, ShardPart, TrainedModel, remains_of
from clipql.cluster.training import Draw, Drawn
from clipql.errors import ClipqlError, ClusterError, HolderGone
from clipql.index import ivf
from clipql.storage.catalog import IndexEntry
from clipql.version import __version__

FOREMAN = "foreman"
THREADS = 16
# threads of a copy that answer while all others are at work
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
    """What the actor of a copy is called."""
    return f"shard-{shard}@{node}"


def folder_of(data: str, shard: int, node: str) -> str:
    """Where a copy lies on its node."""
    return str(Path(data) / node / f"shard-{shard}")


class HolderActor:
    """A copy of a shard as an actor. It opens its database when it is first asked, so that an error comes back."""

    def __init__(self, folder: str, shard: int, node: str) -> None:
        self._where, self._opening = (folder, shard, node), threading.Lock()
        self._holder: Holder | None = None

    def do(self, method: str, *arguments: Any) -> Any:
        """Have the holder do something."""
        return getattr(self._opened(), method)(*arguments)

    def _opened(self) -> Holder:
        with self._opening:
            if self._holder is None:
                self._holder = Holder(*self._where)
            return self._holder

    def take(self, database: str, name: str, part: ShardPart, before: Sequence[str], source: str | None) -> ShardPart:
        """As `Holder.take`, from the copy that the actor `source` holds."""
        if source is None:
            return self._opened().take(database, name, part, before)
        other = actor(source)

        def fetch(table: str, fingerprint: str, file: str, offset: int, size: int) -> bytes:
            return bytes(asked(other.do.remote("read", table, fingerprint, file, offset, size)))

        return self._opened().take(database, name, part, before, fetch)

    def adopt(self, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """As `Holder.adopt`, from the copy that the actor `source` holds."""
        other = actor(source)
        parts = asked(other.do.remote("index_files", database, name, entry.name))

        def fetch(table: str, index: str, file: str, offset: int, size: int) -> bytes:
            return bytes(asked(other.do.remote("read_index", table, index, file, offset, size)))

        self._opened().adopt(database, name, entry, parts, fetch)

    def train(self, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]) -> str:
        """As `Holder.train`, from rows that any copy of each shard gives."""

        def draw(one: Draw, first: int, last: int) -> Drawn:
            why: ClipqlError = HolderGone(f"shard {one.shard} has no copy")
            for node in one.nodes:
                try:
                    other = actor(actor_name(one.shard, node))
                    drawn: Drawn = asked(other.do.remote("sample", database, name, index, one, first, last))
                    return drawn
                except HolderGone as error:
                    why = error
            raise why

        return self._opened().train(database, name, index, lists, draws, draw)

    def build(self, database: str, name: str, rows: int, model: TrainedModel, source: str) -> None:
        """As `Holder.build_with`, with the model that the actor `source` has."""
        of, other = (database, name, model.index, model.identity), actor(source)

        def fetch(file: str, offset: int, size: int) -> bytes:
            return bytes(asked(other.do.remote("read_model", *of, file, offset, size)))

        files = asked(other.do.remote("model_files", *of, ivf.MODEL_FILES))
        self._opened().build_with(database, name, model.index, rows, model.identity, files, fetch)

    def node(self) -> str:
        """The id of the node that it runs on, once its database is open."""
        self._opened()
        return str(library().get_runtime_context().get_node_id())


def actor(name: str) -> Any:
    """The handle of an actor. Raises HolderGone."""
    try:
        return library().get_actor(name, NAMESPACE)
    except (ValueError, library().exceptions.RayError) as error:
        raise HolderGone(f"{name} does not run") from error


def asked(reference: Any, seconds: float | None = None) -> Any:
    """What an actor answers. Raises HolderGone where it cannot, and clipql's errors as it raised them."""
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
        raise HolderGone(f"it does not answer ({type(error).__name__})") from error


class RayCopies:
    """The copies as actors, for the foreman. data: where nodes keep them, each in a folder of its name."""

    def __init__(self, data: str) -> None:
        self._data = data

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Have a copy do something."""
        name = actor_name(shard, node)
        try:
            return asked(actor(name).do.remote(method, *arguments), seconds)
        except HolderGone as error:
            raise HolderGone(f"shard {shard} on {node} is gone: {error}") from error

    def take(
        self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
        source: str | None,
    ) -> ShardPart:  # fmt: skip
        """Have a copy take a part in."""
        other = actor_name(shard, source) if source is not None else None
        taking = actor(actor_name(shard, node))
        try:
            taken: ShardPart = asked(taking.take.remote(database, name, part, tuple(before), other))
        except HolderGone as error:
            raise HolderGone(f"shard {shard} on {node} is gone: {error}") from error
        return taken

    def adopt(self, shard: int, node: str, database: str, name: str, entry: IndexEntry, source: str) -> None:
        """Have a copy take over an index that the copy on the node `source` has built."""
        adopting = actor(actor_name(shard, node))
        try:
            asked(adopting.adopt.remote(database, name, entry, actor_name(shard, source)))
        except HolderGone as error:
            raise HolderGone(f"shard {shard} on {node} is gone: {error}") from error

    def train(
        self, shard: int, node: str, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]
    ) -> str:
        """Have a copy learn the lists of an index from rows of all shards."""
        learning = actor(actor_name(shard, node))
        return str(asked(learning.train.remote(database, name, index, lists, tuple(draws))))

    def build(
        self, shard: int, node: str, database: str, name: str, rows: int, model: TrainedModel, source: tuple[int, str]
    ) -> None:
        """Have a copy build an index with a model that another copy has."""
        asked(actor(actor_name(shard, node)).build.remote(database, name, rows, model, actor_name(*source)))

    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes that are there."""
        return tuple(node_ids())

    def start(self, shard: int, node: str) -> bool:
        """Start a copy where it does not run: on its node, which may have come back as another."""
        ids = node_ids()
        if node not in ids:
            raise HolderGone(f"node {node} is not there")
        with contextlib.suppress(HolderGone):
            known = actor(actor_name(shard, node)).node.options(concurrency_group="control")
            try:
                if asked(known.remote(), PING_SECONDS) == ids[node]:
                    return False
            except HolderGone as error:
                if isinstance(
                    error.__cause__, library().exceptions.GetTimeoutError
                ):  # it lives, and killing it helps none
                    raise ClusterError(f"shard {shard} on {node} is there and does not answer") from error
        self.stop(shard, node)
        ray = library()
        kind = ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=THREADS, concurrency_groups=CONTROL)(HolderActor)
        options = {"name": actor_name(shard, node), "namespace": NAMESPACE, "lifetime": "detached",
                   "get_if_exists": True, "scheduling_strategy": _on(ids[node])}  # fmt: skip
        made = kind.options(**options).remote(folder_of(self._data, shard, node), shard, node)
        asked(made.node.remote(), START_SECONDS)
        return True

    def stop(self, shard: int, node: str) -> None:
        """Stop a copy; harmless where it does not run."""
        with contextlib.suppress(HolderGone):
            library().kill(actor(actor_name(shard, node)), no_restart=True)


def found_map(data: str, without: Sequence[str]) -> ShardMap | None:
    """The map in force among those on the disks of the nodes that are there, or as their parts tell of it.

    None where there are neither. Raises ClusterError.
    """
    known = in_force(_found(data, f"shard-*/{shards.NAME}"), tuple(node_ids()), without)
    if known is not None:
        return known
    return rebuilt([remains_of(c, f"a part on node {n}") for n, c in _found(data, "shard-*/parts/*/*.json")])


def _found(data: str, pattern: str) -> list[tuple[str, bytes]]:
    """Files on the disks of the nodes that are there, with the names of these."""
    look = library().remote(num_cpus=0, max_retries=3)(_look)
    folders = {name: (str(Path(data) / name), id) for name, id in node_ids().items()}
    asked_for = {n: look.options(scheduling_strategy=_on(id)).remote(f, pattern) for n, (f, id) in folders.items()}
    return [(node, content) for node, reference in asked_for.items() for content in asked(reference, START_SECONDS)]


def _look(folder: str, pattern: str) -> list[bytes]:
    return [p.read_bytes() for p in sorted(Path(folder).glob(pattern))]


class ForemanActor:
    """The foreman as an actor, which finds the map on the nodes' disks, or makes the first, wherever it starts."""

    def __init__(
        self, data: str, shard_count: int | None, replicas: int, without: Sequence[str], heal_seconds: float
    ) -> None:
        self._how, self._beginning = (data, shard_count, replicas, without), threading.Lock()
        self._heal_seconds = heal_seconds
        self._foreman: Foreman | None = None

    def do(self, method: str, *arguments: Any) -> Any:
        """Have the foreman do something."""
        return getattr(self._begun(), method)(*arguments)

    def version(self) -> str:
        """The clipql that it runs."""
        return __version__

    def place(self) -> str:
        """The folder of the nodes that the copies lie in."""
        return self._how[0]

    def state(self) -> bytes:
        """The map in force, as it travels."""
        return shards.encoded(self._begun().map)

    def _begun(self) -> Foreman:
        with self._beginning:
            if self._foreman is None:
                data, shard_count, replicas, without = self._how
                copies = RayCopies(data)
                map = found_map(data, without)
                if map is None:
                    names = sorted(copies.nodes())
                    map = ShardMap(placed(shard_count or len(names), replicas, names))
                self._foreman = begun(copies, map)
                watch = (threading.Event(), self._heal_seconds)
                threading.Thread(target=self._foreman.watch, args=watch, name="clipql-heal", daemon=True).start()
            return self._foreman


def foreman(
    data: str,
    shard_count: int | None,
    replicas: int,
    without: Sequence[str] = (),
    heal_seconds: float = HEAL_SECONDS,
    *,
    anywhere: bool = False,
) -> Any:
    """The foreman's actor, started where there is none. anywhere: where it runs, its data may lie in another folder.

    Raises ClusterError, also where what runs is not what is asked for, and leaves no actor that it started.
    """
    ray = library()
    with contextlib.suppress(HolderGone):
        found = actor(FOREMAN)
        map = shards.decoded(asked(found.state.remote(), START_SECONDS), "the shard map")
        if (other := asked(found.version.remote())) != __version__:
            raise ClusterError(f"the cluster runs clipql {other}, this is {__version__}: install one version on all")
        if without:
            raise ClusterError(
                f"the shards run already, {', '.join(without)} with them: stop them (clipql cluster ADDRESS stop) first"
            )
        copies, where = max(len(nodes) for nodes in map.nodes), asked(found.place.remote())
        asks = (shard_count or len(map.nodes), replicas or copies, where if anywhere else data)
        if asks != (len(map.nodes), copies, where):
            raise ClusterError(
                f"the shards run already: {len(map.nodes)} with {copies} copies each, in {where}; asked for were "
                f"{asks[0]} with {asks[1]} in {asks[2]}. Leave that out to serve what runs"
            )
        return found
    if found_map(data, without) is None:
        if not replicas:
            raise ClusterError(f"no node has shards in {data}: start them with `clipql serve --ray … --replicas N`")
        names = sorted(node_ids())
        placed(shard_count or len(names), replicas, names)
    kind = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=THREADS)(ForemanActor)
    options = {"name": FOREMAN, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    made = kind.options(**options).remote(data, shard_count, replicas, tuple(without), heal_seconds)
    try:
        asked(made.state.remote(), 300)
    except ClipqlError:
        stop_all()
        raise
    return made


def stop_all() -> None:
    """Stop every actor of clipql's."""
    ray = library()
    for known in ray.util.list_named_actors(all_namespaces=True):
        if known["namespace"] == NAMESPACE:
            with contextlib.suppress(HolderGone):
                ray.kill(actor(known["name"]), no_restart=True)


def first_of(references: Sequence[Any], seconds: float | None) -> list[Any]:
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
