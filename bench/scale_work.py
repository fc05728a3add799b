"""What the scale benchmark has done in child processes: true neighbours, growth, ingest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.limits import Watch, limit_this_process
from bench.results import median

PART = 1_000_000
MILLIONS = (1, 4, 10, 30)
K, QUERIES, WARM = 10, 300, 100
TARGET = 0.9
SETTINGS = ("recall = 0.9", "recall = 0.95", "recall = 0.98", "recall = 0.99", "nprobe = 512, rescore = 100",
            "nprobe = 1024, rescore = 100", "nprobe = 2048, rescore = 200")  # fmt: skip
QUERY = (
    "SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, {{q:Array(Float32)}}) LIMIT 10 SETTINGS {}"
)


def queries() -> NDArray[np.float32]:
    """Text query vectors that are in no part, float32 (QUERIES, 512)."""
    from clipql import synthetic

    return synthetic.world().draw(np.random.default_rng((2, 0, 0, 8)), QUERIES).text


def truth(most: int) -> dict[str, list[list[str]]]:
    """In a child: for each size, the urls of the 10 nearest rows of each query."""
    import pyarrow.parquet as pq

    folder, asked = data.images(most * PART, most), queries()
    best = np.full((QUERIES, K), -np.inf, np.float32)
    urls = np.full((QUERIES, K), "", object)
    found: dict[str, list[list[str]]] = {}
    for part in range(most):
        vectors = np.load(folder / f"img_emb/img_emb_{part}.npy", mmap_mode="r")
        names = pq.read_table(folder / f"metadata/metadata_{part}.parquet", columns=["url"]).column(0).to_numpy()
        for a in range(0, len(vectors), 50_000):
            block = np.asarray(vectors[a : a + 50_000], np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            score = asked @ block.T
            top = np.argpartition(-score, K, axis=1)[:, :K]
            both = np.concatenate([best, np.take_along_axis(score, top, 1)], 1)
            named = np.concatenate([urls, names[top + a]], 1)
            keep = np.argsort(-both, axis=1)[:, :K]
            best, urls = np.take_along_axis(both, keep, 1), np.take_along_axis(named, keep, 1)
        if part + 1 in MILLIONS:
            found[str(part + 1)] = urls.tolist()
    return found


def grow(millions: int, most: int, place: str, memory: int, true: str) -> dict[str, Any]:
    """In a child: take so many parts in, index them, search them. true: the file of what `truth` found."""
    limited = limit_this_process(memory << 30)
    import clipql

    folder, asked = data.images(most * PART, most), queries()
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

        began = time.perf_counter()
        db.execute("ALTER TABLE laion MATERIALIZE INDEX ix", progress=stage)
        found["build_seconds"], found["build_memory"] = time.perf_counter() - began, watch.peak
        found["stages"] = stages
        found["index_seconds"], found["index_bytes"] = db.sql("SELECT build_seconds, bytes FROM clipql.indexes").rows[0]
        found["disk"] = sum(f.stat().st_size for f in Path(place).rglob("*") if f.is_file())
        nearest = json.loads(Path(true).read_text())[str(millions)]
        found["points"] = [measured(db, asked, nearest, setting) for setting in SETTINGS]
        found["peak_memory"] = watch.peak
    return found


def measured(db: Any, asked: NDArray[np.float32], true: list[list[str]], setting: str) -> dict[str, Any]:
    """Recall and milliseconds of whole statements, the first WARM left out of the times."""
    seconds, hits = [], 0
    sql = QUERY.format(setting)
    for number, q in enumerate(asked):
        began = time.perf_counter()
        rows = db.sql(sql, q=q).rows
        seconds.append(time.perf_counter() - began)
        hits += len({r[0] for r in rows} & set(true[number]))
    kept = sorted(seconds[WARM:])
    return {
        "setting": setting,
        "recall": hits / (K * len(asked)),
        "p50": 1000 * median(kept),
        "p90": 1000 * kept[len(kept) * 9 // 10],
        "first": 1000 * seconds[0],
    }


def ingest_in_child(folder: str, place: str) -> None:
    """In a child."""
    import clipql

    with clipql.connect(place) as db:
        db.ingest(folder, table="laion")
