"""ClickHouse, open on one snapshot of a database, goes on to a later one: only tables that differ are attached anew.

Opening it anew instead would take as long, and chDB leaves threads and open files behind for each folder that it has
had open. What must stay true: afterwards ClickHouse has the definitions and parts of the later snapshot, or has to be
opened on it; nothing is written into the later snapshot. No query may run meanwhile.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.storage import files

_FORMAT = "format_version.txt"  # lies in the folder of a MergeTree table, beside its parts
_UUID = re.compile(rb"ATTACH \w+ _ UUID '([0-9a-f-]{36})'")
_KINDS = {b"ATTACH TABLE ": "TABLE", b"ATTACH VIEW ": "VIEW"}


class _OnlyByOpening(Exception):
    """Something differs that cannot be attached."""


@dataclass(frozen=True)
class _Defined:
    """A table or view: its file, what that says, the folder of its data within ClickHouse's, and the names in it."""

    file: str
    text: bytes
    kind: str
    data: str | None
    names: tuple[str, ...]

    @property
    def full_name(self) -> str:
        database, name = self.file.removesuffix(".sql").split("/")
        return f"{quote_name(unquote(database))}.{quote_name(unquote(name))}"

    @property
    def uuid(self) -> str:
        found = _UUID.match(self.text)
        if found is None:
            raise _OnlyByOpening
        return found[1].decode()


def catch_up(engine: Engine, later: Path) -> bool:
    """Bring an open engine to what another folder of ClickHouse's holds; False where that can only be opened.

    Files of parts are hard-linked, so the folders are on one file system. Raises QueryError, StorageError.
    """
    folder = engine.folder
    try:
        if _functions(folder) != _functions(later):
            return False
        old, new = _definitions(folder), _definitions(later)
        known = {d.uuid for d in old.values()} if all(d.uuid for d in new.values()) else set()
    except _OnlyByOpening:
        return False
    if {f.split("/")[0] for f in old} != {f.split("/")[0] for f in new}:
        return False
    gone = [d for file, d in old.items() if new.get(file) != d]
    come = [d for file, d in new.items() if old.get(file) != d]
    for each in gone:
        engine.run(f"DETACH {each.kind} {each.full_name} SYNC")
    with files.translated(folder, "linking a later snapshot into"):
        kept = {d.data for d in new.values()}
        for each in gone:
            (folder / "metadata" / each.file).unlink(missing_ok=True)
            if each.data:
                _place(folder, each).unlink(missing_ok=True)
            if each.data and each.data not in kept:
                shutil.rmtree(folder / each.data, ignore_errors=True)
        for each in come:
            if each.data:
                _link(later / each.data, folder / each.data)
            if each.uuid in known:
                (folder / "metadata" / each.file).write_bytes(each.text)
    for each in sorted(come, key=lambda d: d.kind):
        named = f"ATTACH {each.kind} {each.full_name}"
        # one that ClickHouse has never had is attached by its whole definition, which it then writes itself
        engine.run(named if each.uuid in known else named + each.text.decode().partition(" _")[2])
        if each.data and not _place(folder, each).is_symlink():
            _place(folder, each).symlink_to(Path("..", "..", each.data))
    return True


def _place(folder: Path, defined: _Defined) -> Path:
    """The link by which ClickHouse finds a table's folder."""
    return folder / "data" / defined.file.removesuffix(".sql")


def _functions(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "user_defined").glob("*.sql")}


def _definitions(folder: Path) -> dict[str, _Defined]:
    """All tables and views by their files. Raises _OnlyByOpening for what is neither."""
    found = {}
    for database in (folder / "metadata").iterdir():
        for path in database.glob("*.sql") if database.is_dir() else ():
            text, file = path.read_bytes(), f"{database.name}/{path.name}"
            kind = next((kind for begin, kind in _KINDS.items() if text.startswith(begin)), None)
            if kind is None:
                raise _OnlyByOpening
            data, names = None, tuple[str, ...]()
            place = folder / "data" / file.removesuffix(".sql")
            if place.is_symlink() and place.is_dir():
                data = os.path.relpath(place.resolve(), folder.resolve())
                names = tuple(sorted(_names(place)))
            elif kind == "TABLE":
                raise _OnlyByOpening
            found[file] = _Defined(file, text, kind, data, names)
    return found


def _names(place: Path) -> Iterator[str]:
    """The parts of a table. Raises _OnlyByOpening for one that is not MergeTree's, whose files may be appended to."""
    if not (place / _FORMAT).exists():
        raise _OnlyByOpening
    for entry in os.scandir(place):
        if not entry.name.startswith(("tmp_", "delete_tmp_")):
            yield entry.name


def _link(source: Path, target: Path) -> None:
    """Have a table's folder hold what another one holds."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = set(os.listdir(source))
    for name in os.listdir(target):
        if name not in wanted:
            files.remove(target / name)
    for name in wanted:
        if not (source / name).is_dir():
            shutil.copy2(source / name, target / name)
        elif not (target / name).exists():
            shutil.copytree(source / name, target / name, copy_function=os.link)
