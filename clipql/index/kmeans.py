"""k-means by products of matrices: centroids of a sample, and the nearest centroids of every row.

Lloyd, "Least squares quantization in PCM", 1982; a list that loses all of its rows takes half of the largest, as FAISS
does. What must stay true: memory does not grow with the rows of a column beyond what is returned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipql.index import streamed
from clipql.index.largest import largest_of_rows
from clipql.storage.vectors.device import Device, DeviceFull

ROWS_AT_ONCE = 8_192
Floats = NDArray[np.float32]


def train(
    x: Floats,
    k: int,
    *,
    iterations: int = 10,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
    device: Device | None = None,
) -> Floats:
    """Centroids, float32 (k, d), of the rows of x, float32 (n, d) with n >= k. check: called between iterations.
    device: of products; centroids are then the same within rounding.
    """
    rng = np.random.default_rng(seed)
    centroids = x[rng.choice(len(x), k, replace=False)].copy()
    apart = np.where(np.arange(x.shape[1]) % 2, 1e-4, -1e-4).astype(np.float32)  # in every other direction
    for _ in range(iterations):
        check()
        own, sums = _sums(x, centroids, device)
        counts = np.bincount(own, minlength=k)
        there = counts > 0
        centroids[there] = (sums[there] / counts[there][:, None]).astype(np.float32)
        for empty in np.flatnonzero(~there):
            largest = int(np.argmax(counts))
            centroids[empty] = centroids[largest] * (1 + apart)
            centroids[largest] *= 1 - apart
            counts[empty] = counts[largest] = counts[largest] // 2
    return centroids


def _sums(x: Floats, centroids: Floats, device: Device | None) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The nearest centroid of each row, and the sum of the rows of each, float64 (k, d)."""
    if device is not None:
        try:
            return streamed.sums(device, x, centroids)
        except DeviceFull:
            pass
    own = nearest(x, centroids, 1)[0][:, 0]
    counts = np.bincount(own, minlength=len(centroids))
    order = np.argsort(own, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    there = counts > 0
    sums = np.zeros(centroids.shape)
    sums[there] = np.add.reduceat(x[order], starts[there], axis=0, dtype=np.float64)
    return own, sums


def nearest(x: Floats, centroids: Floats, n: int, device: Device | None = None) -> tuple[NDArray[np.int32], Floats]:
    """The n nearest centroids of each row, nearest first, int32 (rows, n), and the squared distances to them."""
    lists, scores = _nearest(x, centroids, n, device)
    lengths = np.einsum("ij,ij->i", x, x)
    return lists, np.maximum(lengths[:, None] - 2 * scores, 0)


def _nearest(x: Floats, centroids: Floats, n: int, device: Device | None) -> tuple[NDArray[np.int32], Floats]:
    """The same, and half of what their squared distances lack to the squared length of the row."""
    if device is not None and len(x):
        try:
            return streamed.closest(device, x, centroids, n)
        except DeviceFull:
            pass
    half = np.einsum("ij,ij->i", centroids, centroids) / np.float32(2)
    lists, scores = np.empty((len(x), n), np.int32), np.empty((len(x), n), np.float32)
    for at in range(0, len(x), ROWS_AT_ONCE):
        part = x[at : at + ROWS_AT_ONCE]
        products = part @ centroids.T
        products -= half
        ours, theirs = lists[at : at + len(part)], scores[at : at + len(part)]
        largest_of_rows(products, ours, theirs)
    return lists, scores
