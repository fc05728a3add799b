"""What a device's products find is what the processor finds, ties, odd lengths and short memory included.

The device is numpy behind a device's interface; where PyTorch is installed (the extra `torch`), it is PyTorch on the
processor too, and on a GPU where there is one. Float64 in numpy is the judge.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from clipql.index import kmeans, streamed, within
from clipql.index.batch import candidates_each, nearest_each
from clipql.index.within import GivenVectors, PairsWithin, Side
from clipql.storage.vectors import devices, metrics
from clipql.storage.vectors.device import Device, rounding
from clipql.storage.vectors.heads import Layer, head
from clipql.storage.vectors.metrics import Metric
from tests.index.hard_vectors import DIMENSION, KINDS, keys_of, stored, vectors
from tests.numpy_device import NumpyDevice

ROWS, QUERIES = 3_000, 30


def places() -> list[str]:
    """Devices that there are here."""
    if importlib.util.find_spec("torch") is None:
        return ["numpy"]
    import torch

    return ["numpy", "torch on the processor", *(["cuda"] if torch.cuda.is_available() else [])]


def opened(name: str) -> Device:
    """A device of `places`."""
    return NumpyDevice() if name == "numpy" else devices.opened("cpu" if name != "cuda" else name)


@pytest.fixture(scope="module", params=places())
def device(request: pytest.FixtureRequest) -> Device:
    """Each of them."""
    return opened(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vectors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", list(Metric))
def test_the_nearest_rows_are_those_of_float64_and_of_the_processor(
    device: Device, folder: Path, metric: Metric, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "SCORES", QUERIES * 700)  # several blocks
    x, queries = vectors(kind, 1, ROWS), vectors(kind, 2, QUERIES)
    queries[0] = x[5]
    store = stored(folder, x, "float16" if kind == "float16" else "float32")
    among = np.random.default_rng(3).random(ROWS) < 0.6
    rows, distances = nearest_each(store, metric, queries, 7, among, device=device)
    theirs, expected = nearest_each(store, metric, queries, 7, among)
    assert rows.tolist() == theirs.tolist()
    assert distances.tobytes() == expected.tobytes()
    for query, own in zip(queries, rows, strict=True):
        every, allowed = keys_of(metric, x, query), np.flatnonzero(among)
        best = allowed[np.lexsort((allowed, every[allowed]))][:7]
        if kind == "nearly tied":  # float64 itself tells some of them apart by how it is added up alone
            np.testing.assert_allclose(every[own], every[best], rtol=1e-9, atol=1e-14)
        else:
            assert own.tolist() == best.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", list(Metric))
def test_candidates_hold_all_that_float32_cannot_tell_from_the_kth(
    device: Device, folder: Path, metric: Metric, kind: str
) -> None:
    x, queries = vectors(kind, 1, ROWS), vectors(kind, 2, QUERIES)
    found = candidates_each(stored(folder, x), metric, queries, 5, device=device)
    told = 0
    for query, rows in zip(queries, found, strict=True):
        if rows is None:
            continue
        told += 1
        every = metrics.distances(metric, x, query)
        nearest = -every if metric.larger_is_nearer else every
        kth = np.float32(np.sort(nearest)[4])
        assert set(np.flatnonzero(nearest.astype(np.float32) <= kth)) <= set(rows.tolist())
    if kind in ("random", "float16"):
        assert told == QUERIES


def test_a_long_query_has_its_float32_ties_among_the_candidates(device: Device, folder: Path) -> None:
    x = vectors("random", 1, ROWS)
    query = np.full((1, DIMENSION), 3e4, np.float32)
    for on in (device, None):
        (found,) = candidates_each(stored(folder, x), Metric.L2, query, 5, device=on)
        every = metrics.distances(Metric.L2, x, query[0]).astype(np.float32)
        tied = set(np.flatnonzero(every <= np.sort(every)[4]).tolist())
        assert found is None or tied <= set(found.tolist())


@pytest.mark.parametrize("least", [1, 64])
def test_where_memory_is_short_blocks_become_smaller_and_then_the_processor_does_it(
    folder: Path, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "LEAST", 64)
    x, queries = vectors("random", 1, ROWS), vectors("random", 2, QUERIES)
    store, short = stored(folder, x), NumpyDevice(most=QUERIES * least)
    rows, distances = nearest_each(store, Metric.COSINE, queries, 7, device=short)
    theirs, expected = nearest_each(store, Metric.COSINE, queries, 7)
    assert (rows.tolist(), distances.tobytes()) == (theirs.tolist(), expected.tobytes())
    assert short.refused > 0
    assert short.asked == (ROWS * QUERIES if least == 64 else 0)


def test_rows_of_float16_go_to_the_device_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "FOR_DEVICE", 0)
    x, device = vectors("float16", 1, ROWS), NumpyDevice()
    store = stored(folder, x, "float16")
    nearest_each(store, Metric.L2, x[:3], 3, device=device)
    assert device.kinds == {"float16", "float32", "int64"}  # rows, the queries and the numbers of rows
    device.kinds.clear()
    list(PairsWithin(Metric.L2, Side(store, ROWS), Side(store, ROWS), 1.0, device=device).find())
    assert device.kinds == {"float16"}


@pytest.mark.parametrize(
    ("kind", "memory"), [*((kind, None) for kind in KINDS), ("random", 5_000), ("tied", 5_000), ("random", 10)]
)
@pytest.mark.parametrize("metric", list(Metric))
def test_no_pair_within_a_bound_is_missed(
    device: Device, folder: Path, metric: Metric, kind: str, memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory is not None:
        if not isinstance(device, NumpyDevice):
            pytest.skip("its memory is not short")
        device = NumpyDevice(memory)
    monkeypatch.setattr(within, "FOR_DEVICE", 0)
    monkeypatch.setattr(streamed, "LEAST", 32)
    monkeypatch.setattr(streamed, "LEFT", 128)
    monkeypatch.setattr(streamed, "RIGHT", 150)
    x, y = vectors(kind, 1, 400), vectors(kind, 2, 300)
    store = stored(folder, x, "float16" if kind == "float16" else "float32")
    rows = np.flatnonzero(np.arange(400) % 7)
    for side, theirs in (
        (Side(GivenVectors(y), 300), y),
        (Side(store, 400, rows), x[rows]),
    ):
        ours = x[rows]
        every = np.stack([metrics.distances(metric, theirs, row) for row in ours])
        bound = float(np.nanquantile(every, 0.98 if metric is Metric.DOT else 0.02))
        near = every >= bound if metric is Metric.DOT else every <= bound
        search = PairsWithin(metric, Side(store, 400, rows), side, bound, device=device)
        found = list(search.find())
        pairs = [(int(i), int(j)) for f in found for i, j in zip(f.left, f.right, strict=True)]
        i, j = np.nonzero(near)
        wanted = set(zip(rows[i].tolist(), (j if theirs is y else rows[j]).tolist(), strict=True))
        assert len(pairs) == len(set(pairs))
        assert set(pairs) >= wanted
        assert len(pairs) - len(wanted) <= sum(int(f.unsure.sum()) for f in found)


@pytest.mark.parametrize("memory", [None, 64 * 40, 10])
def test_k_means_gives_the_clusters_of_the_processor(
    device: Device, memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory is not None:
        if not isinstance(device, NumpyDevice):
            pytest.skip("its memory is not short")
        device = NumpyDevice(memory)
    monkeypatch.setattr(streamed, "LEAST", 64)
    monkeypatch.setattr(streamed, "SCORES", 40 * 500)
    rng = np.random.default_rng(6)
    x = 3 * rng.standard_normal((12, 16))[np.arange(1_200) % 12] + rng.standard_normal((1_200, 16))
    x = x.astype(np.float32)
    ours, theirs = kmeans.train(x, 40, device=device), kmeans.train(x, 40)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    lists, squares = kmeans.nearest(x, theirs, 3, device)
    expected = ((x[:, None].astype(np.float64) - theirs) ** 2).sum(2)
    assert lists.tolist() == np.argsort(expected, axis=1)[:, :3].tolist()
    np.testing.assert_allclose(squares, np.sort(expected, axis=1)[:, :3], rtol=1e-4)
    if memory != 10 and isinstance(device, NumpyDevice):
        assert device.asked >= 11 * 1_200 * 40


def test_centroids_that_are_alike_have_the_first_of_them(device: Device) -> None:
    x = np.ones((5, 4), np.float32)
    assert kmeans.nearest(x, np.ones((3, 4), np.float32), 1, device)[0].tolist() == [[0]] * 5
    assert kmeans.nearest(x, np.ones((3, 4), np.float32), 2, device)[0].shape == (5, 2)


@pytest.mark.parametrize("element", [None, 3])
def test_a_head_gives_its_numbers_within_rounding(device: Device, element: int | None) -> None:
    rng = np.random.default_rng(1)
    w, v = rng.standard_normal((40, 24)).astype(np.float32), rng.standard_normal((7, 40)).astype(np.float32)
    linear = [Layer("vectorLinear", weights, bias) for weights, bias in ((w, w[:, 0]), (v, v[:, 1]))]
    layers = [Layer("L2Normalize"), linear[0], Layer("vectorRelu"), linear[1]]
    x = vectors("of all lengths", 1, 200)
    x[3] = 0
    for chosen in (layers, [*layers, Layer("L2Normalize")]):
        made = head(chosen, 24, element)
        lengths = np.linalg.norm(x.astype(np.float64), axis=1)
        scaled = x.astype(np.float64) / np.where(lengths > 0, lengths, np.nan)[:, None]
        out = np.maximum(scaled @ w.T + w[:, 0], 0) @ v.T + v[:, 1]
        out = out if chosen is layers else out / np.linalg.norm(out, axis=1)[:, None]
        expected = out if element is None else out[:, element : element + 1]
        np.testing.assert_allclose(made.by(device, x), expected, atol=1e-4)
        np.testing.assert_allclose(made.of(x), expected, atol=1e-4)


def test_the_error_of_a_score_is_within_its_bound_for_the_worst_of_sums() -> None:
    """Added up one by one, numbers of one sign lose most: numpy's float32 loop against float64."""
    rng, device = np.random.default_rng(1), NumpyDevice()
    for d in (8, 512, 4_096):
        a, b = (rng.uniform(0.5, 1, (20, d)).astype(np.float32) for _ in range(2))
        off = np.abs(device.products(a, b) - a.astype(np.float64) @ b.T.astype(np.float64))
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        assert (off / lengths).max() <= rounding(d)
