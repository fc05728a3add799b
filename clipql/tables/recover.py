"""Finish, or take back, what a crash cut off: run at open, and before the next write where a commit failed half-way.

What must stay true: afterwards MergeTree and the catalog agree on which tables and rows there are, and no file lies
about that belongs to neither. Data that the catalog does not know of is removed only where the manifest said that a
change was under way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from pathlib import Path

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import ClipqlError, DatabaseDamaged, QueryError, StorageError
from clipql.projection import stored
from clipql.storage import catalog, files, strays
from clipql.storage.catalog import Catalog, Pending, Table
from clipql.storage.vectors import segments
from clipql.tables import parts
from clipql.tables.registry import FUNCTION, INTERNAL, ROW, Registry
from clipql.tables.vector_expressions import compute_anew, fill, kept_of

_KEPT = "shape of "
LOOK_SECONDS, IDLE_SECONDS = 0.005, 5.0  # between two looks at what ClickHouse does; how long it may do nothing
VERIFIED_AT_OPEN = 256 << 20  # bytes of vectors: 0.02 s where they are in memory, 0.1 s from an NVMe disk


def settle(registry: Registry) -> None:
    """Bring an interrupted change to its end, forwards where all of it is there, backwards where not."""
    pending = registry.catalog.pending
    if pending is None:
        return
    finish = {
        "insert": _insert,
        "create": _create,
        "drop": _drop,
        "replace": _replace,
        "truncate": _truncate,
        "rename": _rename,
        "exchange": _exchange,
        "alter": _alter,
        "rewrite": _rewrite,
        "vectors": _vectors,
    }
    finish[pending.kind](registry, pending)


def check_agreement(registry: Registry) -> None:
    """Compare the catalog with MergeTree, after `settle`. Raises DatabaseDamaged, naming the table that differs."""
    for table in registry.catalog.tables:
        if not _is_there(registry, table):
            raise DatabaseDamaged(
                f"{registry.folder}: table {table.full_name} is in the manifest but not in engine/: restore a backup"
            )
        beyond = registry.engine.scalar(f"SELECT count() FROM {registry.physical(table)} WHERE {ROW} >= {table.rows}")
        if beyond:
            raise DatabaseDamaged(
                f"{registry.folder}: {table.full_name} has {beyond:,} rows beyond the {table.rows:,} of the manifest, "
                "which is older than the table: restore a whole backup, not single files"
            )
        for column in table.columns:
            if column.rows != table.rows:
                raise DatabaseDamaged(
                    f"{registry.folder}: {table.full_name} has {table.rows:,} rows and {column.rows:,} vectors in "
                    f"{column.name}: restore manifest.json from a backup"
                )
    known = {(t.database, t.name) for t in registry.catalog.tables}
    found = registry.engine.arrow(
        f"SELECT database, name FROM system.tables WHERE database != '{INTERNAL}' "
        f"AND create_table_query LIKE '%{FUNCTION}(%' AND engine LIKE '%MergeTree'"
    ).to_pylist()
    for row in found:
        if (row["database"], row["name"]) not in known:
            raise DatabaseDamaged(
                f"{registry.folder}: table {row['database']}.{row['name']} is in engine/ but not in the manifest: "
                "restore manifest.json from a backup"
            )


def verify_vectors(folder: Path, found: Catalog, verified: Catalog | None = None) -> None:
    """Compare segments with their hashes, as many as are read in a moment; linked files first, which others may write.

    verified: an earlier catalog, whose segments are known already.
    Raises DatabaseDamaged, naming the file.
    """
    room = VERIFIED_AT_OPEN
    placed = [(t.id, c.folder, s) for t in found.tables for c in t.columns for s in c.segments]
    known = {s for t in verified.tables for c in t.columns for s in c.segments} if verified else set()
    placed = [each for each in placed if each[2] not in known]
    for id, column, segment in sorted(placed, key=lambda each: not each[2].linked):
        room -= segment.rows * segment.dimension * (2 if segment.dtype == "float16" else 4)
        if room < 0:
            return
        segments.verify(folder / "vectors" / id / column, segment)


def check_parts(engine: Engine, unsettled: bool) -> None:
    """Refuse a database of which ClickHouse has put a part aside, and its rows with it, as if there had been none.

    unsettled: a change was under way, so what is broken may be a part of it. Raises DatabaseDamaged.
    """
    aside = engine.arrow(
        "SELECT database, table, name, path, partition_id AS partition, min_block_number AS low, "
        "max_block_number AS high FROM system.detached_parts WHERE reason LIKE 'broken%' ORDER BY ALL"
    ).to_pylist()
    for part in [] if unsettled else aside:
        where = " AND ".join(f"{k} = {quote_string(part[k] or '')}" for k in ("database", "table"))
        instead = engine.scalar(
            f"SELECT count() FROM system.parts WHERE active AND {where} AND partition_id = "
            f"{quote_string(part['partition'] or '')} AND min_block_number <= {part['high'] or 0} "
            f"AND max_block_number >= {part['low'] or 0}"
        )
        if not instead:  # otherwise the parts that it was merged from are there again
            raise DatabaseDamaged(
                f"ClickHouse has put part {part['name']} of {part['database']}.{part['table']} aside as broken, so its "
                f"rows are missing: restore a backup; to go on without these rows, remove {part['path']}"
            )


def await_mutations(engine: Engine) -> bool:
    """Have what a DELETE or ALTER began before a crash end now: ClickHouse goes on with it by itself, and rows that
    went after the first query would still be among those that are remembered to be there. Whether there was any.

    What it cannot carry out, as on a full disk, is not waited for. It tries anew what failed because our function was
    not there yet: it begins before we do.
    """
    begun_early = f"latest_fail_error_code_name = 'UNKNOWN_FUNCTION' AND latest_fail_reason LIKE '%{FUNCTION}%'"
    failed = f"latest_fail_reason != '' AND NOT ({begun_early})"
    unfinished = f"system.mutations WHERE NOT is_done AND NOT is_killed AND NOT ({failed})"
    worked, waited = time.monotonic(), False
    while engine.scalar(f"SELECT count() FROM {unfinished}") and time.monotonic() < worked + IDLE_SECONDS:
        if engine.scalar(f"SELECT count() FROM {unfinished} AND notEmpty(parts_in_progress_names)"):
            worked = time.monotonic()
        waited = True
        time.sleep(LOOK_SECONDS)
    return waited


def sweep(registry: Registry) -> None:
    """Remove staged rows, shapes of tables that are gone, and files that nothing refers to. Links are not followed, and
    what cannot be removed stays, as for a server that may only read: nothing reads it."""
    known = {t.id for t in registry.catalog.tables}
    rewritten = {t.name for t in registry.catalog.tables if t.database == INTERNAL}
    names = registry.engine.arrow(f"SELECT name FROM system.tables WHERE database = '{INTERNAL}'").column(0).to_pylist()
    for name in names:
        if name not in known | rewritten:
            registry.engine.run(f"DROP TABLE IF EXISTS {INTERNAL}.{quote_name(name)} SYNC")
    _tidy(registry.folder / (catalog.NAME + ".tmp"))
    for stray in (*registry.folder.glob(f"{strays.STAGED}*"), registry.folder / "engine" / "shadow"):
        _tidy(stray)  # of a backup that was cut off
    for folder in files.entries(registry.folder / stored.FOLDER):
        if registry.catalog.by_id(folder.name) is None:
            _tidy(Path(folder.path))
    for folder in files.entries(registry.folder / "vectors"):
        table = registry.catalog.by_id(folder.name)
        if table is None:
            _tidy(Path(folder.path))
            continue
        kept = {(c.folder, name) for c in table.columns for s in c.segments for name in s.files}
        for column in files.entries(Path(folder.path)):
            for file in files.entries(Path(column.path)):
                if (column.name, file.name) not in kept:
                    _tidy(Path(file.path))


def _tidy(stray: Path) -> None:
    with contextlib.suppress(StorageError):
        files.remove(stray)


def take_back_rows(registry: Registry, table: Table) -> None:
    """Remove from MergeTree whatever lies beyond the rows that the catalog knows."""
    physical, run = registry.physical(table), registry.engine.run
    fresh = registry.engine.arrow(f"SELECT _part FROM {physical} GROUP BY _part HAVING min({ROW}) >= {table.rows}")
    for part in fresh.column(0).to_pylist():
        with contextlib.suppress(QueryError):  # merged meanwhile
            run(f"ALTER TABLE {physical} DROP PART {quote_string(part)}")
    # a mutation waits for room on a full disk: not without need
    if registry.engine.scalar(f"SELECT count() FROM {physical} WHERE {ROW} >= {table.rows}"):
        run(f"ALTER TABLE {physical} DELETE WHERE {ROW} >= {table.rows} SETTINGS mutations_sync = 2")


def definition(registry: Registry, database: str, name: str) -> str | None:
    """The CREATE statement of a table as ClickHouse has it; None where there is no such table."""
    found = registry.engine.arrow(
        f"SELECT create_table_query FROM system.tables WHERE database = {quote_string(database)} "
        f"AND name = {quote_string(name)}"
    )
    return str(found.column(0)[0].as_py()) if found.num_rows else None


def _is_there(registry: Registry, table: Table) -> bool:
    """Whether the table that MergeTree has under this name is this one, and not another of the same name."""
    return f"'{table.id}/" in (definition(registry, table.database, table.name) or "")


def _done(registry: Registry, table: Table | None, gone: str | None = None) -> None:
    done = registry.catalog.with_pending(None)
    done = done.with_table(table) if table else done
    _save(registry, done.without(gone) if gone else done)


def _save(registry: Registry, done: Catalog) -> None:
    try:
        registry.save(done)
    except StorageError:
        registry.assume(done)
        raise


def _insert(registry: Registry, pending: Pending) -> None:
    before, after = pending.before, pending.after
    assert before is not None and after is not None, "an insert has a table before and after"
    there = registry.engine.scalar(f"SELECT count() FROM {registry.physical(before)} WHERE {ROW} >= {before.rows}")
    whole = there == after.rows - before.rows
    if there and not whole:
        take_back_rows(registry, before)
    kept, other = (after, before) if whole else (before, after)
    registry.publish(kept)
    _done(registry, kept)
    _remove_segments(registry, other, kept)


def _vectors(registry: Registry, pending: Pending) -> None:
    """Rows were given other vectors, all of which were synced before that was announced.

    The MATERIALIZED columns that are computed from them come last.
    """
    before, after = pending.before, pending.after
    assert before is not None and after is not None, "a change of vectors has a table before and after"
    stored.forget(registry.folder, after)
    folder = registry.table_folder(after)
    whole = all((folder / c.folder / name).exists() for c in after.columns for s in c.segments for name in s.files)
    kept, other = (after, before) if whole else (before, after)
    changed = [c.name for c in after.columns if before.column(c.name) != c]
    registry.touched([kept.id])
    registry.publish(kept)
    computed = kept_of(registry.engine, kept, changed) if whole else []
    if computed:
        try:
            with parts.mutating(registry, kept):
                compute_anew(registry, kept, computed)
        except ClipqlError:  # it is still announced, so the next write, or the next open, computes them
            registry.assume(registry.catalog.with_pending(None).with_table(kept))
            raise
    _done(registry, kept)
    _remove_segments(registry, other, kept)


def _remove_segments(registry: Registry, other: Table, kept: Table) -> None:
    """Remove the files of one state of a table that another does not have."""
    known = {(c.folder, name) for c in kept.columns for s in c.segments for name in s.files}
    for column in other.columns:
        for name in (name for s in column.segments for name in s.files):
            if (column.folder, name) not in known:
                files.remove(registry.folder / "vectors" / other.id / column.folder / name)


def _create(registry: Registry, pending: Pending) -> None:
    table = pending.after
    assert table is not None, "a create has a table after"
    _remove(registry, table)


def _drop(registry: Registry, pending: Pending) -> None:
    table = pending.before
    assert table is not None, "a drop has a table before"
    _remove(registry, table)


def _replace(registry: Registry, pending: Pending) -> None:
    """Something of ClickHouse's was taking the place of a table: where it has come, the table goes, wherever it is."""
    table = pending.before
    assert table is not None, "a replace has a table before"
    if _is_there(registry, table):
        _done(registry, table)
        return
    aside = registry.engine.arrow(
        f"SELECT database, name FROM system.tables WHERE database != '{INTERNAL}' AND engine LIKE '%MergeTree' "
        f"AND position(create_table_query, {quote_string(FUNCTION + chr(40) + chr(39) + table.id + '/')}) > 0"
    )
    for row in aside.to_pylist():
        registry.engine.run(f"DROP TABLE {quote_name(row['database'])}.{quote_name(row['name'])} SYNC")
    _remove(registry, table)


def _remove(registry: Registry, table: Table) -> None:
    if _is_there(registry, table):
        registry.engine.run(f"DROP TABLE IF EXISTS {registry.physical(table)} SYNC")
    registry.engine.run(f"DROP TABLE IF EXISTS {registry.shape(table)} SYNC")
    _done(registry, None, table.id)
    registry.withdraw(table.id)  # not before: where something above fails, the table may still be read
    stored.forget(registry.folder, table)
    files.remove(registry.table_folder(table))  # last: while the manifest names a table, it can be opened


def _truncate(registry: Registry, pending: Pending) -> None:
    after = pending.after
    assert after is not None, "a truncate has a table after"
    registry.engine.run(f"TRUNCATE TABLE {registry.physical(after)} SYNC")
    stored.forget(registry.folder, after)
    registry.touched([after.id])
    _done(registry, after)
    registry.publish(after)


def _rename(registry: Registry, pending: Pending) -> None:
    before, after = pending.before, pending.after
    assert before is not None and after is not None, "a rename has a table before and after"
    _done(registry, after if _is_there(registry, after) else before)


def _exchange(registry: Registry, pending: Pending) -> None:
    """Two tables were getting each other's names, at once: where the one has the other's, the other has its."""
    before, after = pending.before, pending.after
    assert before is not None and after is not None, "an exchange has a table before and after"
    done, other = registry.catalog.with_pending(None), registry.catalog.table(after.database, after.name)
    if _is_there(registry, after):
        done = done.with_table(after)
        if other is not None:
            done = done.with_table(dataclasses.replace(other, database=before.database, name=before.name))
    _save(registry, done)


def _alter(registry: Registry, pending: Pending) -> None:
    """Columns were being changed, on the shape first: go by whether the physical table has changed."""
    before, after = pending.before, pending.after
    assert before is not None and after is not None and pending.definitions, "an alter has a table before and after"
    shape, physical = pending.definitions
    if definition(registry, before.database, before.name) != physical:
        registry.publish(after)
        with contextlib.suppress(QueryError):  # reads compute what is missing
            fill(registry, after)
        _done(registry, after)
        return
    if definition(registry, INTERNAL, before.id) != shape:
        keep_shape(registry, before, shape)
        registry.engine.run(f"EXCHANGE TABLES {_kept(before)} AND {registry.shape(before)}")
        drop_kept_shape(registry, before)
    registry.publish(before)
    _done(registry, before)


def keep_shape(registry: Registry, table: Table, shape: str) -> None:
    """Make a copy of a shape from its definition, where there is none: exchanging the two needs no room on the disk."""
    if definition(registry, INTERNAL, _KEPT + table.id) is None:
        registry.engine.run(re.sub(r"\ACREATE TABLE \S+", lambda m: f"CREATE TABLE {_kept(table)}", shape))


def drop_kept_shape(registry: Registry, table: Table) -> None:
    """Remove the copy; where that fails, the next open does."""
    with contextlib.suppress(QueryError):
        registry.engine.run(f"DROP TABLE IF EXISTS {_kept(table)} SYNC")


def _kept(table: Table) -> str:
    return f"{INTERNAL}.{quote_name(_KEPT + table.id)}"


def _rewrite(registry: Registry, pending: Pending) -> None:
    """A table was being put in the place of its older copy: the one with the user's name stays."""
    before, after = pending.before, pending.after
    assert before is not None and after is not None, "a rewrite has a table before and after"
    made = str(registry.engine.scalar(f"SHOW CREATE TABLE {registry.physical(after)}"))
    exchanged = f"'{after.id}/" in made
    stays, goes = (after, before) if exchanged else (before, after)
    temporary = f"{INTERNAL}.`rewrite of {before.id}`"
    done = registry.catalog.with_pending(None).without(goes.id).with_table(stays)
    registry.touched([stays.id])
    registry.assume(done)  # row numbers are other ones now: nobody may read them by the old catalog
    registry.engine.run(f"DROP TABLE IF EXISTS {temporary} SYNC")
    registry.engine.run(f"DROP TABLE IF EXISTS {registry.shape(goes)} SYNC")
    registry.save(done)
    registry.withdraw(goes.id)
    stored.forget(registry.folder, goes)
    files.remove(registry.table_folder(goes))
