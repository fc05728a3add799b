"""An ivf index that rows are added to day by day, beside one that is built of all rows at once.

    python -m bench.growth [--rows 24000] [--additions 100] [--share 0.01] [--queries 200]

`--rows` vectors of the synthetic set are indexed, then a hundredth of them is added a hundred times, each time in an
index of its own folder as a table does it. Both indexes are asked the same queries that are in none of the rows, at the
default recall, in turns: recall@10, codes read a query, processor time a query (the least of five
rounds), the largest list beside the mean one, and the processor time of all additions and of the build.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.index import K, image_vectors, queries_of, recall, truth
from clipql.index.ivf import IvfIndex, build, grow
from clipql.index.ivf.opening import arrays_of
from clipql.storage.vectors.metrics import Metric

ROUNDS = 5


@dataclass(frozen=True)
class First:
    """The first rows of an array, as an index takes them."""

    array: NDArray[Any]
    rows: int

    @property
    def dimension(self) -> int:
        return int(self.array.shape[1])

    def blocks(self, first: int = 0, last: int | None = None) -> Sequence[tuple[int, NDArray[Any]]]:
        last = self.rows if last is None else min(last, self.rows)
        return [(first, self.array[first:last])] if first < last else []

    def take(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(self.array[rows], np.float32)


def measured(index: IvfIndex, queries: NDArray[np.float32], true: NDArray[np.int64]) -> dict[str, float]:
    """Recall, and what a query takes; the seconds are of one round."""
    began = time.process_time()
    found = [index.search(q, K) for q in queries]
    seconds = (time.process_time() - began) / len(queries)
    return {
        "recall@10": recall([f.rows.tolist() for f in found], true),
        "codes read": float(np.mean([f.cost.codes_scanned for f in found])),
        "µs": seconds * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--additions", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()
    step = max(1, int(given.rows * given.share))
    total = given.rows + given.additions * step
    part = data.part(total)
    images, texts = image_vectors(str(part)), np.load(next(part.glob("text_emb/*.npy")), mmap_mode="r")
    with tempfile.TemporaryDirectory() as place:
        folder, captions = Path(place), First(texts, total)
        grown = build(First(images, given.rows), Metric.COSINE, folder / "0", queries=First(texts, given.rows))
        began = time.process_time()
        for number in range(1, given.additions + 1):
            rows = given.rows + number * step
            came = First(images, rows), First(texts, rows)
            grown = grow(folder / str(number - 1), folder / str(number), came[0], queries=came[1])
            shutil.rmtree(folder / str(number - 1))
        adding, began = time.process_time() - began, time.process_time()
        fresh = build(First(images, total), Metric.COSINE, folder / "fresh", queries=captions)
        building = time.process_time() - began
        print(f"{given.rows:,} rows and {given.additions} additions of {step:,}: {adding:.1f} s of processor time")
        print(f"a build of {total:,}: {building:.1f} s")
        for name, place_of in (("grown", folder / str(given.additions)), ("fresh", folder / "fresh")):
            sizes = np.diff(arrays_of(place_of).start)
            print(f"{name}: {len(sizes):,} lists, {sizes.mean():.0f} rows in one, {sizes.max():,} at the most")
        print("| queries | index | recall@10 | codes read | µs |\n|---|---|---|---|---|")
        for kind in ("image", "text"):
            queries = queries_of(str(part), kind)[: given.queries]
            true = truth(images[:total], queries)
            rounds: dict[str, list[dict[str, float]]] = {"grown": [], "fresh": []}
            for _ in range(ROUNDS):
                rounds["grown"].append(measured(grown, queries, true))
                rounds["fresh"].append(measured(fresh, queries, true))
            for name, told in rounds.items():
                micros = min(t["µs"] for t in told)
                found, codes = told[0]["recall@10"], told[0]["codes read"]
                print(f"| {kind} | {name} | {found:.3f} | {codes:,.0f} | {micros:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
