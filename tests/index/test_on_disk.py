"""A search of vectors that are too large for memory gives what it gives in memory, however they can be read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from clipql.engine import memory
from clipql.index.ivf import IvfIndex, build, open_index
from clipql.index.ivf import resident as resident_module
from clipql.storage.vectors import direct
from clipql.storage.vectors.metrics import Metric
from tests.index.test_ivf import Blocks, make_world

METRICS = [Metric.COSINE, Metric.L2]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Blocks, np.ndarray]:
    """Indexes of vectors in two files, one of float16 and one of float32, and queries."""
    folder, world = tmp_path_factory.mktemp("on_disk"), make_world(dimension=72)
    for number, part in enumerate(world.images.parts):
        np.save(folder / f"{number}.npy", part)
    vectors = Blocks(tuple(np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in range(2)))
    for metric in METRICS:
        build(vectors, metric, folder / metric.value, queries=world.captions)
    return folder, vectors, np.concatenate([world.image_queries[:20], world.text_queries[:20]])


def answers(index: IvfIndex, queries: np.ndarray) -> list[tuple[list[int], list[float]]]:
    few = np.random.default_rng(3).random(index.rows_covered) < 0.04
    found = [index.search(q, 10, knobs={"nprobe": 12, "rescore": 150}) for q in queries]
    found += [index.search(q, 10, among=few, knobs={"nprobe": 4, "rescore": 40}) for q in queries]
    return [(f.rows.tolist(), f.distances.tolist()) for f in found]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lacking", ["nothing", "direct reads", "locked memory", "room", "all"])
def test_a_search_from_the_disk_gives_what_one_in_memory_gives(
    stored: tuple[Path, Blocks, np.ndarray], metric: Metric, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, vectors, queries = stored
    expected = answers(open_index(folder / metric.value, vectors), queries)
    monkeypatch.setattr(memory, "on_disk", lambda size: True)
    if lacking in ("direct reads", "all"):
        monkeypatch.setattr(direct, "context", lambda: contextlib.nullcontext(np.uint64(direct.NOWHERE)))
    if lacking in ("locked memory", "all"):
        monkeypatch.setattr(memory, "lock", lambda address, size: False)
    if lacking == "room":
        monkeypatch.setattr(resident_module, "SHARE", 0.0)
    assert answers(open_index(folder / metric.value, vectors), queries) == expected


def test_a_cold_search_that_reads_directly_compares_no_more_rows_than_one_in_memory(
    stored: tuple[Path, Blocks, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, vectors, queries = stored
    knobs = {"nprobe": 12, "rescore": 150}
    warm = open_index(folder / "cosineDistance", vectors)
    expected = [warm.search(q, 10, knobs=knobs).cost.rows_rescored for q in queries]
    monkeypatch.setattr(memory, "on_disk", lambda size: True)
    cold = open_index(folder / "cosineDistance", vectors)
    assert [cold.search(q, 10, knobs=knobs).cost.rows_rescored for q in queries] == expected
