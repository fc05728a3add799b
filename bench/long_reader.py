"""A reader that is held open for long while another process changes everything: are its answers the same to the byte?

    python -m bench.long_reader --minutes 60

Two readers see one moment. One answers again and again, by ClickHouse, the row file, an index, exact searches, joins
and arrays; the other has started nothing and answers only at the end. Meanwhile a writer inserts, deletes, updates,
optimises, builds and drops indexes, adds and drops columns, truncates, renames and drops the table and makes it anew.
At the end nothing but the database may be left of both.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import clipql
from bench.child import environment

ROWS = 3_000
CREATE = "CREATE TABLE t (id UInt64, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
FILL = "INSERT INTO t (id, name, v) SELECT number, 'n' || toString(number), [number, 1] FROM numbers({first}, {rows})"
INDEX = ("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')", "ALTER TABLE t MATERIALIZE INDEX near")
NEAREST = "SELECT id, name, L2Distance(v, {q:Array(Float32)}) AS d FROM t"
SEARCHED = (
    "ORDER BY d, id LIMIT 7",
    "WHERE id % 5 = 0 ORDER BY d LIMIT 20 SETTINGS recall = 1",
    "WHERE d < 30 ORDER BY id",
    "ORDER BY d LIMIT 5 SETTINGS vector_index = 0",
)
ASKED = (
    "SELECT * FROM t ORDER BY id",
    "SELECT count(), sum(id), sum(v[1]), uniqExact(name) FROM t WHERE id % 3 != 1",
    "SHOW CREATE TABLE t",
    "SELECT name, type FROM system.columns WHERE table = 't' ORDER BY name",
    "SELECT a.id, b.id FROM t a, t b WHERE a.id < 40 AND a.id != b.id ORDER BY L2Distance(a.v, b.v) LIMIT 2 BY a.id",
)


def answers(db: clipql.Database) -> list[tuple[str, str]]:
    """Answers of all kinds: what was asked, and a digest of the answer."""
    query = np.array([1_234.4, 1], np.float32)
    found = [(s, db.execute(s, format="RowBinary").output.data) for s in ASKED]
    found += [(tail, repr(db.sql(f"{NEAREST} {tail}", q=query).rows).encode()) for tail in SEARCHED]
    many = db.search_many("t", vectors=[query + i for i in range(0, 300, 100)], column="v", k=3, distance="L2Distance")
    found.append(("search_many", repr([r.rows for r in many]).encode()))
    blocks = db.vectors("t", "v", "id % 2 = 0", columns=["id"])
    arrays = [
        (b.vectors.tobytes(), b.rows.tobytes(), repr({k: v.to_pylist() for k, v in b.values.items()}).encode())
        for b in blocks
    ]
    found.append(("vectors", b"".join(part for block in arrays for part in block)))
    return [(what, hashlib.sha256(data).hexdigest()) for what, data in found]


def step(verb: str, next: int, luck: random.Random) -> list[str]:
    """The statements of one change. next: the first id that was never used."""
    return {
        "insert": [FILL.format(first=next, rows=luck.randint(1, 400))],
        "delete": [f"DELETE FROM t WHERE id % 23 = {luck.randrange(23)}"],
        "update": [f"ALTER TABLE t UPDATE name = 'other' WHERE id % 7 = {luck.randrange(7)}"],
        "optimise": ["OPTIMIZE TABLE t FINAL"],
        "merge": ["OPTIMIZE TABLE t"],
        "build": ["ALTER TABLE t MATERIALIZE INDEX near"],
        "index anew": ["ALTER TABLE t DROP INDEX near", *INDEX],
        "column": ["ALTER TABLE t ADD COLUMN more Int32 DEFAULT 7", "ALTER TABLE t DROP COLUMN more"],
        "rename": ["RENAME TABLE t TO u", "RENAME TABLE u TO t"],
        "truncate": ["TRUNCATE TABLE t", FILL.format(first=next, rows=ROWS)],
        "drop": ["DROP TABLE t", CREATE, FILL.format(first=next, rows=ROWS), *INDEX],
    }[verb]


VERBS = ("insert",) * 6 + (
    "delete", "delete", "update", "optimise", "merge", "build", "index anew", "column", "rename", "truncate", "drop",
)  # fmt: skip


def made(folder: Path) -> None:
    """A database with a table of some parts, an index, rows that came after it, and rows that were deleted."""
    with clipql.connect(folder) as db:
        db.sql(CREATE)
        db.sql(FILL.format(first=0, rows=ROWS))
        for statement in INDEX:
            db.sql(statement)
        db.sql(FILL.format(first=ROWS, rows=100))
        db.sql("DELETE FROM t WHERE id % 41 = 3")


def write(folder: Path, seed: int, pause: float) -> None:
    """Changes without end, each told on standard output."""
    luck, next = random.Random(seed), 10 * ROWS
    with clipql.connect(folder) as db:
        while True:
            verb = luck.choice(VERBS)
            for statement in step(verb, next, luck):
                db.sql(statement)
            next += 2 * ROWS
            print(verb, flush=True)
            time.sleep(pause)


def hold(folder: Path) -> None:
    """A reader in a process of its own that answers, as JSON, when it is told to, and once more after a refresh."""
    with clipql.connect(folder, read_only=True) as db:
        print("open", flush=True)
        for _ in sys.stdin:
            print(json.dumps(answers(db)), flush=True)
            db.refresh()


def run(folder: Path, minutes: float, seed: int, *, every: float = 20.0, pause: float = 0.5) -> list[str]:
    """Hold two readers open beside a writer; what was not the same, which is nothing."""
    made(folder)
    wrong, looks = list[str](), 0
    command = [sys.executable, "-m", "bench.long_reader", "--hold", str(folder)]
    asleep = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment()
    )
    assert asleep.stdin is not None
    assert asleep.stdout is not None
    assert asleep.stdout.readline() == "open\n"
    with clipql.connect(folder, read_only=True) as awake:
        before = answers(awake)
        command = [sys.executable, "-m", "bench.long_reader", "--write", str(folder), str(seed), str(pause)]
        with open(folder.parent / "steps", "w+", encoding="utf-8") as said:
            writer = subprocess.Popen(command, stdout=said, env=environment())
            end = time.monotonic() + 60 * minutes
            try:
                while time.monotonic() < end and not wrong:
                    time.sleep(max(0.0, min(every, end - time.monotonic())))
                    looks += 1
                    wrong += [f"look {looks}: {a[0]}" for a, b in zip(answers(awake), before, strict=True) if a != b]
                    if writer.poll() is not None:
                        wrong.append(f"the writer ended with {writer.returncode}")
                print("now\nlater", file=asleep.stdin, flush=True)
                now, later = ([tuple(a) for a in json.loads(asleep.stdout.readline())] for _ in range(2))
                wrong += [f"at the end: {a[0]}" for a, b in zip(now, before, strict=True) if a != b]
                if later == before:
                    wrong.append("nothing was changed")
            finally:
                asleep.communicate()
                writer.kill()
                writer.wait()
            said.seek(0)
            done = collections.Counter(said.read().splitlines())
    with clipql.connect(folder) as db:
        wrong += [str(f) for f in db.check(deep=True).findings]
        wrong += [f"left: {path.name}" for path in folder.glob("tmp/*")]
    told = ", ".join(f"{n} {verb}" for verb, n in sorted(done.items()))
    print(f"{minutes:g} minutes, {looks} looks beside {done.total()} changes ({told}): {len(wrong)} wrong", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds between two looks")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two changes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(Path(given.write[0]), int(given.write[1]), float(given.write[2]))
    if given.hold:
        hold(Path(given.hold))
        return 0
    place = Path(tempfile.mkdtemp(prefix="clipql-long-"))
    try:
        wrong = run(place / "db", given.minutes, given.seed, every=given.every, pause=given.pause)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
