"""Recall and speed of clipql's ivf index, one thread, one query a call, exact rescoring included.

    python bench/ivf_speed.py DATA KEEP [--metric COSINE] [--no-captions]

DATA holds img_emb/img_emb_0.npy, text_emb/text_emb_0.npy and queries/{text,image}.npy; KEEP is a folder for the built
index (built only if it is not there) and the true neighbours. Medians of five runs over 500 queries of each kind, in
processor time, which other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf import IvfIndex, build, open_index
from clipql.storage.vectors.metrics import Metric

K, QUERIES, RUNS = 10, 500, 5


class OneFile:
    """One .npy file as the vectors of a column."""

    def __init__(self, file: pathlib.Path) -> None:
        self._array = np.load(file, mmap_mode="r")
        self.rows, self.dimension = self._array.shape

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[np.floating]]]:
        return [(first, self._array[first : self.rows if last is None else last])]

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        return np.asarray(self._array[rows], np.float32)


def true_neighbours(vectors: OneFile, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    scores, rows = [], []
    for a in range(0, vectors.rows, 50_000):
        s = queries @ vectors.take(np.arange(a, min(a + 50_000, vectors.rows))).T
        top = np.argpartition(-s, K, axis=1)[:, :K]
        scores.append(np.take_along_axis(s, top, 1))
        rows.append(top + a)
    order = np.argsort(-np.concatenate(scores, 1), axis=1)[:, :K]
    return np.take_along_axis(np.concatenate(rows, 1), order, 1)


def measure(index: IvfIndex, queries: NDArray[np.float32], truth: NDArray[np.int64], knobs: dict[str, float]) -> str:
    seconds = []
    for _ in range(RUNS):
        begun = time.process_time()
        found = [index.search(q, K, knobs=knobs) for q in queries]
        seconds.append(time.process_time() - begun)
    hits = [len(set(f.rows.tolist()) & set(t.tolist())) for f, t in zip(found, truth, strict=True)]
    lists, codes, rescored = (
        np.mean([getattr(f.cost, n) for f in found]) for n in ("lists_probed", "codes_scanned", "rows_rescored")
    )
    rate = len(queries) / np.median(seconds)
    return (
        f"recall@10 {np.mean(hits) / K:.3f}  {rate:6.0f} queries/s (best {len(queries) / min(seconds):.0f})  "
        f"{lists:.0f} lists, {codes:.0f} codes, {rescored:.0f} rescored"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("keep", type=pathlib.Path)
    parser.add_argument("--metric", default="COSINE", choices=[m.name for m in Metric])
    parser.add_argument("--no-captions", action="store_true")
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    vectors = OneFile(asked.data / "img_emb/img_emb_0.npy")
    folder = asked.keep / f"{asked.metric}{'_bare' if asked.no_captions else ''}"
    if not folder.exists():
        captions = None if asked.no_captions else OneFile(asked.data / "text_emb/text_emb_0.npy")
        begun, stage = time.perf_counter(), [""]

        def progress(name: str, done: int, total: int) -> None:
            if name != stage[0]:
                stage[0] = name
                print(f"{time.perf_counter() - begun:6.1f} s: {name}", flush=True)

        build(vectors, Metric[asked.metric], folder, queries=captions, progress=progress)
    index = open_index(folder, vectors)
    print(f"{index.lists} lists, {index.bytes_per_row():.1f} bytes a row, built in {index.build_seconds:.0f} s")
    for kind in ("text", "image"):
        queries = np.load(asked.data / f"queries/{kind}.npy")[:QUERIES].astype(np.float32)
        file = asked.keep / f"{kind}.npy"
        if not file.exists():
            np.save(file, true_neighbours(vectors, queries))
        measure(index, queries, np.load(file), {})
        for recall in (0.9, 0.95, 0.99):
            print(
                f"{kind:5s} recall={recall}: {measure(index, queries, np.load(file), {'recall': recall})}", flush=True
            )
        for nprobe in (32, 64, 96, 128, 192, 256, 512):
            line = measure(index, queries, np.load(file), {"nprobe": nprobe, "rescore": 100})
            print(f"{kind:5s} nprobe={nprobe}: {line}", flush=True)


if __name__ == "__main__":
    main()
