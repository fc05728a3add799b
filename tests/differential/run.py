"""Compare clipql with itself and with plain ClickHouse on random tables and statements.

    python tests/differential/run.py --statements 200000 --seed 7 [--world 120]

A seed is a row of worlds, each a table with a few dozen statements and changes; a run is taken up again with --world.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from compare import Rows, bags, promised, ranked, sequences
from generator import Case, Maker, Row, World, world

import clipql

# What is known to differ for now: the kind of case, words in what differs, and why. Empty this when it is mended.
NOT_YET: tuple[tuple[str, str, str], ...] = ()
KINDS = (
    "none",
    "none",
    "ivf",
    "ivf",
    *(["hnsw"] if find_spec("usearch") else []),
    *(["annoy"] if find_spec("annoy") else []),
)
CASES, CHANGE = 50, 0.05  # statements in a world, and the share of changes between them


@dataclass(frozen=True)
class Failure:
    """What differs, and how to see it again."""

    seed: int
    world: int
    kind: str
    statement: str
    what: str
    reproduction: str

    def __str__(self) -> str:
        return (
            f"--- {self.kind}: seed {self.seed}, world {self.world}\n{self.statement}\n=> {self.what}\n"
            f"reproduction:\n{self.reproduction}\n"
        )


@dataclass
class Summary:
    """What a run has done. statements: SELECTs on our table that were compared. known: failures that are NOT_YET."""

    statements: int = 0
    worlds: int = 0
    failures: list[Failure] = field(default_factory=list)
    known: list[Failure] = field(default_factory=list)
    plans: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        known = f" ({len(self.known)} more in what is known)" if self.known else ""
        return f"{self.statements} statements, {len(self.failures)} differ{known}"


@contextmanager
def small_limits() -> Iterator[None]:
    """Have small tables planned and indexed as large ones are."""
    with (
        mock.patch("clipql.sql.recognition.plan.SMALL_TABLE", 0),
        mock.patch("clipql.index.kinds.FEWEST_ROWS", 64),
        mock.patch("clipql.index.ivf.learn.FEWEST_ROWS", 64),
        mock.patch("clipql.index.ivf.build.FEWEST_ROWS", 64),
        mock.patch("clipql.sql.search.vector_search.FEW", 5),
    ):
        yield


def literal(value: object) -> str:
    """A value in SQL."""
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


class Bench:
    """A world's two tables: t, which is clipql's, and o, which is ClickHouse's alone; and what made them."""

    def __init__(self, db: clipql.Database, world: World, summary: Summary) -> None:
        self.db, self.world, self.summary = db, world, summary
        self.log: list[str] = []
        self.repeated = False  # a statement that came before with other values: only planned

    def do(self, statement: str) -> None:
        """Change t."""
        self.log.append(statement)
        self.db.sql(statement)

    def both(self, statement: str, **params: Any) -> None:
        """Change t and o."""
        shown = statement.replace("⟨t⟩", "t")
        self.log.append(f"{shown}; -- {params}" if params else shown)
        self.db.sql(statement.replace("⟨t⟩", "t"), **params)
        plain = statement.replace("⟨t⟩", "o")
        if plain.startswith("DELETE FROM o"):
            plain = plain.replace("DELETE FROM o", "ALTER TABLE o DELETE")
        self.db.sql(plain, **params)

    def create(self, rows: list[Row]) -> None:
        for name in ("t_v", "o_v"):
            self.db.sql(f"DROP VIEW IF EXISTS {name}")
        for name in ("t", "o"):
            self.db.sql(f"DROP TABLE IF EXISTS {name}")
        columns = ", ".join(f"{n} {kind}" for n, kind in self.world.columns.items())
        self.do(
            f"CREATE TABLE t ({columns}) ENGINE = MergeTree ORDER BY {self.world.luck.choice(('id', 'k', 'tuple()'))}"
        )
        self.db.sql(f"CREATE TABLE o ({columns}) ENGINE = Memory")
        self.both("CREATE VIEW ⟨t⟩_v AS SELECT * FROM ⟨t⟩")
        if rows:
            self.insert(rows)

    def insert(self, rows: list[Row]) -> None:
        values = ", ".join("(" + ", ".join(literal(r[c]) for c in self.world.columns) + ")" for r in rows)
        self.both(f"INSERT INTO ⟨t⟩ ({', '.join(self.world.columns)}) VALUES {values}")
        self.world.rows += rows

    def refresh(self) -> None:
        """Take the rows that there are from the oracle."""
        names = list(self.world.columns)
        found = self.db.sql(f"SELECT {', '.join(names)} FROM o").rows
        self.world.rows = [dict(zip(names, row, strict=True)) for row in found]

    def ask(self, case: Case, table: str, *settings: str, text: str | None = None) -> clipql.Result | str:
        """The answer, or that it was refused."""
        statement = text or case.select(table, settings)
        if table == "t":
            self.summary.statements += 1
        try:
            result = self.db.sql(statement, **case.parameters)
        except clipql.ClipqlError as error:
            return f"refused: {str(error)[:200]}"
        self.summary.plans.update(s.kind for s in result.stats.searches)
        return result

    def check(self, case: Case) -> str | None:
        """What is wrong with the answers to a case, or None."""
        if case.mode == "partition":
            return self.check_partition(case)
        if case.mode == "pages":
            return self.check_pages(case)
        oracle = self.oracle(case)
        ways = [("planned", case.settings), ("unplanned", ("vector_plan = 0",))]
        for name, settings in ways[: 1 if self.repeated else 2]:
            got = self.ask(case, "t", *settings)
            if isinstance(got, str) or isinstance(oracle, str):
                if isinstance(got, str) != isinstance(oracle, str):
                    return f"{name}: {got if isinstance(got, str) else 'an answer'}; the oracle: {str(oracle)[:200]}"
                continue
            wrong = self.compare(case, got, oracle, name == "planned")
            if wrong:
                return f"{name}: {wrong}"
        return None

    def oracle(self, case: Case) -> clipql.Result | str:
        """The answer of ClickHouse's table: for ranked cases all rows, sorted, with their keys behind them."""
        if case.mode != "ranked":
            return self.ask(case, "o")
        keys = "".join(f", {key.text} AS key{i}" for i, key in enumerate(case.keys))
        order = ", ".join(key.text + " DESC" * key.descending for key in case.keys)
        clauses = {
            **case.without("LIMIT", "OFFSET").clauses,
            "SELECT": case.clauses["SELECT"] + keys,
            "ORDER BY": order,
        }
        return self.ask(replace(case, clauses=clauses), "o")

    def compare(self, case: Case, got: clipql.Result, oracle: clipql.Result, planned: bool) -> str | None:
        columns = oracle.columns[: -len(case.keys)] if case.mode == "ranked" else oracle.columns
        if case.names and got.columns != columns:
            if case.mode == "bag" and len(set(columns)) == len(columns) and set(columns) <= set(got.columns):
                places = [got.columns.index(c) for c in columns]
                wrong = bags([tuple(row[i] for i in places) for row in got.rows], oracle.rows)
                if wrong:
                    return f"values under the names of columns: {wrong}"
            return f"columns {got.columns} instead of {columns}"
        types = oracle.arrow().schema.types[: len(columns)]
        if got.arrow().schema.types != types:
            return f"types {got.arrow().schema.types} instead of {types}"
        if case.mode == "bag":
            return bags(got.rows, oracle.rows)
        if case.mode == "sequence":
            return sequences(got.rows, oracle.rows)
        limit = int(case.values["n"]) if "LIMIT" in case.clauses else len(oracle)  # type: ignore[call-overload]
        offset = int(case.values["m"]) if "OFFSET" in case.clauses else 0  # type: ignore[call-overload]
        judge = promised if case.approximate and planned else ranked
        return judge(got.rows, oracle.rows, case.keys, offset, limit)

    def check_partition(self, case: Case) -> str | None:
        """WHERE p, WHERE NOT p and WHERE p IS NULL share out the rows, and each is what the oracle gives."""
        everything = sorted((r["id"],) for r in self.world.rows)  # type: ignore[type-var]
        p, parts = case.clauses["WHERE"], []
        for form in (p, f"NOT ({p})", f"({p}) IS NULL"):
            one = replace(case, clauses={**case.clauses, "WHERE": form})
            got, oracle = self.ask(one, "t", *case.settings), self.ask(one, "o")
            if isinstance(got, str) or isinstance(oracle, str):
                if isinstance(got, str) and isinstance(oracle, str):
                    return None
                return f"WHERE {form}: {got if isinstance(got, str) else oracle}"
            wrong = bags(got.rows, oracle.rows)
            if wrong:
                return f"WHERE {form}: {wrong}"
            parts += got.rows
        return bags(parts, everything)

    def check_pages(self, case: Case) -> str | None:
        """LIMIT n is a prefix of a larger one; pages put together are the rows, each once."""
        count = len(self.world.rows)
        size = max(3, count // 4 + 1)
        statement = case.select("t")
        settings = f" SETTINGS {', '.join(case.settings)}" if case.settings else ""

        def ask(more: str) -> Rows:
            got = self.ask(case, "t", text=f"{statement} {more}{settings}")
            if isinstance(got, str):
                raise clipql.QueryError(got)
            return got.rows

        try:
            long = ask(f"LIMIT {count + 5}")
            short = ask(f"LIMIT {size}")
            whole = self.ask(case, "o")
            assert not isinstance(whole, str), whole
            wrong = bags(long, whole.rows) or sequences(short, long[:size])
            paged: list[Any] = []
            for offset in range(0, count, size):
                paged += ask(f"LIMIT {size} OFFSET {offset}")
        except clipql.QueryError as error:
            return str(error)
        return wrong or bags(paged, whole.rows)

    def change(self) -> None:
        """Insert, delete, update, build, drop, as chance has it."""
        luck, w = self.world.luck, self.world
        what = luck.randrange(10)
        values = w.values()
        if what <= 1:
            self.insert(w.new_rows(luck.randint(1, 12)))
        elif what == 2:
            self.both(f"DELETE FROM ⟨t⟩ WHERE id % 9 = {luck.randrange(9)}")
        elif what == 3:
            self.both(
                f"DELETE FROM ⟨t⟩ WHERE L2Distance(a, {{q:Array(Float32)}}) < {values['r']} AND k = {values['c']}",
                q=values["q"],
            )
        elif what == 4:
            self.both(f"ALTER TABLE ⟨t⟩ UPDATE k = 3 WHERE n = {values['c']}")
        elif what == 5:
            self.do("OPTIMIZE TABLE t" + luck.choice(("", " FINAL")))
        elif what == 6:
            self.both("ALTER TABLE ⟨t⟩ ADD COLUMN IF NOT EXISTS extra UInt8" + luck.choice(("", " AFTER a", " FIRST")))
        elif what == 7:
            self.both("ALTER TABLE ⟨t⟩ DROP COLUMN IF EXISTS extra")
        elif what == 8:
            columns = ", ".join(c if c != "id" else f"id + {w.serial} AS id" for c in w.columns)
            w.serial *= 2
            if len(w.rows) < 100:
                near = luck.choice(("L2Distance(a, b)", "L2Distance(b, {q:Array(Float32)})"))
                self.both(
                    f"INSERT INTO ⟨t⟩ ({', '.join(w.columns)}) SELECT {columns} FROM ⟨t⟩ WHERE {near} < {values['r']}",
                    q=values["q"],
                )
        elif w.index != "none":
            self.do("ALTER TABLE t DROP INDEX IF EXISTS i")
            if luck.random() < 0.7:
                self.build()
        self.refresh()
        names = ", ".join(w.columns)
        wrong = bags(self.db.sql(f"SELECT {names} FROM t").rows, self.db.sql(f"SELECT {names} FROM o").rows)
        if wrong:
            raise AssertionError(f"after {self.log[-1]}: {wrong}")

    def build(self) -> None:
        metric = self.world.luck.choice(("L2Distance", "cosineDistance"))
        self.do(f"ALTER TABLE t ADD INDEX i {self.world.index_column} TYPE {self.world.index}('{metric}')")
        self.do("ALTER TABLE t MATERIALIZE INDEX i")


def kind_of(case: Case, world: World) -> str:
    """The name by which NOT_YET knows a case."""
    indexed = world.index != "none" and "vector_index = 0" not in case.settings
    return f"{case.family}, with an index" if indexed else case.family


def is_known(case: Case, kind: str, wrong: str) -> bool:
    """Whether NOT_YET has it."""
    return any(name in (kind, case.family) and words in wrong for name, words, _ in NOT_YET)


def run_world(db: clipql.Database, seed: int, number: int, summary: Summary) -> None:
    """A table, and statements and changes in turn."""
    w = world(seed * 1_000_003 + number, KINDS)
    bench, maker, recent = Bench(db, w, summary), Maker(w), list[Case]()
    bench.create(w.new_rows(w.luck.choice((0, 1, 25, 40, 60) if w.index == "none" else (70, 90))))
    if w.index != "none":
        bench.build()
        bench.insert(w.new_rows(w.luck.randint(1, 10)))
    for _ in range(CASES):
        if w.luck.random() < CHANGE:
            try:
                bench.change()
            except (AssertionError, clipql.ClipqlError) as error:
                what = f"{type(error).__name__}: {error}"
                summary.failures.append(Failure(seed, number, "change", bench.log[-1], what, "\n".join(bench.log)))
                return
        again = recent and w.luck.random() < 0.35
        case = maker.again(w.luck.choice(recent)) if again else maker.case()
        recent = [*recent[-5:], case]
        kind, bench.repeated = kind_of(case, w), bool(again)
        summary.kinds[kind] += 1
        wrong = bench.check(case)
        if wrong:
            expected, shown_again = is_known(case, kind, wrong), ""
            if not expected:
                case, wrong = shrink(bench, case, wrong)
                shown_again = reproduction(bench, case)
            shown = f"{case.select('t', case.settings)} -- {case.parameters}"
            failure = Failure(seed, number, kind, shown, wrong, shown_again)
            (summary.known if expected else summary.failures).append(failure)


def shrink(bench: Bench, case: Case, wrong: str) -> tuple[Case, str]:
    """The case without the clauses that it differs without."""
    smaller: list[Callable[[Case], Case]] = [
        lambda c: replace(c, outer="⟨select⟩"),
        *(lambda c, name=name: c.without(name) for name in ("OFFSET", "HAVING", "WHERE", "WITH")),  # type: ignore[misc]
        lambda c: replace(c, settings=()) if "vector_index = 0" in c.settings else c,
    ]
    for cut in smaller:
        tried = cut(case)
        if tried == case or (case.mode == "partition" and "WHERE" not in tried.clauses):
            continue
        found = bench.check(tried)
        if found and "refused" not in found:
            case, wrong = tried, found
    return case, wrong


def reproduction(bench: Bench, case: Case) -> str:
    """The fewest rows of a fresh table that show it; where a fresh table does not, all that was done to the old one."""
    fresh = Bench(bench.db, bench.world, Summary())
    kept, log = list(bench.world.rows), list(bench.log)
    try:
        rows, made = kept, _shows(fresh, case, kept)
        if not made:
            return "\n".join(log)
        step = max(1, len(rows) // 2)
        for _ in range(40):
            smaller = next(
                (
                    s
                    for i in range(0, len(rows), step)
                    if (s := rows[:i] + rows[i + step :]) != rows and _shows(fresh, case, s)
                ),
                None,
            )
            if smaller is not None:
                rows = smaller
            elif step == 1:
                break
            else:
                step = max(1, step // 2)
        _shows(fresh, case, rows)
        return "\n".join(fresh.log)
    finally:
        # the world goes on with the rows it had, in fresh tables
        bench.world.rows, bench.log = [], []
        bench.create(kept)


def _shows(bench: Bench, case: Case, rows: list[Row]) -> bool:
    bench.log, bench.world.rows = [], []
    bench.create(rows)
    try:
        return bench.check(case) is not None
    except clipql.ClipqlError:
        return False


def run(statements: int, seed: int, folder: Path, first: int = 0, said: Callable[[str], None] | None = None) -> Summary:
    """Worlds of a seed until so many statements have been compared."""
    summary, shown, began = Summary(), 0, time.process_time()
    with small_limits(), clipql.connect(folder / "differential.db") as db:
        db.sql("SET max_threads = 1")
        number = first
        while summary.statements < statements:
            run_world(db, seed, number, summary)
            number += 1
            summary.worlds += 1
            if said and (len(summary.failures) > shown or number % 2 == 0):
                for failure in summary.failures[shown:]:
                    said(str(failure))
                shown = len(summary.failures)
                rate = summary.statements / (time.process_time() - began)
                said(f"world {number}: {summary}; {rate:.0f} statements a second of processor time")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statements", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--world", type=int, default=0, help="the world to begin with")
    parser.add_argument("--known", action="store_true", help="print what differs of kinds in NOT_YET, too")
    given = parser.parse_args()
    print(f"seed {given.seed}, from world {given.world}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        summary = run(given.statements, given.seed, Path(folder), given.world, lambda s: print(s, flush=True))
    for failure in summary.known if given.known else ():
        print(failure)
    print("cases:", ", ".join(f"{kind} {n}" for kind, n in sorted(summary.kinds.items())))
    print("plans:", ", ".join(f"{kind} {n}" for kind, n in sorted(summary.plans.items())))
    print(summary)
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
