"""A process that opens a reader and has workers; what they saw is written as JSON. ClickHouse has not run in it."""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from writing import Writer

import clipql


def share(db: clipql.Database, worker: int, workers: int, to: Connection) -> None:
    """What a worker of a data loader does: its share of the blocks; one of them a statement, too."""
    mine = [b for i, b in enumerate(db.vectors("t", "half", "id >= 10")) if i % workers == worker]
    counted = db.sql("SELECT count() FROM t").rows[0][0] if worker else None
    to.send(([int(n) for b in mine for n in b.rows], counted))
    to.close()


def shared(folder: Path, method: str) -> list[Any]:
    """Two workers of a reader, after the writer has gone on."""
    context: Any = multiprocessing.get_context(method)
    with clipql.connect(folder, read_only=True) as db:
        with Writer(folder) as writer:
            writer.run("INSERT INTO t SELECT number, 'new', [number, 1], [number, 1] FROM numbers(900, 50)")
        found = []
        for worker in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=share, args=(db, worker, 2, theirs))
            process.start()
            theirs.close()
            found.append(ours.recv())
            process.join()
    with clipql.connect(folder, read_only=True):  # which removes what killed workers left
        return [*found, len(list(folder.glob("tmp/*"))) - 1]


def child(db: clipql.Database, to: Connection) -> None:
    """Reads when it is told to."""
    to.recv()
    to.send(db.sql("SELECT count() FROM t").rows[0][0])
    db.close()
    to.close()


def outlived(folder: Path) -> list[int]:
    """Snapshots while a fork has its parent's, what it reads then, and snapshots after it."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    db = clipql.connect(folder, read_only=True)
    process = context.Process(target=child, args=(db, theirs))
    process.start()
    db.close()
    with Writer(folder):  # which sweeps
        held = len(list(folder.glob("tmp/*")))
    ours.send(None)
    rows = ours.recv()
    process.join()
    return [held, rows, len(list(folder.glob("tmp/*")))]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.stdout.write(json.dumps(shared(place, sys.argv[3]) if sys.argv[2] == "share" else outlived(place)))
