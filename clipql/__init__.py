"""Search images and captions by meaning, in SQL.

import clipql
db = clipql.connect("laion.db")
db.ingest("laion400m/", table="laion")
db.sql("SELECT url, caption FROM laion ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 10", q=vector)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipql import errors
from clipql.errors import ClipqlError
from clipql.version import __version__

if TYPE_CHECKING:
    from clipql.care.backup import restore
    from clipql.connection import check, connect
    from clipql.database import Database
    from clipql.ingest.fetch.download import download
    from clipql.result import Result, Stats

__all__ = [
    "ClipqlError", "Database", "Result", "Stats", "__version__", "check", "connect", "download", "errors", "restore",
]  # fmt: skip

_WHERE = {
    "Database": "clipql.database",
    "check": "clipql.connection",
    "connect": "clipql.connection",
    "download": "clipql.ingest.fetch.download",
    "restore": "clipql.care.backup",
    "Result": "clipql.result",
    "Stats": "clipql.result",
}


def __getattr__(name: str) -> Any:
    # pyarrow, numba and chDB take half a second to load: `import clipql` does not wait for them
    if name in _WHERE:
        # kept: the import has left the module clipql.connect under the function's name
        globals()[name] = getattr(import_module(_WHERE[name]), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext clipql` calls; see `clipql.notebook`."""
    from clipql.notebook import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What `%unload_ext clipql` calls."""
    from clipql.notebook import unload

    unload(shell)
