"""A byte flipped in each 4 KiB of each file of a small database: reported, or harmless, and never a wrong answer.

    python -m bench.flips

Each damaged copy is opened and asked a fixed set of queries, whose answers are compared with those of the whole one,
and checked by `clipql check`. The work is done in child processes, as damage might stop ClickHouse itself.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clipql

BLOCK = 4096
MAKE = [
    "CREATE TABLE t (id UInt32, caption String, kind LowCardinality(String), v Array(Float32), w Array(Float32), \
INDEX near v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO t SELECT number, concat('caption ', toString(number)), ['a', 'b', 'c'][number % 3 + 1], \
arrayMap(i -> sin(number * 7 + i * i), range(16)), arrayMap(i -> cos(number + i), range(4)) FROM numbers(1500)",
    "INSERT INTO t SELECT number, 'late', 'd', arrayMap(i -> sin(number * 7 + i * i), range(16)), [1, 2, 3, number] \
FROM numbers(1500, 100)",
    "DELETE FROM t WHERE id % 50 = 7",
    "ALTER TABLE t MATERIALIZE INDEX near",
    "CREATE TABLE plain (id UInt32, text String) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO plain SELECT number, toString(number) FROM numbers(500)",
    "CREATE VIEW seen AS SELECT id, caption FROM t WHERE kind = 'a'",
]
PLAIN = " SETTINGS vector_plan = 0"
Q = "[0.1, 0.9, -0.7, 0.4, 0.3, 0.2, 0.1, 0, 0.5, -0.5, 0.6, -0.6, 0.7, -0.7, 0.8, -0.8]"
QUERIES = (
    f"SELECT id, caption FROM t ORDER BY L2Distance(v, {Q}) LIMIT 10",
    f"SELECT id, caption, kind FROM t WHERE kind = 'b' AND id > 200 ORDER BY L2Distance(v, {Q}) LIMIT 10",
    f"SELECT id FROM t ORDER BY cosineDistance(v, {Q}) LIMIT 10",
    "SELECT id FROM t ORDER BY L2Distance(w, [0.1, 0.2, 0.3, 0.4]) LIMIT 5",
    "SELECT count(), sum(id), max(caption) FROM t",
    "SELECT count() FROM t",
    "SELECT kind, count() FROM t GROUP BY kind ORDER BY kind",
    "SELECT sum(cityHash64(id, caption, kind, v, w)) FROM t",
    "SELECT count(), sum(cityHash64(id, text)) FROM plain",
    "SELECT count() FROM plain WHERE id > 250",
    "SELECT count() FROM t WHERE id BETWEEN 100 AND 200",
    "SELECT count(), max(caption) FROM seen",
    "SELECT name FROM system.tables WHERE database = 'default' ORDER BY name",
)


def answers(db: clipql.Database) -> list[list[Any]]:
    """The right answers to each query, as JSON has them: by the index, and without it."""
    ways = [db.sql(query).rows for query in QUERIES], [db.sql(query + PLAIN).rows for query in QUERIES]
    return [json.loads(json.dumps(both, default=str)) for both in zip(*ways, strict=True)]


def make(folder: Path) -> list[Any]:
    """The database, and its answers."""
    with clipql.connect(folder) as db:
        for statement in MAKE:
            db.sql(statement)
        return answers(db)


def places(folder: Path) -> list[tuple[str, int]]:
    """The 4 KiB blocks of all files, by file and offset."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.name != "lock")
    return [
        (str(p.relative_to(folder)), at)
        for p in files
        if "metadata_dropped" not in p.parts
        for at in range(0, p.stat().st_size, BLOCK)
    ]


def flipped(source: Path, target: Path, name: str, at: int, luck: random.Random) -> int:
    """A copy with one bit of one byte turned in a block; where."""
    shutil.copytree(source, target, symlinks=True)
    path = target / name
    data = bytearray(path.read_bytes())
    where = luck.randrange(at, min(at + BLOCK, len(data)))
    data[where] ^= 1 << luck.randrange(8)
    path.write_bytes(data)
    return where


def outcome(folder: Path, expected: list[Any]) -> tuple[str, str]:
    """'refused' at opening, 'reported' by a query or the check, 'harmless', or 'WRONG'; and what was said."""
    said = ""
    try:
        with clipql.connect(folder) as db:
            for query, known in zip(QUERIES, expected, strict=True):
                try:
                    found = json.loads(json.dumps(db.sql(query).rows, default=str))
                except clipql.ClipqlError as error:
                    said = said or f"{error}"
                    continue
                if found not in known:
                    with contextlib.suppress(clipql.ClipqlError):
                        return "WRONG", f"{query[:60]}: {str(found)[:80]}; check: {db.check().findings[:1]}"
    except clipql.ClipqlError as error:
        return "refused", str(error)
    report = clipql.check(folder)
    if said or report.findings:
        return "reported", said or str(report.findings[0])
    return "harmless", ""


def child(source: Path, work: Path, seed: int, first: int, every: int) -> None:
    """All flips from the first, told as JSON lines."""
    expected = json.loads((work / "answers.json").read_text())
    for number, (name, at) in enumerate(places(source)):
        if number < first or number % every:
            continue
        target = work / f"flip-{number}"
        where = flipped(source, target, name, at, random.Random(seed * 1_000_003 + number))
        print(json.dumps([number, name, where]), flush=True)
        try:
            print(json.dumps(outcome(target, expected)), flush=True)
        except Exception as error:  # noqa: BLE001
            print(json.dumps(["WRONG", f"{type(error).__name__}: {error}"]), flush=True)
        shutil.rmtree(target)


def run(work: Path, seed: int, every: int, say: Any) -> tuple[dict[str, int], list[str]]:
    """Flip in every so many-th block. How many came out how, and what must not be: WRONG ones."""
    source = work / "source"
    (work / "answers.json").write_text(json.dumps(make(source)))
    counted: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    total, first, began = len(places(source)), 0, time.monotonic()
    while first < total:
        command = [
            sys.executable,
            "-m",
            "bench.flips",
            "--child",
            str(source),
            str(work),
            str(seed),
            str(first),
            str(every),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3000, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        for (number, name, where), (what, said) in zip(lines[::2], lines[1::2], strict=False):
            counted[what] += 1
            say(f"{what:9} {name} byte {where}: {said[:300]}")
            if what == "WRONG":
                wrong.append(f"{name} byte {where}: {said}")
            first = number + 1
        if done.returncode == 0:
            break
        number, name, where = lines[-1] if len(lines[-1]) == 3 else (first, "?", 0)
        counted["stopped"] += 1
        wrong.append(f"{name} byte {where}: the process ended with {done.returncode}")
        say(wrong[-1])
        first = number + 1
    say(f"{sum(counted.values())} flips in {time.monotonic() - began:.0f} s: {dict(counted)}")
    return dict(counted), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th block")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        source, work, *rest = given.child
        child(Path(source), Path(work), *map(int, rest))
        return 0
    place = Path(tempfile.mkdtemp(prefix="clipql-flips-"))
    try:
        counted, wrong = run(place, given.seed, given.every, print if given.verbose else lambda text: None)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(counted), *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
