"""Exact top-10 in SQL, against chDB's own L2Distance over the same rows in a plain MergeTree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, Plot, at_least, median

QUERY = "SELECT url, caption FROM laion ORDER BY L2Distance(image_embedding, {target:Array(Float32)}) LIMIT 10"
WARM_UP, ROUNDS = 5, 30
HOW = f"""\
`{QUERY}` with {ROUNDS} caption vectors in turns, after {WARM_UP} to warm up, and once the codes that exact searches ask
for are made (`proven` has them beside a scan of all). The plain MergeTree has the same rows as
`Array(Float32)`, unmerged, which is how chDB reads them fastest. Whole statements, text in to rows out. Both gave the
same rows."""
Ask = Callable[[int], Any]


def compare(rows: int) -> Comparison:
    """Run the same query vectors through both, in turns."""
    folder = data.part(rows)
    ours, theirs = data.fresh("exact-clipql"), data.fresh("exact-chdb")
    times: dict[str, list[float]] = {"clipql": [], "chDB": []}
    with (
        child.Worker(serve_clipql, part=str(folder), place=str(ours)) as clipql,
        child.Worker(serve_chdb, part=str(folder), place=str(theirs)) as chdb,
    ):
        for number in range(WARM_UP + ROUNDS):
            answers = {"clipql": clipql.ask(number=number), "chDB": chdb.ask(number=number)}
            if answers["clipql"]["rows"] != answers["chDB"]["rows"]:
                raise RuntimeError(f"query {number}: clipql and chDB differ: {answers}")
            if number >= WARM_UP:
                for name, answer in answers.items():
                    times[name].append(answer["seconds"])
    data.clear(ours, theirs)
    a, b = 1000 * median(times["clipql"]), 1000 * median(times["chDB"])
    work = f"exact top-10 in SQL over {rows:,} × 512, one query"
    return Comparison(
        "exact",
        "Exact search",
        HOW,
        (at_least(work, f"{a:.1f} ms, chDB's own L2Distance {b:.1f} ms", b / a, 6),),
        Plot("exact", f"Exact top-10 in SQL, {rows:,} × 512", "milliseconds, median", {"clipql": a, "chDB": b}),
        times,
    )


def serve_clipql(part: str, place: str) -> Iterator[Ask]:
    """In a child: clipql with the part taken in."""
    import clipql

    queries = np.load(Path(part) / "queries" / "text.npy")
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")

        def ask(number: int) -> Any:
            if number == WARM_UP:
                db.wait_for_indexes()  # the codes that exact searches ask for
            began = time.perf_counter()
            rows = db.sql(QUERY, target=queries[number]).rows
            return {"seconds": time.perf_counter() - began, "rows": rows}

        yield ask


def serve_chdb(part: str, place: str) -> Iterator[Ask]:
    """In a child: chDB alone with the same rows."""
    from bench import plain

    queries = np.load(Path(part) / "queries" / "text.npy")
    with plain.opened(place) as session:
        plain.fill(session, Path(part))

        def ask(number: int) -> Any:
            began = time.perf_counter()
            rows = plain.rows(session, QUERY, target=queries[number])
            return {"seconds": time.perf_counter() - began, "rows": rows}

        yield ask
