"""Joins over vector columns in many spellings, planned or not, in slices of any size: the rows are the engine's."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.errors import QueryError
from clipql.sql.joins import pairs
from tests.cases import some

ROWS, DIMENSION = 150, 4


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    rng = np.random.default_rng(5)
    with clipql.connect(tmp_path_factory.mktemp("spellings") / "db") as opened:
        for name, rows in (("a", ROWS), ("b", 60)):
            opened.sql(f"CREATE TABLE {name} (id UInt32, g UInt8, s String, v Array(Float32)) ENGINE = MergeTree "
                       "ORDER BY id")  # fmt: skip
            vectors = rng.standard_normal((rows, DIMENSION)).astype(np.float32)
            values = ", ".join(f"({i}, {i % 7}, '{'xyz'[i % 3]}', {v.tolist()})" for i, v in enumerate(vectors))
            opened.sql(f"INSERT INTO {name} VALUES {values}")
        opened.sql("DELETE FROM a WHERE id % 13 = 3")
        yield opened


BOTH = ["{l}.id < {r}.id", "{l}.g = {r}.g", "{l}.id != {r}.id", "{l}.s || 'x' > {r}.s", "abs({l}.id - {r}.id) > 20",
        "{l}.g + 5 < {r}.g", "({l}.id > {r}.id OR {l}.s = {r}.s)", "{l}.id > {r}.id + 1000"]  # fmt: skip
ONE = ["{l}.id < 40", "{r}.id % 2 = 0", "{r}.s IN ('x', 'y')", "{l}.g BETWEEN 2 AND 5", "{r}.g = {l}.g", "id < 3"]
CALLS = ["L2Distance({l}.v, {r}.v)", "cosineDistance({r}.v, {l}.v)", "L2SquaredDistance({l}.v, {r}.v)",
         "-dotProduct({l}.v, {r}.v)", "L1Distance({l}.v, {r}.v)"]  # fmt: skip
SOURCES = ["{x} AS {l}, {y} AS {r}", "{x} {l} CROSS JOIN {y} {r}", "{x} AS {l} INNER JOIN {y} AS {r} ON {l}.g = {r}.g",
           "{x} AS {l} LEFT JOIN {y} AS {r} ON {l}.id = {r}.id", "{x} AS {l}, (SELECT * FROM {y}) AS {r}",
           "{x} AS {l} JOIN {y} {r} ON 1 = 1"]  # fmt: skip


def spelled(seed: int) -> str:
    luck = random.Random(seed)
    source = SOURCES[luck.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 5])]
    conditions = luck.sample(BOTH, luck.randint(0, 2)) + luck.sample(ONE[:-1], luck.randint(0, 1))
    call = luck.choice(CALLS)
    key = luck.choice(["{l}.id", "{l}.id", "{r}.id", "{l}.g", "{l}.id, {l}.s"])
    limit = luck.choice([f"LIMIT {luck.choice([1, 3, 20, 400])} BY {key}"] * 3 + ["LIMIT 9", ""])
    order = luck.choice([call, call, call, "d", call + ", {r}.id"])
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    text = f"SELECT {{l}}.id, {{r}}.id AS other, {call} AS d FROM {source} {where} ORDER BY {order} {limit}"
    x, y = luck.choice([("a", "b"), ("b", "a"), ("a", "a")])
    left, right = luck.choice([("p", "q"), ("one", "two")])
    return " ".join(text.format(l=left, r=right, x=x, y=y).split())


@pytest.mark.parametrize("seed", some(range(120), 5))
def test_a_join_in_any_spelling_gives_the_rows_of_the_engine(
    db: clipql.Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 500)
        monkeypatch.setattr(pairs, "PAIRS_HELD", 100)
        monkeypatch.setattr(pairs, "FEW", 10)
    if seed % 4 == 3:
        monkeypatch.setattr(pairs, "WIDEST", 1)
    if seed % 3:
        monkeypatch.setattr(pairs, "SMALL", 0)
    statement = spelled(seed)
    try:
        passed = db.sql(statement + " SETTINGS vector_plan = 0")
    except QueryError:  # of a row without a partner, whose vector is empty
        with pytest.raises(QueryError):
            db.sql(statement)
        return
    planned = db.sql(statement)
    assert planned.columns == passed.columns
    assert len(planned) == len(passed), statement
    ours, theirs = (sorted(r.rows, key=lambda row: row[:2]) for r in (planned, passed))
    if statement.endswith(".g"):  # of a pair and its mirror image, which tie, either may be the last of its group
        ours, theirs = (sorted(rows, key=lambda row: row[2]) for rows in (ours, theirs))
    else:
        assert [row[:2] for row in ours] == [row[:2] for row in theirs], statement
    assert np.allclose([row[2] for row in ours], [row[2] for row in theirs], rtol=2e-5, atol=2e-5), statement


def test_a_join_of_conditions_that_few_pairs_meet_is_planned(db: clipql.Database) -> None:
    where = "l.id < r.id AND l.g = r.g"
    statement = f"SELECT l.id, r.id FROM a l, a r WHERE {where} ORDER BY L2Distance(l.v, r.v) LIMIT 3 BY l.g"
    assert [s.kind for s in db.sql(statement).stats.searches] == ["nearest join"]


def test_no_file_of_pairs_is_left(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "PAIRS_HELD", 10)
    assert len(db.sql("SELECT l.id, r.id FROM a l, a r ORDER BY L2Distance(l.v, r.v) LIMIT 5 BY l.id")) > 600
    assert not list(db.registry.folder.glob("pairs.*"))
