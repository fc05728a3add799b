"""An ivf index rules out no row that is within a radius."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipql.index import folder as folder_module
from clipql.index import ivf
from clipql.index.ivf import ranges as ranges_module
from clipql.index.rows import ArrayRows
from clipql.storage.vectors.metrics import Metric, distances
from tests.cases import crossed, some

SHAPES = [(1, "<f4"), (3, "<f4"), (60, "<f2"), (100, "<f4"), (130, "<f2"), (520, "<f4")]


def made(dimension: int, kind: str, scale: float = 1.0, rows: int = 1_500) -> np.ndarray:
    """Clusters of unlike sizes; equal rows, a zero row, and one that is much longer than all others."""
    rng = np.random.default_rng(dimension)
    centres = rng.standard_normal((20, dimension)) * np.linspace(2, 0.2, dimension)
    x = centres[rng.integers(0, 20, rows)] + rng.uniform(0.02, 1, (rows, 1)) * rng.standard_normal((rows, dimension))
    x[::50], x[7], x[9] = x[3], 0, 30 * x[9]
    return (scale * x).astype(kind)


def queries(x: np.ndarray) -> list[np.ndarray]:
    """Stored rows, rows beside them, and some unlike all."""
    rng = np.random.default_rng(1)
    d, size = x.shape[1], float(np.abs(x).mean())
    near = x[[3, 9, 50]].astype(np.float32) + size * 0.1 * rng.standard_normal((3, d))
    return list(np.concatenate([x[[0, 11]], near, size * rng.standard_normal((2, d))]).astype(np.float32))


@pytest.mark.parametrize(("metric", "shape"), crossed(list(Metric), SHAPES, every=5))
def test_no_row_within_a_radius_is_ruled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: Metric, shape: tuple[int, str]
) -> None:
    dimension, kind = shape
    monkeypatch.setattr(ranges_module, "ENOUGH", 1e9)  # also where a scan would cost less
    x = made(dimension, kind)
    asked = ArrayRows(x[:, ::-1] + np.float32(0.5)) if kind == "<f2" else None
    index = ivf.build(ArrayRows(x), metric, tmp_path / "ivf", queries=asked)
    among = np.random.default_rng(2).random(len(x)) < 0.5
    ruled = 0
    for q in queries(x):
        d = distances(metric, x, q)
        for share in (0, 0.001, 0.03, 0.5, 1):
            radius = float(np.nanquantile(-d if metric.larger_is_nearer else d, share))
            radius = -radius if metric.larger_is_nearer else radius
            inside = set(np.flatnonzero(d >= radius if metric.larger_is_nearer else d <= radius).tolist())
            found, some = index.within(q, radius), index.within(q, radius, among)
            assert found is not None
            assert some is not None
            assert inside <= set(found.tolist())
            assert some.tolist() == [r for r in found.tolist() if among[r]]
            assert np.array_equal(found, np.unique(found))
            ruled += len(x) - len(found)
    assert ruled > (5_000 if dimension > 1 else 0)


@pytest.mark.parametrize("scale", some([1e-4, 1e4, 1e8], 2))
def test_bounds_hold_for_very_short_and_very_long_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(ranges_module, "ENOUGH", 1e9)
    x = made(70, "<f4", scale)
    for metric in (Metric.L2, Metric.DOT, Metric.COSINE):
        index = ivf.build(ArrayRows(x), metric, tmp_path / metric.name)
        for q in queries(x):
            d = distances(metric, x, q)
            key = -d if metric.larger_is_nearer else d
            radius = float(np.nanquantile(key, 0.01))
            found = index.within(q, -radius if metric.larger_is_nearer else radius)
            assert set(np.flatnonzero(key <= radius).tolist()) <= set(found.tolist())  # type: ignore[union-attr]


def test_a_scan_is_left_to_the_caller_where_codes_rule_little_out(tmp_path: Path) -> None:
    x = made(64, "<f4")
    index = ivf.build(ArrayRows(x), Metric.L2, tmp_path / "ivf")
    d = distances(Metric.L2, x, x[3].astype(np.float32))
    assert index.within(x[3].astype(np.float32), float(np.quantile(d, 0.9))) is None
    few = index.within(x[3].astype(np.float32), 1e-3)
    assert few is not None
    assert set(np.flatnonzero(d <= 1e-3)) <= set(few) < set(range(len(x)))


def test_an_index_that_was_built_without_bounds_rules_nothing_out(tmp_path: Path) -> None:
    x, folder = made(16, "<f4"), tmp_path / "ivf"
    index = ivf.build(ArrayRows(x), Metric.L2, folder)
    before = index.search(x[3], 10).rows.tolist()
    meta = folder_module.read_meta(folder)
    meta.pop("longest_code")
    for name in ("bounds.npy", "span.npy"):
        (folder / name).unlink()
        meta["files"].pop(name)
    folder_module.write_meta(folder, meta)
    older = ivf.open_index(folder, ArrayRows(x))
    assert (index.has_bounds, older.has_bounds) == (True, False)
    assert older.within(x[3], 0.1) is None
    assert older.search(x[3], 10).rows.tolist() == before
