"""New rows go into the lists that an index has: found as those of a fresh build, and none lost, doubled or moved."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patience import until
from test_ivf import Blocks, World, make_world, recall, truth

import clipql
from clipql.errors import VectorIndexError
from clipql.index import kinds
from clipql.index.folder import read, write_meta
from clipql.index.ivf import (
    IvfIndex,
    balance,
    build,
    can_grow,
    grow,
    growth,
    lists_for,
    merge,
    open_index,
    open_model,
    verify,
)
from clipql.index.ivf.geometry import Space, Workers
from clipql.index.ivf.opening import arrays_of
from clipql.index.ivf.train import Lists, to_small
from clipql.storage.vectors.metrics import Metric
from clipql.tables import background, index_entries
from clipql.tables import growing as check_of_growth

BUILD = kinds.build
METRICS = [Metric.L2, Metric.COSINE]
FIRST = 2_000


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(3_200)


def first(vectors: Blocks, rows: int = FIRST) -> Blocks:
    return Blocks(tuple(block for _, block in vectors.blocks(0, rows)))


@dataclass(frozen=True)
class Grown:
    """An index of 2,000 rows, and the one that 1,200 were added to in three steps."""

    base: IvfIndex
    index: IvfIndex
    folder: Path


@pytest.fixture(scope="module", params=METRICS, ids=lambda m: m.name)
def grown(world: World, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")
    base = build(first(world.images), request.param, folder / "0", queries=first(world.captions), seed=3, shared=True)
    for step, rows in enumerate((2_001, 2_600, 3_200)):
        grow(folder / str(step), folder / str(step + 1), first(world.images, rows), threads=1 + step)
        verify(folder / str(step + 1))
    return Grown(base, open_index(folder / "3", world.images), folder)


def test_rows_that_came_later_are_found_about_as_well(world: World, grown: Grown) -> None:
    assert (grown.index.rows_covered, grown.index.learned_rows) == (3_200, FIRST)
    assert grown.index.model == grown.base.model
    for queries in (world.image_queries, world.text_queries):
        before = recall(grown.base, first(world.images), queries)
        assert recall(grown.index, world.images, queries) >= before - 0.08  # from 2,000 rows little is learnt


def test_every_row_is_in_the_list_that_a_build_would_put_it_in(world: World, grown: Grown, tmp_path: Path) -> None:
    """The oracle is the pass of a build over all rows with what the first build learnt."""
    model = open_model(grown.folder / "0")
    wanted = build(world.images, grown.index.metric, tmp_path / "all", queries=world.captions, model=model)
    one, other = _by_row(grown.index), _by_row(wanted)
    assert np.array_equal(one["start"], other["start"])
    assert np.array_equal(grown.index.lists_of(np.arange(3_200)), wanted.lists_of(np.arange(3_200)))
    assert np.mean(one["codes"] == other["codes"]) > 0.999  # products of other sizes round otherwise
    for name in ("rows", "scale", "bias"):
        assert np.allclose(one[name], other[name], rtol=1e-4)


def _by_row(index: IvfIndex) -> dict[str, NDArray[Any]]:
    arrays = index._arrays
    order = np.argsort(arrays.rows[: int(arrays.start[-1])])
    found = {"rows": arrays.rows, "codes": arrays.codes, "scale": arrays.scale, "bias": arrays.bias}
    return {name: a[order] if len(a) else a for name, a in found.items()} | {"start": arrays.start}


def test_no_row_within_a_radius_is_ruled_out(world: World, grown: Grown) -> None:
    index, everything = grown.index, np.arange(3_200)
    for query in world.image_queries[:10]:
        nearest = truth(index.metric, world.images, query, 20)
        radius = float(index.distances(query, np.array(nearest[-1:]))[0])
        possible = index.within(query, radius)
        ruled_out = np.setdiff1d(everything, possible if possible is not None else everything)
        assert not set(nearest) & set(ruled_out.tolist())


def test_rows_that_lie_apart_stay_apart_and_are_found(world: World, tmp_path: Path) -> None:
    odd = np.concatenate([world.images.take(np.arange(3_000)), np.zeros((2, 64), np.float32), np.full((1, 64), 1e7)])
    vectors = Blocks((odd.astype(np.float32),))
    build(first(vectors), Metric.L2, tmp_path / "a")
    found = grow(tmp_path / "a", tmp_path / "b", vectors)
    assert 3_002 in found.apart.tolist()
    assert found.search(np.full(64, 9e6, np.float32), 1).rows.tolist() == [3_002]
    assert 3_000 in found.search(np.zeros(64, np.float32), 3).rows.tolist()


def test_a_growth_takes_a_bounded_number_of_rows(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MOST_AT_ONCE", 700)
    monkeypatch.setattr(merge, "COPIED", 100)
    build(first(world.images), Metric.L2, tmp_path / "a")
    assert grow(tmp_path / "a", tmp_path / "b", world.images).rows_covered == 2_700
    arrays = arrays_of(tmp_path / "b")
    assert np.array_equal(np.sort(arrays.rows), np.arange(2_700))


def test_an_index_without_its_coder_is_not_grown(world: World, tmp_path: Path) -> None:
    build(first(world.images), Metric.L2, tmp_path / "a")
    meta = read(tmp_path / "a")
    kept = {name: told for name, told in meta["files"].items() if not name.startswith("own_")}
    write_meta(tmp_path / "a", {**{n: v for n, v in meta.items() if n != "hash"}, "files": kept})
    assert not can_grow(tmp_path / "a")
    with pytest.raises(VectorIndexError, match="keeps no coder, so no rows can be added to it: build it anew"):
        grow(tmp_path / "a", tmp_path / "b", world.images)


# lists that grow with their table


@pytest.fixture(scope="module")
def doubled(world: World, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Built from 1,300 rows, grown to 3,200; the last step is not measured again."""
    folder = tmp_path_factory.mktemp("doubled")
    base = build(first(world.images, 1_300), Metric.L2, folder / "0", queries=first(world.captions, 1_300), seed=3)
    for step, rows in enumerate((1_500, 2_700, 3_200)):
        grow(folder / str(step), folder / str(step + 1), first(world.images, rows), queries=first(world.captions, rows))
        verify(folder / str(step + 1))
    return Grown(base, open_index(folder / "3", world.images), folder / "3")


def test_lists_stay_as_many_and_as_full_as_those_of_a_build(doubled: Grown) -> None:
    sizes = np.diff(doubled.index._arrays.start)
    assert abs(doubled.index.lists / lists_for(3_200) - 1) < 0.2
    assert np.array_equal(np.sort(doubled.index._arrays.rows), np.arange(3_200))
    assert sizes.max() < 4 * sizes.mean()
    assert len(doubled.index._arrays.parents) > len(doubled.base._arrays.parents)
    assert read(doubled.folder)["measured"]["rows"] == 2_700


def test_a_grown_index_finds_what_a_fresh_one_finds(world: World, doubled: Grown, tmp_path: Path) -> None:
    fresh = build(world.images, doubled.index.metric, tmp_path / "fresh", queries=world.captions, seed=3)
    assert read(tmp_path / "fresh")["files"].keys() == read(doubled.folder)["files"].keys()
    for queries in (world.image_queries, world.text_queries):
        assert recall(doubled.index, world.images, queries) >= recall(fresh, world.images, queries) - 0.05
        codes = [sum(i.search(q, 10).cost.codes_scanned for q in queries) for i in (doubled.index, fresh)]
        assert codes[0] < 1.5 * codes[1]  # of 3,200 rows and 60 queries little can be told


def test_codes_and_bounds_are_right_wherever_rows_were_dealt_to(world: World, doubled: Grown) -> None:
    everything = {"nprobe": doubled.index.lists, "rescore": 400}
    for query in world.image_queries[:10]:
        nearest = truth(doubled.index.metric, world.images, query, 20)
        assert set(doubled.index.search(query, 10, knobs=everything).rows.tolist()) == set(nearest[:10])
        possible = doubled.index.within(query, float(doubled.index.distances(query, np.array(nearest[-1:]))[0]))
        assert possible is None or set(nearest) <= set(possible.tolist())


def test_lists_are_only_added_to_without_the_captions_they_were_learnt_with(
    world: World, doubled: Grown, tmp_path: Path
) -> None:
    assert grow(doubled.folder.parent / "0", tmp_path / "b", world.images).lists == doubled.base.lists


def test_a_parent_of_equal_rows_is_learnt_anew_only_as_it_grows() -> None:
    """No k-means splits a list of equal rows, and a growth does not try each time."""
    equal = Blocks((np.ones((600, 4), np.float32),))
    lists = Lists(np.ones((1, 4), np.float32), np.array([0, 1]), *to_small(np.ones((1, 4), np.float32)))
    space, workers = Space(Metric.L2, np.zeros(4, np.float32)), Workers(1)
    found = balance.relearn(equal, space, lists, {0: np.arange(600)}, 64.0, (0,), workers)
    workers.close()
    assert found.lists.count == len(found.parents)  # one list in each
    assert balance.unlike(np.array([600]), np.array([600]), 64.0, 10, 10_000).tolist() == []
    assert balance.unlike(np.array([600, 700, 900]), np.array([600] * 3), 64.0, 50, 10_000).tolist() == [2]


# in a table


VECTOR = "arrayMap(i -> toFloat32(sin(number * (i + 1) * 0.37) + number % 7), range(16))"
ROWS = f"SELECT number, {VECTOR} FROM numbers({{}}, {{}})"


def covered(db: clipql.Database) -> list[tuple[int, int]]:
    return db.sql("SELECT rows, rows_covered FROM clipql.indexes").rows


@pytest.fixture
def table(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> clipql.Database:
    monkeypatch.setattr(index_entries, "FEWEST_ADDED", 300)
    monkeypatch.setattr(index_entries, "UNCOVERED", 1_200)
    index = "INDEX near v TYPE ivf('L2Distance')"
    db.sql(f"CREATE TABLE t (id UInt64, v Array(Float32), {index}) ENGINE = MergeTree ORDER BY id")
    insert(db, 0, 1_500)
    return db


def insert(db: clipql.Database, first: int, rows: int) -> None:
    """Rows, and the index as it is then once it has been brought up to date."""
    db.sql("INSERT INTO t " + ROWS.format(first, rows))
    db.wait_for_indexes()


def nearest(db: clipql.Database, id: int, more: str = "") -> list[tuple[int, ...]]:
    query = db.sql(f"SELECT v FROM t WHERE id = {id}").rows[0][0]
    order = f"SELECT id FROM t ORDER BY L2Distance(v, {{q:Array(Float32)}}), id LIMIT 5{more}"
    return db.sql(order, q=query).rows


def test_an_insert_adds_its_rows_to_the_index_once_they_are_worth_it(table: clipql.Database) -> None:
    assert covered(table) == [(1_500, 1_500)]
    insert(table, 1_500, 200)
    assert covered(table) == [(1_700, 1_500)]
    insert(table, 1_700, 200)
    assert covered(table) == [(1_900, 1_900)]
    for id in (5, 1_600, 1_899):
        assert nearest(table, id) == nearest(table, id, " SETTINGS vector_index = 0")
    assert len(list((table.path / "index").glob("*/*"))) == 1
    assert table.check(deep=True).findings == ()


def test_codes_are_learnt_anew_once_the_table_is_four_times_as_large(table: clipql.Database) -> None:
    for at in (1_500, 3_500):
        insert(table, at, 2_000)
    [entry] = table.registry.find(None, "t").indexes
    learned = table.indexes._learned(table.registry.find(None, "t"), entry)
    assert (learned.rows, learned.balanced, entry.rows) == (1_500, True, 5_500)
    insert(table, 5_500, 600)
    [entry] = table.registry.find(None, "t").indexes
    assert table.indexes._learned(table.registry.find(None, "t"), entry).rows == entry.rows == 6_100


def test_lists_are_learnt_anew_where_recall_falls(table: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_of_growth, "FALL", -1.0)
    insert(table, 1_500, 400)
    [entry] = table.registry.find(None, "t").indexes
    assert table.indexes._learned(table.registry.find(None, "t"), entry).rows == entry.rows == 1_900


@pytest.fixture
def lacking(table: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> clipql.Database:
    """A table whose index is of a column that was added, and is built once; each third row has no vector in it."""
    table.sql("ALTER TABLE t DROP INDEX near, ADD COLUMN w Array(Float32), ADD INDEX near w TYPE ivf('L2Distance')")
    table.sql("ALTER TABLE t UPDATE w = v WHERE id % 3 > 0")
    table.sql("ALTER TABLE t MATERIALIZE INDEX near")
    monkeypatch.setattr(kinds, "build", None)  # from here on it grows, or there is an error
    return table


def more(db: clipql.Database, first: int, rows: int, has: str = "number % 3 > 0") -> None:
    """Rows, of which some have a vector in the column that was added, and the index once it has them."""
    db.sql(f"INSERT INTO t SELECT number, {VECTOR} AS v, if({has}, v, []) FROM numbers({first}, {rows})")
    db.wait_for_indexes()


def check_nearest(db: clipql.Database, *ids: int) -> None:
    """Compare what the index finds near some rows with numpy, of the rows that have a vector."""
    found = db.sql("SELECT id, w FROM t WHERE notEmpty(w)").rows
    has, vectors = np.array([id for id, _ in found]), np.array([w for _, w in found], np.float64)
    for id in ids:
        q = db.sql(f"SELECT v FROM t WHERE id = {id}").rows[0][0]
        near = db.sql("SELECT id FROM t ORDER BY L2Distance(w, {q:Array(Float32)}) LIMIT 5 SETTINGS recall = 1", q=q)
        assert near.stats.searches[0].plan.chosen.entry.name == "near"
        distances = np.linalg.norm(vectors - np.array(q), axis=1)
        assert [r[0] for r in near.rows] == has[np.argsort(distances)[:5]].tolist()


@pytest.mark.parametrize("at_once", [4_000_000, 90])
def test_an_index_grows_where_rows_lack_vectors(
    lacking: clipql.Database, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(growth, "MOST_AT_ONCE", at_once)
    more(lacking, 1_500, 300)  # 200 vectors are not worth it
    assert covered(lacking) == [(1_800, 1_500)]
    check_nearest(lacking, 4, 1_501)
    more(lacking, 1_800, 1_000, has="0")  # nor are 1,000 rows without one
    assert covered(lacking) == [(2_800, 1_500)]
    more(lacking, 2_800, 300)
    assert covered(lacking) == [(3_100, 3_100)]
    check_nearest(lacking, 4, 1_501, 2_000, 2_801, 3_098)
    assert lacking.check(deep=True).findings == ()
    lacking.indexes.close_all()  # and as it is opened
    check_nearest(lacking, 4, 1_501, 2_000, 2_801, 3_098)
    [entry] = lacking.registry.find(None, "t").indexes
    learned = lacking.indexes._learned(lacking.registry.find(None, "t"), entry)
    assert (learned.rows, learned.balanced) == (1_000, True)


def test_rows_without_vectors_may_come_to_an_index_of_rows_that_all_have_one(lacking: clipql.Database) -> None:
    lacking.sql("DELETE FROM t WHERE id % 3 = 0")
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr(kinds, "build", BUILD)
        lacking.sql("OPTIMIZE TABLE t FINAL")
        lacking.wait_for_indexes()
    assert covered(lacking) == [(1_000, 1_000)]
    more(lacking, 1_500, 600)
    assert covered(lacking) == [(1_600, 1_600)]
    check_nearest(lacking, 4, 1_501, 2_099)


def test_deleted_rows_stay_deleted_in_a_grown_index(table: clipql.Database) -> None:
    table.sql("DELETE FROM t WHERE id IN (3, 1499)")
    insert(table, 1_500, 400)
    assert covered(table) == [(1_900, 1_900)]
    for id in (2, 1_501):
        assert nearest(table, id) == nearest(table, id, " SETTINGS vector_index = 0")


# in the background


def test_an_insert_says_how_far_its_index_is_and_does_not_wait_for_it(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, begun = threading.Event(), threading.Event()
    build = kinds.build

    def held(*args: Any, **named: Any) -> Any:
        begun.set()
        may_go_on.wait()
        return build(*args, **named)

    monkeypatch.setattr(kinds, "build", held)
    made = table.sql("INSERT INTO t " + ROWS.format(1_500, 4_700))
    told = "index near covers 1,500 of 6,200 rows, the others are added in the background"
    assert made.stats.indexes == told
    begun.wait()
    state = table.sql("SELECT state FROM clipql.indexes").rows
    assert state == [("in use; in the background: beginning",)]
    # statements go on meanwhile, also those that change the table
    assert nearest(table, 6_199) == nearest(table, 6_199, " SETTINGS vector_index = 0")
    table.sql("DELETE FROM t WHERE id = 7")
    table.sql("INSERT INTO t " + ROWS.format(6_200, 100))
    may_go_on.set()
    stages: list[str] = []
    table.wait_for_indexes(lambda stage, done, total: stages.append(stage))
    assert covered(table) == [(6_300, 6_200)]
    assert table.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
    for id in (6, 8, 6_250):
        assert nearest(table, id) == nearest(table, id, " SETTINGS vector_index = 0")
    assert table.check(deep=True).findings == ()


def test_four_inserts_build_an_index_once(db: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_entries, "UNCOVERED", 500)
    monkeypatch.setattr(background, "QUIET_SECONDS", 3_600)
    monkeypatch.setattr(background, "LONGEST_QUIET_SECONDS", 3_600)
    built = []
    build = kinds.build
    monkeypatch.setattr(kinds, "build", lambda *a, **n: built.append(a[1].rows) or build(*a, **n))
    index = "INDEX near v TYPE ivf('L2Distance')"
    db.sql(f"CREATE TABLE t (id UInt64, v Array(Float32), {index}) ENGINE = MergeTree ORDER BY id")
    for at in range(0, 2_000, 500):
        db.sql("INSERT INTO t " + ROWS.format(at, 500))
    db.wait_for_indexes()
    assert (covered(db), built) == ([(2_000, 2_000)], [2_000])


@pytest.mark.parametrize(
    "change",
    ["DROP TABLE t", "TRUNCATE TABLE t", "ALTER TABLE t DROP INDEX near", "ALTER TABLE t RENAME COLUMN v TO w"],
)
def test_what_an_index_is_built_of_may_go_meanwhile(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    encode = sys.modules["clipql.index.ivf.build"].place

    def held(*args: Any, **named: Any) -> Any:
        begun.set()
        may_go_on.wait(0.5)
        return encode(*args, **named)

    monkeypatch.setattr(sys.modules["clipql.index.ivf.build"], "place", held)
    table.sql("ALTER TABLE t MATERIALIZE INDEX near SETTINGS mutations_sync = 0")
    begun.wait()
    table.sql(change)
    may_go_on.set()
    table.wait_for_indexes()
    assert table.check(deep=True).findings == ()
    if "RENAME" in change:
        assert covered(table) == [(1_500, 1_500)]
        assert table.sql("SELECT column FROM clipql.indexes").rows == [("w",)]
    else:
        assert all(built == 0 for _, built in covered(table))


def test_closing_stops_a_build_and_opening_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    told = background.Background.tell

    def held(self: background.Background, name: str, done: int, total: int) -> None:
        if name == "encode" and not begun.is_set():
            begun.set()
            until(lambda: self._stop, "the database is being closed")
        told(self, name, done, total)

    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t " + ROWS.format(0, 1_500))
        db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
        monkeypatch.setattr(background.Background, "tell", held)
        db.sql("ALTER TABLE t MATERIALIZE INDEX near SETTINGS mutations_sync = 0")
        begun.wait()
    with clipql.connect(tmp_path / "db") as db:
        assert covered(db) == [(1_500, 0)]
        db.wait_for_indexes()
        assert covered(db) == [(1_500, 1_500)]
        assert db.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]


def test_what_cannot_be_built_in_the_background_is_told(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any, **named: Any) -> None:
        raise ValueError("odd")

    table.sql("ALTER TABLE t CLEAR INDEX near")
    monkeypatch.setattr(kinds, "build", refuses)
    table.sql("ALTER TABLE t MATERIALIZE INDEX near SETTINGS mutations_sync = 0")
    table.wait_for_indexes()
    assert table.sql("SELECT state FROM clipql.indexes").rows == [("not built: odd",)]
    with pytest.raises(VectorIndexError, match="has no vector index nothing"):
        table.sql("ALTER TABLE t MATERIALIZE INDEX nothing SETTINGS mutations_sync = 0")
