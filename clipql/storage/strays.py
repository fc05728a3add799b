"""What may lie in the folder of a database or of a backup: folders, files, and the links by which ClickHouse finds its
tables.

A folder may come from somebody else. What must stay true: nothing in it leads out of it, so that whoever reads,
overwrites or removes what is below a folder that was looked at here touches nothing else; a name that is read from a
file of the folder names something in its own place.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipql.errors import DatabaseDamaged
from clipql.storage import files

# ClickHouse's half, where a database and a table are links into engine/store
ENGINE = "engine"
# how the folder begins, within the database, in which a backup gathers what it will copy
STAGED = ".backup-"
# the folder within the database in which each running server has a place of its own
SCRATCH = "tmp"
_NAME = re.compile(r"[^/\\\0]{1,255}")


def is_name(value: object) -> bool:
    """Whether a value, as it was read from a file, is the name of something in a folder, and of nothing outside it."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and value not in (".", "..")


def find(folder: Path) -> Iterator[tuple[Path, str]]:
    """What does not belong in a database's folder: its path, and what it is. Follows nothing."""
    waiting: list[tuple[str, int | None]] = [(os.fspath(folder), None)]
    while waiting:
        place, depth = waiting.pop()
        for entry in _listed(place):
            top = place == os.fspath(folder)
            if top and (entry.name.startswith(STAGED) or (entry.name == SCRATCH and not entry.is_symlink())):
                continue  # what is in them is removed, and never read
            if entry.is_symlink():
                target = os.readlink(entry.path)
                if depth is None or not _stays(target, depth):
                    yield Path(entry.path), f"a symbolic link to {target}"
            elif top and entry.name == SCRATCH:
                continue  # of servers, which link the engine's files there: it is removed, and only theirs is read
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(
                    (entry.path, 0 if top and entry.name == ENGINE else None if depth is None else depth + 1)
                )
            elif not entry.is_file(follow_symlinks=False):
                yield Path(entry.path), "neither a file nor a folder"


def _listed(place: str) -> list[os.DirEntry[str]]:
    with files.translated(Path(place), "listing"), contextlib.suppress(FileNotFoundError), os.scandir(place) as found:
        return list(found)
    return []  # ClickHouse has merged it away meanwhile


def refuse(folder: Path) -> None:
    """Raise DatabaseDamaged, naming it, for the first thing that does not belong in a database's folder."""
    for path, what in find(folder):
        raise DatabaseDamaged(
            f"{path} is {what}, which no database of clipql has: a folder of somebody else's may lead anywhere by it; "
            "put what it leads to in its place (a folder of another disk by `mount --bind`), or remove it"
        )


def _stays(target: str, depth: int) -> bool:
    """Whether a link in a folder so far below engine/ stays below it: it goes up by no more than that, and then down.

    As `..` never comes after a name, this holds also where the way down goes over further links, which are looked at
    themselves.
    """
    parts = target.split("/")
    up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return up <= depth and up < len(parts) and all(is_name(part) for part in parts[up:])
