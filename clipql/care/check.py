"""`clipql check`: is a database what was written?

What must stay true: whatever is damaged, the check ends with a report and not with an error; it changes nothing but
what every opening changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clipql.care.in_engine import check_engine, check_open
from clipql.care.on_disk import Tally, check_files
from clipql.care.report import CheckReport
from clipql.engine.embedded import Engine
from clipql.errors import ClipqlError, DatabaseLocked, NotADatabase
from clipql.storage import catalog as manifest
from clipql.storage import files, places, strays
from clipql.storage.catalog import Catalog

if TYPE_CHECKING:
    from clipql.tables.open_database import OpenDatabase

Tick = Callable[[str], None]


def check_folder(
    path: str | os.PathLike[str],
    open_database: Callable[[Path], OpenDatabase],
    *,
    deep: bool = False,
    progress: Tick | None = None,
) -> CheckReport:
    """Check a database folder that nobody has open. open_database: how to open it.

    All files are read and compared with their hashes, ClickHouse checks its parts, row numbers and a sample of queries
    by each index are compared with what must be. deep: also every stored value of the row files, every vector, every
    list of an index, and more queries. progress: told what is being read. Raises DatabaseLocked where it is open,
    NotADatabase where the folder is none.
    """
    Engine.refuse_fork()
    folder, began, tally = Path(path).absolute(), time.perf_counter(), Tally(progress or (lambda what: None))
    if not folder.is_dir() or not ((folder / manifest.NAME).exists() or (folder / "engine").exists()):
        raise NotADatabase(f"there is no database in {folder}")
    lock = files.FolderLock(folder)
    try:
        if not _is_closed(folder, tally):
            return _report(folder, Catalog(), tally, began, deep=deep)
        found = _manifest(folder, tally)
        check_files(folder, found or Catalog(), tally, deep=deep)
    finally:
        lock.release()
    beyond_opening = found is None or any(f.what in ("segment", "manifest") for f in tally.findings)
    if not beyond_opening:
        try:
            with open_database(folder) as db:
                found = db.registry.catalog
                check_engine(db.registry.engine, tally)
                check_open(db, tally, deep=deep)
        except DatabaseLocked:
            raise
        except ClipqlError as error:
            tally.add("database", "", f"it does not open: {error}")
            beyond_opening = True
    if beyond_opening:
        _check_engine_alone(folder, tally)
    return _report(folder, found or Catalog(), tally, began, deep=deep)


def check_database(db: OpenDatabase, *, deep: bool = False, progress: Tick | None = None) -> CheckReport:
    """The same of an open database. Writers wait until it is done, readers do not."""
    Engine.refuse_fork()
    began, tally = time.perf_counter(), Tally(progress or (lambda what: None))
    registry = db.registry
    with registry.write_lock:
        if not _is_closed(registry.folder, tally):
            return _report(db.path, registry.catalog, tally, began, deep=deep)
        _manifest(registry.folder, tally)
        check_files(registry.folder, registry.catalog, tally, deep=deep)
        check_engine(registry.engine, tally)
        if not any(f.what == "segment" for f in tally.findings):
            check_open(db, tally, deep=deep)
        return _report(db.path, registry.catalog, tally, began, deep=deep)


def _is_closed(folder: Path, tally: Tally) -> bool:
    """Whether nothing leads out of the folder; what does is told, and then nothing is read."""
    tally.tick(f"what lies in {folder}")
    try:
        for path, what in strays.find(folder):
            tally.add("folder", "", f"{path} is {what}, which no database of clipql has, so nothing was read")
    except ClipqlError as error:
        tally.add("folder", "", str(error))
    return not tally.findings


def _manifest(folder: Path, tally: Tally) -> Catalog | None:
    tally.reading(folder / manifest.NAME)
    try:
        return manifest.load(folder)
    except ClipqlError as error:
        tally.add("manifest", "", str(error))
        return None


def _check_engine_alone(folder: Path, tally: Tally) -> None:
    """ClickHouse's half, where the whole does not open."""
    if not (folder / "engine").is_dir():
        tally.add("database", "", f"{folder / 'engine'} is missing, where the rows are")
        return
    lock = files.FolderLock(folder)
    try:
        engine = Engine(folder / "engine")
        try:
            check_engine(engine, tally)
        finally:
            engine.close()
    except DatabaseLocked:
        raise
    except ClipqlError as error:
        tally.add("MergeTree", "", str(error))
    finally:
        lock.release()


def _report(folder: Path, found: Catalog, tally: Tally, began: float, *, deep: bool) -> CheckReport:
    return CheckReport(
        path=folder,
        deep=deep,
        tables=len(found.tables),
        rows=sum(t.rows for t in found.tables),
        files=tally.files,
        bytes=tally.bytes,
        seconds=time.perf_counter() - began,
        findings=tuple(tally.findings),
        held=places.held(folder),
        notes=tuple(f"{t.full_name}, {c.name}: {c.absence}" for t in found.tables for c in t.columns if c.absent),
    )
