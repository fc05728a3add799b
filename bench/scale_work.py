"""What the scale benchmark has done in child processes before it searches: true neighbours, ingest, the index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.limits import Watch, limit_this_process

PART = 1_000_000
MILLIONS = (1, 4, 10, 30)
K, QUERIES = 10, 600
# filters by what they leave: of widths from 200 to 1,999 and heights likewise
FILTERS = {
    "all": (200, 1_999, 200, 1_999),
    "1 %": (500, 517, 200, 1_999),
    "0.1 %": (500, 517, 500, 679),
}


def queries() -> NDArray[np.float32]:
    """Text query vectors that are in no part, float32 (QUERIES, 512)."""
    from clipql import synthetic

    return synthetic.world().draw(np.random.default_rng((2, 0, 0, 8)), QUERIES).text


def keep_queries(file: str) -> None:
    """In a child: write them, as what they are drawn from takes more memory than a search may have."""
    np.save(file, queries())


class _Nearest:
    """The urls of the K best rows so far of each query."""

    def __init__(self) -> None:
        self.best = np.full((QUERIES, K), -np.inf, np.float32)
        self.urls = np.full((QUERIES, K), "", object)

    def add(self, score: NDArray[np.float32], names: NDArray[Any]) -> None:
        """Rows' scores (QUERIES, n) and urls (n,)."""
        query, row = np.nonzero(score > self.best[:, -1:])
        edges = np.searchsorted(query, np.arange(QUERIES + 1))
        for i in np.unique(query).tolist():
            better = row[edges[i] : edges[i + 1]]
            values = np.concatenate([self.best[i], score[i, better]])
            named = np.concatenate([self.urls[i], names[better]])
            keep = np.argsort(-values, kind="stable")[:K]
            self.best[i], self.urls[i] = values[keep], named[keep]


def truth(most: int, sizes: list[int]) -> dict[str, dict[str, list[list[str]]]]:
    """In a child: for each size in millions and each filter, the urls of the 10 nearest rows of each query."""
    import pyarrow.parquet as pq

    folder, asked = data.images(most * PART, most), queries()
    nearest = {name: _Nearest() for name in FILTERS}
    found: dict[str, dict[str, list[list[str]]]] = {}
    for part in range(max(sizes)):
        vectors = np.load(folder / f"img_emb/img_emb_{part}.npy", mmap_mode="r")
        rows = pq.read_table(folder / f"metadata/metadata_{part}.parquet", columns=["url", "width", "height"])
        names, width, height = (rows.column(i).to_numpy() for i in range(3))
        for a in range(0, len(vectors), 50_000):
            block = np.asarray(vectors[a : a + 50_000], np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            score = asked @ block.T
            for name, (narrowest, widest, lowest, highest) in FILTERS.items():
                w, h = width[a : a + 50_000], height[a : a + 50_000]
                left = np.flatnonzero((w >= narrowest) & (w <= widest) & (h >= lowest) & (h <= highest))
                nearest[name].add(score if name == "all" else score[:, left], names[a + left])
        if part + 1 in sizes:
            found[str(part + 1)] = {name: each.urls.tolist() for name, each in nearest.items()}
    return found


def grow(millions: int, most: int, place: str, memory: int) -> dict[str, Any]:
    """In a child: take so many parts in and index them, within `memory` GiB."""
    limited = limit_this_process(memory << 30)
    import clipql

    folder = data.images(most * PART, most)
    found: dict[str, Any] = {"millions": millions, "limit": limited, "memory": memory}
    with clipql.connect(place) as db, Watch() as watch:
        began = time.perf_counter()
        db.ingest(folder, table="laion", parts=f"0-{millions - 1}", link=True)
        found["ingest_seconds"], found["ingest_memory"] = time.perf_counter() - began, watch.peak
        db.sql("ALTER TABLE laion ADD INDEX ix image_embedding TYPE ivf('cosineDistance')")
        stages: dict[str, float] = {}
        last = [time.perf_counter(), ""]

        def stage(told: Any) -> None:
            now = time.perf_counter()
            if last[1]:
                stages[str(last[1])] = stages.get(str(last[1]), 0.0) + now - float(last[0])
            last[:] = [now, told.get("stage", last[1])]

        began, spent = time.perf_counter(), time.process_time()
        db.execute("ALTER TABLE laion MATERIALIZE INDEX ix", progress=stage)
        found["build_seconds"], found["build_memory"] = time.perf_counter() - began, watch.peak
        found["build_processor_seconds"] = time.process_time() - spent
        found["stages"] = stages
        found["index_seconds"], found["index_bytes"] = db.sql("SELECT build_seconds, bytes FROM clipql.indexes").rows[0]
        found["disk"] = sum(f.stat().st_size for f in Path(place).rglob("*") if f.is_file())
    return found


def ingest_in_child(folder: str, place: str) -> None:
    """In a child."""
    import clipql

    with clipql.connect(place) as db:
        db.ingest(folder, table="laion")
