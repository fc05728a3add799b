"""Rows that must go: by ids, urls, or pictures that they look like; with a report, and proof that they went.

What must stay true: a row goes only if it was asked for, and what was asked for and is not there is named; the report
says removed only of files that were looked for afterwards and not found, and names every place that still has bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.tables import known_column
from clipql.engine.arrow import arrow_numbers
from clipql.engine.quoting import quote_string
from clipql.errors import ClipqlError
from clipql.projection import stored
from clipql.sql.definitions.row_changes import naming
from clipql.storage import files
from clipql.tables.registry import ROW

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table

Stage = Callable[[str, int, int], None]
Picture = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Asked(Brief):
    """One thing that was asked for, and the rows that it meant: ids as text, and their distances to a picture."""

    what: str
    ids: tuple[str, ...]
    distances: tuple[float, ...] = ()


@dataclass(frozen=True, repr=False)
class Takedown(Brief):
    """What was done. removed: rows; left: rows of the table afterwards; erased: OPTIMIZE has written the rest anew.

    files, bytes: of the table before, looked for afterwards and gone. still: files that are there all the same, as a
    reader's snapshot, a part that was ingested with --link, or a hard link of a backup. copies: ids of rows left whose
    vector in the column is that of a removed row to the last bit.
    """

    table: str
    by: str
    asked: tuple[Asked, ...]
    removed: int
    left: int
    erased: bool
    files: int
    bytes: int
    still: tuple[str, ...]
    copies: tuple[str, ...]
    seconds: float

    @property
    def missing(self) -> tuple[str, ...]:
        """What was asked for and meant no row."""
        return tuple(each.what for each in self.asked if not each.ids)

    def write(self, path: str | os.PathLike[str]) -> None:
        """The report as JSON."""
        said = {**dataclasses.asdict(self), "missing": self.missing}
        files.replace(Path(path), json.dumps(said, indent=1, ensure_ascii=False).encode())


def takedown(
    db: Database,
    table: str,
    *,
    ids: Sequence[str | int] | None = None,
    urls: Sequence[str] | None = None,
    pictures: Sequence[Picture] | None = None,
    vectors: NDArray[Any] | None = None,
    within: float | None = None,
    column: str = "image_embedding",
    id: str = "id",
    url: str = "url",
    erase: bool = True,
    dry: bool = False,
    progress: Stage = lambda stage, done, total: None,
) -> Takedown:
    """Delete rows by one of ids, urls, pictures (files) and vectors (n, d); the last two with all rows whose cosine
    distance to one is at most `within`, compared exactly. id, url: SQL expressions of the columns.

    erase: OPTIMIZE the table afterwards, so that the bytes go. dry: find the rows, and change nothing.
    Raises UnknownTable, VectorError, QueryError, EncodeError, or ClipqlError where what is asked is not one thing.
    """
    began = time.perf_counter()
    known, _ = known_column(db, table, column)
    given = {"ids": ids, "urls": urls, "pictures": pictures, "vectors": vectors}
    by = [name for name, value in given.items() if value is not None]
    if len(by) != 1:
        raise ClipqlError(f"a takedown got {' and '.join(by) or 'nothing to look for'}: give ids, urls or pictures")
    progress("looking for rows", 0, 4)
    if ids is not None or urls is not None:
        wanted = [str(each) for each in (ids if ids is not None else urls or ())]
        rows, asked = _named(db, known, wanted, id if ids is not None else url, id)
    else:
        if within is None or not within >= 0:
            raise ClipqlError(f"within is {within}; say how far a row may be from a picture: 0.05 finds copies of it")
        model = db.encoders.default or next(c.model for c in known.columns if c.name == column)
        encoded = [db.encoders.picture(os.fspath(picture), model) for picture in pictures or ()]
        queries = np.asarray(encoded if vectors is None else vectors, np.float32)
        said = [os.fspath(p) for p in pictures or ()] or [f"vector {i}" for i in range(len(queries))]
        rows, asked = _alike(db, known, queries, said, column, within, id)
    if dry or not len(rows):
        left = int(db.registry.engine.scalar(f"SELECT count() FROM {db.registry.physical(known)}"))
        seconds = time.perf_counter() - began
        return Takedown(known.full_name, by[0], asked, len(rows) if dry else 0, left, False, 0, 0, (), (), seconds)
    progress("deleting", 1, 4)
    before = _files(db, known) if erase else {}
    hashes = _hashes(db, known, column, rows)
    with naming(db.registry, known, rows) as condition:
        db.sql(f"DELETE FROM {db.registry.physical(known)} WHERE {condition}")
    still: list[str] = []
    if erase:
        progress("writing the rows that are left anew", 2, 4)
        db.sql(f"OPTIMIZE TABLE {db.registry.physical(known)} FINAL")
        still = _still(db, before)
    left = int(db.registry.engine.scalar(f"SELECT count() FROM {db.registry.physical(known)}"))
    progress("looking for copies", 3, 4)
    copies = _copies(db, known, column, hashes, id) if left else ()
    gone = [size for path, (size, _) in before.items() if not path.exists()]
    seconds = time.perf_counter() - began
    return Takedown(
        known.full_name, by[0], asked, len(rows), left, erase, len(gone), sum(gone), tuple(still), copies, seconds
    )


def _named(
    db: Database, table: Table, wanted: Sequence[str], key: str, id: str
) -> tuple[NDArray[np.uint64], tuple[Asked, ...]]:
    """The rows whose key, as text, is one of these."""
    listed = pa.table({"k": pa.array(list(dict.fromkeys(wanted)), pa.string())})
    found = db.registry.engine.query(
        f"SELECT toString({key}) AS k, {ROW} AS r, toString({id}) AS i FROM {db.registry.physical(table)} "
        f"WHERE toString({key}) IN (SELECT k FROM Python(listed)) ORDER BY r",
        "ArrowStream",
        tables={"listed": listed},
        user=True,
    ).arrow()
    by: dict[str, list[str]] = {}
    for k, i in zip(found.column(0).to_pylist(), found.column(2).to_pylist(), strict=True):
        by.setdefault(_text(k), []).append(_text(i))
    asked = tuple(Asked(each, tuple(by.get(each, ()))) for each in dict.fromkeys(wanted))
    return found.column(1).to_numpy().astype(np.uint64), asked


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _alike(
    db: Database, table: Table, queries: NDArray[np.float32], said: Sequence[str], column: str, within: float, id: str
) -> tuple[NDArray[np.uint64], tuple[Asked, ...]]:
    """The rows within a cosine distance of each vector."""
    asked, rows = [], [np.empty(0, np.uint64)]
    name = f"`{column.replace('`', chr(92) + '`')}`"
    for what, query in zip(said, queries, strict=True):
        found = db.sql(
            f"SELECT {ROW} AS clipql_r, toString({id}) AS clipql_i, cosineDistance({name}, {{q:Array(Float32)}}) AS "
            f"clipql_d FROM {db.registry.physical(table)} WHERE clipql_d <= {within!r} ORDER BY clipql_d, clipql_r "
            "SETTINGS vector_index = 0",
            q=query,
        ).rows
        rows.append(np.array([r for r, _, _ in found], np.uint64))
        asked.append(Asked(what, tuple(_text(i) for _, i, _ in found), tuple(round(d, 6) for _, _, d in found)))
    return np.unique(np.concatenate(rows)), tuple(asked)


def _hashes(db: Database, table: Table, column: str, rows: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """Hashes of the vectors of these rows, of all rows without them."""
    from clipql.storage.vectors import row_numbers  # loads the compiler

    store = db.registry.store(table, column)
    out = np.empty(table.rows if rows is None else len(rows), np.uint64)
    for first, block in store.blocks() if rows is None else [(0, store.take(rows))]:
        row_numbers.of_rows("cityHash64", block, out[first : first + len(block)])
    return out


def _copies(db: Database, table: Table, column: str, hashes: NDArray[np.uint64], id: str) -> tuple[str, ...]:
    """The ids of rows that have the vector of a removed row."""
    current = db.registry.current(table)
    same = np.isin(_hashes(db, current, column), hashes)
    alive = db.registry.alive(current)
    rows = np.flatnonzero(same if alive is None else same & alive).astype(np.uint64)
    if not len(rows):
        return ()
    listed = pa.table({"r": arrow_numbers(rows)})
    found = db.registry.engine.query(
        f"SELECT toString({id}) FROM {db.registry.physical(current)} WHERE {ROW} IN (SELECT r FROM Python(listed)) "
        f"ORDER BY {ROW}",
        "ArrowStream",
        tables={"listed": listed},
        user=True,
    ).arrow()
    return tuple(map(_text, found.column(0).to_pylist()))


def _files(db: Database, table: Table) -> dict[Path, tuple[int, tuple[int, ...]]]:
    """The files that hold rows of a table: their sizes, and what tells a file from others by whatever name."""
    registry = db.registry
    where = f"database = {quote_string(table.database)} AND name = {quote_string(table.name)}"
    data = registry.engine.scalar(f"SELECT data_paths[1] FROM system.tables WHERE {where}")
    folders = [registry.table_folder(table), Path(str(data)) if data else None]
    folders += [registry.folder / "rows" / table.row_file.folder] if table.row_file else []
    folders += [registry.folder / name / table.id for name in ("index", "codes", stored.FOLDER)]
    found: dict[Path, tuple[int, tuple[int, ...]]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder and folder.is_dir() else ():
            if path.is_file() and path.name != "format_version.txt":
                stat = path.stat()
                found[path] = stat.st_size, _mark(stat)
    for column in table.columns:
        for segment in column.segments:
            if segment.linked:
                found[Path(segment.file)] = 0, (0, 0)
    return found


def _mark(stat: os.stat_result) -> tuple[int, ...]:
    """What a file keeps under any name, and a new one, which may get the number of one that is gone, does not have."""
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _still(db: Database, before: dict[Path, tuple[int, tuple[int, ...]]]) -> list[str]:
    """Where bytes of those files are all the same: under their names, or as links in the database's folder."""
    marks = {mark for _, mark in before.values()}
    found = {str(path) for path in before if path.exists()}
    for path in db.registry.folder.rglob("*"):
        with suppress(OSError):
            stat = path.lstat()
            if _mark(stat) in marks and path.is_file():
                found.add(str(path))
    return sorted(found)
