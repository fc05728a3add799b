"""The distance kernel over stored vectors, against the speed at which this machine reads the same memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from bench import child, data
from bench.results import Comparison, Line, Plot, median

ROUNDS = 40
READ, KERNEL, SCAN = "reading memory", "the kernel", "the whole scan"
HOW = f"""\
Each {ROUNDS} times in turns over the same mapped file of {{megabytes:.0f}} MB, on {{threads}} threads. Reading memory
is a sum of the file's 64-bit words: by numpy, or by a loop that Numba compiled, whichever is faster."""


def compare(rows: int) -> Comparison:
    """Gigabytes a second of the three."""
    place = data.fresh("kernel-clipql")
    found = child.run(measure, part=str(data.part(rows)), place=str(place))
    data.clear(place)
    speed = {name: found["bytes"] / median(seconds) / 1e9 for name, seconds in found["seconds"].items()}
    share = {name: value / speed[READ] for name, value in speed.items()}
    measured = f"{speed[KERNEL]:.1f} GB/s of {speed[READ]:.1f} GB/s: {share[KERNEL]:.0%}"
    return Comparison(
        "kernel",
        "Memory speed",
        HOW.format(megabytes=found["bytes"] / 1e6, threads=found["threads"]),
        (
            Line(
                f"the L2 kernel alone, {rows:,} × 512 float16",
                measured,
                "at least 70 % of reading",
                share[KERNEL] >= 0.7,
            ),
            Line("the whole scan: threads, kernel, top-k, rescoring", f"{speed[SCAN]:.1f} GB/s: {share[SCAN]:.0%}"),
        ),
        Plot("kernel", f"Speed over {rows:,} × 512 float16", "GB/s, median", speed, (KERNEL, SCAN)),
        found["seconds"],
    )


@njit(nogil=True)
def _sum(words: Any) -> int:
    total = 0
    for i in range(words.shape[0]):
        total += words[i]
    return total


def measure(part: str, place: str) -> dict[str, Any]:
    """In a child: seconds of reading, kernel and scan, in turns."""
    import clipql
    from clipql.index import cores, flat
    from clipql.storage.vectors import kernels
    from clipql.storage.vectors.metrics import Metric

    query = np.load(Path(part) / "queries" / "text.npy")[0]
    with clipql.connect(place) as db, ThreadPoolExecutor(cores.threads()) as pool:
        db.ingest(part, table="laion")
        table = db.registry.find(None, "laion")
        assert table is not None
        store = db.registry.store(table, "image_embedding")
        [(_, vectors)] = store.blocks(0, store.rows)
        out = np.empty(len(vectors), np.float32)
        edges = [len(vectors) * i // cores.threads() for i in range(cores.threads() + 1)]
        step = flat.BLOCK_BYTES // vectors.shape[1] // 2

        def on_all_cores(work: Callable[[int, int], Any]) -> None:
            list(pool.map(work, edges[:-1], edges[1:]))

        def kernel(first: int, last: int) -> None:
            for a in range(first, last, step):  # in the blocks of the scan, so that `out` stays in the cache
                b = min(last, a + step)
                kernels.distances(Metric.L2_SQUARED, vectors[a:b], query, out[a:b])

        words = vectors.reshape(-1).view(np.int64)
        per_row = len(words) // len(vectors)
        term = flat.Term(store, Metric.L2_SQUARED, query.astype(np.float64))
        calls = {
            "sum by Numba": lambda: on_all_cores(lambda a, b: _sum(words[a * per_row : b * per_row])),
            "sum by numpy": lambda: on_all_cores(lambda a, b: words[a * per_row : b * per_row].sum()),
            KERNEL: lambda: on_all_cores(kernel),
            SCAN: lambda: flat.Scan([term], store.rows).nearest(10),
        }
        seconds = _in_turns(calls)
        size, threads = vectors.nbytes, cores.threads()
    reads = [seconds.pop("sum by Numba"), seconds.pop("sum by numpy")]
    return {"bytes": size, "threads": threads, "seconds": {READ: min(reads, key=median), **seconds}}


def _in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(3 + ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds
