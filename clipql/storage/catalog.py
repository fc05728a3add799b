"""The manifest: which tables have vector columns, where their segments lie, which parts were taken in.

What must stay true: `manifest.json` is versioned, carries the hash of its own content, and is replaced atomically; it
is read once, at open, and written at every commit; the values here are frozen, a change makes a new `Catalog`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipql.errors import DatabaseDamaged, DatabaseVersion, NotADatabase
from clipql.storage import field_types, files, strays
from clipql.storage.entries import Catalog, IndexEntry, Part, Pending, RowFile, Segment, Table, VectorColumn

__all__ = [
    "FORMAT", "INTERNAL", "KINDS", "METRICS", "NAME",
    "Catalog", "IndexEntry", "Part", "Pending", "RowFile", "Segment", "Stamp", "Table", "VectorColumn",
    "content", "encoded", "load", "parsed", "prepare", "save",
]  # fmt: skip

FORMAT = 2  # 1 where no row lacks a vector, which older versions read
NAME = "manifest.json"
# ClickHouse's database of what is clipql's own: shapes of tables, and tables that are only being made
INTERNAL = "clipql_internal"
# fields that came with format 2
_LATER = ("absent", "there", "there_hash", "optional", "changed", "revision")
_DTYPES = ("float16", "float32")
# of indexes, and the distances that they are by
KINDS = ("flat", "ivf", "hnsw", "annoy")
METRICS = ("L2Distance", "L2SquaredDistance", "cosineDistance", "dotProduct")
_LONGEST = 1 << 16  # numbers of a vector, as `vectors.segments` has it
# the kinds of change, and whether there is a table before and one after
_CHANGES = {
    **dict.fromkeys(("insert", "truncate", "rename", "exchange", "alter", "rewrite", "vectors"), (True, True)),
    "create": (False, True),
    "drop": (True, False),
    "replace": (True, False),
}
_LARGEST = 1 << 30  # bytes of a manifest: some millions of segments
# what may lie in the folder of a database that was not finished being made
_OWN = ("lock", "tmp", NAME + ".tmp")


def prepare(folder: Path) -> None:
    """Make a database's folder if it is not there. Raises NotADatabase for a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise NotADatabase(f"{folder} is a file; a database is a folder")
    strange = [p.name for p in folder.iterdir() if p.name not in _OWN] if folder.is_dir() else []
    if strange and not (folder / NAME).exists():
        raise NotADatabase(
            f"{folder} holds {', '.join(sorted(strange)[:3])} but no {NAME}, so clipql did not make it: "
            "name an empty or a new folder"
        )
    with files.translated(folder, "making"):
        folder.mkdir(parents=True, exist_ok=True)


@dataclasses.dataclass(frozen=True)
class Stamp:
    """When a manifest was written, in nanoseconds, and how many changes had been acknowledged by then."""

    announced: int
    time: int


def save(folder: Path, catalog: Catalog, stamp: Stamp | None = None) -> None:
    """Replace the manifest durably. stamp: what `announced` reads; its time becomes the file's."""
    files.replace(folder / NAME, encoded(catalog, stamp), time_ns=stamp.time if stamp else None)


def encoded(catalog: Catalog, stamp: Stamp | None = None) -> bytes:
    """The content of a manifest, which begins with the stamp."""
    body = json.dumps(_plain(catalog), ensure_ascii=False, separators=(",", ":"))
    known = dataclasses.asdict(stamp) if stamp else {}
    document = {"clipql": "manifest", **known, "format": _format(catalog), "hash": _hash(body), "catalog": body}
    return json.dumps(document, ensure_ascii=False).encode()


def _format(catalog: Catalog) -> int:
    changing = (catalog.pending.before, catalog.pending.after) if catalog.pending else ()
    tables = [*catalog.tables, *(t for t in changing if t)]
    if catalog.pending and catalog.pending.kind in ("vectors", "exchange"):
        return FORMAT
    lacking = any(c.optional or c.absent or c.revision for t in tables for c in t.columns)
    return FORMAT if lacking or any(i.changed for t in tables for i in t.indexes) else 1


def _plain(value: Any) -> Any:
    """A value of the catalog as JSON has it; what an older version does not know is left out where it says nothing."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {k: _plain(v) for k, v in fields.items() if k not in _LATER or v}


def load(folder: Path) -> Catalog:
    """Read the manifest of a database folder.

    Raises NotADatabase, DatabaseVersion (a newer clipql wrote it) or DatabaseDamaged.
    """
    path = folder / NAME
    if not path.exists():
        raise NotADatabase(
            f"{folder} holds files but no {NAME}, so clipql did not make it: name an empty or a new folder"
        )
    with files.translated(path, "reading"):
        return parsed(path, content(folder))


def content(folder: Path) -> bytes:
    """The bytes of a manifest. Raises OSError, for more of them than a manifest has too."""
    return files.read_plain(folder / NAME, most=_LARGEST)


def parsed(path: Path, content: bytes) -> Catalog:
    """What a manifest says. path: its own. Raises NotADatabase, DatabaseVersion or DatabaseDamaged."""
    folder = path.parent
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatabaseDamaged(f"{path} is not JSON ({error}): restore it from a backup") from error
    if not isinstance(document, Mapping) or document.get("clipql") != "manifest":
        raise NotADatabase(f"{path} is not a clipql manifest: name another folder")
    if not isinstance(document.get("format"), int) or document["format"] > FORMAT:
        raise DatabaseVersion(
            f"{folder} is in format {document.get('format')}, this clipql reads up to {FORMAT}: upgrade clipql"
        )
    body = document.get("catalog")
    if not isinstance(body, str) or _hash(body) != document.get("hash"):
        raise DatabaseDamaged(f"{path} does not match its own hash, so it was altered: restore it from a backup")
    try:
        return _catalog(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatabaseDamaged(
            f"{path} has a right hash and does not hold a catalog ({type(error).__name__}: {error}): restore it from a "
            "backup"
        ) from error


def _check_names(table: Table) -> None:
    """Raise ValueError where the manifest would have files read, written or removed that are not the database's."""
    rows = [table.row_file] if table.row_file else []
    names = [table.id, *(c.folder for c in table.columns), *(n for r in rows for n in (r.folder, r.listing))]
    places = [i.folder.split("/") if isinstance(i.folder, str) else [] for i in table.indexes if i.folder is not None]
    segments = [s for c in table.columns for s in c.segments]
    if any(len(place) != 2 for place in places):
        raise ValueError(f"an index of table {table.full_name} has no folder of a table")
    names += [part for place in places for part in place]
    names += [name for s in segments for name in s.files]
    if any(not s.file and not s.hollow for s in segments):
        raise ValueError(f"a segment of table {table.full_name} has no file")
    for name in names:
        if not strays.is_name(name):
            raise ValueError(f"{name!r} is no name of a file in table {table.full_name}")
    for segment in segments:
        path = Path(segment.file)
        if segment.linked and (not path.is_absolute() or ".." in path.parts or "\0" in segment.file):
            raise ValueError(f"{segment.file!r} is no address of a linked file")
    if any(s.dtype not in _DTYPES for s in segments):
        raise ValueError(f"a segment of table {table.full_name} is of numbers that are not stored")
    indexed = [i for i in table.indexes if table.column(i.column) is None]
    if indexed:
        raise ValueError(f"the index {indexed[0].name!r} of table {table.full_name} is on a column that has no vectors")
    if any(i.metric not in METRICS or i.kind not in KINDS for i in table.indexes):
        raise ValueError(f"an index of table {table.full_name} is of a kind, or by a distance, that there is not")
    dimensions = [c.dimension for c in table.columns if c.dimension is not None]
    if any(d > _LONGEST for d in (*dimensions, *(s.dimension for s in segments))):
        raise ValueError(f"a vector of table {table.full_name} has more than {_LONGEST:,} numbers")


def _check_pending(pending: Pending) -> None:
    """Raise ValueError for a change under way that nothing could finish."""
    if _CHANGES.get(pending.kind) != (pending.before is not None, pending.after is not None):
        raise ValueError(f"a change under way is {pending.kind!r}, with other tables than such a change has")
    definitions = 2 if pending.kind == "alter" else 0
    if len(pending.definitions or ()) != definitions:
        raise ValueError(f"a change under way, {pending.kind!r}, has other definitions than such a change has")


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def _catalog(d: Mapping[str, Any]) -> Catalog:
    given = d["pending"]
    pending = None
    if given is not None:
        before, after = (None if given[name] is None else _table(given[name]) for name in ("before", "after"))
        definitions = given["definitions"]
        if not isinstance(definitions, (list, type(None))):
            raise ValueError("the definitions of a change under way are no list")
        pending = Pending(given["kind"], before, after, None if definitions is None else tuple(definitions))
        field_types.check(pending)
        _check_pending(pending)
    found = Catalog(tables=tuple(_table(t) for t in d["tables"]), pending=pending, serial=d["serial"])
    field_types.check(found)
    if len({t.id for t in found.tables}) < len(found.tables):
        raise ValueError("two tables have the same folder")
    return found


def _table(d: Mapping[str, Any]) -> Table:
    columns = tuple(VectorColumn(**{**c, "segments": tuple(Segment(**s) for s in c["segments"])}) for c in d["columns"])
    indexes = tuple(IndexEntry(**{**i, "changed": tuple(i.get("changed", ()))}) for i in d.get("indexes", ()))
    parts = tuple(Part(**p) for p in d["parts"])
    rows = d.get("row_file")
    # those of older versions have no listing: what is derived need not be read, it can be made again
    row_file = RowFile(**rows) if rows and "listing" in rows else None
    table = Table(**{**d, "columns": columns, "parts": parts, "indexes": indexes, "row_file": row_file})
    for each in (table, *columns, *parts, *indexes, *(s for c in columns for s in c.segments)):
        field_types.check(each)
    if row_file is not None:
        field_types.check(row_file)
    _check_names(table)
    return table
