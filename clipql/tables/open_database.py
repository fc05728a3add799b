"""What ingest, checks and backups need of an open database, so that they need not import the class itself."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from clipql.tables.indexes import Indexes
from clipql.tables.registry import Registry


class OpenDatabase(Protocol):
    """An open database folder, its tables and its indexes; leaving it closes it."""

    path: Path

    @property
    def registry(self) -> Registry: ...

    @property
    def indexes(self) -> Indexes: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
