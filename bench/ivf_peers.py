"""FAISS and rabitqlib on the same vectors and queries as `ivf_speed.py`, one thread each.

    python bench/ivf_peers.py DATA KEEP     in an environment with faiss-cpu and rabitqlib

DATA holds img_emb/img_emb_0.npy and queries/{text,image}.npy; KEEP is a folder for the built indexes and the true
neighbours, so that a second run only searches. Each search is one batched call, which spares the libraries Python's
cost per query. Searches are timed in processor time.
"""

from __future__ import annotations

import pathlib
import sys
import time

import faiss
import numpy as np
import rabitqlib

LISTS, K, QUERIES = 4096, 10, 500


def true_neighbours(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores, rows = [], []
    for a in range(0, len(x), 50_000):
        s = queries @ np.asarray(x[a : a + 50_000], np.float32).T
        top = np.argpartition(-s, K, axis=1)[:, :K]
        scores.append(np.take_along_axis(s, top, 1))
        rows.append(top + a)
    order = np.argsort(-np.concatenate(scores, 1), axis=1)[:, :K]
    return np.take_along_axis(np.concatenate(rows, 1), order, 1)


def build(x: np.ndarray, keep: pathlib.Path) -> None:
    full = np.asarray(x, np.float32)
    faiss.omp_set_num_threads(2)
    begun = time.perf_counter()
    kmeans = faiss.Kmeans(full.shape[1], LISTS, niter=10, spherical=True, seed=1, max_points_per_centroid=64)
    kmeans.train(full)
    _, owner = kmeans.index.search(full, 1)
    print(f"centroids and assignment: {time.perf_counter() - begun:.0f} s", flush=True)
    begun = time.perf_counter()
    index = rabitqlib.IvfIndex(full.shape[1], len(full), LISTS, 7, "ip")
    index.build(full, kmeans.centroids, owner.ravel().astype(np.uint32), num_threads=2, fast_quantization=True)
    index.save(str(keep / "rabitqlib"))
    print(f"rabitqlib, 7 bits: {time.perf_counter() - begun:.0f} s more", flush=True)
    begun = time.perf_counter()
    fast = faiss.index_factory(full.shape[1], f"IVF{LISTS},RaBitQfs", faiss.METRIC_INNER_PRODUCT)
    fast.quantizer.train(kmeans.centroids)
    fast.quantizer.add(kmeans.centroids)
    fast.train(full[:: max(1, len(full) // 200_000)])
    fast.add(full)
    faiss.write_index(fast, str(keep / "faiss"))
    print(f"faiss RaBitQ fastscan, 1 bit: {time.perf_counter() - begun:.0f} s more", flush=True)


def report(name: str, kind: str, found: np.ndarray, truth: np.ndarray, seconds: list[float]) -> None:
    recall = np.mean([len(set(f.tolist()) & set(t.tolist())) / K for f, t in zip(found, truth, strict=True)])
    print(f"{kind:5s} {name:40s} recall@10 {recall:.3f}  {len(truth) / np.median(seconds):6.0f} queries/s", flush=True)


def main(data: pathlib.Path, keep: pathlib.Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    x = np.load(data / "img_emb/img_emb_0.npy", mmap_mode="r")
    if not (keep / "faiss").exists():
        build(x, keep)
    peer = rabitqlib.IvfIndex.load(str(keep / "rabitqlib"))
    fast = faiss.read_index(str(keep / "faiss"))
    half = np.load(data / "img_emb/img_emb_0.npy")
    faiss.omp_set_num_threads(1)
    for kind in ("text", "image"):
        queries = np.load(data / f"queries/{kind}.npy")[:QUERIES].astype(np.float32)
        if not (keep / f"{kind}.npy").exists():
            np.save(keep / f"{kind}.npy", true_neighbours(x, queries))
        truth = np.load(keep / f"{kind}.npy")
        for nprobe in (192, 256, 384, 768) if kind == "text" else (8, 16, 32, 64):
            seconds = []
            for _ in range(3):
                begun = time.process_time()
                found = peer.search(queries, K, nprobe, num_threads=1)
                seconds.append(time.process_time() - begun)
            rows = next(np.asarray(a) for a in found if np.issubdtype(np.asarray(a).dtype, np.integer))
            report(f"rabitqlib 7 bits, nprobe {nprobe}", kind, rows, truth, seconds)
        for nprobe, rescore in ((256, 300), (512, 600)) if kind == "text" else ((32, 200), (64, 300)):
            fast.nprobe, seconds = nprobe, []
            for _ in range(3):
                begun = time.process_time()
                _, near = fast.search(queries, rescore)
                rows = np.empty((len(queries), K), np.int64)
                for i, (ids, q) in enumerate(zip(near, queries, strict=True)):
                    kept = ids[ids >= 0]
                    rows[i] = kept[np.argsort(-(half[kept].astype(np.float32) @ q))[:K]]
                seconds.append(time.process_time() - begun)
            report(f"faiss RaBitQfs, nprobe {nprobe}, {rescore} rescored", kind, rows, truth, seconds)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
