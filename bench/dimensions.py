"""Vectors of 2 to 65,536 numbers: ingest, the exact scan and an ivf index of each length, beside numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import child, data
from bench.results import Comparison, Line

ROWS = {2: 400_000, 96: 300_000, 384: 150_000, 768: 100_000, 1024: 80_000, 1536: 50_000, 3072: 25_000, 65_536: 1_500}
QUERIES, ROUNDS, NEAREST = 100, 3, 10
INDEXED = 8_192  # numbers of a vector, at most, for an ivf index
HOW = f"""\
Vectors of float32 about 200 centres, of which 32 directions hold most; {QUERIES} queries of the same kind that are no
rows. Ingest: `clipql ingest` of one Parquet file, in the process. Exact: `ORDER BY L2Distance(v, …) LIMIT {NEAREST}`
by whole statements, beside numpy's product of the float32 matrix, norms known, and argpartition; least of {ROUNDS}
rounds in turns. Index: ivf of L2Distance, recall = 0.95 asked, found by {QUERIES} queries. Longer vectors than
{INDEXED:,} numbers are scanned."""
Ask = Callable[..., Any]


def vectors(dimension: int, rows: int, seed: int) -> NDArray[np.float32]:
    """Rows of float32, (rows, dimension)."""
    shape = np.random.default_rng(7)
    inner = min(dimension, 32)
    turn = shape.standard_normal((inner, dimension)).astype(np.float32) / np.float32(np.sqrt(inner))
    centres = shape.standard_normal((200, inner)).astype(np.float32)
    rng = np.random.default_rng(seed)
    found = np.empty((rows, dimension), np.float32)
    for at in range(0, rows, 10_000):
        count = min(10_000, rows - at)
        near = centres[rng.integers(0, 200, count)] + 0.6 * rng.standard_normal((count, inner), np.float32)
        found[at : at + count] = near @ turn + 0.05 * rng.standard_normal((count, dimension), np.float32)
    return found


def compare(rows: int) -> Comparison:
    """Run each length in a process of its own. rows: not used, as each length has its own number."""
    lines: list[Line] = []
    times: dict[str, list[float]] = {}
    for dimension, count in ROWS.items():
        place = data.fresh("dimensions")
        with child.Worker(serve, place=str(place), dimension=dimension, rows=count) as worker:
            taken = worker.ask(job="ingest")
            built = worker.ask(job="build") if dimension <= INDEXED else None
            for _ in range(ROUNDS):
                for job in ("exact", "numpy", "index") if built is not None else ("exact", "numpy"):
                    times.setdefault(f"{dimension} {job}", []).append(worker.ask(job=job))
            found = worker.ask(job="recall") if built is not None else 0.0
        data.clear(place)
        exact, numpy_s = (min(times[f"{dimension} {job}"]) for job in ("exact", "numpy"))
        told = f"ingest {count / taken:,.0f} rows/s; exact {1000 * exact:.2f} ms, numpy {1000 * numpy_s:.2f} ms"
        if built is not None:
            least = 1000 * min(times[f"{dimension} index"])
            told += f"; index built in {built:.1f} s, {least:.2f} ms a query at {found:.3f}"
        lines.append(Line(f"{count:,} × {dimension:,} numbers", told))
    return Comparison("dimensions", "Vectors of any length", HOW, tuple(lines), None, times)


def serve(place: str, dimension: int, rows: int) -> Iterator[Ask]:
    """In a child: one table of one length, and the matrix for numpy."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import clipql

    x, queries = vectors(dimension, rows, 1), vectors(dimension, QUERIES, 2)
    Path(place).mkdir(parents=True)
    file = Path(place) / "rows.parquet"
    columns = {"n": pa.array(np.arange(rows)), "v": pa.FixedSizeListArray.from_arrays(x.ravel(), dimension)}
    pq.write_table(pa.table(columns), file, row_group_size=max(1, (64 << 20) // (4 * dimension)))
    norms = np.einsum("ij,ij->i", x, x)
    statement = f"SELECT n FROM t ORDER BY L2Distance(v, {{q:Array(Float32)}}) LIMIT {NEAREST}"
    right: list[set[int]] = []

    with clipql.connect(Path(place) / "db") as db:

        def asked(setting: str, count: int) -> tuple[float, list[set[int]]]:
            """The least seconds of a statement, and what each gave."""
            found, least = [], float("inf")
            for q in queries[:count]:
                began = time.perf_counter()
                rows = db.sql(f"{statement} SETTINGS {setting}", q=q).rows
                least = min(least, time.perf_counter() - began)
                found.append({n for (n,) in rows})
            return least, found

        def ask(job: str) -> float:
            began = time.perf_counter()
            if job == "ingest":
                db.ingest(file, table="t")
            elif job == "build":
                db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
                db.sql("ALTER TABLE t MATERIALIZE INDEX near")
            elif job == "numpy":
                for q in queries[:10]:
                    np.argpartition(norms - 2 * (x @ q), NEAREST)[:NEAREST]
                return (time.perf_counter() - began) / 10
            elif job == "recall":
                _, right[:] = asked("vector_index = 0", QUERIES)
                _, found = asked("recall = 0.95", QUERIES)
                return sum(len(a & b) for a, b in zip(right, found, strict=True)) / (NEAREST * QUERIES)
            else:
                setting = "vector_index = 0" if job == "exact" else "recall = 0.95"
                return asked(setting, 30)[0]
            return time.perf_counter() - began

        yield ask
