"""Projections that are kept in a database's folder, in `maps/`: a file for each column and method.

They are derived, as indexes are: losing one loses no data, and one that is damaged, or of other vectors, is fitted
anew. What must stay true: a file is whole or is not taken; what is kept of a table goes with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from clipql.errors import ClipqlError
from clipql.projection.fitting import Projection
from clipql.projection.labels import Label
from clipql.storage import files
from clipql.storage.catalog import Table, VectorColumn

FOLDER = "maps"
_VERSION = 1
_LARGEST = 1 << 26  # bytes
_LENGTH = struct.Struct("<I")


def place(database: Path, table: Table, column: VectorColumn, method: str) -> Path:
    """Where the projection of a column is kept."""
    return database / FOLDER / table.id / f"{column.folder}-{column.revision}-{method}.map"


def keep(database: Path, table: Table, column: VectorColumn, projection: Projection) -> None:
    """Write it, and remove those of other vectors that the column had. Raises StorageError."""
    path = place(database, table, column, projection.method)
    files.make_folder(path.parent)
    axes = projection.axes if projection.axes is not None else np.empty((0, 0), np.float32)
    arrays = (projection.rows, projection.places, axes)
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    head = {
        "version": _VERSION,
        "hash": xxhash.xxh3_64_hexdigest(body),
        "method": projection.method,
        "points": len(projection.rows),
        "axes": list(axes.shape),
        "covered": projection.covered,
        "looked": projection.looked,
        "step": projection.step,
        "witness": projection.witness,
        "labels": [dataclasses.asdict(label) for label in projection.labels],
    }
    told = json.dumps(head).encode()
    files.replace(path, _LENGTH.pack(len(told)) + told + body)
    for other in files.entries(path.parent):
        if other.name.startswith(f"{column.folder}-") and not other.name.startswith(
            f"{column.folder}-{column.revision}-"
        ):
            files.remove(Path(other.path))


def read(database: Path, table: Table, column: VectorColumn, method: str) -> Projection | None:
    """A projection that was kept; None where there is none, or it is not whole."""
    path = place(database, table, column, method)
    with contextlib.suppress(ClipqlError, OSError, ValueError, KeyError, TypeError, struct.error):
        data = files.read_plain(path, most=_LARGEST)
        (length,) = _LENGTH.unpack_from(data)
        body = data[_LENGTH.size + length :]
        head: Mapping[str, Any] = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        if head["version"] != _VERSION or head["method"] != method or xxhash.xxh3_64_hexdigest(body) != head["hash"]:
            return None
        n, (tall, wide) = int(head["points"]), head["axes"]
        rows = np.frombuffer(body, np.int64, n)
        places = np.frombuffer(body, np.float32, 2 * n, rows.nbytes).reshape(n, 2)
        axes = np.frombuffer(body, np.float32, tall * wide, rows.nbytes + places.nbytes).reshape(tall, wide)
        looked, step = int(head["looked"]), int(head["step"])
        # a folder may be somebody else's: nothing is looked up by numbers that are no rows of the column
        if step < 1 or (n and (rows[0] < 0 or rows[-1] >= looked or (np.diff(rows) < 1).any())):
            return None
        if not (np.abs(places) <= 1).all():
            return None
        return Projection(
            method,
            rows,
            places,
            int(head["covered"]),
            looked,
            step,
            str(head["witness"]),
            axes if tall else None,
            tuple(Label(**label) for label in head["labels"]),
        )
    return None


def forget(database: Path, table: Table) -> None:
    """Remove what is kept of a table. Links are not followed."""
    files.remove(database / FOLDER / table.id)
