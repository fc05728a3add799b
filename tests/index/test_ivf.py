"""What an ivf index promises: near-exact answers, exactly k rows, filters, metrics, damage told, nothing shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, DatabaseVersion, VectorError, VectorIndexError
from clipql.index import folder as folder_module
from clipql.index.base import Index
from clipql.index.ivf import IvfIndex, build, open_index, opened, verify
from clipql.index.ivf import place as place_module
from clipql.index.ivf.depth import Depth
from clipql.index.ivf.geometry import unit_rows
from clipql.index.ivf.knobs import FOREIGN_LISTS, Curves, Point, Setting
from clipql.storage.vectors.metrics import Metric, distances
from tests.cases import crossed, some

METRICS = list(Metric)
ROWS = 4000


@dataclass(frozen=True)
class Blocks:
    """Vectors in memory, in any number of blocks."""

    parts: tuple[NDArray[np.floating], ...]

    @property
    def rows(self) -> int:
        return sum(len(p) for p in self.parts)

    @property
    def dimension(self) -> int:
        return int(self.parts[0].shape[1])

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[np.floating]]]:
        last, at, out = self.rows if last is None else last, 0, []
        for part in self.parts:
            a, b = max(first, at), min(last, at + len(part))
            if a < b:
                out.append((a, part[a - at : b - at]))
            at += len(part)
        return out

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        return np.concatenate(self.parts, dtype=np.float32)[rows]


@dataclass(frozen=True)
class World:
    """Clustered images, and captions that lie apart from them but point the same way."""

    images: Blocks
    captions: Blocks
    image_queries: NDArray[np.float32]
    text_queries: NDArray[np.float32]


def make_world(rows: int = ROWS, dimension: int = 64, queries: int = 60) -> World:
    rng = np.random.default_rng(7)
    topics = rng.standard_normal((200, dimension)) * np.linspace(1.5, 0.3, dimension)
    z = topics[rng.integers(0, 200, rows + queries)] + 0.5 * rng.standard_normal((rows + queries, dimension))
    image = z + 1.2 * rng.standard_normal(dimension)
    text = 0.5 * z + 2.0 * rng.standard_normal(dimension) + 0.4 * rng.standard_normal(z.shape)
    image, text = image.astype(np.float32), text.astype(np.float32)
    half = rows // 2
    return World(
        Blocks((image[:half].astype(np.float16), image[half:rows])), Blocks((text[:rows],)), image[rows:], text[rows:]
    )


def truth(
    metric: Metric, vectors: Blocks, query: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None
) -> list[int]:
    d = distances(metric, vectors.take(np.arange(vectors.rows)), query)
    d = -d if metric.larger_is_nearer else d
    allowed = np.arange(vectors.rows) if among is None else np.flatnonzero(among)
    return [int(r) for r in allowed[np.lexsort((allowed, d[allowed]))][:k]]


def recall(index: IvfIndex, vectors: Blocks, queries: NDArray[np.float32], k: int = 10, **options: object) -> float:
    hits = [
        len(
            set(index.search(q, k, **options).rows.tolist())
            & set(truth(index.metric, vectors, q, k, options.get("among")))
        )  # type: ignore[arg-type]
        for q in queries
    ]
    return sum(hits) / (k * len(queries))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[Metric, IvfIndex]:
    folder = tmp_path_factory.mktemp("made")
    return {m: build(world.images, m, folder / m.name, queries=world.captions, seed=3) for m in METRICS}


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that was built without captions."""
    place = tmp_path_factory.mktemp("kept") / "ivf"
    build(world.images, Metric.COSINE, place, seed=3)
    return place


@pytest.mark.parametrize(("metric", "kind"), crossed(METRICS, ["image", "text"], every=3))
def test_the_default_recall_is_reached_on_unseen_queries_of_either_kind(
    world: World, made: dict[Metric, IvfIndex], metric: Metric, kind: str
) -> None:
    queries = world.image_queries if kind == "image" else world.text_queries
    assert recall(made[metric], world.images, queries) >= 0.9


@pytest.mark.parametrize(("k", "share"), [(100, 1.0), (10, 0.2), (50, 0.2)])
def test_as_much_is_found_of_more_rows_and_of_those_that_a_filter_leaves(
    world: World, made: dict[Metric, IvfIndex], k: int, share: float
) -> None:
    among = np.random.default_rng(8).random(ROWS) < share if share < 1 else None
    queries, knobs = world.text_queries[:50], {"recall": 0.95}
    assert recall(made[Metric.COSINE], world.images, queries, k, among=among, knobs=knobs) >= 0.95


def test_more_rows_are_compared_for_more_that_are_asked_unless_their_number_is_told(
    world: World, made: dict[Metric, IvfIndex]
) -> None:
    def compared(k: int, **knobs: float) -> float:
        found = [made[Metric.COSINE].search(q, k, knobs=knobs).cost.rows_rescored for q in world.text_queries[:20]]
        return float(np.mean(found))

    assert compared(100, recall=0.9) > 1.5 * compared(10, recall=0.9)
    assert compared(20, nprobe=61, rescore=90) <= 90


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_a_caption_finds_its_own_picture_as_often_as_it_finds_other_neighbours(
    world: World, metric: Metric, tmp_path: Path
) -> None:
    stored, rng = world.images.take(np.arange(ROWS)), np.random.default_rng(5)
    captions = (0.6 * stored + 1.2 * rng.standard_normal(stored.shape) + rng.standard_normal(64)).astype(np.float32)
    index = build(world.images, metric, tmp_path / "ivf", queries=Blocks((captions,)), seed=3)
    nearest = {}
    for row in rng.choice(ROWS, 400, replace=False).tolist():
        d = distances(metric, stored, captions[row])
        nearest[row] = set(np.argsort(-d if metric.larger_is_nearer else d, kind="stable")[:10].tolist())
    for asked in (0.9, 0.95, 0.98):
        own, found, others, hits = 0, 0, 0, 0
        for row, near in nearest.items():
            rows = set(index.search(captions[row], 10, knobs={"recall": asked}).rows.tolist())
            own, found = own + (row in near), found + len(near & rows & {row})
            others, hits = others + len(near - {row}), hits + len(near & rows - {row})
        assert own >= 100
        assert found >= (asked - 0.03) * own
        assert hits >= (asked - 0.03) * others


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_exact_and_sorted_with_ties_by_row(
    world: World, made: dict[Metric, IvfIndex], metric: Metric
) -> None:
    stored = world.images.take(np.arange(world.images.rows))
    for q in world.text_queries[:10]:
        found = made[metric].search(q, 25)
        assert found.rows.dtype == np.uint64
        assert found.distances.dtype == np.float64
        np.testing.assert_allclose(
            found.distances, distances(metric, stored[found.rows.astype(int)], q), rtol=1e-12, atol=1e-12
        )
        ordered = -found.distances if metric.larger_is_nearer else found.distances
        assert np.array_equal(np.lexsort((found.rows, ordered)), np.arange(25))


def test_an_index_speaks_the_protocol(made: dict[Metric, IvfIndex]) -> None:
    index = made[Metric.L2]
    assert isinstance(index, Index)
    assert (index.kind, index.metric, index.rows_covered) == ("ivf", Metric.L2, ROWS)
    assert 50 <= index.lists <= 75


@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_one_compares_every_row_and_misses_nothing(
    world: World, made: dict[Metric, IvfIndex], metric: Metric
) -> None:
    index = made[metric]
    assert recall(index, world.images, world.text_queries[:20], knobs={"recall": 1.0}) == 1
    assert index.search(world.text_queries[0], 10, knobs={"recall": 1.0}).cost.rows_scanned == ROWS


def test_a_higher_recall_scans_more(world: World, made: dict[Metric, IvfIndex]) -> None:
    index = made[Metric.COSINE]
    scanned = [
        index.search(world.text_queries[0], 10, knobs={"recall": r}).cost.codes_scanned for r in (0.6, 0.9, 0.99)
    ]
    assert scanned == sorted(scanned)
    assert scanned[0] < scanned[2]


def test_explicit_knobs_win(world: World, made: dict[Metric, IvfIndex]) -> None:
    cost = made[Metric.DOT].search(world.text_queries[0], 5, knobs={"nprobe": 3, "rescore": 20}).cost
    assert cost.lists_probed == 3
    assert 5 <= cost.rows_rescored <= 20


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"ef": 3}, "nprobe, rescore, recall"),
        ({"recall": 0}, "at most 1"),
        ({"recall": 1.1}, "at most 1"),
        ({"nprobe": 0}, "at least 1"),
    ],
)
def test_a_wrong_knob_is_refused(
    world: World, made: dict[Metric, IvfIndex], knobs: dict[str, float], said: str
) -> None:
    with pytest.raises(VectorIndexError, match=said):
        made[Metric.L2].search(world.text_queries[0], 5, knobs=knobs)


def test_a_query_of_the_wrong_kind_is_refused(made: dict[Metric, IvfIndex]) -> None:
    with pytest.raises(VectorError, match="64 numbers"):
        made[Metric.L2].search(np.zeros(63, np.float32), 5)
    with pytest.raises(VectorError, match="NaN or infinity"):
        made[Metric.L2].search(np.full(64, np.nan, np.float32), 5)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_a_filter_lets_only_its_rows_through_and_keeps_the_recall(
    world: World, made: dict[Metric, IvfIndex], share: float
) -> None:
    among = np.random.default_rng(1).random(ROWS) < share
    index = made[Metric.COSINE]
    for q in world.text_queries[:10]:
        rows = index.search(q, 10, among=among).rows.astype(int)
        assert len(rows) == 10
        assert among[rows].all()
    assert recall(index, world.images, world.text_queries, among=among) >= 0.9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("matching", [0, 1, 7, 30, 3000])
def test_exactly_k_rows_come_back_whenever_k_qualify(
    world: World, made: dict[Metric, IvfIndex], metric: Metric, matching: int
) -> None:
    among = np.zeros(ROWS, np.bool_)
    among[np.random.default_rng(2).choice(ROWS, matching, replace=False)] = True
    for k in (1, 10, 2000, 5000):
        rows = (
            made[metric]
            .search(world.text_queries[0], k, among=among, knobs={"nprobe": 1, "rescore": 1})
            .rows.astype(int)
        )
        assert len(rows) == min(k, matching) == len(set(rows.tolist()))
        assert among[rows].all()


def test_a_filter_on_far_rows_only_is_widened_until_they_are_found(world: World, made: dict[Metric, IvfIndex]) -> None:
    query = world.image_queries[0]
    far = distances(Metric.COSINE, world.images.take(np.arange(ROWS)), query)
    among = far > np.quantile(far, 0.9)
    found = made[Metric.COSINE].search(query, 50, among=among, knobs={"nprobe": 1, "rescore": 60})
    assert len(found.rows) == 50
    assert among[found.rows.astype(int)].all()


def test_k_beyond_the_table_returns_every_row_and_no_k_none(world: World, made: dict[Metric, IvfIndex]) -> None:
    found = made[Metric.L2_SQUARED].search(world.text_queries[0], ROWS + 1000)
    assert sorted(found.rows.tolist()) == list(range(ROWS))
    assert len(made[Metric.L2_SQUARED].search(world.text_queries[0], 0).rows) == 0


def test_lists_that_a_query_tells_by_itself_are_widened_alike_for_a_query_of_any_kind() -> None:
    nothing = np.zeros(4, np.float32)
    point = Point(Setting(100, 50), 0.99, 1.0)
    curves = Curves([point], [point], nothing, None, 0.5)
    depth = Depth(curves, lists=156_000, rows=10_000_000, placed=10_000_000, more_rows=1.0, more_lists=1.0)
    for k, matching in ((100, 10_000_000), (10, 100_000), (100, 10_000)):
        told = {depth.widened(500, k, matching, kind, {"nprobe": 500}) for kind in ("foreign", "image", "")}
        assert len(told) == 1
        own = depth.setting("foreign", {}).nprobe
        assert own == FOREIGN_LISTS * 100
        assert own <= depth.widened(own, k, matching, "foreign", {}) < depth.widened(own, k, matching, "image", {})


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("captions", [True, False])
def test_an_index_that_doubts_no_kind_of_query_doubts_no_query(captions: bool, apart: bool) -> None:
    queries = unit_rows(np.random.default_rng(2).standard_normal((200, 4)).astype(np.float32))
    image, text = [Point(Setting(4, 20), 0.9, 1.0)], [Point(Setting(4, 20), 0.8, 1.0)]
    curves = Curves(image, text, queries[0], queries[1] if captions else None, 0.2, apart)
    for recall in (0.7, 0.85, 0.95):
        doubts = {curves.doubt(curves.kind_of(query), recall) for query in queries}
        assert curves.doubtful(recall) == (doubts != {""}), recall


def test_a_short_filter_is_refused(world: World, made: dict[Metric, IvfIndex]) -> None:
    with pytest.raises(VectorIndexError, match=f"covers {ROWS} rows"):
        made[Metric.L2].search(world.text_queries[0], 5, among=np.ones(ROWS - 1, np.bool_))


@pytest.mark.parametrize("dimension", some([513, 100, 3, 1], 3))
def test_any_dimension_works(tmp_path: Path, dimension: int) -> None:
    small = make_world(3000, dimension, 100)
    index = build(small.images, Metric.L2, tmp_path / "ivf", seed=1)
    assert recall(index, small.images, small.image_queries) >= 0.9


def test_a_dozen_words_are_scanned_as_eight_are(tmp_path: Path) -> None:
    small = make_world(2000, 768, 20)
    index = build(small.images, Metric.COSINE, tmp_path / "ivf", seed=1)
    assert recall(index, small.images, small.image_queries) >= 0.9


def test_zero_vectors_have_no_cosine_distance_and_come_last(tmp_path: Path) -> None:
    small = make_world(3000, 32, 5)
    rows = small.images.take(np.arange(3000))
    rows[[5, 700, 2999]] = 0
    vectors = Blocks((rows,))
    index = build(vectors, Metric.COSINE, tmp_path / "ivf")
    found = index.search(small.image_queries[0], 3000)
    assert found.rows[-3:].tolist() == [5, 700, 2999]
    assert np.isnan(found.distances[-3:]).all()
    assert not np.isnan(found.distances[:-3]).any()
    among = np.zeros(3000, np.bool_)
    among[[5, 6, 700]] = True
    assert index.search(small.image_queries[0], 3, among=among).rows.tolist() == [6, 5, 700]
    blank = index.search(np.zeros(32, np.float32), 3)
    assert blank.rows.tolist() == [0, 1, 2]
    assert np.isnan(blank.distances).all()


def test_equal_rows_are_answered_without_end(tmp_path: Path) -> None:
    vectors = Blocks((np.ones((2000, 16), np.float32),))
    found = build(vectors, Metric.L2, tmp_path / "ivf").search(np.zeros(16, np.float32), 10)
    assert found.distances.tolist() == [4.0] * 10


def test_queries_far_from_everything_stored_are_searched_wider(world: World, folder: Path) -> None:
    index = open_index(folder, world.images)
    assert index.curves.kind_of(world.image_queries[0]) == "image"
    assert index.curves.kind_of(-world.image_queries[0]) == "foreign"


def test_text_queries_are_searched_wide_enough_where_no_caption_was_given(world: World, folder: Path) -> None:
    index = open_index(folder, world.images)
    assert index._curves.kind_of(world.text_queries[0]) == "foreign"
    assert recall(index, world.images, world.text_queries) >= 0.9
    assert recall(index, world.images, world.image_queries) >= 0.9
    assert list(index.measured_recall()) == ["image"]


def test_the_kind_of_a_query_shows_in_its_direction(world: World, made: dict[Metric, IvfIndex]) -> None:
    curves = made[Metric.COSINE].curves
    assert {curves.kind_of(q) for q in world.text_queries} == {"text"}
    assert {curves.kind_of(q) for q in world.image_queries} == {"image"}


def test_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match=r"needs 1000 rows.* has 999"):
        build(Blocks((np.ones((999, 8), np.float32),)), Metric.L2, tmp_path / "ivf")
    assert list(tmp_path.iterdir()) == []


def test_captions_that_do_not_pair_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match=f"must pair with {ROWS} rows"):
        build(world.images, Metric.L2, tmp_path / "ivf", queries=Blocks((np.ones((7, 64), np.float32),)))


def test_the_same_seed_gives_the_same_files_on_any_number_of_threads(tmp_path: Path) -> None:
    small = make_world(1500, 96, 1)
    for name, threads in (("a", 1), ("b", 2)):
        build(small.images, Metric.COSINE, tmp_path / name, queries=small.captions, seed=11, threads=threads)
    kept = [json.loads((tmp_path / n / "meta.json").read_text()) for n in "ab"]
    assert kept[0].pop("build_seconds") > 0
    assert kept[1].pop("build_seconds") > 0
    assert kept[0].pop("hash") != kept[1].pop("hash"), "it is over the seconds, too"
    assert kept[0] == kept[1]


def test_laying_out_in_stretches_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_world(1500, 96, 1)
    build(small.images, Metric.L2, tmp_path / "whole")
    monkeypatch.setattr(place_module, "STRETCH", 700)
    build(small.images, Metric.L2, tmp_path / "cut")
    kept = [json.loads((tmp_path / n / "meta.json").read_text())["files"] for n in ("whole", "cut")]
    assert kept[0] == kept[1]


class Killed(BaseException):
    """What a build dies of, so that nothing after it runs."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build that is not cut off gives."""
    small, place = make_world(3000), tmp_path_factory.mktemp("whole") / "ivf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place_module, "PART", 700)
        patch.setattr(place_module, "CHUNK", 350)
        build(small.images, Metric.L2, place, queries=small.captions, seed=4)
    return place


@pytest.mark.parametrize("killed_at", some([1050, 1500, 3000], 2))
def test_a_build_cut_off_goes_on_and_gives_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    monkeypatch.setattr(place_module, "PART", 700)
    monkeypatch.setattr(place_module, "CHUNK", 350)
    monkeypatch.setattr(folder_module.NewFolder, "__exit__", lambda *_: None)  # as in a process that was killed
    small = make_world(3000)

    def dies(stage: str, done: int, total: int) -> None:
        if stage == "encode" and done >= killed_at:
            raise Killed

    def made(place: str, identity: str, progress: Callable[[str, int, int], None] | None = None) -> None:
        build(small.images, Metric.L2, tmp_path / place, queries=small.captions, seed=4, work=tmp_path / "work",
              identity=identity, progress=progress)  # fmt: skip

    with pytest.raises(Killed):
        made("cut", "a", dies)
    assert (tmp_path / "work" / "learned.npz").exists()
    stages: list[tuple[str, int]] = []
    made("cut", "a", lambda stage, done, total: stages.append((stage, done)))
    assert not (tmp_path / "work").exists()
    assert "train" not in {stage for stage, _ in stages}
    assert min(done for stage, done in stages if stage == "encode") == killed_at  # rows before it are not read again
    for file in whole.iterdir():
        if file.name != "meta.json":
            assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_was_left_of_another_column_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.NewFolder, "__exit__", lambda *_: None)
    small, work = make_world(1500), tmp_path / "work"

    def dies(stage: str, done: int, total: int) -> None:
        if stage == "calibrate":
            raise Killed

    with pytest.raises(Killed):
        build(small.images, Metric.L2, tmp_path / "a", work=work, identity="a", progress=dies)
    stages: list[str] = []
    build(small.images, Metric.L2, tmp_path / "b", work=work, identity="b", progress=lambda s, *_: stages.append(s))
    assert "train" in stages
    with pytest.raises(Killed):
        build(small.images, Metric.L2, tmp_path / "c", work=work, identity="c", progress=dies)
    (work / "learned.npz").write_bytes(b"damaged")
    stages.clear()
    build(small.images, Metric.L2, tmp_path / "c", work=work, identity="c", progress=lambda s, *_: stages.append(s))
    assert "train" in stages


def test_ranking_only_near_parents_keeps_the_recall(
    world: World, made: dict[Metric, IvfIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "RANKED_LISTS", 40)
    monkeypatch.setattr(opened, "RANKED_PER_PROBE", 1)
    knobs = {"nprobe": 4, "rescore": 100}
    few = recall(made[Metric.COSINE], world.images, world.image_queries, knobs=knobs)
    monkeypatch.undo()
    assert few >= recall(made[Metric.COSINE], world.images, world.image_queries, knobs=knobs) - 0.1


def test_many_threads_get_what_one_gets(world: World, made: dict[Metric, IvfIndex]) -> None:
    index, queries = made[Metric.COSINE], list(world.text_queries) * 5
    alone = [index.search(q, 10).rows.tolist() for q in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda q: index.search(q, 10).rows.tolist(), queries)) == alone


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_in_one_call_get_what_each_gets_alone(
    world: World, made: dict[Metric, IvfIndex], metric: Metric
) -> None:
    index, queries = made[metric], np.concatenate([world.image_queries[:20], world.text_queries[:20]])
    queries = np.concatenate([queries, 0 * queries[:1], 1e6 * queries[:1]])
    third, few = np.arange(ROWS) % 3 == 0, np.arange(ROWS) < 30
    answered = 0
    ways: Any = ((None, {}), (third, {"recall": 0.8}), (few, {}), (None, {"recall": 1}), (None, {"nprobe": 2}))
    for k in (1, 11):
        for among, knobs in ways:
            alone = [index.search(q, k, among=among, knobs=knobs, ties=True) for q in queries]
            for one, each in zip(alone, index.search_each(queries, k, among=among, knobs=knobs), strict=True):
                if each is None:
                    continue
                answered += 1
                assert (each.rows.tolist(), each.distances.tolist()) == (one.rows.tolist(), one.distances.tolist())
                assert replace(each.cost, seconds={}) == replace(one.cost, seconds={})
    assert answered > 6 * 36


def test_progress_is_told_by_stage(world: World, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build(world.images, Metric.L2, tmp_path / "ivf", progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["sample", "train", "encode", "route", "calibrate"]
    assert [t for t in told if t[0] == "encode"][-1] == ("encode", ROWS, ROWS)


def test_a_build_that_fails_leaves_the_old_index_and_no_litter(world: World, tmp_path: Path) -> None:
    small = make_world(1500, 8, 1)
    build(small.images, Metric.L2, tmp_path / "ivf")
    before = (tmp_path / "ivf" / "meta.json").read_bytes()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small.images, Metric.L2, tmp_path / "ivf", seed=5, progress=stop)
    assert [f.name for f in tmp_path.iterdir()] == ["ivf"]
    assert (tmp_path / "ivf" / "meta.json").read_bytes() == before


def copy_of(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_reopened_index_answers_the_same(world: World, folder: Path) -> None:
    verify(folder)
    rows = [open_index(folder, world.images).search(q, 10).rows.tolist() for q in world.text_queries[:5]]
    assert rows == [open_index(folder, world.images).search(q, 10).rows.tolist() for q in world.text_queries[:5]]
    assert open_index(folder, world.images).bytes_per_row() < 90


@pytest.mark.parametrize("name", ["codes.npy", "rows.npy", "list_small.npy", "mean.npy"])
def test_a_file_cut_short_altered_or_missing_is_named(world: World, folder: Path, tmp_path: Path, name: str) -> None:
    copy = copy_of(folder, tmp_path)
    whole = (copy / name).read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        (copy / name).unlink() if damaged is None else (copy / name).write_bytes(damaged)
        with pytest.raises(DatabaseDamaged, match=name):
            open_index(copy, world.images)
        with pytest.raises(DatabaseDamaged, match=name):
            verify(copy)


def test_meta_that_cannot_be_read_is_damage_and_a_newer_one_is_not(world: World, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    for text in ("", "{", "[]", "{}", '{"version": 1}'):
        (copy / "meta.json").write_text(text)
        with pytest.raises(DatabaseDamaged, match=r"meta\.json"):
            open_index(copy, world.images)
    (copy / "meta.json").write_text('{"version": 99}')
    with pytest.raises(DatabaseVersion, match="version 99"):
        open_index(copy, world.images)
    with pytest.raises(VectorIndexError, match="no index in"):
        open_index(tmp_path / "nowhere", world.images)


def test_an_index_of_another_column_is_refused(world: World, folder: Path) -> None:
    with pytest.raises(VectorIndexError, match=f"covers {ROWS} rows of 64 numbers"):
        open_index(folder, Blocks((np.ones((ROWS - 1000, 64), np.float32),)))
