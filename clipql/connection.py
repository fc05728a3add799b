"""The way to a database: a folder, the address of a server or the address of a cluster; each is loaded when asked for.

What must stay true: this stands above all three and is imported by none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

from clipql.errors import QueryError

if TYPE_CHECKING:
    from clipql.care.report import CheckReport
    from clipql.database import Database
    from clipql.reader import ReadOnlyDatabase


def place(path: str | os.PathLike[str] | None = None) -> str | os.PathLike[str]:
    """Where a database is: the path, $CLIPQL_DB for None, and ./clipql.db without that."""
    return path if path is not None else os.environ.get("CLIPQL_DB") or "clipql.db"


def reads_only() -> bool:
    """Whether folders are opened to be read unless it is said: $CLIPQL_READ_ONLY."""
    return os.environ.get("CLIPQL_READ_ONLY", "") in ("1", "true")


@overload
def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    read_only: Literal[True],
    follow: bool = False,
    behind_seconds: float | None = None,
    model: str | None = None,
) -> ReadOnlyDatabase: ...


@overload
def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    read_only: bool | None = None,
    follow: bool = False,
    behind_seconds: float | None = None,
    model: str | None = None,
    token: str | None = None,
) -> Database: ...


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    read_only: bool | None = None,
    follow: bool = False,
    behind_seconds: float | None = None,
    model: str | None = None,
    token: str | None = None,
) -> Database:
    """Open a database folder, which is made if it is not there, or reach a server (http://…) or a cluster
    (ray://host:port) by its address.

    path: the folder; None for $CLIPQL_DB, and ./clipql.db without that. read_only: see the folder as it was at its
    last commit, whoever writes it meanwhile; None for whether $CLIPQL_READ_ONLY is 1. follow: with read_only, see each
    commit at the next statement, and not only after `refresh()`. behind_seconds: with follow, by how much a statement
    may be behind: commits are then taken in the background, and no statement waits for one that is newer. token: what
    a server asks for, None for $CLIPQL_TOKEN. model: of encode_text and encode_image, a name or a folder; None for
    $CLIPQL_MODEL, and without that the one that filled the columns asked for.
    Raises DatabaseLocked (another process writes it), DatabaseVersion, DatabaseDamaged or NotADatabase; ServerError for
    a server that does not answer, or asks for another token.
    """
    if behind_seconds is not None and not (follow and behind_seconds >= 0):
        raise QueryError(f"behind_seconds={behind_seconds} goes with follow=True, and is 0 or more")
    where = place(path)
    remote = isinstance(where, str) and where.lower().startswith(("http://", "https://", "ray://"))
    if (read_only or follow) and remote:
        raise QueryError(f"read_only and follow are for a database folder, and {where} is none")
    if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
        from clipql.serve.client import RemoteDatabase

        return RemoteDatabase(where, token=token)
    if isinstance(where, str) and where.lower().startswith("ray://"):
        from clipql.cluster.database import ClusterDatabase

        return ClusterDatabase.at(where, model=model)
    if reads_only() if read_only is None else read_only:
        from clipql.reader import ReadOnlyDatabase

        return ReadOnlyDatabase(where, model=model, follow=follow, behind_seconds=behind_seconds)
    if follow:
        raise QueryError("follow is for a database that is opened with read_only=True")
    from clipql.database import Database

    database = Database(where, model=model)
    database.indexes.resume()
    return database


def check(
    path: str | os.PathLike[str], *, deep: bool = False, progress: Callable[[str], None] | None = None
) -> CheckReport:
    """Check a database folder that nobody has open; see `clipql.care.check.check_folder`."""
    from clipql.care.check import check_folder
    from clipql.database import Database

    return check_folder(path, Database, deep=deep, progress=progress)
