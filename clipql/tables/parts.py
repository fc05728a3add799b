"""Whether ClickHouse's new parts are on the disk in full.

chDB does not report every error of the disk: where a small write of a part fails (EIO, a full disk), the part may
become active all the same, with an empty file in it, to be put aside as broken at the next open, and its rows with it.
So new parts are looked at before rows are acknowledged; what must stay true: this costs a few calls of stat a part.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import ClipqlError, DatabaseDamaged, StorageError
from clipql.storage import files
from clipql.storage.catalog import Table
from clipql.tables.registry import INTERNAL, Registry
from clipql.tables.unopened import definition_file

# files that ClickHouse does not count among a part's bytes; none of them is ever empty
_UNCOUNTED = {
    "checksums.txt",
    "columns.txt",
    "columns_substreams.txt",
    "default_compression_codec.txt",
    "metadata_version.txt",
    "txn_version.txt",
    "uuid.txt",
}


def check_new(registry: Registry, database: str, name: str) -> None:
    """Look at the active parts of a table that were not looked at before. Raises StorageError, naming the file."""
    where = f"active AND database = {quote_string(database)} AND table = {quote_string(name)}"
    found = registry.engine.arrow(
        f"SELECT path, name, bytes_on_disk AS bytes FROM system.parts WHERE {where}"
    ).to_pylist()
    known = registry.seen_parts.get((database, name), frozenset())
    for part in found:
        if part["path"] not in known:
            _check_part(registry, database, name, part["name"], Path(part["path"]), part["bytes"])
    registry.seen_parts[database, name] = frozenset(part["path"] for part in found)


def _check_part(registry: Registry, database: str, table: str, name: str, folder: Path, expected: int) -> None:
    size = 0
    try:
        for place, _, names in os.walk(folder):
            for file in names:
                length = (Path(place) / file).stat().st_size
                if file in _UNCOUNTED:
                    if not length:
                        raise StorageError(f"{folder / file} is empty: the disk did not take what was written")
                else:
                    size += length
    except OSError:
        return  # merged into another meanwhile
    if size == expected:
        return
    # another version of ClickHouse may count otherwise, so it has the last word
    quoted = f"{quote_name(database)}.{quote_name(table)}"
    with contextlib.suppress(IndexError):
        checked = registry.engine.arrow(
            f"CHECK TABLE {quoted} PART {quote_string(name)} SETTINGS check_query_single_value_result = 0"
        ).to_pylist()[0]
        if not checked["is_passed"]:
            raise StorageError(
                f"part {name} of {quoted} was not written in full: {str(checked['message']).splitlines()[0][:300]}"
            )


def check_changed(registry: Registry, table: Table) -> None:
    """The same after a change of rows that replaced parts; a part that is broken gives way to those it replaced.

    Raises StorageError, or DatabaseDamaged where the parts before are gone.
    """
    try:
        check_new(registry, table.database, table.name)
    except StorageError as error:
        physical, run = registry.physical(table), registry.engine.run
        try:
            run(f"DETACH TABLE {physical} SYNC")
            run(f"ATTACH TABLE {physical}")
            drop_broken(registry, table)
        except ClipqlError as again:
            raise DatabaseDamaged(f"{error}; close the database and open it again ({again})") from error
        raise StorageError(f"{error}; the change was taken back, look after the disk and try again") from error


@contextlib.contextmanager
def mutating(registry: Registry, table: Table) -> Iterator[None]:
    """Have ClickHouse change rows inside; where that fails, it shall not try again later by itself."""
    try:
        yield
        check_changed(registry, table)
    except BaseException:
        with contextlib.suppress(Exception):
            where = f"database = {quote_string(table.database)} AND table = {quote_string(table.name)}"
            registry.engine.run(f"KILL MUTATION WHERE {where} AND NOT is_done SYNC")
        raise
    finally:
        registry.touched([table.id])


def drop_broken(registry: Registry, table: Table) -> None:
    """Remove what ClickHouse has put aside as broken."""
    where = f"database = {quote_string(table.database)} AND table = {quote_string(table.name)}"
    names = registry.engine.arrow(
        f"SELECT name FROM system.detached_parts WHERE reason LIKE 'broken%' AND {where}"
    ).column(0)
    for name in names.to_pylist():
        registry.engine.run(
            f"ALTER TABLE {registry.physical(table)} DROP DETACHED PART {quote_string(name)} "
            "SETTINGS allow_drop_detached = 1"
        )


def definitions(registry: Registry, table: Table) -> dict[Path, bytes]:
    """The files of a table's two definitions, as they are."""
    return {path: path.read_bytes() for path in map(partial(_place, registry), _halves(table)) if path.exists()}


def check_definition(registry: Registry, table: Table, before: Mapping[Path, bytes] | None = None) -> None:
    """Whether both definitions of a table are on the disk: an empty file would keep the database from opening.

    before: what they were; a file that is empty becomes that again, and ClickHouse reads it. Raises StorageError.
    """
    for half, broken in _broken_definitions(registry, _halves(table)):
        if broken and before and broken in before:
            files.replace(broken, before[broken])
            full = ".".join(map(quote_name, half))
            registry.engine.run(f"DETACH TABLE {full} SYNC")
            registry.engine.run(f"ATTACH TABLE {full}")
        if broken:
            raise StorageError(f"{broken} came out empty: the disk did not take what was written; look after it")


def _halves(table: Table) -> tuple[tuple[str, str], tuple[str, str]]:
    return (table.database, table.name), (INTERNAL, table.id)


def _place(registry: Registry, half: tuple[str, str]) -> Path:
    return definition_file(registry.folder / "engine", *half)


def _broken_definitions(
    registry: Registry, halves: Sequence[tuple[str, str]]
) -> list[tuple[tuple[str, str], Path | None]]:
    """Each half with the file of it that is empty, if one is."""
    databases, names = (", ".join(map(quote_string, each)) for each in zip(*halves, strict=True))
    rows = registry.engine.arrow(
        f"SELECT database, name, data_paths FROM system.tables WHERE database IN ({databases}) AND name IN ({names})"
    ).to_pylist()
    placed = {(row["database"], row["name"]): row["data_paths"] for row in rows}
    found = []
    for half in halves:
        places = [_place(registry, half), *(Path(folder) / "format_version.txt" for folder in placed.get(half, ()))]
        found.append((half, next((path for path in places if path.exists() and not path.stat().st_size), None)))
    return found
