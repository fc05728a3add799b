"""Curation: numbers of the vectors of a row, range joins and near duplicates, beside a scan, chDB and numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, at_least, at_most

ROUNDS, EVALS, FEW = 5, 2_000, 100
BOUND = 0.1
ONE = "SELECT avg(L2Distance(image_embedding, {q:Array(Float32)})) FROM laion"
TWO = "SELECT avg(cosineDistance(image_embedding, text_embedding)) FROM laion"
FILTER = "SELECT count() FROM laion WHERE 1 - cosineDistance(image_embedding, text_embedding) >= 0.28"
COPIES = "SELECT count() - uniqExact(image_embedding) FROM laion"
JOIN = "SELECT count() FROM {} AS l JOIN evals AS e ON cosineDistance(l.image_embedding, e.image_embedding) < 0.1"
RANGE = JOIN.format("laion")
HOW = f"""\
Whole statements, the least of {ROUNDS} rounds in turns; what was computed for an earlier round is forgotten. One
column: `{ONE}`; two: `{TWO}` and `{FILTER}`; copies: `{COPIES}`. Range join: `{RANGE}` with {EVALS:,} rows of
`laion` as `evals`; chDB alone compares {FEW} of its rows with them, and its time a pair is taken; numpy: products
of float32 matrices in blocks, of vectors that are of length 1 already, and a count. Near duplicates: `clipql dedup`
of the part, in which a tenth of the rows stands twice."""
Ask = Callable[..., Any]


def compare(rows: int) -> Comparison:
    """Run all in turns."""
    folder, place = data.part(rows), data.fresh("curation")
    times: dict[str, list[float]] = {}
    with child.Worker(serve, part=str(folder), place=str(place)) as worker:
        for _ in range(ROUNDS):
            for job in ("one column", "two columns", "filter", "copies", "range join", "numpy", "chDB"):
                times.setdefault(job, []).append(worker.ask(job=job))
        times["dedup"] = [worker.ask(job="dedup")]
    data.clear(place)
    least = {job: min(found) for job, found in times.items()}
    pairs = rows * EVALS
    ours, theirs = pairs / least["range join"], FEW * EVALS / least["chDB"]
    one = least["one column"]

    def beside(job: str, work: str) -> Any:
        measured = f"{1000 * least[job]:.0f} ms, one column {1000 * one:.0f} ms: "
        return at_most(f"{work}, {rows:,} × 512", measured, least[job] / one, 3, "times")

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
        ),
        None,
        times,
    )


def serve(part: str, place: str) -> Iterator[Ask]:
    """In a child: clipql with the part taken in, and numpy over its files."""
    import clipql
    from clipql.curate.dedup import dedup

    query = np.load(Path(part) / "queries" / "text.npy")[0]
    image = np.load(Path(part) / "img_emb" / "img_emb_0.npy", mmap_mode="r")
    evals = image[:: max(1, len(image) // EVALS)][:EVALS].astype(np.float32)
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        step = max(1, len(image) // EVALS)
        db.sql(f"CREATE TABLE evals AS SELECT * FROM laion WHERE id % {step} = 0 AND id < {step * EVALS}")
        db.sql(f"CREATE TABLE few AS SELECT * FROM laion WHERE id < {FEW}")

        def ask(job: str) -> float:
            for table in db.registry.catalog.tables:
                db.registry.computed.forget(table.id)
            began = time.perf_counter()
            if job == "numpy":
                _within(image, evals)
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
                }[job]
                db.sql(statement, **({"q": query} if job == "one column" else {}))
            return time.perf_counter() - began

        yield ask


def _within(image: Any, evals: Any) -> int:
    """How many pairs are nearer than the bound, by products of matrices."""
    return sum(
        int(np.count_nonzero(image[at : at + 8_192].astype(np.float32) @ evals.T > 1 - BOUND))
        for at in range(0, len(image), 8_192)
    )
