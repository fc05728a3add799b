"""The way to a database: a folder, the address of a server or the address of a cluster; each is loaded when asked for.

What must stay true: this stands above all three and is imported by none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipql.care.report import CheckReport
    from clipql.database import Database


def place(path: str | os.PathLike[str] | None = None) -> str | os.PathLike[str]:
    """Where a database is: the path, $CLIPQL_DB for None, and ./clipql.db without that."""
    return path if path is not None else os.environ.get("CLIPQL_DB") or "clipql.db"


def connect(
    path: str | os.PathLike[str] | None = None, *, model: str | None = None, token: str | None = None
) -> Database:
    """Open a database folder, which is made if it is not there, or reach a server (http://…) or a cluster
    (ray://host:port) by its address.

    path: the folder; None for $CLIPQL_DB, and ./clipql.db without that. token: what a server asks for, None for
    $CLIPQL_TOKEN. model: of encode_text and encode_image, a name
    or a folder; None for $CLIPQL_MODEL, and without that the one that filled the columns asked for.
    Raises DatabaseLocked (another process has it), DatabaseVersion, DatabaseDamaged or NotADatabase; ServerError for a
    server that does not answer, or asks for another token.
    """
    where = place(path)
    if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
        from clipql.serve.client import RemoteDatabase

        return RemoteDatabase(where, token=token)
    if isinstance(where, str) and where.lower().startswith("ray://"):
        from clipql.cluster.database import ClusterDatabase

        return ClusterDatabase.at(where, model=model)
    from clipql.database import Database

    return Database(where, model=model)


def check(
    path: str | os.PathLike[str], *, deep: bool = False, progress: Callable[[str], None] | None = None
) -> CheckReport:
    """Check a database folder that nobody has open; see `clipql.care.check.check_folder`."""
    from clipql.care.check import check_folder
    from clipql.database import Database

    return check_folder(path, Database, deep=deep, progress=progress)
