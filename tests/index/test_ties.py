"""Equal distances, and pages: what an index finds comes in one order, however many rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from tests.cases import crossed

ROWS, COVERED, DIMENSION, EQUAL = 6_000, 5_600, 16, 50
DISTANCES = {"cosineDistance": "ASC", "L2Distance": "ASC", "dotProduct": "DESC"}
LIMITS = (1, 4, 10, 11, 40, 51, 99, 250, 1_000, 4_000)
KINDS = ("ivf", "hnsw")
TABLES = [(kind, distance) for kind in KINDS for distance in DISTANCES]


def made() -> tuple[np.ndarray, np.ndarray]:
    """Clusters, and among them groups of equal rows: 50, 300 and 1,000, all over the table. Vectors, and group of each
    row, -1 for none. All are of one length, so that every distance sorts alike."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((60, DIMENSION))
    x = centres[rng.integers(0, 60, ROWS)] + 0.5 * rng.standard_normal((ROWS, DIMENSION))
    group, at = np.full(ROWS, -1), rng.permutation(ROWS)
    for number, size in enumerate((EQUAL, 300, 1_000)):
        rows, at = at[:size], at[size:]
        group[rows], x[rows] = number, x[rows[0]]
    x = 4 * x / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), group


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, the group of each row, and its id, which is in no order."""
    x, group = made()
    return x, group, np.random.default_rng(4).permutation(ROWS)


@pytest.fixture(scope="module")
def db(
    tmp_path_factory: pytest.TempPathFactory, world: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> Iterator[clipql.Database]:
    """A table of each kind of index and distance: two segments that it covers, one that came later, rows deleted."""
    x, _, ids = world
    with clipql.connect(tmp_path_factory.mktemp("ties") / "db") as db:
        db.sql("CREATE TABLE source (at UInt32, id UInt32, v Array(Float32)) ENGINE = Memory")
        db.sql("INSERT INTO source VALUES " + ",".join(f"({i},{ids[i]},{x[i].tolist()})" for i in range(ROWS)))
        for kind, distance in TABLES:
            name = f"{kind}_{distance}"
            db.sql(f"CREATE TABLE {name} (at UInt32, id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY at")
            for first, last in ((0, 2_500), (2_500, COVERED)):
                db.sql(f"INSERT INTO {name} SELECT * FROM source WHERE at >= {first} AND at < {last} ORDER BY at")
            db.sql(f"ALTER TABLE {name} ADD INDEX near v TYPE {kind}('{distance}')")
            db.sql(f"ALTER TABLE {name} MATERIALIZE INDEX near")
            db.sql(f"INSERT INTO {name} SELECT * FROM source WHERE at >= {COVERED} ORDER BY at")
            db.sql(f"DELETE FROM {name} WHERE id % 10 = 7")
        yield db


def asked(
    db: clipql.Database, kind: str, distance: str, q: np.ndarray, tail: str, more: str = "", where: str = "1"
) -> list[int]:
    """Ids in the order of the answer."""
    order = f"{distance}(v, {{q:Array(Float32)}}) {DISTANCES[distance]}{more}"
    found = db.sql(f"SELECT id FROM {kind}_{distance} WHERE {where} ORDER BY {order} {tail}", q=q)
    return [i for (i,) in found.rows]


@pytest.mark.parametrize(("table", "number"), crossed(TABLES, [0, 1, 2], every=5))
def test_further_columns_decide_over_all_rows_that_tie(
    db: clipql.Database, world: tuple[np.ndarray, np.ndarray, np.ndarray], table: tuple[str, str], number: int
) -> None:
    kind, distance = table
    x, group, ids = world
    q = x[group == number][0]
    alive = np.sort(ids[(group == number) & (ids % 10 != 7)])
    for n in (1, 5, 17, 45, 260, 1_000):
        n = min(n, len(alive))
        assert asked(db, kind, distance, q, f"LIMIT {n}", ", id DESC") == alive[::-1][:n].tolist()
        mixed = sorted(alive.tolist(), key=lambda i: (-(i % 3), i))
        found = asked(db, kind, distance, q, f"LIMIT {n} OFFSET {n // 3}", ", id % 3 DESC, id")
        assert (len(found), found[: len(alive) - n // 3]) == (n, mixed[n // 3 : n // 3 + n])


@pytest.mark.parametrize(("table", "number"), crossed(TABLES, [0, 1, 2], every=5))
def test_without_further_columns_ties_are_in_row_order_whatever_the_limit(
    db: clipql.Database, world: tuple[np.ndarray, np.ndarray, np.ndarray], table: tuple[str, str], number: int
) -> None:
    kind, distance = table
    x, group, ids = world
    q = x[group == number][0]
    alive = [int(i) for i in ids[group == number] if i % 10 != 7]
    for n in (1, 5, 17, 45, 260, 1_000):
        n = min(n, len(alive))
        assert asked(db, kind, distance, q, f"LIMIT {n}") == alive[:n]
        assert asked(db, kind, distance, q, f"LIMIT {n} SETTINGS vector_index = 0") == alive[:n]


def queries(x: np.ndarray) -> np.ndarray:
    """Near a group's edge, near single rows, and far from all."""
    rng = np.random.default_rng(5)
    near = x[rng.integers(0, ROWS, 4)] + 0.2 * rng.standard_normal((4, DIMENSION))
    return np.concatenate([near, rng.standard_normal((2, DIMENSION))]).astype(np.float32)


@pytest.mark.parametrize(("table", "more"), crossed(TABLES, ["", ", id % 5, id DESC"], every=3))
def test_a_smaller_limit_gives_the_first_rows_of_a_larger_one(
    db: clipql.Database, world: tuple[np.ndarray, np.ndarray, np.ndarray], table: tuple[str, str], more: str
) -> None:
    kind, distance = table
    for q in queries(world[0]):
        lists = {n: asked(db, kind, distance, q, f"LIMIT {n}", more) for n in LIMITS}
        assert {n: len(found) for n, found in lists.items()} == {n: n for n in lists}
        assert lists == {n: lists[LIMITS[-1]][:n] for n in lists}


PAGES = [
    (7, "", "1"),
    (40, ", id DESC", "1"),
    (300, "", "1"),
    (40, "", "id % 3 != 1"),
    (10, ", id", "id % 7 = 1"),
    (20, "", "L2Distance(v, {q:Array(Float32)}) > 0.1 OR id % 3 = 1"),
]


@pytest.mark.parametrize(("table", "page"), crossed(TABLES, PAGES, every=5))
def test_pages_never_repeat_a_row(
    db: clipql.Database,
    world: tuple[np.ndarray, np.ndarray, np.ndarray],
    table: tuple[str, str],
    page: tuple[int, str, str],
) -> None:
    (kind, distance), (size, more, where) = table, page
    for q in queries(world[0])[::3]:
        starts = [*range(0, 20 * size, size), *range(50 * size, 54 * size, size)]
        pages = [
            asked(db, kind, distance, q, f"LIMIT {size} OFFSET {s}", more, where) for s in starts if s + size < 5_000
        ]
        rows = [i for page in pages for i in page]
        assert len(rows) == len(set(rows)) == size * len(pages)
        whole = asked(db, kind, distance, q, f"LIMIT {10 * size} OFFSET {size}", more, where)
        assert size > 40 or whole == [i for page in pages[1:11] for i in page]


@pytest.mark.parametrize(("kind", "distance"), TABLES)
def test_every_row_comes_where_as_many_are_asked_for_as_there_are(
    db: clipql.Database, world: tuple[np.ndarray, np.ndarray, np.ndarray], kind: str, distance: str
) -> None:
    ids = world[2]
    q = queries(world[0])[0]
    assert sorted(asked(db, kind, distance, q, "LIMIT 30000")) == sorted(ids[ids % 10 != 7].tolist())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n", [300, 1_100, 3_000, 5_000])
def test_many_rows_have_the_distances_that_clickhouse_computes(
    db: clipql.Database, world: tuple[np.ndarray, np.ndarray, np.ndarray], distance: str, n: int
) -> None:
    statement = (
        f"SELECT id, {distance}(v, {{q:Array(Float32)}}) AS d, 1 - d AS s FROM ivf_{distance} "
        f"ORDER BY d {DISTANCES[distance]}, id LIMIT {n} SETTINGS recall = 1"
    )
    q = queries(world[0])[0]
    found, plain = db.sql(statement, q=q), db.sql(statement + ", vector_plan = 0", q=q)
    assert found.arrow().schema.types == plain.arrow().schema.types
    known = {i: (d, s) for i, d, s in plain.rows}
    assert len(found) == len(plain) == n
    for ours, theirs in zip(found.rows, plain.rows, strict=True):
        assert ours[1:] == pytest.approx(theirs[1:], abs=2e-5)
        assert ours[1:] == pytest.approx(known.get(ours[0], theirs[1:]), abs=2e-5)
