"""R@K, median ranks, covariance and components are those of their definitions, by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.cli.entry import main
from clipql.curate.pca import moments, pca
from clipql.curate.retrieval import evaluate_retrieval
from clipql.errors import VectorError

PICTURES, EACH, LEFT = 360, 3, 1071


def test_recalls_and_ranks_are_those_of_numpy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    rng = np.random.default_rng(2)
    image = rng.standard_normal((PICTURES, 8)).astype(np.float32).repeat(EACH, 0)
    text = (image + 0.8 * rng.standard_normal(image.shape)).astype(np.float32)
    with clipql.connect(tmp_path / "db") as db:
        db.sql(
            "CREATE TABLE laion (id UInt32, name String, image_embedding Array(Float32), text_embedding "
            "Array(Float32), z Array(Float32)) ENGINE = MergeTree ORDER BY id"
        )
        pairs = enumerate(zip(image.tolist(), text.tolist(), strict=True))
        rows = (f"({i}, 'p{i // EACH}', {x}, {y}, [1])" for i, (x, y) in pairs)
        db.sql("INSERT INTO laion VALUES " + ", ".join(rows))
        db.sql(f"DELETE FROM laion WHERE id >= {LEFT}")
        scores = (text / np.linalg.norm(text, axis=1)[:, None]) @ (image / np.linalg.norm(image, axis=1)[:, None]).T
        scores = scores[:LEFT, :LEFT]
        group = np.arange(LEFT) // EACH
        own = group[:, None] == group[None, ::EACH]
        to_pictures = 1 + (scores[:, ::EACH] > scores[:, ::EACH][own][:, None]).sum(1)
        best = np.where(own.T, scores[:, ::EACH].T, -9).max(1)
        to_captions = 1 + (np.where(own.T, -9, scores[:, ::EACH].T) > best[:, None]).sum(1)
        found = evaluate_retrieval(db, "laion", picture="name")
        assert [(n.direction, n.by, n.queries, n.candidates) for n in found.lines] == [
            ("captions → pictures", "exact", LEFT, LEFT // EACH),
            ("pictures → captions", "exact", LEFT // EACH, LEFT),
        ]
        for line, ranks in zip(found.lines, (to_pictures, to_captions), strict=True):
            assert line.recalls == tuple(float(np.mean(ranks <= k)) for k in (1, 5, 10))
            assert line.median_rank == np.median(ranks)
            assert 0.2 < line.recalls[0] < 0.9
        db.sql("ALTER TABLE laion ADD INDEX i image_embedding TYPE ivf('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX i")
        exact, indexed, _ = evaluate_retrieval(db, "laion", picture="name", where="id < 90", ks=(1, 5)).lines
        assert (indexed.by, indexed.candidates) == ("i (ivf)", 30)
        assert np.allclose(indexed.recalls, exact.recalls, atol=0.05)
        one = evaluate_retrieval(db, "laion", queries=20).lines[0]
        assert (one.queries, one.candidates) == (20, LEFT)
        with pytest.raises(VectorError, match="not one space"):
            evaluate_retrieval(db, "laion", captions="z")
        with pytest.raises(VectorError, match="no row to look at"):
            evaluate_retrieval(db, "laion", where="id > 5000")
    assert main(["--db", str(tmp_path / "db"), "evaluate", "retrieval", "--picture", "name"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["by", "queries", "among", "R@1", "R@5", "R@10", "median", "seconds"]
    first = ["captions", "→", "pictures", "exact", "1,071", "357", f"{100 * found.lines[0].recalls[0]:.2f}"]
    assert said[1].split()[:7] == first
    assert main(["evaluate"]) == 2


def test_covariance_and_components_are_numpys(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    vectors = (rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6)) + 40).astype(np.float32)
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t VALUES " + ", ".join(f"({i}, {v.tolist()})" for i, v in enumerate(vectors)))
        for where, chosen in ((None, slice(None)), ("id % 2 = 0", slice(None, None, 2))):
            found, some = moments(db, "t", "v", where=where), vectors[chosen].astype(np.float64)
            assert found.rows == len(some)
            assert np.allclose(found.mean, some.mean(0), rtol=1e-6)
            assert np.allclose(found.covariance, np.cov(some.T), rtol=1e-4, atol=1e-4)
        parts = pca(db, "t", "v", k=2)
        values, axes = np.linalg.eigh(np.cov(vectors.T.astype(np.float64)))
        assert np.allclose(parts.variances, values[::-1][:2], rtol=1e-4)
        assert np.isclose(parts.share, values[-2:].sum() / values.sum(), rtol=1e-4)
        assert np.allclose(np.abs(parts.components @ axes[:, [-1, -2]]), np.eye(2), atol=1e-3)
        given = {"W": parts.weights, "b": parts.bias}
        head = "vectorLinear(v, {W:Array(Array(Float32))}, {b:Array(Float32)})"
        made = db.sql(f"SELECT {head} FROM t ORDER BY id", **given)
        assert np.allclose([r for (r,) in made.rows], parts.transform(vectors), atol=1e-3)
        assert np.allclose(parts.transform(vectors).var(0, ddof=1), parts.variances, rtol=1e-3)
        with pytest.raises(VectorError, match="a covariance takes two"):
            moments(db, "t", "v", where="id = 1")
        with pytest.raises(VectorError, match="expected 1 to 6"):
            pca(db, "t", "v", k=7)
