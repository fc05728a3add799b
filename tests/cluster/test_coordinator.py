"""The coordinator: ingest, healing and moving, with replicas that die at any moment, and no row lost or doubled."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from clipql import __version__
from clipql.cluster import shard_map
from clipql.cluster.coordinator import Coordinator, started
from clipql.cluster.placement import PartSpec, in_force, placed, recovered_map
from clipql.cluster.replica import ReplicaInfo
from clipql.cluster.shard_map import PartRecord, ShardMap, ShardPart, TrainedModel, part_record
from clipql.cluster.shard_transfer import PartFile
from clipql.cluster.training import Draw
from clipql.errors import (
    ClusterError,
    DiskFull,
    IngestError,
    QueryError,
    ReplicaDamaged,
    ReplicaUnavailable,
    VectorIndexError,
)
from clipql.storage.catalog import IndexEntry
from clipql.tables.index_entries import behind

NODES = ("a", "b", "c", "d")
NEAR = IndexEntry("near", "image_embedding", "ivf", "cosineDistance", "ivf")
WITH_COLUMN = "CREATE TABLE default.laion (`id` UInt64, `siglip` Array(Float32)) …"
ADD = "ALTER TABLE default.laion ADD COLUMN siglip Array(Float32)"
MANY = 30_000  # rows of a part that has an index built
DEFINITION = "CREATE TABLE default.laion (`id` UInt64) …"


class Killed(Exception):
    """The process of the coordinator was killed."""


@dataclass
class Disk:
    """What a replica has on its disk."""

    map: bytes | None = None
    ledgers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    damaged: bool = False
    rows: int = 0
    index: IndexEntry = NEAR
    model: str = ""
    learnt: str = ""
    quarantined: str = ""
    optional: tuple[str, ...] = ()
    lacking: int = 0  # rows without a vector
    known: int = 0  # rows with one that the index was built from


class Machines:
    """Replicas whose disks outlive their processes. `luck` may raise at each step, before or after it is done."""

    def __init__(self, luck: random.Random | None = None, kills: int = 0) -> None:
        self.disks: dict[tuple[int, str], Disk] = {}
        self.up, self.running = set(NODES), set[tuple[int, str]]()
        self.luck, self.kills, self.bad = luck, kills, set[str]()
        self.version = __version__
        self.built: list[tuple[int, str]] = []
        self.trained: list[tuple[tuple[int, str], tuple[Draw, ...]]] = []

    def _step(self, replica: tuple[int, str]) -> None:
        if self.luck is None or self.kills <= 0 or self.luck.random() > 0.2:
            return
        self.kills -= 1
        if self.luck.random() < 0.5:
            self.running.discard(replica)
            raise ReplicaUnavailable(f"{replica} was killed")
        raise Killed

    def _disk(self, shard: int, node: str) -> Disk:
        if node not in self.up or (shard, node) not in self.running:
            raise ReplicaUnavailable(f"{shard} on {node}")
        return self.disks[shard, node]

    def call(self, shard: int, node: str, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        disk = self._disk(shard, node)
        self._step((shard, node))
        found = getattr(self, f"_{method}")(disk, shard, node, *arguments)
        self._step((shard, node))
        return found

    def _info(self, disk: Disk, shard: int, node: str, wait: bool = True) -> ReplicaInfo:
        indexes = dict.fromkeys(disk.definitions, (disk.index,))
        models = {table: {"near": disk.model} for table in disk.definitions}
        optional = dict.fromkeys(disk.definitions, disk.optional)
        vectors = {table: {"near": (disk.rows - disk.lacking, disk.known)} for table in disk.definitions}
        return ReplicaInfo(shard, node, self.version, disk.map, dict(disk.ledgers), dict(disk.definitions), indexes,
                     disk.quarantined, models, optional, vectors if disk.optional else {})  # fmt: skip

    def _build_index(self, disk: Disk, shard: int, node: str, database: str, name: str, index: str) -> None:
        self.built.append((shard, node))
        disk.index, disk.known = replace(disk.index, rows=disk.rows), disk.rows - disk.lacking

    def train(
        self, shard: int, node: str, database: str, name: str, index: str, lists: int, draws: Sequence[Draw]
    ) -> str:
        disk = self._disk(shard, node)
        self._step((shard, node))
        for draw in draws:
            assert any((draw.shard, n) in self.running and self.disks[draw.shard, n].rows >= draw.rows
                       for n in draw.nodes if n in self.up)  # fmt: skip
        self.trained.append(((shard, node), tuple(draws)))
        # the same rows and lists give the same, whoever learns
        disk.learnt = f"{lists} lists of {sum(d.rows for d in draws)} rows"
        self._step((shard, node))
        return disk.learnt

    def build(
        self, shard: int, node: str, database: str, name: str, rows: int, model: TrainedModel, source: tuple[int, str]
    ) -> None:
        disk = self._disk(shard, node)
        if disk.rows < rows:
            raise ReplicaUnavailable(f"shard {shard} on {node} must catch up")
        self._step((shard, node))
        if model.identity not in (self._disk(*source).learnt, self._disk(*source).model):
            raise ReplicaUnavailable(f"{source} has no model {model.identity}")
        self.built.append((shard, node))
        disk.index, disk.model = replace(disk.index, rows=disk.rows), model.identity
        disk.known = disk.rows - disk.lacking
        self._step((shard, node))

    def _has_model(
        self, disk: Disk, shard: int, node: str, database: str, name: str, index: str, identity: str
    ) -> bool:
        return identity in (disk.model, disk.learnt)

    def _forget_training(self, disk: Disk, shard: int, node: str, database: str, name: str, index: str) -> None:
        disk.learnt = ""

    def adopt(self, shard: int, node: str, database: str, name: str, entry: IndexEntry, source: str) -> None:
        given, disk = self._disk(shard, source), self._disk(shard, node)
        assert given.index == entry
        if entry.rows <= disk.rows:
            disk.index, disk.model, disk.known = given.index, given.model, given.known

    def _store_map(self, disk: Disk, shard: int, node: str, content: bytes) -> None:
        if disk.map is None or shard_map.decoded(disk.map, node).serial < shard_map.decoded(content, node).serial:
            disk.map = content

    def _define(self, disk: Disk, shard: int, node: str, definition: str, database: str, name: str,
                optional: Sequence[str] = ()) -> None:  # fmt: skip
        disk.definitions.setdefault(f"{database}.{name}", definition)
        disk.optional = (*disk.optional, *(c for c in optional if c not in disk.optional))

    def _add_column(self, disk: Disk, shard: int, node: str, statement: str, database: str, name: str, column: str,
                    optional: bool) -> None:  # fmt: skip
        if column not in disk.definitions[f"{database}.{name}"]:
            disk.definitions[f"{database}.{name}"] = WITH_COLUMN
        disk.optional = (*disk.optional, column) if optional and column not in disk.optional else disk.optional

    def _definition(self, disk: Disk, shard: int, node: str, database: str, name: str) -> str:
        if f"{database}.{name}" not in disk.definitions:
            raise ReplicaUnavailable(f"{shard} on {node} has no table {database}.{name} yet")
        return disk.definitions[f"{database}.{name}"]

    def _drop(self, disk: Disk, shard: int, node: str, database: str, name: str) -> None:
        disk.ledgers.pop(f"{database}.{name}", None)
        disk.definitions.pop(f"{database}.{name}", None)

    def _check(self, disk: Disk, shard: int, node: str, table: str, parts: Sequence[ShardPart]) -> None:
        if disk.damaged:
            raise ReplicaDamaged(f"img_emb_0.npy on node {node} is not what the shard map says")

    def take(self, shard: int, node: str, database: str, name: str, part: ShardPart, before: Sequence[str],
             source: str | None) -> ShardPart:  # fmt: skip
        disk = self._disk(shard, node)
        self._step((shard, node))
        if part.fingerprint in self.bad:
            raise IngestError(f"{part.sources[0]}: row 3 holds NaN")
        if source is not None:
            self._disk(shard, source)
        table, has = f"{database}.{name}", disk.ledgers.get(f"{database}.{name}", ())
        if part.fingerprint not in has:
            if has != tuple(before):
                raise ReplicaUnavailable(f"shard {shard} on {node} must catch up first")
            disk.ledgers[table] = (*has, part.fingerprint)
            disk.definitions.setdefault(table, DEFINITION)
            disk.rows += part.rows
        self._step((shard, node))
        return replace(part, files=(PartFile("img_emb_0.npy", 1, "00"),), taken=True)

    def start(self, shard: int, node: str) -> bool:
        if node not in self.up:
            raise ReplicaUnavailable(f"node {node} is not there")
        self.disks.setdefault((shard, node), Disk())
        started = (shard, node) not in self.running
        self.running.add((shard, node))
        return started

    def _quarantine(self, disk: Disk, shard: int, node: str, why: str) -> None:
        disk.quarantined = why

    def stop(self, shard: int, node: str) -> None:
        self.running.discard((shard, node))

    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted(self.up))

    def lose(self, node: str) -> None:
        """Node and all its processes go, with what they had learnt; its disk stays."""
        self.up.discard(node)
        self.running = {(s, n) for s, n in self.running if n != node}

    def maps(self) -> list[tuple[str, bytes]]:
        """The maps on the disks of the nodes that are there."""
        return [(n, d.map) for (_, n), d in self.disks.items() if d.map is not None and n in self.up]


def specs(count: int, rows: int = 10) -> list[PartSpec]:
    return [PartSpec(f"part-{i}", rows + i, (f"/data/metadata_{i}.parquet",)) for i in range(count)]


def cluster(machines: Machines, shard_count: int = 4, replicas: int = 2) -> Coordinator:
    return started(
        machines, in_force(machines.maps(), machines.nodes()) or ShardMap(placed(shard_count, replicas, NODES))
    )


def ledgers(machines: Machines, map: ShardMap, table: str = "default.laion") -> list[set[tuple[str, ...]]]:
    """For each shard, what its replicas have."""
    return [{machines.disks[s, n].ledgers.get(table, ()) for n in nodes} for s, nodes in enumerate(map.nodes)]


def test_parts_are_dealt_to_the_shard_with_the_fewest_rows_and_numbered_in_their_order() -> None:
    machines = Machines()
    coordinator = cluster(machines)

    report = coordinator.ingest("default", "laion", specs(6))

    assert (report.rows, report.parts_taken, report.parts_skipped) == (75, 6, 0)
    table = coordinator.map.table("default", "laion")
    assert table is not None
    assert [[p.fingerprint for p in parts] for parts in table.shards] == [
        ["part-0", "part-4"], ["part-1", "part-5"], ["part-2"], ["part-3"],
    ]  # fmt: skip
    assert [p.first for i in range(6) for p in [table.place(f"part-{i}")[1]]] == [0, 10, 21, 33, 46, 60]  # type: ignore[index]
    assert ledgers(machines, coordinator.map) == [{tuple(p.fingerprint for p in parts)} for parts in table.shards]


def test_parts_that_are_there_are_skipped() -> None:
    coordinator = cluster(Machines())
    coordinator.ingest("default", "laion", specs(4))

    report = coordinator.ingest("default", "laion", specs(6))

    assert (report.parts_taken, report.parts_skipped) == (2, 4)


def test_a_part_that_cannot_be_taken_is_an_error_and_leaves_no_hole_for_the_next() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    machines.bad = {"part-5"}
    with pytest.raises(IngestError, match="row 3 holds NaN"):
        coordinator.ingest("default", "laion", specs(6))

    machines.bad = set()
    coordinator.ingest("default", "laion", specs(7))

    table = coordinator.map.table("default", "laion")
    assert table is not None
    assert sorted(p.fingerprint for parts in table.shards for p in parts if p.taken) == [f"part-{i}" for i in range(7)]


def test_a_table_whose_first_part_is_bad_is_not_made() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    machines.bad = {f"part-{i}" for i in range(3)}

    with pytest.raises(IngestError):
        coordinator.ingest("default", "laion", specs(3))

    assert coordinator.map.tables == ()


@pytest.mark.parametrize("seed", range(40))
def test_twenty_kills_of_replicas_and_foremen_lose_and_double_nothing(seed: int) -> None:
    luck = random.Random(seed)
    machines = Machines(luck, kills=20)
    wanted = specs(12, MANY)
    done = False
    while not done:
        try:
            coordinator = cluster(machines)
            coordinator.ingest("default", "laion", wanted)
            done = True
        except (Killed, ReplicaUnavailable, ClusterError):
            # Ray starts them again
            for replica in machines.disks:
                machines.running.add(replica)

    machines.kills = 0
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", wanted)
    coordinator.heal()

    table = coordinator.map.table("default", "laion")
    assert table is not None
    assert table.definition == DEFINITION
    assert {disk.definitions.get("default.laion") for disk in machines.disks.values()} == {DEFINITION}
    assert sorted(p.fingerprint for parts in table.shards for p in parts) == sorted(s.fingerprint for s in wanted)
    assert all(p.taken for parts in table.shards for p in parts)
    assert ledgers(machines, coordinator.map) == [{tuple(p.fingerprint for p in parts)} for parts in table.shards]
    ranges = sorted((p.first, p.first + p.rows) for parts in table.shards for p in parts)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert table.rows == sum(s.rows for s in wanted)
    model = table.model("near")
    assert model is not None
    assert {d.model for d in machines.disks.values()} == {model.identity}
    assert not any(behind(d.index, d.rows) for d in machines.disks.values())


@pytest.mark.parametrize("lost", NODES)
def test_the_map_outlives_any_one_node(lost: str) -> None:
    machines = Machines()
    before = cluster(machines)
    before.ingest("default", "laion", specs(8))

    machines.lose(lost)
    after = cluster(machines)

    assert after.map.tables == before.map.tables


def test_a_node_that_comes_back_catches_up() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4))
    machines.lose("b")
    coordinator.ingest("default", "laion", specs(12))

    machines.up.add("b")
    states = coordinator.heal()

    assert {s.state for s in states} == {"ready"}
    assert all(len(found) == 1 for found in ledgers(machines, coordinator.map))


def test_a_replica_whose_files_are_not_the_maps_is_named_and_not_used() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4))
    machines.lose("b")
    coordinator.ingest("default", "laion", specs(8))
    machines.up.add("b")
    machines.disks[1, "b"].damaged = True

    states = {(s.shard, s.node): s for s in coordinator.heal()}

    assert states[1, "b"].state == "behind"
    assert "img_emb_0.npy on node b is not what the shard map says" in states[1, "b"].why
    assert states[0, "b"].state == "ready"
    assert machines.disks[1, "b"].quarantined == states[1, "b"].why
    machines.disks[1, "b"].damaged = False  # whoever repaired it did not remove the folder
    assert {(s.shard, s.node): s.state for s in coordinator.heal()}[1, "b"] == "behind"


def test_a_replica_with_other_parts_or_another_definition_is_named() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4))
    machines.disks[0, "a"].ledgers["default.laion"] = ("somebody-else",)
    machines.disks[2, "c"].ledgers["default.laion"] = ()
    machines.disks[2, "c"].definitions["default.laion"] = "CREATE TABLE with other columns"

    states = {(s.shard, s.node): s.why for s in coordinator.heal()}

    assert "has other parts of default.laion than the shard map says" in states[0, "a"]
    assert "is defined as CREATE TABLE with other columns" in states[2, "c"]


def indexes(machines: Machines) -> set[tuple[int, str]]:
    """Rows and models of the indexes that replicas have."""
    return {(d.index.rows, d.model) for d in machines.disks.values()}


def test_an_index_is_learnt_once_built_once_for_each_shard_and_copied_from_there() -> None:
    machines = Machines()
    coordinator = cluster(machines)

    coordinator.ingest("default", "laion", specs(4, MANY))

    (trainer, draws), *others = machines.trained
    assert (trainer, others) == ((0, "a"), [])
    assert [(d.shard, d.nodes) for d in draws] == list(enumerate(coordinator.map.nodes))
    assert sum(d.rows for d in draws) == 32 * ((4 * MANY + 6) // 64)  # as many of each list
    assert sorted(machines.built) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    model = coordinator.map.tables[0].model("near")
    assert model is not None
    assert (model.column, model.rows) == ("image_embedding", 4 * MANY + 6)
    assert indexes(machines) == {(MANY + i, model.identity) for i in range(4)}
    assert {d.learnt for d in machines.disks.values()} == {""}


def test_rows_that_come_are_sorted_into_known_lists_until_they_are_twice_as_many() -> None:
    machines = Machines()
    coordinator = cluster(machines, shard_count=2)
    coordinator.ingest("default", "laion", specs(2, MANY))
    first = coordinator.map.tables[0].model("near")

    coordinator.ingest("default", "laion", [*specs(2, MANY), PartSpec("more", MANY + 50, ("/data/more",))])
    second = coordinator.map.tables[0].model("near")
    assert (first, len(machines.trained), len(machines.built)) == (second, 1, 3)
    coordinator.ingest("default", "laion", [*specs(6, 4 * MANY)[2:]])
    third = coordinator.map.tables[0].model("near")

    assert third is not None
    assert (len(machines.trained), third.rows) == (2, coordinator.map.tables[0].rows)
    assert {model for _, model in indexes(machines) if model} == {third.identity}


def test_an_index_that_is_asked_for_is_learnt_anew_on_all_shards() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4, 2000))
    assert indexes(machines) == {(0, "")}

    coordinator.build("default", "laion", "near")
    coordinator.ingest("default", "laion", specs(8, 2000))
    coordinator.build("default", "laion", "near")

    model = coordinator.map.tables[0].model("near")
    assert model is not None
    assert (len(machines.trained), model.rows) == (2, coordinator.map.tables[0].rows)
    assert {found for _, found in indexes(machines)} == {model.identity}
    with pytest.raises(VectorIndexError, match="has no vector index far; it has near"):
        coordinator.build("default", "laion", "far")


def test_what_was_learnt_on_a_node_that_is_lost_is_learnt_on_another() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4, 2000))
    real, lost = machines.build, []

    def build(shard: int, node: str, *arguments: Any) -> None:
        if not lost:
            lost.append(machines.trained[0][0][1])
            machines.lose(lost[0])
        real(shard, node, *arguments)

    machines.build = build  # type: ignore[method-assign]
    coordinator.build("default", "laion", "near")

    model = coordinator.map.tables[0].model("near")
    assert model is not None
    there = {d.model for (_, n), d in machines.disks.items() if n in machines.up}
    assert there == {model.identity}
    assert machines.trained[-1][0][1] != lost[0]


def test_a_replica_with_an_index_of_another_model_gets_that_of_the_map() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4, MANY))
    model = coordinator.map.tables[0].model("near")
    assert model is not None
    machines.disks[1, "c"].model = "another"

    coordinator.heal()

    assert machines.disks[1, "c"].model == machines.disks[1, "b"].model == model.identity


@pytest.mark.parametrize("dies_after", [0, 1, 2, 3])
def test_an_index_that_was_begun_is_finished_after_the_coordinator_is_lost(dies_after: int) -> None:
    machines = Machines()
    cluster(machines).ingest("default", "laion", specs(4, 2000))
    real, done = machines.build, []

    def build(*arguments: Any) -> None:
        if len(done) == dies_after:
            raise Killed
        done.append(arguments)
        real(*arguments)

    machines.build = build  # type: ignore[method-assign]
    with pytest.raises(Killed):
        cluster(machines).build("default", "laion", "near")
    machines.build = real  # type: ignore[method-assign]

    coordinator = cluster(machines)
    coordinator.heal()

    model = coordinator.map.tables[0].model("near")
    assert model is not None
    assert {d.model for d in machines.disks.values()} == {model.identity}
    assert (len(machines.trained), len(machines.built)) == (1, 4)


def test_what_was_learnt_and_lost_is_learnt_again_with_the_next_parts() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4, 2000))
    real = machines.build
    machines.build = lambda *_: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign]
    with pytest.raises(Killed):
        coordinator.build("default", "laion", "near")
    machines.build = real  # type: ignore[method-assign]
    for disk in machines.disks.values():  # the process that learnt is another now
        disk.learnt = ""

    coordinator.heal()
    assert {d.model for d in machines.disks.values()} == {""}
    coordinator.ingest("default", "laion", specs(4, 2000))

    assert len({d.model for d in machines.disks.values()}) == 1
    assert len(machines.trained) == 2


def test_an_index_that_cannot_be_finished_is_tried_once() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(4, MANY))
    machines.disks[2, "c"].model = machines.disks[2, "d"].model = ""
    tried = []

    def build(shard: int, *arguments: Any) -> None:
        tried.append(shard)
        raise DiskFull("no room")

    machines.build = build  # type: ignore[method-assign]
    coordinator.heal()
    coordinator.heal()

    assert tried == [2, 2]  # each of its replicas


def test_a_shard_with_too_few_rows_for_its_share_is_not_drawn_from() -> None:
    machines = Machines()
    coordinator = cluster(machines, shard_count=2)
    coordinator.ingest("default", "laion", [*specs(1, 100_000), PartSpec("few", 1, ("/data/few",))])

    coordinator.build("default", "laion", "near")

    assert [d.shard for d in machines.trained[-1][1]] == [0]
    assert {(d.rows, d.index.rows) for d in machines.disks.values()} == {(100_000, 100_000), (1, 1)}


def test_rows_may_lack_a_vector_in_a_column_that_is_added_on_every_replica_that_is_made() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.ingest("default", "laion", specs(8))
    machines.lose("a")
    with pytest.raises(ReplicaUnavailable):  # a replica that is away would be without it
        coordinator.add_column("default", "laion", ADD, "siglip")
    assert {d.definitions["default.laion"] for d in machines.disks.values()} == {DEFINITION}
    machines.up.add("a")
    coordinator.heal()
    coordinator.add_column("default", "laion", ADD, "siglip")
    coordinator.add_column("default", "laion", ADD, "siglip", True)
    with pytest.raises(QueryError, match=r"has a column siglip already; it has id, siglip"):
        coordinator.add_column("default", "laion", ADD, "siglip")
    nodes = coordinator.map.nodes[0]
    coordinator.move(0, nodes[0], next(n for n in NODES if n not in nodes))
    lost = coordinator.map.nodes[3][0]
    machines.lose(lost)
    machines.disks.pop((3, lost))
    machines.up = set(NODES)
    coordinator = cluster(machines)  # by the map on a disk
    assert {s.state for s in coordinator.heal()} == {"ready"}
    disks = [machines.disks[r] for r in coordinator.map.replicas()]
    assert [(d.definitions["default.laion"], d.optional) for d in disks] == [(WITH_COLUMN, ("siglip",))] * 8
    assert coordinator.map.tables[0].optional == ("siglip",)


@pytest.mark.parametrize("seed", range(6))
def test_a_change_that_was_cut_off_is_finished_and_no_replica_is_taken_for_damaged(seed: int) -> None:
    machines = Machines()
    cluster(machines).ingest("default", "laion", specs(8))
    machines.luck, machines.kills = random.Random(seed), 5
    done = False
    for _ in range(40):
        with contextlib.suppress(Killed, ClusterError, ReplicaUnavailable):
            coordinator = cluster(machines)
            coordinator.heal()
            done = bool(coordinator.map.tables[0].optional and not coordinator.map.tables[0].change)
            if done and not machines.kills:
                break
            coordinator.add_column("default", "laion", ADD, "siglip", True)
    assert (done, machines.kills) == (True, 0)
    assert {s.state for s in cluster(machines).heal()} == {"ready"}
    disks = [machines.disks[r] for r in coordinator.map.replicas()]
    known = {(d.definitions["default.laion"], d.optional, d.quarantined) for d in disks}
    assert known == {(WITH_COLUMN, ("siglip",), "")}


def test_a_column_that_is_added_before_the_first_row_is_as_one_of_create_table() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    coordinator.create("default", "laion", DEFINITION)
    coordinator.add_column("default", "laion", ADD, "siglip")
    assert (coordinator.map.tables[0].definition, coordinator.map.tables[0].optional) == (WITH_COLUMN, ())
    assert {d.optional for d in machines.disks.values()} == {()}


def test_an_index_is_learnt_from_rows_that_have_a_vector_and_again_once_they_are_twice_as_many() -> None:
    machines = Machines()
    coordinator = cluster(machines, shard_count=2)
    coordinator.ingest("default", "laion", specs(2, MANY))
    coordinator.add_column("default", "laion", ADD, "image_embedding")
    for disk in machines.disks.values():
        disk.lacking = disk.rows - 999
    machines.trained.clear()
    coordinator.build("default", "laion", "near")  # too few on any shard
    assert machines.trained == []
    for disk in machines.disks.values():
        disk.lacking = disk.rows - 6_000
    coordinator.build("default", "laion", "near")
    [(_, draws)] = machines.trained
    assert [d.total for d in draws] == [MANY, MANY + 1]
    assert all(0 < d.rows <= 6_000 for d in draws)
    assert coordinator.map.tables[0].models[0].rows == 12_000
    for disk in machines.disks.values():
        disk.lacking = 0
    coordinator.ingest("default", "laion", [PartSpec("more", 10, ("/data/metadata_9.parquet",))])
    assert len(machines.trained) == 2


def test_a_replica_that_moves_takes_its_index_along() -> None:
    machines = Machines()
    coordinator = cluster(machines, shard_count=1, replicas=1)
    coordinator.ingest("default", "laion", specs(3, MANY))

    coordinator.move(0, "a", "c")

    assert (machines.built, machines.disks[0, "c"].index.rows) == ([(0, "a")], 3 * MANY + 3)
    assert machines.disks[0, "c"].model == machines.disks[0, "a"].model


def test_another_version_of_clipql_is_named() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    machines.version = "0.0.7"

    states = coordinator.heal()

    assert {s.state for s in states} == {"behind"}
    assert f"runs clipql 0.0.7, this is {__version__}" in states[0].why


def test_a_shard_moves_with_all_its_parts() -> None:
    machines = Machines()
    coordinator = cluster(machines, shard_count=2)
    coordinator.ingest("default", "laion", specs(6))

    coordinator.move(0, "a", "d")

    assert coordinator.map.nodes == (("d", "b"), ("b", "c"))
    assert all(len(found) == 1 for found in ledgers(machines, coordinator.map))
    assert (0, "a") not in machines.running


def test_replicas_are_evened_out_over_the_nodes() -> None:
    machines = Machines()
    coordinator = started(machines, ShardMap(placed(4, 2, ("a", "b"))))
    coordinator.ingest("default", "laion", specs(6))

    coordinator.rebalance()

    held = [sum(1 for _, n in coordinator.map.replicas() if n == node) for node in NODES]
    assert max(held) - min(held) <= 1
    assert all(len(found) == 1 for found in ledgers(machines, coordinator.map))


def test_replicas_that_are_missing_are_made_where_there_is_room() -> None:
    machines = Machines()
    cluster(machines, shard_count=4).ingest("default", "laion", specs(8))
    machines.lose("d")
    map = in_force(machines.maps(), machines.nodes(), ["d"])
    assert map is not None
    coordinator = started(machines, map)
    assert sorted(map.nodes) == [("a",), ("a", "b"), ("b", "c"), ("c",)]

    moves = coordinator.rebalance()

    assert [(source, target in NODES) for _, source, target in moves] == [(None, True), (None, True)]
    assert all(len(set(nodes)) == 2 for nodes in coordinator.map.nodes)
    assert max(sum(n == node for _, n in coordinator.map.replicas()) for node in "abc") == 3
    assert ledgers(machines, coordinator.map) == [
        {tuple(p.fingerprint for p in ps)} for ps in coordinator.map.tables[0].shards
    ]


def test_what_is_not_there_is_not_moved_nor_gone_on_without() -> None:
    machines = Machines()
    coordinator = cluster(machines)

    for shard, target in ((9, "c"), (-1, "c"), (0, "e")):
        with pytest.raises(ClusterError, match=r"there is no (shard|node)"):
            coordinator.move(shard, None, target)
    with pytest.raises(ClusterError, match="the shards have no node e to go on without; they lie on a, b, c, d"):
        in_force(machines.maps(), machines.nodes(), ["e"])


def test_a_change_that_half_of_the_nodes_cannot_know_is_refused() -> None:
    machines = Machines()
    coordinator = cluster(machines)
    machines.lose("c")
    machines.lose("d")

    with pytest.raises(ClusterError, match="2 of 4 nodes can be reached"):
        coordinator.ingest("default", "laion", specs(2))


def test_a_map_that_a_minority_may_have_outdated_is_not_believed() -> None:
    machines = Machines()
    cluster(machines).ingest("default", "laion", specs(2))
    machines.lose("a")
    machines.lose("b")

    with pytest.raises(ClusterError, match="a newer shard map may be on another"):
        in_force(machines.maps(), machines.nodes())

    assert in_force(machines.maps(), machines.nodes(), without=["a"]) is not None
    with pytest.raises(ClusterError, match="shard 0 lay on a, b alone"):
        in_force(machines.maps(), machines.nodes(), without=["a", "b"])


def test_more_replicas_than_nodes_are_refused() -> None:
    with pytest.raises(ClusterError, match="5 replicas of each shard on 4 nodes"):
        placed(4, 5, NODES)


def test_an_altered_map_is_told_from_its_hash() -> None:
    content = shard_map.encoded(ShardMap((("a",),), serial=3))

    with pytest.raises(ClusterError, match="does not match its own hash"):
        shard_map.decoded(content.replace(b'\\"serial\\":3', b'\\"serial\\":4'), "cluster.json")

    assert shard_map.decoded(content, "cluster.json") == ShardMap((("a",),), serial=3)


def test_a_damaged_copy_of_the_map_is_passed_over() -> None:
    good = shard_map.encoded(ShardMap((("a", "b", "c"),), serial=3))

    assert in_force([("a", b"{}"), ("b", good), ("c", good)], ["a", "b", "c"]) == ShardMap((("a", "b", "c"),), serial=3)


def test_the_map_is_made_anew_from_the_parts() -> None:
    machines = Machines()
    before = cluster(machines)
    before.ingest("default", "laion", specs(8))
    records = [
        PartRecord(node, shard, 4, "default", "laion", part)
        for table in before.map.tables
        for shard, parts in enumerate(table.shards)
        for part in parts
        for node in before.map.nodes[shard]
    ]

    made = recovered_map([part_record(r.encoded, "there") for r in records])
    assert made is not None
    after = started(machines, made)

    assert after.map.tables == before.map.tables
    assert [set(n) for n in after.map.nodes] == [set(n) for n in before.map.nodes]
    # a replica that did not know the map wrote what it knew of the table's shards
    unsure = [replace(r, shards=r.shard + 1) if r.node == "a" else r for r in records]
    assert recovered_map(unsure) == made
    with pytest.raises(ClusterError, match="shard 2 of 4 is on none of the nodes"):
        recovered_map([r for r in records if r.shard != 2])


def test_two_clusters_in_the_same_folders_are_told_apart() -> None:
    one, other = ShardMap((("a", "b"),), serial=3), ShardMap((("b", "a"),), serial=3)

    with pytest.raises(ClusterError, match="two clusters were started"):
        shard_map.newest([one, other])
