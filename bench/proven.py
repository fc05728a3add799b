"""Exact answers by codes and their bounds, against the scan of all rows, in one run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, Line, Plot, at_least, median

NEAREST = "SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 10"
WITHIN = "SELECT count() FROM laion WHERE cosineDistance(image_embedding, {q:Array(Float32)}) < {r:Float32}"
BY_CODES, BY_SCAN = " SETTINGS vector_index = 0", " SETTINGS vector_index = 0, vector_codes = 0"
ROUNDS = 30
HOW = f"""\
`{NEAREST}` and
`SELECT count() … WHERE cosineDistance(…) < r`, with about ten rows within r, by {ROUNDS} query vectors of each kind,
`vector_index = 0`, with and without `vector_codes = 0` in turns. Whole statements. Both gave the same rows."""


def compare(rows: int) -> Comparison:
    """Seconds by codes and by the scan, in turns."""
    place = data.fresh("proven-clipql")
    found = child.run(measure, part=str(data.part(rows)), place=str(place))
    data.clear(place)
    seconds: dict[str, list[float]] = found["seconds"]
    lines: list[Line] = []
    for name in ("text", "image", "text, WHERE", "image, WHERE"):
        codes, scan = (1000 * median(seconds[f"{name}, {by}"]) for by in ("codes", "scan"))
        spent = [1000 * median(found["processor"][f"{name}, {by}"]) for by in ("codes", "scan")]
        measured = (
            f"{codes:.1f} ms, all compared {scan:.1f} ms ({spent[0]:.1f} and {spent[1]:.1f} ms of processors; "
            f"{found['compared'][name]:.2%} of the rows compared)"
        )
        if "WHERE" in name:  # ClickHouse's own part of such a statement is as long as the search
            search = [1000 * median(found["search"][f"{name}, {by}"]) for by in ("codes", "scan")]
            measured += f", of which the search takes {search[0]:.1f} and {search[1]:.1f} ms"
        lines.append(at_least(f"exact, {name}, {rows:,} × 512, by codes", measured, scan / codes, 2))
    lines.append(Line("the codes", f"{found['bytes']} bytes a row, made in {found['built']:.1f} s"))
    bars = {name: 1000 * median(seconds[name]) for name in seconds if "WHERE" not in name}
    plot = Plot(
        "proven", f"Exact top-10, {rows:,} × 512", "milliseconds, median", bars, ("text, codes", "image, codes")
    )
    return Comparison("proven", "Exact search by codes", HOW, tuple(lines), plot, seconds)


def measure(part: str, place: str) -> dict[str, Any]:
    """In a child: seconds of each kind of query by codes and by the scan, in turns."""
    import clipql

    queries = {kind: np.load(Path(part) / "queries" / f"{kind}.npy") for kind in ("text", "image")}
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    compared: dict[str, list[float]] = {}
    search: dict[str, list[float]] = {}
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        began = time.perf_counter()
        db.sql("ALTER TABLE laion ADD INDEX exact image_embedding TYPE flat('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX exact")
        built = time.perf_counter() - began
        table = db.registry.find(None, "laion")
        assert table is not None
        file = db.registry.codes.ready(table, "image_embedding", db.registry.store(table, "image_embedding"))
        assert file is not None, "codes pay for these vectors"
        for number in range(-3, ROUNDS):
            for kind, vectors in queries.items():
                q = vectors[number % len(vectors)]
                tenth = "SELECT cosineDistance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 10"
                r = db.sql(f"{tenth}{BY_CODES}", q=q).rows[-1][0]
                for name, statement in ((kind, NEAREST), (f"{kind}, WHERE", WITHIN)):
                    answers = []
                    for by, settings in (("codes", BY_CODES), ("scan", BY_SCAN)):
                        cpu, began = time.process_time(), time.perf_counter()
                        answer = db.sql(statement + settings, q=q, r=r)
                        answers.append(answer.rows)
                        if number >= 0:
                            seconds.setdefault(f"{name}, {by}", []).append(time.perf_counter() - began)
                            processor.setdefault(f"{name}, {by}", []).append(time.process_time() - cpu)
                            cost = answer.stats.searches[0].cost
                            search.setdefault(f"{name}, {by}", []).append(sum(cost.seconds.values()))
                            if by == "codes":
                                compared.setdefault(name, []).append(cost.rows_rescored / file.rows)
                    if answers[0] != answers[1]:
                        raise RuntimeError(f"{name} query {number}: codes and scan differ: {answers}")
        size = file.bytes // file.rows
    means = {name: float(np.mean(values)) for name, values in compared.items()}
    spent = {"seconds": seconds, "processor": processor, "search": search}
    return {**spent, "compared": means, "bytes": size, "built": built}
