"""The shard map: which parts lie in which shard, as which rows, and which nodes hold a replica.

What must stay true: a map is a frozen value with a serial number; it travels and lies on disk as JSON with the hash of
its content. The parts of a shard are in the order in which every replica takes them, so that a row has one number in
all replicas; `taken` parts come first. The map with the highest number is the one in force.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipql.cluster.partial_query import Run, Snapshot, mark_of
from clipql.cluster.shard_transfer import PartFile
from clipql.errors import ClusterError
from clipql.storage import files
from clipql.version import __version__

FORMAT = 3  # 1 has no models, 2 no columns that rows may lack a vector in, no changes
NAME = "cluster.json"


@dataclass(frozen=True)
class ShardPart:
    """A part of a shard: `rows` rows, of which the first is row `first` among those of all shards.

    sources: the files it was taken from. files: the copies that every replica keeps, once one has them.
    """

    fingerprint: str
    first: int
    rows: int
    sources: tuple[str, ...]
    model: str | None = None
    files: tuple[PartFile, ...] = ()
    taken: bool = False


@dataclass(frozen=True)
class TrainedModel:
    """What the indexes of all shards were built with: the identity of the model, and the rows there were then."""

    index: str
    column: str
    identity: str
    rows: int


@dataclass(frozen=True)
class TableChange:
    """A change of a table's definition that is under way: what each replica is told to do."""

    method: str
    arguments: tuple[str | bool, ...]


@dataclass(frozen=True)
class ShardedTable:
    """A table over the first shards of the cluster: how it is made, and the parts of each shard.

    definition: CREATE TABLE as ClickHouse shows it, empty until the first part makes it. next_row: the number that the
    first row of the next part gets. models: of its ivf indexes, once they are built. optional: vector columns that were
    added when there were rows, so that rows may come without a vector in them. change: what is under way,
    so that replicas may be before it or after it.
    """

    database: str
    name: str
    shards: tuple[tuple[ShardPart, ...], ...]
    definition: str = ""
    next_row: int = 0
    models: tuple[TrainedModel, ...] = ()
    optional: tuple[str, ...] = ()
    change: TableChange | None = None

    @property
    def full_name(self) -> str:
        """`database.table`, as messages show it."""
        return f"{self.database}.{self.name}"

    def goes_on(self, old: ShardedTable) -> bool:
        """Whether it is the one that was known, with parts that came since, and not another made in its place."""
        pairs = zip(old.shards, self.shards, strict=False)
        same = all([p.fingerprint for p in a] == [p.fingerprint for p in b[: len(a)]] for a, b in pairs)
        return same and old.definition == self.definition and len(old.shards) == len(self.shards)

    def snapshot(self, shard: int) -> Snapshot:
        """The rows of a shard that are taken in."""
        runs, fingerprints, local = [], [], 0
        for part in self.shards[shard]:
            if not part.taken:
                break
            runs.append(Run(local, part.first, part.rows))
            fingerprints.append(part.fingerprint)
            local += part.rows
        return Snapshot(tuple(runs), mark_of(fingerprints))

    @property
    def rows(self) -> int:
        """Rows taken in, in all shards."""
        return sum(self.snapshot(i).rows for i in range(len(self.shards)))

    def with_parts(self, shard: int, parts: Iterable[ShardPart]) -> ShardedTable:
        """This table with other parts in a shard."""
        shards = tuple(tuple(parts) if i == shard else p for i, p in enumerate(self.shards))
        return dataclasses.replace(self, shards=shards)

    def model(self, index: str) -> TrainedModel | None:
        """The model of an index."""
        return next((m for m in self.models if m.index == index), None)

    def with_model(self, index: str, model: TrainedModel | None) -> ShardedTable:
        """This table with the model of an index put in the place of what there was, or without any."""
        others = tuple(m for m in self.models if m.index != index)
        return dataclasses.replace(self, models=others if model is None else (*others, model))

    def place(self, fingerprint: str) -> tuple[int, ShardPart] | None:
        """The shard and the entry of a part."""
        return next(
            ((i, p) for i, parts in enumerate(self.shards) for p in parts if p.fingerprint == fingerprint), None
        )


@dataclass(frozen=True)
class ShardMap:
    """nodes: for each shard, the names of the nodes that hold it. version: of the clipql that made it."""

    nodes: tuple[tuple[str, ...], ...]
    tables: tuple[ShardedTable, ...] = ()
    serial: int = 0
    version: str = __version__

    def table(self, database: str, name: str) -> ShardedTable | None:
        """The table of this name."""
        return next((t for t in self.tables if (t.database, t.name) == (database, name)), None)

    def with_table(self, table: ShardedTable) -> ShardMap:
        """This map with the table added, or put in the place of the one of its name."""
        others = tuple(t for t in self.tables if t.full_name != table.full_name)
        return dataclasses.replace(self, tables=(*others, table))

    def without(self, table: ShardedTable) -> ShardMap:
        """This map without the table."""
        return dataclasses.replace(self, tables=tuple(t for t in self.tables if t.full_name != table.full_name))

    def replicas(self) -> list[tuple[int, str]]:
        """Every replica: shard and node."""
        return [(shard, node) for shard, nodes in enumerate(self.nodes) for node in nodes]


@dataclass(frozen=True)
class PartRecord:
    """What a replica writes beside the files of a part, so that the map can be made again: `shards` its table has."""

    node: str
    shard: int
    shards: int
    database: str
    name: str
    part: ShardPart

    @property
    def encoded(self) -> bytes:
        """As it lies on disk."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode()


def part_record(content: bytes, where: str) -> PartRecord:
    """What lies beside a part. Raises ClusterError for what cannot be read."""
    try:
        found = json.loads(content)
        return PartRecord(**{**found, "part": _part(found["part"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{where} does not say what part lies there ({error}): remove that replica's folder"
        ) from error


def encoded(map: ShardMap) -> bytes:
    """The map as it lies on disk and travels."""
    body = json.dumps(dataclasses.asdict(map), ensure_ascii=False, separators=(",", ":"))
    document = {"clipql": "cluster", "format": FORMAT, "hash": _hash(body), "map": body}
    return json.dumps(document, ensure_ascii=False).encode()


def decoded(content: bytes, where: str) -> ShardMap:
    """The map in a file's content. Raises ClusterError for one that is damaged, or of a newer clipql."""
    try:
        document = json.loads(content)
        known = document["clipql"] == "cluster" and isinstance(document["format"], int)
        body = document["map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{where} is no shard map ({error}); another node has a copy of it") from error
    if not known or not isinstance(body, str) or _hash(body) != document.get("hash"):
        raise ClusterError(f"{where} does not match its own hash, so it was altered; another node has a copy of it")
    if document["format"] > FORMAT:
        raise ClusterError(f"{where} is in format {document['format']}, this clipql reads up to {FORMAT}: upgrade it")
    return _map(json.loads(body))


def load(folder: Path) -> ShardMap | None:
    """The copy of the map in a shard's folder; None where there is none. Raises ClusterError."""
    path = folder / NAME
    with files.translated(path, "reading"):
        return decoded(path.read_bytes(), str(path)) if path.exists() else None


def save(folder: Path, map: ShardMap) -> None:
    """Replace the copy of the map in a shard's folder durably."""
    files.replace(folder / NAME, encoded(map))


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def _map(d: Mapping[str, Any]) -> ShardMap:
    tables = tuple(
        ShardedTable(
            **{
                **t,
                "shards": tuple(tuple(_part(p) for p in parts) for parts in t["shards"]),
                "models": tuple(TrainedModel(**m) for m in t.get("models", ())),
                "optional": tuple(t.get("optional", ())),
                "change": TableChange(c["method"], tuple(c["arguments"])) if (c := t.get("change")) else None,
            }
        )
        for t in d["tables"]
    )
    return ShardMap(**{**d, "nodes": tuple(tuple(n) for n in d["nodes"]), "tables": tables})


def _part(d: Mapping[str, Any]) -> ShardPart:
    return ShardPart(**{**d, "sources": tuple(d["sources"]), "files": tuple(PartFile(**f) for f in d["files"])})


def newest(maps: Iterable[ShardMap]) -> ShardMap | None:
    """The map in force among the copies that were found. Raises ClusterError where two differ under one number."""
    best: ShardMap | None = None
    for map in maps:
        if best is None or map.serial > best.serial:
            best = map
        elif map.serial == best.serial and map != best:
            raise ClusterError(
                f"two nodes hold different shard maps numbered {map.serial}: two clusters were started on their "
                "folders; start with the nodes of one of them"
            )
    return best
