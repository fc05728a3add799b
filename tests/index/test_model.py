"""Indexes of several tables that share what was learnt of all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clipql.errors import DatabaseDamaged, VectorIndexError
from clipql.index import folder as folder_module
from clipql.index import ivf
from clipql.index.base import Route
from clipql.index.ivf import IvfIndex, Model, Router, opened
from clipql.index.ivf import place as place_module
from clipql.index.ivf.learn import spread
from clipql.index.rows import ArrayRows
from clipql.storage.vectors.metrics import Metric
from tests.cases import some
from tests.index.test_ivf import Killed, World, make_world, truth

SHARDS, LISTS, ROWS = 2, 72, 3600
METRICS = (Metric.COSINE, Metric.L2, Metric.DOT)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(ROWS)


class Shared:
    """A model of a third of all rows, and an index of each shard that was built with it."""

    def __init__(self, world: World, metric: Metric, folder: Path) -> None:
        images, captions = (x.take(np.arange(x.rows)) for x in (world.images, world.captions))
        sample, queries = ArrayRows(images[::3]), ArrayRows(captions[::3])
        ivf.build(sample, metric, folder / "trained", queries=queries, lists=LISTS, shared=True)
        self.folder, self.model, self.router = folder, ivf.open_model(folder / "trained"), Router(folder / "trained")
        self.shards = [ArrayRows(images[i::SHARDS]) for i in range(SHARDS)]
        self.indexes = [self.built(i, ArrayRows(captions[i::SHARDS])) for i in range(SHARDS)]

    def built(self, shard: int, captions: ArrayRows) -> IvfIndex:
        """The index of one shard."""
        place = self.folder / f"shard {shard}"
        return ivf.build(self.shards[shard], self.router.metric, place, queries=captions, model=self.model)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[Metric, Shared]:
    return {m: Shared(world, m, tmp_path_factory.mktemp(m.name)) for m in METRICS}


@pytest.mark.parametrize("metric", some(METRICS, 2))
def test_all_shards_have_the_lists_of_the_model_and_are_one_of_its_kind(
    made: dict[Metric, Shared], metric: Metric
) -> None:
    shared = made[metric]

    assert {i.model for i in shared.indexes} == {shared.model.identity} == {shared.router.model}
    assert {i.lists for i in shared.indexes} == {shared.router.lists} == {shared.model.known.lists.count}
    assert sum(i.rows_covered for i in shared.indexes) == ROWS


@pytest.mark.parametrize("metric", METRICS)
def test_lists_ranked_once_hold_for_every_shard(world: World, made: dict[Metric, Shared], metric: Metric) -> None:
    shared = made[metric]
    for query in (*world.image_queries[:10], *world.text_queries[:10]):
        route = shared.router.route(query)
        for index in shared.indexes:
            routed, alone = index.routed([route]).search(query, 10), index.search(query, 10)
            assert routed.rows.tolist() == alone.rows.tolist()
            assert routed.distances.tolist() == alone.distances.tolist()
            assert (alone.cost.lists_routed, routed.cost.lists_routed) == (0, routed.cost.lists_probed)


@pytest.mark.parametrize("metric", METRICS)
def test_shards_together_give_the_recall_that_is_asked_for(
    world: World, made: dict[Metric, Shared], metric: Metric
) -> None:
    shared, hits = made[metric], 0
    queries = [*world.image_queries, *world.text_queries]
    for query in queries:
        route, found = shared.router.route(query), []
        for shard, index in enumerate(shared.indexes):
            nearest = index.routed([route]).search(query, 10)
            found += [(d, int(r) * SHARDS + shard) for d, r in zip(nearest.distances, nearest.rows, strict=True)]
        best = sorted(found, reverse=metric.larger_is_nearer)[:10]
        hits += len({r for _, r in best} & set(truth(metric, world.images, query, 10)))

    assert hits / (10 * len(queries)) >= 0.93


def test_a_route_says_which_lists_are_looked_into(world: World, made: dict[Metric, Shared]) -> None:
    index, query = made[Metric.COSINE].indexes[0], world.image_queries[0]
    far = made[Metric.COSINE].router.route(query, nprobe=LISTS).lists[::-1].copy()

    found = index.routed([Route(index.model, query, far)]).search(query, 5, knobs={"nprobe": 2, "rescore": 100})

    assert found.rows.tolist() != index.search(query, 5, knobs={"nprobe": 2, "rescore": 100}).rows.tolist()
    assert found.cost.lists_routed == found.cost.lists_probed


@pytest.mark.parametrize("wrong", ["model", "query", "lists", "few"])
def test_a_route_that_does_not_fit_is_passed_over(world: World, made: dict[Metric, Shared], wrong: str) -> None:
    index, query = made[Metric.L2].indexes[1], world.text_queries[0]
    route = made[Metric.L2].router.route(query)
    others = {
        "model": Route("another", query, route.lists),
        "query": Route(route.model, world.text_queries[1], route.lists),
        "lists": Route(route.model, query, np.array([LISTS * 2], np.int32)),
        "few": Route(route.model, query, route.lists[:1]),
    }

    found = index.routed([others[wrong]]).search(query, 10)

    assert found.cost.lists_routed == 0
    assert found.rows.tolist() == index.search(query, 10).rows.tolist()


def test_lists_of_near_parents_are_ranked_as_a_search_ranks_them(
    world: World, made: dict[Metric, Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "RANKED_LISTS", 16)
    monkeypatch.setattr(opened, "RANKED_PER_PROBE", 1)
    shared, query = made[Metric.L2], world.image_queries[3]
    index = shared.indexes[1]
    route = shared.router.route(query, nprobe=4)

    routed = index.routed([route]).search(query, 10, knobs={"nprobe": 4, "rescore": 60})

    assert routed.cost.lists_routed == 4
    assert routed.rows.tolist() == index.search(query, 10, knobs={"nprobe": 4, "rescore": 60}).rows.tolist()


def test_an_index_that_was_built_with_a_model_can_be_built_with(made: dict[Metric, Shared], tmp_path: Path) -> None:
    shared = made[Metric.DOT]
    again = ivf.open_model(shared.folder / "shard 1")

    index = ivf.build(shared.shards[0], Metric.DOT, tmp_path / "again", model=again)

    assert again.identity == index.model == shared.model.identity


def test_the_files_of_a_model_are_enough_of_an_index(made: dict[Metric, Shared], tmp_path: Path) -> None:
    shared = made[Metric.COSINE]
    for name in ivf.MODEL_FILES:
        shutil.copy(shared.folder / "trained" / name, tmp_path / name)

    assert ivf.open_model(tmp_path).identity == Router(tmp_path).model == shared.model.identity


def test_a_model_that_is_damaged_or_of_another_column_is_refused(made: dict[Metric, Shared], tmp_path: Path) -> None:
    shared = made[Metric.COSINE]
    copy = tmp_path / "copy"
    shutil.copytree(shared.folder / "trained", copy)
    with (copy / "list_small.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"damage")

    with pytest.raises(DatabaseDamaged, match=r"list_small\.npy is not as it was written"):
        ivf.open_model(copy)
    with pytest.raises(
        VectorIndexError, match="the model is of 64 numbers by cosineDistance; the index is of 64 by L2"
    ):
        ivf.build(shared.shards[0], Metric.L2, tmp_path / "other", model=shared.model)


def test_an_index_for_itself_alone_keeps_no_model(world: World, tmp_path: Path) -> None:
    index = ivf.build(world.images, Metric.L2, tmp_path / "alone", lists=40)

    assert index.model == ""
    with pytest.raises(VectorIndexError, match="keeps no model that others could be built with"):
        ivf.open_model(tmp_path / "alone")


def test_a_build_with_a_model_that_is_cut_off_goes_on(
    made: dict[Metric, Shared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, model = made[Metric.COSINE], made[Metric.COSINE].model
    whole = ivf.build(shared.shards[0], Metric.COSINE, tmp_path / "whole", model=model)
    monkeypatch.setattr(place_module, "PART", 700)
    monkeypatch.setattr(place_module, "CHUNK", 350)
    monkeypatch.setattr(folder_module.NewFolder, "__exit__", lambda *_: None)  # as in a process that was killed

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "encode" and done >= 1400:
            raise Killed

    def go_on(model: Model, progress: object) -> IvfIndex:
        return ivf.build(shared.shards[0], Metric.COSINE, tmp_path / "cut", model=model, work=tmp_path / "work",
                         progress=progress)  # type: ignore[arg-type]  # fmt: skip

    seen: list[int] = []
    with pytest.raises(Killed):
        go_on(model, stop)
    index = go_on(model, lambda stage, done, total: seen.append(done) if stage == "encode" else None)

    assert min(seen) == 1050  # rows before the last checkpoint are not read again
    query = np.ones(64, np.float32)
    assert index.search(query, 10).rows.tolist() == whole.search(query, 10).rows.tolist()


@pytest.mark.parametrize(
    ("rows", "wanted"), [(1, 0), (1, 1), (10, 7), (17, 3), (31, 30), (50, 5), (1000, 20), (40, 900)]
)
def test_rows_are_drawn_from_all_over_however_few_there_are(rows: int, wanted: int) -> None:
    drawn = spread(rows, wanted, (12,))

    assert len(drawn) == min(rows, wanted)
    assert len(set(drawn.tolist())) == len(drawn)
    assert all(0 <= row < rows for row in drawn.tolist())


def test_a_build_with_a_model_is_forecast_without_what_learning_takes() -> None:
    rows = ArrayRows(np.zeros((2_000_000, 64), np.float16))

    learns, with_model = (ivf.forecast(rows, Metric.COSINE, 30_000, learns=learns) for learns in (True, False))

    assert with_model.kept == learns.kept
    assert with_model.disk < learns.disk / 2
    assert with_model.memory <= learns.memory
