"""Random kills over one database that lives on: after each, is every acknowledged row there, once, with its own vector?

    python -m bench.kills --kills 200 --seed 1

A child process inserts, ingests, deletes, optimises, builds indexes, has rows added to them and renames, adds a second
vector column, fills it for some rows, updates vectors of either column, clears and drops it, and says before and after
each what it does; it is killed (SIGKILL) at a random time, at times while it opens the database. Every vector follows
from its row's id and from the step that gave it, so a row with another's vector, or with an older one, is seen, and so
is a vector of a row that has none. Whatever was acknowledged must be there; what was under way may be there or not, as
a whole; each row that an index covers is in one of its lists, once.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clipql
from clipql.index.ivf.opening import arrays_of
from clipql.tables import index_entries

DIMENSION, SECOND = 8, 7
FLIP = 32  # what an UPDATE of the first column adds to the first number
STEP = 23  # of the rows that an UPDATE or a file is about
VERBS = {
    "insert": 6,
    "grow": 4,
    "big insert": 1,
    "ingest": 3,
    "file": 3,
    "delete": 3,
    "optimise": 1,
    "merge": 1,
    "index": 2,
    "rename": 2,
    "other": 1,
    "add": 2,
    "fill": 4,
    "update": 4,
    "flip": 2,
    "index second": 2,
    "clear": 0.5,
    "drop": 0.5,
}
_OF_ROWS = ("insert", "grow", "big insert", "ingest", "file")
# so many rows are added to an index at once, in the child: an INSERT of few does it, too
FEWEST_ADDED = 300
# of the second column
_OF_SECOND = ("update", "index second", "clear", "drop")


def vectors(ids: Any) -> Any:
    """The vectors of these ids, float32 (n, 8): each number is exactly a float16, and no two ids have the same."""
    ids = np.asarray(ids, np.int64)[:, None]
    digits = (ids >> (4 * np.arange(DIMENSION))) & 15
    return (digits + 1).astype(np.float32)


def second(ids: Any, version: int) -> Any:
    """The vectors of these ids in the second column, float32 (n, 7), by the step that gave them."""
    ids = np.asarray(ids, np.int64)[:, None]
    digits = (ids >> (4 * np.arange(SECOND - 1))) & 15
    return np.concatenate([digits + 1, np.full((len(ids), 1), version)], axis=1).astype(np.float32)


def flipped(ids: Any, which: set[int]) -> Any:
    """The vectors of these ids in the first column, some of which were updated."""
    found = vectors(ids)
    found[:, 0] += FLIP * np.isin(np.asarray(ids), list(which))
    return found


@dataclass
class Model:
    """What must be in the database. rows: ids; table: its name now; next: the next id; part: the next part's number;
    flipped: ids whose first vector was updated; second: the step that gave a row its second vector, by id; None where
    there is no such column; version: the next step's.
    """

    rows: set[int] = field(default_factory=set)
    table: str = "one"
    next: int = 0
    part: int = 0
    other: bool = False
    flipped: set[int] = field(default_factory=set)
    second: dict[int, int] | None = None
    version: int = 1

    def after(self, step: dict[str, Any]) -> Model:
        """What must be there once a step is done."""
        second = None if self.second is None else dict(self.second)
        done = Model(
            set(self.rows), self.table, self.next, self.part, self.other, set(self.flipped), second, self.version
        )
        if step["verb"] in _OF_ROWS:
            done.rows |= set(range(step["first"], step["first"] + step["rows"]))
        elif step["verb"] == "delete":
            done.rows = {i for i in self.rows if i % 37 != step["rest"]}
        elif step["verb"] == "rename":
            done.table = step["to"]
        elif step["verb"] == "other":
            done.other = not self.other
        elif step["verb"] == "add":
            done.second = {}
        elif step["verb"] in ("fill", "update") and (own := {i for i in self.rows if i % STEP == step["rest"]}):
            done.second = (second or {}) | dict.fromkeys(own, step["version"])
        elif step["verb"] == "flip":
            done.flipped |= {i for i in self.rows if i % STEP == step["rest"]}
        elif step["verb"] == "clear":
            done.second = {}
        elif step["verb"] == "drop":
            done.second = None
        return done

    def reserve(self, step: dict[str, Any]) -> None:
        """Ids and parts are used once, whatever became of them."""
        self.next = max(self.next, step.get("first", 0) + step.get("rows", 0))
        self.part = max(self.part, step.get("part", -1) + 1)
        self.version = max(self.version, step.get("version", 0) + 1)


def plan(model: Model, luck: random.Random) -> dict[str, Any]:
    """The next step."""
    verb = luck.choices(list(VERBS), list(VERBS.values()))[0]
    while (verb in _OF_SECOND and model.second is None) or (verb == "add" and model.second is not None):
        verb = luck.choices(list(VERBS), list(VERBS.values()))[0]
    step: dict[str, Any] = {"verb": verb}
    if verb in ("fill", "update", "flip"):
        step |= {"rest": luck.randrange(STEP), "version": model.version}
    if verb in _OF_ROWS:
        sizes = {
            "insert": (1, 300),
            "grow": (FEWEST_ADDED, 4 * FEWEST_ADDED),
            "big insert": (60_000, 60_000),
            "ingest": (50, 2000),
            "file": (50, 60_000),
        }
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
    if verb in ("insert", "big insert", "grow"):
        digits = ", ".join(f"toFloat32(bitAnd(bitShiftRight(number, {4 * i}), 15) + 1)" for i in range(DIMENSION))
        db.sql(
            f"INSERT INTO {table} (id, caption, image_embedding) SELECT number, toString(number), [{digits}] "
            f"FROM numbers({step['first']}, {step['rows']})"
        )
        if verb == "grow":
            db.wait_for_indexes()
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
    elif verb == "add":
        db.sql(f"ALTER TABLE {table} ADD COLUMN siglip Array(Float32)")
    elif verb == "fill":
        ids = np.arange(step["rest"], model.next, STEP)
        rows = {"id": ids, "siglip": list(second(ids, step["version"]))}
        pq.write_table(pa.table(rows), work / f"second_{step['version']}.parquet")
        try:
            db.ingest(work / f"second_{step['version']}.parquet", table=table, add_column="siglip", by="id")
        except clipql.IngestError as error:  # none of these rows is left
            if " has none of the " not in str(error) and "there is no vector" not in str(error):
                raise
            print("nothing", flush=True)
    elif verb == "update":
        digits = ", ".join(f"bitAnd(bitShiftRight(id, {4 * i}), 15) + 1" for i in range(SECOND - 1))
        db.sql(f"ALTER TABLE {table} UPDATE siglip = [{digits}, {step['version']}] WHERE id % {STEP} = {step['rest']}")
    elif verb == "flip":
        digits = ", ".join(f"bitAnd(bitShiftRight(id, {4 * i}), 15) + 1" for i in range(1, DIMENSION))
        db.sql(
            f"ALTER TABLE {table} UPDATE image_embedding = [bitAnd(id, 15) + {1 + FLIP}, {digits}] "
            f"WHERE id % {STEP} = {step['rest']}"
        )
    elif verb == "index second":
        db.sql(f"ALTER TABLE {table} ADD INDEX IF NOT EXISTS second siglip TYPE ivf('L2Distance')")
        db.sql(f"ALTER TABLE {table} MATERIALIZE INDEX second")
    elif verb in ("clear", "drop"):
        db.sql(f"ALTER TABLE {table} {verb.upper()} COLUMN siglip")
    elif model.other:
        db.sql("DROP TABLE other")
    else:
        db.sql(f"CREATE TABLE other ENGINE = MergeTree ORDER BY id AS SELECT * FROM {table} LIMIT 100")


def child(folder: Path, work: Path, state: str, seed: int) -> None:
    """Steps without end, told on standard output."""
    given = json.loads(state)
    luck, model = random.Random(seed), Model()
    model.table, model.next, model.part, model.other = (given[n] for n in ("table", "next", "part", "other"))
    model.second, model.version = {} if given["second"] else None, given["version"]
    index_entries.FEWEST_ADDED = FEWEST_ADDED
    with clipql.connect(folder) as db:
        print("ready", flush=True)
        while True:
            step = plan(model, luck)
            print(json.dumps(step), flush=True)
            carry_out(db, model, step, work)
            print("done", flush=True)
            told = step["verb"] if step["verb"] in ("rename", "other", "add", "drop") else ""
            model = model.after(step | {"verb": told})
            if step["verb"] == "fill":
                table = db.registry.find(None, model.table)
                model.second = {} if table and table.column("siglip") else None
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
        flat = found.column(2).combine_chunks().flatten().to_numpy().reshape(-1, DIMENSION)
        updated = model.flipped if name == model.table else set(ids[flat[:, 0] > FLIP].tolist())
        if not np.array_equal(flat, flipped(ids, updated)):
            return f"{name}: a row has another's vector, or an older one"
        if found.column(1).to_pylist() != [str(i) for i in ids]:
            return f"{name}: a row has another's caption"
        for _ in range(3 if len(ids) else 0):
            wanted = int(luck.choice(ids.tolist()))
            query = flipped([wanted], updated)[0]
            near = db.sql(
                f"SELECT id, caption FROM {name} ORDER BY L2Distance(image_embedding, {{q:Array(Float32)}}) LIMIT 1",
                q=query,
            ).rows
            if near != [(wanted, str(wanted))]:
                return f"{name}: the search for the vector of {wanted} gives {near}"
        problem = _check_indexes(db, name) or _check_second(db, name, model, luck)
        if problem:
            return f"{name}: {problem}"
    return None


def _check_indexes(db: clipql.Database, name: str) -> str | None:
    """What is wrong with the lists of a table's indexes: each row that has a vector is in one of them, once."""
    table = db.registry.find(None, name)
    for entry in table.indexes if table else ():
        column = table.column(entry.column) if table else None
        if entry.folder and column and not column.absent and not entry.changed:
            rows = np.sort(arrays_of(db.indexes.folder(entry)).rows)
            if not np.array_equal(rows, np.arange(entry.rows)):
                return f"the index {entry.name} of {entry.rows:,} rows has {len(np.unique(rows)):,} of them"
    return None


def _check_second(db: clipql.Database, name: str, model: Model, luck: random.Random) -> str | None:
    """What is wrong with the second column of a table; of the copy, each vector must be one that its row has had."""
    table = db.registry.find(None, name)
    there = table is not None and table.column("siglip") is not None
    if name == model.table and there is not (model.second is not None):
        return f"its second column is {'' if there else 'not '}there"
    if not there:
        return None
    found = db.sql(f"SELECT id, siglip FROM {name} WHERE notEmpty(siglip)").arrow()
    ids = found.column(0).to_numpy()
    flat = found.column(1).combine_chunks().flatten().to_numpy().reshape(-1, SECOND)
    own = dict(zip(ids.tolist(), flat[:, -1].astype(int).tolist(), strict=True))
    if name == model.table and own != {i: v for i, v in (model.second or {}).items() if i in model.rows}:
        return "a row has a second vector of another step, or one too many or too few"
    if not np.array_equal(flat[:, :-1], second(ids, 0)[:, :-1]):
        return "a row has another's second vector"
    for _ in range(3 if len(ids) else 0):
        at = luck.randrange(len(ids))
        near = db.sql(f"SELECT id FROM {name} ORDER BY L2Distance(siglip, {{q:Array(Float32)}}) LIMIT 5", q=flat[at])
        if near.rows[0] != (int(ids[at]),) or not {i for (i,) in near.rows} <= own.keys():
            return f"the search for the second vector of {ids[at]} gives {near.rows}"
    return None


def run(folder: Path, work: Path, kills: int, seed: int, say: Any = print, seconds: float = 1.5) -> list[str]:
    """Kill so many times, within so many seconds each; what went wrong, which is nothing."""
    luck, model, wrong, counted = random.Random(seed), Model(), [], collections.Counter()
    with clipql.connect(folder) as db:
        db.sql(
            "CREATE TABLE one (id Int64, caption String, image_embedding Array(Float32), "
            "INDEX near image_embedding TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
        )
        # a vector column that is added to an empty table is one that each row needs
        begin = {"verb": "insert", "first": 0, "rows": 1_500}
        carry_out(db, model, begin, work)
        model = model.after(begin)
        model.reserve(begin)
    began = time.monotonic()
    for number in range(kills):
        told = {n: getattr(model, n) for n in ("table", "next", "part", "other", "version")}
        state = json.dumps(told | {"second": model.second is not None})
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
        time.sleep(luck.uniform(0, seconds))
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
    parser.add_argument("--seconds", type=float, default=1.5, help="of work before a kill, at most")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, work, state, seed = given.child
        child(Path(folder), Path(work), state, int(seed))
    place = Path(tempfile.mkdtemp(prefix="clipql-kills-"))
    (place / "parts").mkdir()
    try:
        say = partial(print, flush=True)
        wrong = run(place / "db", place / "parts", given.kills, given.seed, say, given.seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
