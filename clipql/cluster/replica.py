"""A replica of a shard: an embedded database, the files of its parts, and a copy of the shard map, in one folder.

What must stay true: parts go in one after the other, in the order of the map, and each once; their files are kept under
the hashes that the map names, so that other replicas can be made of them; queries see only the rows of their snapshot.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

from clipql.cluster import shard_map, shard_transfer
from clipql.cluster.partial_query import PartialQuery, Snapshot, mark_of, rows_of, statement
from clipql.cluster.placeholder import Shape
from clipql.cluster.shard_map import ShardMap, ShardPart
from clipql.cluster.shard_transfer import PartFile
from clipql.cluster.training import Training
from clipql.database import Database
from clipql.engine.quoting import quote_name, quote_string
from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClusterError, IngestError, ReplicaDamaged, ReplicaUnavailable
from clipql.ingest.layout import check_part, find_parts
from clipql.ingest.pipeline import ingest
from clipql.sql.session import Session
from clipql.storage import files
from clipql.storage.catalog import IndexEntry
from clipql.tables import schema
from clipql.tables.index_entries import built_from, present
from clipql.version import __version__

# what one shard may give for one SELECT: more does not belong on one machine
MOST_BYTES = 256 << 20
MOST_SESSIONS = 64
OWNER, QUARANTINE = "owner.json", "quarantine.txt"
# gives bytes of a file of a part: (table, fingerprint, name, offset, size)
Fetch = Callable[[str, str, str, int, int], bytes]


@dataclass(frozen=True)
class ReplicaInfo:
    """Which replica this is, and what it has: fingerprints of the parts of each table in their order.

    models: for each table, what its indexes were built with, if it is shared. optional: for each table, the vector
    columns that rows may lack a vector in. vectors: for each table, of the indexes on such columns, how many rows have
    one, and how many of those the index covers.
    """

    shard: int
    node: str
    version: str
    map: bytes | None
    ledgers: Mapping[str, tuple[str, ...]]
    definitions: Mapping[str, str]
    indexes: Mapping[str, tuple[IndexEntry, ...]]
    quarantined: str = ""
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


class Replica:
    """A replica of a shard. Thread-safe: queries run side by side, parts go in one by one."""

    def __init__(self, folder: str, shard: int, node: str) -> None:
        self._folder, self.shard, self.node = Path(folder), shard, node
        with files.translated(self._folder, "making"):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._own(self._folder / OWNER)
        self._map = shard_map.load(self._folder)
        self._db = Database(self._folder / "db")
        self._taking, self._choosing = threading.RLock(), threading.Lock()
        quarantine = self._folder / QUARANTINE
        self._quarantined = quarantine.read_text("utf-8") if quarantine.exists() else ""
        self._training = own = Training(self._folder / "training", self._db, self._taking, self._called)
        self.sample, self.train, self.build_with, self.build_index = own.sample, own.train, own.build_with, own.build
        self.model_files, self.read_model = own.model_files, own.read_model
        self.has_model, self.forget_training = own.has_model, own.forget
        self._sessions: dict[tuple[object, ...], tuple[Session, EngineUser]] = {}

    @property
    def _called(self) -> str:
        return f"shard {self.shard} by node {self.node}"

    def _own(self, path: Path) -> None:
        owner = {"shard": self.shard, "node": self.node}
        if not path.exists():
            files.replace(path, json.dumps(owner).encode())
        elif (found := json.loads(path.read_bytes())) != owner:
            raise ClusterError(
                f"{self._folder} holds shard {found.get('shard')} of node {found.get('node')}, not shard {self.shard} "
                f"of {self.node}: give each node a folder of its own"
            )

    def info(self, wait: bool = True) -> ReplicaInfo:
        """Who it is and what it has; after a part that is going in, or (`wait` False) as it is before."""
        with self._taking if wait else contextlib.nullcontext():
            tables = self._db.registry.catalog.tables
        return ReplicaInfo(
            shard=self.shard,
            node=self.node,
            version=__version__,
            map=shard_map.encoded(self._map) if self._map else None,
            ledgers={t.full_name: tuple(p.fingerprint for p in t.parts) for t in tables},
            definitions={t.full_name: self.definition(t.database, t.name) for t in tables},
            indexes={t.full_name: t.indexes for t in tables},
            quarantined=self._quarantined,
            models={t.full_name: {i.name: self._training.identity(i) for i in t.indexes} for t in tables},
            optional={t.full_name: tuple(c.name for c in t.columns if c.optional) for t in tables},
            vectors={
                t.full_name: {
                    i.name: (present(t, i), built_from(t, i).rows)
                    for i in t.indexes
                    if any(c.optional for c in t.columns if c.name == i.column)
                }
                for t in tables
            },
        )

    def quarantine(self, why: str) -> None:
        """Answer no queries from now on, whatever starts this replica again, until its folder is removed."""
        files.replace(self._folder / QUARANTINE, why.encode())
        self._quarantined = why

    def store_map(self, content: bytes) -> None:
        """Keep a copy of the map, unless it has a newer one."""
        map = shard_map.decoded(content, "the map that was sent")
        with self._taking:
            if self._map is None or map.serial > self._map.serial:
                shard_map.save(self._folder, map)
                self._map = map

    # definitions

    def define(self, definition: str, database: str, name: str, optional: Sequence[str] = ()) -> None:
        """Make a table as another replica has it, where it is not there. optional: as in a `ShardedTable`."""
        with self._taking:
            if self._db.registry.find(database, name) is None:
                self._db.execute(f"CREATE DATABASE IF NOT EXISTS {quote_name(database)}", format="Null")
                self._db.execute(definition, format="Null")
            self._make_optional(database, name, optional)

    def add_column(self, statement: str, database: str, name: str, column: str, optional: bool) -> None:
        """Run ADD COLUMN of vectors, unless the column is there. optional: whether rows may lack a vector in it."""
        with self._taking:
            table = self._db.registry.find(database, name)
            if table is not None and table.column(column) is None:
                self._db.execute(statement, format="Null")
            self._make_optional(database, name, (column,) if optional else ())

    def _make_optional(self, database: str, name: str, columns: Sequence[str]) -> None:
        table = self._db.registry.find(database, name)
        if table is not None and columns:
            schema.make_optional(self._db.registry, table, columns)

    def drop(self, database: str, name: str) -> None:
        """Drop a table and the files of its parts."""
        with self._taking:
            table = self._db.registry.find(database, name)
            if table is not None:
                self._db.execute(f"DROP TABLE {quote_name(database)}.{quote_name(name)}", format="Null")
            files.remove(self._parts(f"{database}.{name}"))

    def _parts(self, table: str) -> Path:
        """Where the files of a table's parts lie, in a folder for each part."""
        return self._folder / "parts" / quote(table, safe="")

    def definition(self, database: str, name: str) -> str:
        """CREATE TABLE, as ClickHouse shows it. Raises ReplicaUnavailable where the table is not here yet."""
        if self._db.registry.find(database, name) is None:
            raise ReplicaUnavailable(f"shard {self.shard} on {self.node} has no table {database}.{name} yet")
        found = self._db.sql(f"SHOW CREATE TABLE {quote_name(database)}.{quote_name(name)}").rows
        return str(found[0][0])

    def shape(self, database: str, name: str) -> Shape:
        """What a statement may use of a table. Raises UnknownTable."""
        full = f"{quote_name(database)}.{quote_name(name)}"
        output = self._db.execute(f"SELECT * FROM {full} LIMIT 0", format="RowBinaryWithNamesAndTypes").output
        listed = rows_of(output.data).columns
        every = self._db.sql(
            f"SELECT name, type FROM system.columns WHERE database = {quote_string(database)} "
            f"AND table = {quote_string(name)} AND name != '_row' ORDER BY position"
        ).rows
        names = {n for n, _ in listed}
        table = self._db.registry.find(database, name)
        vectors = {c.name: (c.dimension, c.model) for c in table.columns} if table else {}
        return Shape(database, name, listed, tuple((n, t) for n, t in every if n not in names), vectors)

    # parts

    def take(
        self, database: str, name: str, part: ShardPart, before: Sequence[str], fetch: Fetch | None = None
    ) -> ShardPart:
        """Take a part in, which comes after the parts `before`; it is skipped where it is there. Its entry, with files.

        fetch: reads the files from another replica; without it they are read from where they lie.

        Raises IngestError for a part that cannot be taken, ReplicaUnavailable where parts before it are missing,
        ClusterError for a file of another hash.
        """
        with self._taking:
            table, full = self._db.registry.find(database, name), f"{database}.{name}"
            ledger = tuple(p.fingerprint for p in table.parts) if table else ()
            if part.fingerprint in ledger:
                return self._noted(full, replace(part, files=part.files or self._files(full, part), taken=True))
            if ledger != tuple(before):
                raise ReplicaUnavailable(
                    f"shard {self.shard} on {self.node} has {len(ledger)} parts of {database}.{name}, and "
                    f"{len(before)} come before this one: it must catch up first"
                )
            folder = self._gather(full, part, fetch)
            found = check_part(find_parts([folder])[0])
            if (found.fingerprint, found.rows - found.failed) != (part.fingerprint, part.rows):
                files.remove(folder)
                raise IngestError(f"{', '.join(part.sources)}: the files changed since they were checked; start again")
            link, model = not found.failed, None if found.model else part.model
            try:
                ingest(self._db, folder, table=full, link=link, model=model, first_id=part.first, indexes=False)
            except IngestError:
                files.remove(folder)
                raise
            return self._noted(full, replace(part, files=self._files(full, part), taken=True))

    def _noted(self, table: str, part: ShardPart) -> ShardPart:
        """The part, after writing beside its files what it is."""
        path = self._parts(table) / f"{part.fingerprint}.json"
        if not path.exists():
            database, _, name = table.partition(".")
            known = self._map.table(database, name) if self._map else None
            count = len(known.shards) if known else self.shard + 1
            files.replace(path, shard_map.PartRecord(self.node, self.shard, count, database, name, part).encoded)
        return part

    def _gather(self, table: str, part: ShardPart, fetch: Fetch | None) -> Path:
        """The files of a part in a folder of their own, whole and synced."""
        folder = self._parts(table) / part.fingerprint
        with files.translated(folder, "making"):
            folder.mkdir(parents=True, exist_ok=True)
        if fetch is not None:
            for file in part.files:
                read = partial(fetch, table, part.fingerprint, file.name)
                shard_transfer.fetch(folder / file.name, file, read, self._called)
        else:
            for source in map(Path, part.sources):
                if not source.exists():
                    raise IngestError(
                        f"{source} is not there on node {self.node}, which holds shard {self.shard}: parts are read by "
                        "the nodes, so they must lie where all nodes can read them"
                    )
                reading = files.translated(source, "copying")
                with files.new_file(folder / source.name) as copy, reading, open(source, "rb") as original:
                    shutil.copyfileobj(original, copy, shard_transfer.CHUNK_BYTES)
        files.sync_folder(folder)
        return folder

    def _files(self, table: str, part: ShardPart) -> tuple[PartFile, ...]:
        return shard_transfer.listed((self._parts(table) / part.fingerprint).iterdir())

    def read(self, table: str, fingerprint: str, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file of a part, for another replica."""
        return shard_transfer.read(self._parts(table) / fingerprint / Path(name).name, offset, size)

    def check(self, table: str, parts: Sequence[ShardPart]) -> None:
        """Compare the files of parts of a table with the map. Raises ReplicaDamaged, naming the first that differs."""
        database, _, name = table.partition(".")
        known = self._db.registry.find(database, name)
        has = {p.fingerprint for p in known.parts} if known else set()
        for part in parts:
            for file in part.files if part.fingerprint in has else ():
                path = self._parts(table) / part.fingerprint / file.name
                if not path.exists() or path.stat().st_size != file.size or shard_transfer.hash_of(path) != file.hash:
                    state = "is not what the shard map says" if path.exists() else "is missing"
                    raise ReplicaDamaged(
                        f"{path} on node {self.node} {state} ({file.size:,} bytes, xxh3 {file.hash}): remove the "
                        f"folder {self._folder} there, and the replica is made again from another node"
                    )

    # indexes

    def alter(self, statement: str, database: str, name: str, index: str, there: bool) -> None:
        """Run ADD INDEX or DROP INDEX, unless the index is already there (or, with `there` False, already gone)."""
        with self._taking:
            table = self._db.registry.find(database, name)
            if table is not None and (table.index(index) is not None) != there:
                self._db.execute(statement, format="Null")

    def index_files(self, database: str, name: str, index: str) -> tuple[PartFile, ...]:
        """The files of an index, for another replica."""
        return shard_transfer.listed(self._index_folder(f"{database}.{name}", index).iterdir())

    def read_index(self, table: str, index: str, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file of an index."""
        return shard_transfer.read(self._index_folder(table, index) / Path(name).name, offset, size)

    def _index_folder(self, table: str, index: str) -> Path:
        database, _, name = table.partition(".")
        known = self._db.registry.find(database, name)
        entry = known.index(index) if known else None
        if entry is None or entry.folder is None:
            raise ClusterError(f"shard {self.shard} on {self.node} has no index {index} of {table}")
        return self._db.indexes.folder(entry)

    def adopt(self, database: str, name: str, entry: IndexEntry, parts: Sequence[PartFile], fetch: Fetch) -> None:
        """Copy an index that another replica of this shard has built, file by file, checked by their hashes."""
        with self._taking:
            table = self._db.registry.find(database, name)
            own = table.index(entry.name) if table else None
            if table is None or own is None or replace(own, folder=entry.folder) == entry:
                return

            def fill(folder: Path) -> None:
                for file in parts:
                    read = partial(fetch, f"{database}.{name}", entry.name, file.name)
                    shard_transfer.fetch(folder / file.name, file, read, self._called)

            self._db.indexes.adopt(table, entry, fill)

    # queries

    def query(self, asked: Sequence[tuple[PartialQuery, Snapshot]]) -> list[bytes]:
        """What partial queries give over this shard, each as RowBinaryWithNamesAndTypes. Raises ClipqlError."""
        return [self._query(query, snapshot) for query, snapshot in asked]

    def _query(self, query: PartialQuery, snapshot: Snapshot) -> bytes:
        table = self._db.registry.find(query.database, query.table)
        if table is None:
            raise ReplicaUnavailable(
                f"shard {self.shard} on {self.node} has no table {query.database}.{query.table} yet"
            )
        if self._quarantined:
            raise ReplicaUnavailable(self._quarantined)
        sql = statement(query, snapshot, table.rows)
        if mark_of([p.fingerprint for p in table.parts[: len(snapshot.runs)]]) != snapshot.mark:
            raise ReplicaUnavailable(
                f"shard {self.shard} on {self.node} has other parts of {table.full_name} than were asked for"
            )
        session, user = self._session(query)
        with self._db.registry.engine.act(Acting(user)):
            found = session.execute(
                sql, query.params, format="RowBinaryWithNamesAndTypes", routes=query.routes
            ).output.data
        if len(found) > MOST_BYTES:
            raise ClusterError(
                f"shard {self.shard} gives {len(found) >> 20:,} MB for one SELECT over {query.database}.{query.table}, "
                f"more than the {MOST_BYTES >> 20} that are gathered: filter, aggregate or LIMIT it"
            )
        return found

    def _session(self, query: PartialQuery) -> tuple[Session, EngineUser]:
        """A session with the settings of whoever asks; those of the last askers are kept."""
        key = (tuple(sorted(query.settings.items())), query.statements)
        with self._choosing:
            found = self._sessions.pop(key, None)
            if found is None:
                session = self._db.session()
                session.settings = dict(query.settings)
                found = session, EngineUser(query.statements)
            self._sessions[key] = found
            while len(self._sessions) > MOST_SESSIONS:
                _, user = self._sessions.pop(next(iter(self._sessions)))
                self._db.registry.engine.forget(user)
        return found

    def close(self) -> None:
        """Close the database."""
        with self._taking:
            self._db.close()

    @property
    def map(self) -> ShardMap | None:
        """Its copy of the map."""
        return self._map
