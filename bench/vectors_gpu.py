"""Products of matrices on a GPU: are rows the processor's, how long do statements take, what share of the GPU is used.

python -m bench.vectors_gpu [--device cuda:1] [--rows 1000000] [--k 10000] [--without-processor]

Needs a GPU that PyTorch calls cuda and the extra clipql[torch]. It writes 5 KB a row into bench/data. The processor,
which rows are compared with, takes most of the time; --without-processor leaves it out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, Line, median

ROUNDS, BATCH, PROMPTS, EVALS, WIDE = 3, 4_096, 1_000, 10_000, 1_024
SQUARE = 8_192  # rows of the product that shows what the GPU reaches
LEARNT_MOST, PER_CENTROID, ITERATIONS = 1 << 19, 256, 10
BATCHED = "SELECT id, cosineDistance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 10"
NEAREST = """\
SELECT l.id, argMin(p.label, cosineDistance(p.v, l.image_embedding)) AS label
FROM laion AS l CROSS JOIN prompts AS p GROUP BY l.id ORDER BY l.id"""
RANGE = """\
SELECT l.id, e.id FROM laion AS l JOIN evals AS e ON cosineDistance(l.image_embedding, e.image_embedding) < 0.05
ORDER BY l.id, e.id"""
HEAD = "SELECT sum(arraySum(vectorLinear(image_embedding, {W:Array(Array(Float32))}, {b:Array(Float32)}))) FROM laion"
HOW = f"""\
{{rows:,}} × {{dimension}} float16 vectors shaped like LAION's on {{gpu}}, {{cores}} processor cores, PyTorch {{torch}}.
Whole statements, the rows in the page cache; medians of {ROUNDS} rounds on the GPU after one that is not counted, and
one round on the processor. Operations a second are those of the task's products alone, two each, over the time of the
whole statement; the GPU's own rate is that of two {SQUARE:,} × {SQUARE:,} float32 matrices in the same process."""


def compare(device: str, rows: int, k: int, processor: bool) -> Comparison:
    """All statements."""
    folder, place = data.part(rows), data.fresh("vectors-gpu")
    try:
        found = child.run(measure, part=str(folder), place=str(place), device=device, k=k, processor=processor)
    finally:
        data.clear(place)
    lines = [Line("a product of float32 matrices, alone", f"{found['reach'] / 1e12:.1f} Tflop/s")]
    lines.append(Line("float16 rows to the GPU, alone", f"{found['bytes'] / 1e9:.1f} GB/s"))
    for job in found["jobs"]:
        seconds = median(job["gpu"])
        rate = 2 * job["products"] / seconds
        text = f"{seconds:.3g} s, {rate / 1e12:.2f} Tflop/s, {rate / found['reach']:.1%} of the GPU's own rate"
        if job["cpu"]:
            text += f"; processor {job['cpu'][0]:.3g} s, {job['cpu'][0] / seconds:.1f} times"
        lines.append(Line(job["name"], text, "the processor's rows" if job["cpu"] else "", job["same"]))
    raw = {job["name"]: job["gpu"] for job in found["jobs"]}
    return Comparison("vectors-gpu", "Products on a GPU", HOW.format(**found), tuple(lines), raw=raw)


def measure(part: str, place: str, device: str, k: int, processor: bool) -> dict[str, Any]:
    """In a child: seconds of every statement, and whether its rows are the processor's."""
    import torch

    import clipql
    from clipql.encode.onnx import cores

    queries = np.load(Path(part) / "text_emb" / "text_emb_0.npy", mmap_mode="r")[:BATCH].astype(np.float32)
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        [(rows,)] = db.sql("SELECT count() FROM laion").rows
        dimension = queries.shape[1]
        db.sql(f"CREATE TABLE evals AS SELECT * FROM laion WHERE id < {EVALS}")
        db.sql("CREATE TABLE prompts (label UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY label")
        db.sql(f"INSERT INTO prompts SELECT id, text_embedding FROM laion WHERE id < {PROMPTS}")
        jobs = [
            _measured(db, name, products, ask, device, processor)
            for name, products, ask in _jobs(db, queries, rows, dimension, k)
        ]
    return {
        "jobs": jobs, "rows": rows, "dimension": dimension, "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__, "cores": cores(), **_reach(torch, device),
    }  # fmt: skip


Ask = Callable[[str], Any]


def _jobs(db: Any, queries: Any, rows: int, dimension: int, k: int) -> list[tuple[str, float, Ask]]:
    """Name, products of numbers, and the statement for a device, which returns what must be alike."""
    from clipql.curate.clusters import cluster_rows

    weights = np.random.default_rng(0).standard_normal((WIDE, dimension)).astype(np.float32)
    layer = {"W": weights, "b": np.zeros(WIDE, np.float32)}
    learnt = min(rows, max(k, min(PER_CENTROID * k, LEARNT_MOST)))

    def batch(on: str) -> Any:
        sql = f"{BATCHED} SETTINGS vector_index = 0, vector_device = '{on}'"
        return [one.rows for one in db.sql_many(sql, [{"q": q} for q in queries])]

    def statement(sql: str, **given: Any) -> Ask:
        return lambda on: db.sql(f"{sql} SETTINGS vector_device = '{on}'", **given).arrow()

    def head(on: str) -> Any:
        for table in db.registry.catalog.tables:
            db.registry.computed.forget(table.id)
        [(value,)] = db.sql(f"{HEAD} SETTINGS vector_device = '{on}'", **layer).rows
        return float(f"{value:.4g}")  # the same within rounding

    def clusters(on: str) -> Any:
        made = cluster_rows(db, "laion", into="clusters", k=k, iterations=ITERATIONS, device=on)
        db.sql("DROP TABLE clusters")
        return round(made.inertia, 4)  # the same within rounding

    each = float(rows) * dimension
    return [
        (f"ten nearest of {rows:,} for {len(queries):,} vectors", each * len(queries), batch),
        (f"nearest of {PROMPTS:,} for {rows:,} rows", each * PROMPTS, statement(NEAREST)),
        (f"range join of {rows:,} × {EVALS:,}", each * EVALS, statement(RANGE)),
        (f"a layer of {dimension} → {WIDE:,} over {rows:,} rows", each * WIDE, head),
        (
            f"k-means of {rows:,} rows to {k:,}, {ITERATIONS} rounds over {learnt:,}",
            float(dimension) * k * (rows + ITERATIONS * learnt),
            clusters,
        ),
    ]


def _measured(db: Any, name: str, products: float, ask: Ask, device: str, processor: bool) -> dict[str, Any]:
    def timed(on: str) -> tuple[float, Any]:
        began = time.perf_counter()
        found = ask(on)
        return time.perf_counter() - began, found

    _, first = timed(device)
    gpu = [timed(device)[0] for _ in range(ROUNDS)]
    seconds, expected = timed("cpu") if processor else (0.0, None)
    same = bool(first == expected) if processor else None
    return {"name": name, "products": products, "gpu": gpu, "cpu": [seconds] if processor else [], "same": same}


def _reach(torch: Any, device: str) -> dict[str, float]:
    """What the GPU does of products of float32 alone, in operations a second, and of copies, in bytes a second."""
    from clipql.storage.vectors import devices

    on = devices.opened(device)
    x = np.random.default_rng(0).standard_normal((SQUARE, SQUARE)).astype(np.float32)
    block = np.zeros((1 << 17, 512), np.float16)
    with on.working():
        there = on.sent(x)
        product = _seconds(torch, lambda: on.products(there, there))
        copy = _seconds(torch, lambda: on.sent(block))
    return {"reach": 2 * SQUARE**3 / product, "bytes": block.nbytes / copy}


def _seconds(torch: Any, work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 10)
    return median(times)


def main() -> None:
    """Measure all and print it."""
    from bench import vectors_gpu  # by its name, under which a child finds its functions; this is __main__

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="PyTorch's name of the GPU (default: cuda)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors (default: 1,000,000)")
    parser.add_argument("--k", type=int, default=10_000, help="clusters (default: 10,000)")
    parser.add_argument("--without-processor", action="store_true", help="measure the GPU alone, and compare no rows")
    asked = parser.parse_args()
    try:
        import torch

        if not torch.cuda.is_available():
            parser.error(f"PyTorch {torch.__version__} sees no GPU here")
    except ImportError:
        parser.error("PyTorch is not installed: pip install clipql[torch]")
    found = vectors_gpu.compare(asked.device, asked.rows, asked.k, not asked.without_processor)
    print(f"{found.title}. {found.how}", flush=True)
    for line in found.lines:
        met = {True: "met", False: "MISSED", None: ""}[line.met]
        print(line.work, line.measured, line.bar, met, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
