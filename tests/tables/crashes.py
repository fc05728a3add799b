"""What is on disk at each step of an operation: the states that a crash there would leave.

A process that dies by SIGKILL leaves what it has written so far, so a copy of the folder between two steps is what the
next open would find. `steps` calls back at every such place; the caller copies, or kills the process for real.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from clipql.engine.embedded import Engine
from clipql.storage import files

READS = ("SELECT", "DESCRIBE", "EXISTS", "SHOW", "WITH")


@contextlib.contextmanager
def steps(at: Callable[[str], None]) -> Iterator[None]:
    """Call `at` with a name at every step of what runs inside: each rename, removal, statement and insert."""

    def around(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            at(f"after {name} {Path(str(args[0])).name}")
            return result

        return call

    query, insert, unlink = Engine.query, Engine.insert, Path.unlink

    def queried(self: Engine, sql: str, *args: Any, **options: Any) -> Any:
        result = query(self, sql, *args, **options)
        if not sql.lstrip("( ").startswith(READS):
            at(f"after {sql[:60]}")
        return result

    def inserted(self: Engine, head: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        def watched() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield batch
                at(f"during {head[:60]}")

        insert(self, head, schema, watched())
        at(f"after {head[:60]}")

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        at(f"after unlink {self.name}")

    with (
        mock.patch.object(os, "replace", around(os.replace, "replace")),
        mock.patch.object(files, "remove", around(files.remove, "remove")),
        mock.patch.object(Engine, "query", queried),
        mock.patch.object(Engine, "insert", inserted),
        mock.patch.object(Path, "unlink", unlinked),
    ):
        yield


def copy_folder(source: Path, target: Path) -> None:
    """Copy a database folder that is in use; ClickHouse may be removing merged parts meanwhile."""
    for attempt in range(20):
        try:
            shutil.copytree(source, target, symlinks=True)
        except shutil.Error:
            shutil.rmtree(target, ignore_errors=True)
            if attempt == 19:
                raise
        else:
            return
