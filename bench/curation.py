"""Curation: numbers of the vectors of a row, range joins and near duplicates, beside a scan, chDB and numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, Line, at_least, at_most

ROUNDS, EVALS, FEW = 5, 5_000, 100
PROMPTS, WIDE = 1_000, 1_024  # given vectors, and what a layer gives
BOUND = 0.1
ONE = "SELECT avg(L2Distance(image_embedding, {q:Array(Float32)})) FROM laion"
TWO = "SELECT avg(cosineDistance(image_embedding, text_embedding)) FROM laion"
FILTER = "SELECT count() FROM laion WHERE 1 - cosineDistance(image_embedding, text_embedding) >= 0.28"
COPIES = "SELECT count() - uniqExact(image_embedding) FROM laion"
JOIN = "SELECT count() FROM {} AS l JOIN evals AS e ON cosineDistance(l.image_embedding, e.image_embedding) < 0.1"
RANGE = JOIN.format("laion")
HEAD = "SELECT sum(vectorLinear(image_embedding, {W:Array(Array(Float32))}, [0.5])[1]) FROM laion"
LAYER = "SELECT sum(arraySum(vectorLinear(image_embedding, {W:Array(Array(Float32))}, {b:Array(Float32)}))) FROM laion"
MEAN = "SELECT avgForEach(image_embedding) FROM laion"
NEAREST = """\
SELECT count() FROM (SELECT l.id, argMin(p.label, cosineDistance(p.v, l.image_embedding)) AS label
FROM laion AS l CROSS JOIN prompts AS p GROUP BY l.id)"""
# jobs of ours beside numpy's, each with its bar
BESIDE = {"layer": 0.5, "mean": 0.5, "nearest": 0.7, "components": 1.0}
HOW = f"""\
Whole statements, the least of {ROUNDS} rounds in turns; what was computed for an earlier round is forgotten. One
column: `{ONE}`; two: `{TWO}` and `{FILTER}`; copies: `{COPIES}`. Range join: `{RANGE}` with {EVALS:,} rows of
`laion` as `evals`; chDB alone compares {FEW} of its rows with them, and its time a pair is taken; numpy: products
of float32 matrices in blocks, of vectors that are of length 1 already, and a count. Near duplicates: `clipql dedup`
of the part, in which a tenth of the rows stands twice. Head: `{HEAD}`; layer: the same with {WIDE:,} rows of weights,
and the sum of all; mean: `{MEAN}`; nearest of {PROMPTS:,}: `{" ".join(NEAREST.split())}`; components: `curate.pca` and
numpy's covariance and `eigh`. numpy has all vectors in memory as float32, and times are of its products alone."""
Ask = Callable[..., Any]


def compare(rows: int) -> Comparison:
    """Run all in turns."""
    folder, place = data.part(rows), data.fresh("curation")
    times: dict[str, list[float]] = {}
    with child.Worker(serve, part=str(folder), place=str(place)) as worker:
        for _ in range(ROUNDS):
            for job in ("one column", "two columns", "filter", "copies", "range join", "numpy", "chDB", "head"):
                times.setdefault(job, []).append(worker.ask(job=job))
            for job in BESIDE:
                times.setdefault(job, []).append(worker.ask(job=job))
                times.setdefault(f"numpy {job}", []).append(worker.ask(job=f"numpy {job}"))
        times["dedup"] = [worker.ask(job="dedup")]
    data.clear(place)
    least = {job: min(found) for job, found in times.items()}
    pairs = rows * EVALS
    ours, theirs = pairs / least["range join"], FEW * EVALS / least["chDB"]
    one = least["one column"]

    def beside(job: str, work: str) -> Any:
        measured = f"{1000 * least[job]:.0f} ms, one column {1000 * one:.0f} ms: "
        return at_most(f"{work}, {rows:,} × 512", measured, least[job] / one, 3, "times")

    works = {
        "layer": f"layer of 512 → {WIDE:,} over {rows:,} rows",
        "mean": f"mean of {rows:,} vectors",
        "nearest": f"nearest of {PROMPTS:,} vectors for {rows:,} rows",
        "components": f"principal components of {rows:,} rows",
    }
    by_numpy = [
        at_least(
            works[job],
            f"{least[job]:.2f} s, numpy {least[f'numpy {job}']:.2f} s",
            least[f"numpy {job}"] / least[job],
            bar,
        )
        for job, bar in BESIDE.items()
    ]
    rate = rows / least["head"]
    return Comparison(
        "curation",
        "Curation",
        HOW,
        (
            beside("two columns", "mean distance of two columns of a row"),
            beside("filter", "rows by a distance of two columns"),
            at_most(f"copies of {rows:,} vectors", "", least["copies"], rows / 300_000, "s"),
            at_least(
                f"range join of {rows:,} × {EVALS:,}",
                f"{ours:.2g} pairs a second, chDB {theirs:.2g}",
                ours / theirs,
                1000,
            ),
            at_least(
                f"range join of {rows:,} × {EVALS:,}",
                f"{least['range join']:.2f} s, numpy's products {least['numpy']:.2f} s",
                least["numpy"] / least["range join"],
                0.7,
            ),
            at_most(f"near duplicates of {rows * 11 // 10:,} rows", "", least["dedup"], 30, "s"),
            Line(
                f"head of 512 → 1 over {rows:,} rows", f"{rate:,.0f} rows/s", "at least 1,000,000 rows/s", rate >= 1e6
            ),
            *by_numpy,
        ),
        None,
        times,
    )


def serve(part: str, place: str) -> Iterator[Ask]:
    """In a child: clipql with the part taken in, and numpy over its files."""
    import clipql
    from clipql.curate.dedup import dedup
    from clipql.curate.pca import pca

    query = np.load(Path(part) / "queries" / "text.npy")[0]
    image = np.load(Path(part) / "img_emb" / "img_emb_0.npy", mmap_mode="r")
    evals = image[:: max(1, len(image) // EVALS)][:EVALS].astype(np.float32)
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        step = max(1, len(image) // EVALS)
        db.sql(f"CREATE TABLE evals AS SELECT * FROM laion WHERE id % {step} = 0 AND id < {step * EVALS}")
        db.sql(f"CREATE TABLE few AS SELECT * FROM laion WHERE id < {FEW}")
        db.sql("CREATE TABLE prompts (label UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY label")
        db.sql(f"INSERT INTO prompts SELECT id, text_embedding FROM laion WHERE id < {PROMPTS}")
        prompts = np.load(Path(part) / "text_emb" / "text_emb_0.npy", mmap_mode="r")[:PROMPTS].astype(np.float32)
        wide = np.random.default_rng(0).standard_normal((WIDE, image.shape[1])).astype(np.float32)
        plain = _Plain(image.astype(np.float32), prompts, wide)

        def ask(job: str) -> float:
            for table in db.registry.catalog.tables:
                db.registry.computed.forget(table.id)
            began = time.perf_counter()
            if job == "numpy":
                _within(image, evals)
            elif job.startswith("numpy "):
                getattr(plain, job.removeprefix("numpy "))()
            elif job == "components":
                pca(db, "laion", "image_embedding", k=64)
            elif job == "dedup":
                db.sql("INSERT INTO laion SELECT * FROM laion WHERE id % 10 = 0")
                began = time.perf_counter()
                dedup(db, "laion", within=0.01, into="dups")
            else:
                statement = {
                    "one column": ONE,
                    "two columns": TWO,
                    "filter": FILTER,
                    "copies": COPIES,
                    "range join": RANGE,
                    "chDB": JOIN.format("few") + " SETTINGS vector_plan = 0",
                    "head": HEAD,
                    "layer": LAYER,
                    "mean": MEAN,
                    "nearest": NEAREST,
                }[job]
                given = {
                    "one column": {"q": query},
                    "head": {"W": wide[:1]},
                    "layer": {"W": wide, "b": np.zeros(WIDE, np.float32)},
                }
                db.sql(statement, **given.get(job, {}))
            return time.perf_counter() - began

        yield ask


class _Plain:
    """The same by numpy, of float32 arrays in memory."""

    def __init__(self, image: Any, prompts: Any, wide: Any) -> None:
        self._image, self._prompts, self._wide = image, prompts, wide

    def _blocks(self) -> Iterator[Any]:
        return (self._image[at : at + 8_192] for at in range(0, len(self._image), 8_192))

    def layer(self) -> None:
        sum(float((block @ self._wide.T).sum()) for block in self._blocks())

    def mean(self) -> None:
        self._image.mean(0, dtype=np.float64)

    def nearest(self) -> None:
        unit = self._prompts / np.linalg.norm(self._prompts, axis=1)[:, None]
        np.concatenate([(block @ unit.T).argmax(1) for block in self._blocks()])

    def components(self) -> None:
        centred = self._image - self._image.mean(0, dtype=np.float64).astype(np.float32)
        np.linalg.eigh((centred.T @ centred).astype(np.float64))


def _within(image: Any, evals: Any) -> int:
    """How many pairs are nearer than the bound, by products of matrices."""
    return sum(
        int(np.count_nonzero(image[at : at + 8_192].astype(np.float32) @ evals.T > 1 - BOUND))
        for at in range(0, len(image), 8_192)
    )
