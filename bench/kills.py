"""Random kills over one database that lives on: after each, is every acknowledged row there, once, with its own vector?

    python -m bench.kills --kills 200 --seed 1

A child process inserts, ingests, deletes, optimises, builds indexes and renames, and says before and after each what
it does; it is killed (SIGKILL) at a random time, at times while it opens the database. Every vector follows from its
row's id, so a row with another's vector is seen. Whatever was acknowledged must be there; what was under way may be
there or not, as a whole.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clipql

DIMENSION = 8
VERBS = {
    "insert": 6,
    "big insert": 1,
    "ingest": 3,
    "file": 3,
    "delete": 3,
    "optimise": 1,
    "merge": 1,
    "index": 2,
    "rename": 2,
    "other": 1,
}


def vectors(ids: Any) -> Any:
    """The vectors of these ids, float32 (n, 8): each number is exactly a float16, and no two ids have the same."""
    ids = np.asarray(ids, np.int64)[:, None]
    digits = (ids >> (4 * np.arange(DIMENSION))) & 15
    return (digits + 1).astype(np.float32)


@dataclass
class Model:
    """What must be in the database. rows: ids; table: its name now; next: the next id; part: the next part's number."""

    rows: set[int] = field(default_factory=set)
    table: str = "one"
    next: int = 0
    part: int = 0
    other: bool = False

    def after(self, step: dict[str, Any]) -> Model:
        """What must be there once a step is done."""
        done = Model(set(self.rows), self.table, self.next, self.part, self.other)
        if step["verb"] in ("insert", "big insert", "ingest", "file"):
            done.rows |= set(range(step["first"], step["first"] + step["rows"]))
        elif step["verb"] == "delete":
            done.rows = {i for i in self.rows if i % 37 != step["rest"]}
        elif step["verb"] == "rename":
            done.table = step["to"]
        elif step["verb"] == "other":
            done.other = not self.other
        return done

    def reserve(self, step: dict[str, Any]) -> None:
        """Ids and parts are used once, whatever became of them."""
        self.next = max(self.next, step.get("first", 0) + step.get("rows", 0))
        self.part = max(self.part, step.get("part", -1) + 1)


def plan(model: Model, luck: random.Random) -> dict[str, Any]:
    """The next step."""
    verb = luck.choices(list(VERBS), list(VERBS.values()))[0]
    step: dict[str, Any] = {"verb": verb}
    if verb in ("insert", "big insert", "ingest", "file"):
        sizes = {"insert": (1, 300), "big insert": (60_000, 60_000), "ingest": (50, 2000), "file": (50, 60_000)}
        rows = luck.randint(*sizes[verb])
        step |= {"first": model.next, "rows": rows, "part": model.part}
    elif verb == "delete":
        step["rest"] = luck.randrange(37)
    elif verb == "rename":
        step["to"] = "two" if model.table == "one" else "one"
    return step


def carry_out(db: clipql.Database, model: Model, step: dict[str, Any], work: Path) -> None:
    """Do a step."""
    verb, table = step["verb"], model.table
    if verb in ("insert", "big insert"):
        digits = ", ".join(f"toFloat32(bitAnd(bitShiftRight(number, {4 * i}), 15) + 1)" for i in range(DIMENSION))
        db.sql(
            f"INSERT INTO {table} (id, caption, image_embedding) SELECT number, toString(number), [{digits}] "
            f"FROM numbers({step['first']}, {step['rows']})"
        )
    elif verb == "ingest":
        ids = np.arange(step["first"], step["first"] + step["rows"])
        np.save(work / f"img_emb_{step['part']}.npy", vectors(ids).astype(np.float16))
        pq.write_table(
            pa.table({"id": ids, "caption": [str(i) for i in ids]}), work / f"metadata_{step['part']}.parquet"
        )
        db.ingest(work, table=table, parts=str(step["part"]))
    elif verb == "file":
        ids = np.arange(step["first"], step["first"] + step["rows"])
        rows = {"id": ids, "caption": [str(i) for i in ids], "image_embedding": list(vectors(ids))}
        pq.write_table(pa.table(rows), work / f"rows_{step['part']}.parquet")
        db.ingest(work / f"rows_{step['part']}.parquet", table=table)
    elif verb == "delete":
        db.sql(f"DELETE FROM {table} WHERE id % 37 = {step['rest']}")
    elif verb == "optimise":
        db.sql(f"OPTIMIZE TABLE {table} FINAL")
    elif verb == "merge":
        db.sql(f"OPTIMIZE TABLE {table}")
    elif verb == "index":
        db.sql(f"ALTER TABLE {table} MATERIALIZE INDEX near")
    elif verb == "rename":
        db.sql(f"RENAME TABLE {table} TO {step['to']}")
    elif model.other:
        db.sql("DROP TABLE other")
    else:
        db.sql(f"CREATE TABLE other ENGINE = MergeTree ORDER BY id AS SELECT * FROM {table} LIMIT 100")


def child(folder: Path, work: Path, state: str, seed: int) -> None:
    """Steps without end, told on standard output."""
    given = json.loads(state)
    model, luck = Model(set(), given["table"], given["next"], given["part"], given["other"]), random.Random(seed)
    with clipql.connect(folder) as db:
        print("ready", flush=True)
        while True:
            step = plan(model, luck)
            print(json.dumps(step), flush=True)
            carry_out(db, model, step, work)
            print("done", flush=True)
            model = model.after(step | {"verb": step["verb"] if step["verb"] in ("rename", "other") else ""})
            model.reserve(step)


def check(db: clipql.Database, model: Model, luck: random.Random) -> str | None:
    """What is wrong with a database that should be as the model says."""
    names = {name for (name,) in db.sql("SHOW TABLES").rows}
    if names != {model.table} | ({"other"} if model.other else set()):
        return f"tables {sorted(names)}"
    for name in sorted(names):
        found = db.sql(f"SELECT id, caption, image_embedding FROM {name}").arrow()
        ids = found.column(0).to_numpy()
        if len(np.unique(ids)) != len(ids):
            return f"{name}: {len(ids) - len(np.unique(ids))} rows are there twice"
        if name == model.table and set(ids.tolist()) != model.rows:
            lost, more = len(model.rows - set(ids.tolist())), len(set(ids.tolist()) - model.rows)
            return f"{name}: {lost} rows are lost, {more} are too many"
        flat = found.column(2).combine_chunks().flatten().to_numpy()
        if not np.array_equal(flat.reshape(-1, DIMENSION), vectors(ids)):
            return f"{name}: a row has another's vector"
        if found.column(1).to_pylist() != [str(i) for i in ids]:
            return f"{name}: a row has another's caption"
        for _ in range(3 if len(ids) else 0):
            wanted = int(luck.choice(ids.tolist()))
            query = vectors([wanted])[0]
            near = db.sql(
                f"SELECT id, caption FROM {name} ORDER BY L2Distance(image_embedding, {{q:Array(Float32)}}) LIMIT 1",
                q=query,
            ).rows
            if near != [(wanted, str(wanted))]:
                return f"{name}: the search for the vector of {wanted} gives {near}"
    return None


def run(folder: Path, work: Path, kills: int, seed: int, say: Any = print) -> list[str]:
    """Kill so many times; what went wrong, which is nothing."""
    luck, model, wrong, counted = random.Random(seed), Model(), [], collections.Counter()
    with clipql.connect(folder) as db:
        db.sql(
            "CREATE TABLE one (id Int64, caption String, image_embedding Array(Float32), "
            "INDEX near image_embedding TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
        )
    began = time.monotonic()
    for number in range(kills):
        state = json.dumps({"table": model.table, "next": model.next, "part": model.part, "other": model.other})
        command = [
            sys.executable,
            "-m",
            "bench.kills",
            "--child",
            str(folder),
            str(work),
            state,
            str(seed * 1000 + number),
        ]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        early = luck.random() < 0.1
        lines = [] if early else [started.stdout.readline()]
        time.sleep(luck.uniform(0, 1.5))
        started.send_signal(signal.SIGKILL)
        rest, _ = started.communicate()
        if started.returncode != -signal.SIGKILL:
            wrong.append(f"kill {number}: the child ended by itself with {started.returncode}")
        lines += rest.splitlines()
        under_way = None
        for line in lines:
            if line.startswith("{") and line.rstrip().endswith("}"):
                under_way = json.loads(line)
                model.reserve(under_way)
            elif line.startswith("done") and under_way:
                model, under_way = model.after(under_way), None
        counted[under_way["verb"] if under_way else "between steps"] += 1
        try:
            with clipql.connect(folder) as db:
                problem = check(db, model, luck)
                if problem and under_way:
                    later = model.after(under_way)
                    problem = check(db, later, luck)
                    if under_way["verb"] == "other" and problem and not model.other:
                        db.sql("DROP TABLE IF EXISTS other")  # made, and not filled
                        problem = check(db, model, luck)
                    elif not problem:
                        model = later
        except clipql.ClipqlError as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            wrong.append(f"kill {number} during {under_way}: {problem}")
            say(wrong[-1])
            if len(wrong) > 3:
                break
        for stray in work.iterdir():
            stray.unlink()
    report = clipql.check(folder, deep=True)
    wrong += [str(f) for f in report.findings]
    during = ", ".join(f"{n} during {verb}" for verb, n in sorted(counted.items()))
    say(f"{kills} kills in {time.monotonic() - began:.0f} s ({during}); {len(model.rows):,} rows; {len(wrong)} wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, work, state, seed = given.child
        child(Path(folder), Path(work), state, int(seed))
    place = Path(tempfile.mkdtemp(prefix="clipql-kills-"))
    (place / "parts").mkdir()
    try:
        wrong = run(place / "db", place / "parts", given.kills, given.seed, lambda text: print(text, flush=True))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
