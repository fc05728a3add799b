"""Kill -9 of a writer and of readers at random points: no half commit is seen, no row is lost, no snapshot is left.

`CLIPQL_KILLS=1000 pytest tests/readers/test_kills.py` for more of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cases import ALL
from writing import ROOT

import clipql

KILLS = int(os.environ.get("CLIPQL_KILLS", "12" if ALL else "6"))
BATCH = 40  # rows that one INSERT brings
WRITER = """
import random, sys, clipql
rng, first = random.Random(int(sys.argv[2])), int(sys.argv[3])
def told(*words):
    print(*words, flush=True)
with clipql.connect(sys.argv[1]) as db:
    alive = {r[0] for r in db.sql("SELECT DISTINCT intDiv(id, 1000) FROM t").rows}
    told("open", 0)
    while True:
        verb = rng.choices(("insert", "delete", "optimise", "index"), (8, 3, 1, 1))[0]
        batch = first if verb == "insert" else rng.choice(sorted(alive)) if verb == "delete" and alive else 0
        told("begin", verb, batch)
        if verb == "insert":
            db.sql(f"INSERT INTO t SELECT {batch} * 1000 + number AS id, [id, 1] FROM numbers(40)")
            alive.add(batch)
            first += 1
        elif verb == "delete" and alive:
            db.sql(f"DELETE FROM t WHERE intDiv(id, 1000) = {batch}")
            alive.discard(batch)
        elif verb == "optimise":
            db.sql("OPTIMIZE TABLE t FINAL")
        elif verb == "index":
            db.sql("ALTER TABLE t MATERIALIZE INDEX near")
        told("done", verb, batch)
"""
READER = """
import sys, clipql
while True:
    with clipql.connect(sys.argv[1], read_only=True) as db:
        print(db.sql("SELECT count() FROM t").rows[0][0], flush=True)
        list(db.vectors("t", "v"))
"""


@dataclass
class Model:
    """Batches that must be there, and those that may be, as what was under way when a process died is there or not."""

    sure: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)
    going: set[int] = field(default_factory=set)  # of which a DELETE has begun
    next: int = 1

    def take(self, line: str) -> None:
        word, verb, *rest = line.split()
        batch = int(rest[0]) if rest else 0
        if verb not in ("insert", "delete") or not batch:
            return
        self.next = max(self.next, batch + 1)
        if word == "begin":
            self.sure.discard(batch)
            self.open.add(batch)
            if verb == "delete":
                self.going.add(batch)
        else:
            self.open.discard(batch)
            if verb == "insert":
                self.sure.add(batch)

    def check(self, db: clipql.Database) -> None:
        """Whether what is read is a whole commit, with each row's own vector."""
        found = db.sql(
            "SELECT intDiv(id, 1000) AS batch, count(), countIf(v[1] = id AND v[2] = 1), uniqExact(id) FROM t "
            "GROUP BY batch"
        ).rows
        assert {row[1:] for row in found} <= {(BATCH, BATCH, BATCH)}
        batches = {row[0] for row in found}
        assert self.sure <= batches <= self.sure | self.open
        ids = [float(n) for block in db.vectors("t", "v") for n in block.vectors[:, 0]]
        assert sorted(ids) == sorted(float(b * 1000 + i) for b in batches for i in range(BATCH))

    def settle(self, db: clipql.Database) -> None:
        """What was under way is now known."""
        self.check(db)
        self.sure = {row[0] for row in db.sql("SELECT DISTINCT intDiv(id, 1000) FROM t").rows}
        self.open = set()


def begun(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_kills_of_writers_and_readers_leave_no_half_commit_no_lost_row_and_no_snapshot(tmp_path: Path) -> None:
    folder, rng, model = tmp_path / "t.db", random.Random(7), Model()
    with clipql.connect(folder) as db:
        db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
    kills = 0
    while kills < KILLS:
        writer, reader = begun(WRITER, folder, rng.randrange(1 << 30), model.next), begun(READER, folder)
        assert first_line(writer).startswith("open")
        assert first_line(reader)
        seen: list[tuple[set[int], set[int]]] = []
        for _ in range(rng.randrange(3)):
            for _ in range(rng.randrange(1, 12)):
                model.take(first_line(writer))
            sure = set(model.sure)
            with clipql.connect(folder, read_only=True) as db:
                counts = dict(db.sql("SELECT intDiv(id, 1000) AS batch, count() FROM t GROUP BY batch").rows)
            assert set(counts.values()) <= {BATCH}
            seen.append((sure, set(counts)))
        time.sleep(rng.random() * 0.3)
        for process in rng.sample([writer, reader], 2):
            process.kill()
            kills += 1
        for line in (writer.communicate()[0] or "").splitlines():
            model.take(line)
        reader.communicate()
        assert all(sure - model.going <= batches for sure, batches in seen)  # what was acknowledged before is seen
        with clipql.connect(folder, read_only=True) as db:  # nobody has it open, and perhaps a change was cut off
            model.check(db)
        with clipql.connect(folder) as db:
            model.settle(db)
        assert list(folder.glob("tmp/*")) == []
    with clipql.connect(folder) as db:
        assert not db.check(deep=True).damaged
