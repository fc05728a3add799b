"""What a build will take: time, disk and memory, from the sizes of its files and a measured second of work.

What must stay true: the bytes are those of the arrays that the build writes and holds (`learn`, `place`, `routing`), so
a build that is let through does not die of a full disk or of memory for want of having counted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipql.engine import memory
from clipql.errors import DiskFull, VectorIndexError
from clipql.index.base import Vectors
from clipql.index.ivf.codes import words_for
from clipql.index.ivf.geometry import Space, Workers
from clipql.index.ivf.learn import (
    BUCKET_BYTES,
    CHUNK,
    LARGEST_SAMPLE,
    MOST_SPREAD,
    SAMPLE_PER_LIST,
    SAMPLE_PER_PARENT,
    row_kind,
    spread,
)
from clipql.index.ivf.place import STRETCH
from clipql.index.ivf.routing import MOST_ROWS
from clipql.index.ivf.train import COARSE_ROUNDS, FINE_ROUNDS, PARENTS_TRIED, SCORES, parents_for
from clipql.storage import files
from clipql.storage.vectors.metrics import Metric

CALIBRATED = 400  # queries, of both kinds, whose true neighbours the pass finds
PROBED_ROWS = 8_192
# What numpy's products of the shapes a build has reach of one large product's speed; small ones wait on memory
EFFICIENCY = 0.6
FIXED = 20.0  # seconds: calibration, which does not grow with the rows
PROCESS = 600 << 20  # bytes: Python, chDB, numba and what they have loaded, in a process that has just begun


@dataclass(frozen=True)
class Forecast:
    """seconds; disk, bytes needed while it is built, and kept, bytes of the index; memory, bytes in use that cannot be
    dropped, with those that the process has already.

    seconds is 0 where it was not asked for.
    """

    seconds: float
    disk: int
    kept: int
    memory: int

    def text(self) -> str:
        """`about 18 min, 4.9 GB of disk meanwhile and 2.6 GB afterwards, 1.4 GB of memory`."""
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        disk = f"{self.disk / 1e9:.1f} GB of disk meanwhile and {self.kept / 1e9:.1f} GB afterwards"
        return f"about {minutes}, {disk}, {self.memory / 1e9:.1f} GB of memory"


def check_room(needed: Forecast, folder: Path, there: int = 0) -> None:
    """Refuse a build that cannot fit. folder: where it is built; there: bytes it has written there before.

    Raises DiskFull or VectorIndexError, which say what is needed and what there is.
    """
    free = shutil.disk_usage(folder).free + there
    if needed.disk > free:
        raise DiskFull(
            f"the index needs {needed.disk / 1e9:.2f} GB of disk while it is built, and {needed.kept / 1e9:.2f} GB "
            f"afterwards; {folder} has {free / 1e9:.2f} GB free: free some room and build it again"
        )
    limit = memory.limit()
    if needed.memory > limit:
        raise VectorIndexError(
            f"building the index takes {needed.memory / 1e9:.2f} GB of memory; this process may use "
            f"{limit / 1e9:.2f} GB: build it where there is more, or with fewer lists"
        )


def forecast(
    vectors: Vectors, metric: Metric, lists: int, folder: Path | None = None, *, learns: bool = True
) -> Forecast:
    """What a build of so many lists will take. folder: where; given one, the speed of the machine is measured there,
    in about a second. learns: False for a build with a model.
    """
    rows, d = vectors.rows, vectors.dimension
    words, parents, size = words_for(d), parents_for(lists), np.dtype(row_kind(vectors)).itemsize
    biased = metric in (Metric.L2, Metric.L2_SQUARED)
    kept = rows * (8 * words + 12 + 4 * biased) + lists * (8 * words + d + 24) + parents * (4 * d + 8) + 12 * d * d
    kept += 4 * d * d * (lists >= 4 * d) + 4 * d  # what lists that come later are coded by
    sample = min(rows, LARGEST_SAMPLE, max(SAMPLE_PER_LIST * lists, 20_000)) if learns else 0
    followed = min(rows, MOST_ROWS) * (d * size + 8) if learns else 0
    learned = lists * (d + 28) + parents * 4 * d if learns else 0
    disk = max(sample * (d * size + 4), rows * (8 * words + 20) + followed + kept + lists * 4 * d) + learned
    some = min(MOST_SPREAD, max(SAMPLE_PER_PARENT * parents, 20_000), rows) * d * 4 if learns else 0
    chunk = CHUNK * (5 * d * 4 + 3 * (8 * words + 20)) + SCORES * parents * 4
    bucket = 3 * min(STRETCH, rows) * (8 * words + 20)
    stages = (3 * some, chunk + CHUNK * d * size, bucket, 2 * min(BUCKET_BYTES, sample * d * size))
    # what the process has stays beside the build: chDB keeps about 1 GB after a large ingest
    held = max(PROCESS, memory.in_use()) + lists * (d + 60) + parents * 4 * d + max(stages)
    seconds = _seconds(vectors, metric, lists, parents, sample, folder) if folder else 0.0
    return Forecast(seconds, int(disk), int(kept), int(held))


def _seconds(vectors: Vectors, metric: Metric, lists: int, parents: int, sample: int, folder: Path) -> float:
    rows, d = vectors.rows, vectors.dimension
    below = PARENTS_TRIED * lists / parents
    products = rows * (
        parents + below + 3 * d / 2 + CALIBRATED
    )  # rows with parents, lists, coder and bounds, and queries
    products += sample * (parents + FINE_ROUNDS * lists / parents)
    products += COARSE_ROUNDS * min(MOST_SPREAD, SAMPLE_PER_PARENT * parents) * parents
    speed, each, disk = _measured(vectors, metric, folder)
    written = rows * 3 * (8 * words_for(d) + 20) + 2 * sample * 2 * d
    written += 2 * min(rows, MOST_ROWS) * 2 * d
    return FIXED + 2 * d * products / (EFFICIENCY * speed) + (rows + sample) * each + written / disk


def _measured(vectors: Vectors, metric: Metric, folder: Path) -> tuple[float, float, float]:
    """Operations a second of large products; seconds to read and place a row; bytes written a second."""
    workers = Workers(os.cpu_count() or 1)
    try:
        block = vectors.take(spread(vectors.rows, PROBED_ROWS, (0,)))
        space = Space(metric, np.zeros(vectors.dimension, np.float32))
        y, _ = space.rows(block, workers)
        each = _quickest(lambda: space.rows(block, workers)) / len(block)
        other = np.ascontiguousarray(y[:1024].T)
        speed = 2 * y.size * other.shape[1] / _quickest(lambda: y @ other)
    finally:
        workers.close()
    return speed, each, files.write_speed(folder)


def _quickest(work: Callable[[], Any]) -> float:
    found = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
