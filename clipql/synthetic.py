"""Makes LAION-400M-shaped parts of any size whose vectors lie as CLIP ViT-B/32's do: for the demo and for benchmarks.

    python -m clipql.synthetic OUT --rows 1000000 --parts 4 --queries 1000

    OUT/img_emb/img_emb_0.npy         float16 (rows, 512), unit length
    OUT/text_emb/text_emb_0.npy       float16 (rows, 512), unit length; row i describes image i
    OUT/metadata/metadata_0.parquet   url, caption, NSFW, similarity, LICENSE, width, height, key
    OUT/queries/{image,text}.npy      float32 (queries, 512), unit length, in no part

A vector is the mean of its modality (images and texts lie in two narrow cones) plus a place: a leaf of a three-level
tree of topics, a step along the few directions in which that family of topics varies, and a little noise. A caption's
vector keeps part of the picture's place and adds a manner of its own, so text queries come from another distribution
than the images they look for, as they do in CLIP.

What must stay true: the same seed gives the same bytes; memory stays under 1 GB whatever `rows` is; and `measure` comes
near the figures of `TARGETS`, those of 3,045 real ViT-B/32 image vectors. Nearest neighbours are kept further off than
those, whose pictures come from one collection: pictures from all over the web are harder to search.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

DIMENSION = 512
CHUNK = 5_000
TARGETS = {
    "length of the mean image vector": 0.79,
    "participation ratio": 48.0,
    "variance in the first 10 directions": 0.37,
    "variance in the first 50 directions": 0.68,
    "variance in the first 100 directions": 0.81,
    "variance in the first 200 directions": 0.92,
    "median cosine to the nearest": 0.89,
    "median cosine to the 10th nearest": 0.84,
    "median cosine of two images": 0.63,
    "mean cosine of image and caption": 0.32,
    "mean cosine of image and another's caption": 0.17,
}

# how many topics each level of the tree has, and how far from its parent a topic lies
LEVELS = ((64, 0.40), (4_000, 0.48), (120_000, 0.42))
SPECTRUM_DECAY = 0.65  # of the standard deviation along the i-th direction: (i + 5) ** -0.65
IMAGE_MEAN, TEXT_MEAN, MEANS_COSINE = 1.10, 1.05, 0.24
STEP, STEP_DIRECTIONS, STEP_DECAY = 0.36, 16, 0.4
NOISE = 0.06
CAPTION_KEEPS, CAPTION_MANNER = 0.45, 0.50
POPULARITY_DECAY = 0.8  # the n-th topic is n ** -0.8 as frequent as the first: it falls off slowly, as on the web

# fmt: off
_THINGS = (
    "cat", "dog", "sofa", "lamp", "car", "engine", "logo", "poster", "wedding", "beach", "sunset", "portrait",
    "kitchen", "table", "garden", "flower", "tree", "mountain", "lake", "city street", "cake", "dress", "shoes",
    "watch", "laptop", "phone case", "guitar", "map", "house", "bedroom", "recipe", "tattoo",
)
_LOOKS = (
    "red", "blue", "black and white", "vintage", "modern", "wooden", "handmade", "minimalist", "colourful", "rustic",
    "tiny", "large", "old", "new",
)
_WAYS = (
    "stock photo", "vector illustration", "on sale", "in the rain", "by the sea", "with free shipping", "for kids",
    "at night", "close-up", 'with "love" print', "– café style", "wallpaper, 4K", "from above", "isolated on white",
)
# fmt: on
_NSFW = np.array(["UNLIKELY", "UNSURE", "NSFW"])


def _unit(x: Matrix) -> Matrix:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def _directions(random: Generator) -> Matrix:
    """A random rotation of directions, (d, d), whose variance falls off: noise @ directions has length about 1."""
    rotation, upper = np.linalg.qr(random.standard_normal((DIMENSION, DIMENSION)))
    rotation *= np.sign(np.diag(upper))
    scale = (np.arange(1, DIMENSION + 1) + 5.0) ** -SPECTRUM_DECAY
    return np.asarray((rotation * (scale / np.linalg.norm(scale))).T, np.float32)


@dataclass(frozen=True)
class World:
    """What all parts share, whatever their seed, so that parts of two seeds can be searched with one set of queries.

    directions: (d, d). image_mean, text_mean: (d,). places: (leaves, d), and the family of each leaf. axes: (families,
    STEP_DIRECTIONS, d). popularity: (leaves,), cumulative.
    """

    directions: Matrix
    image_mean: Matrix
    text_mean: Matrix
    places: Matrix
    family: NDArray[np.int64]
    axes: Matrix
    popularity: NDArray[np.float64]

    @classmethod
    def make(cls) -> World:
        """Draw the one world there is."""
        random = np.random.default_rng(20_210_820)
        directions = _directions(random)
        one, other = np.linalg.qr(random.standard_normal((DIMENSION, 2)))[0].T.astype(np.float32)
        text = np.float32(TEXT_MEAN) * _unit(MEANS_COSINE * one + np.sqrt(1 - MEANS_COSINE**2) * other)
        (size, distance), *deeper = LEVELS
        places, family = _scatter(random, size, directions) * np.float32(distance), np.zeros(size, np.int64)
        for size, distance in deeper:
            family = random.integers(0, len(places), size)
            places = places[family] + _scatter(random, size, directions) * np.float32(distance)
        families = LEVELS[-2][0]
        axes = _scatter(random, families * STEP_DIRECTIONS, directions).reshape(families, STEP_DIRECTIONS, DIMENSION)
        fade = np.arange(1, STEP_DIRECTIONS + 1) ** -STEP_DECAY
        axes *= (fade / np.linalg.norm(fade)).astype(np.float32)[:, None]
        frequency = np.arange(1, LEVELS[-1][0] + 1) ** -POPULARITY_DECAY
        popularity = np.cumsum(frequency / frequency.sum())
        return cls(directions, one * np.float32(IMAGE_MEAN), text, places, family, axes, popularity)

    def draw(self, random: Generator, rows: int) -> Sample:
        """Image vectors and the vectors of the captions that describe them."""
        topic = np.minimum(np.searchsorted(self.popularity, random.random(rows)), len(self.places) - 1)
        along = random.standard_normal((rows, 1, STEP_DIRECTIONS), np.float32)
        along *= np.float32(STEP) * (0.5 + random.random((rows, 1, 1), np.float32))
        place = self.places[topic] + np.matmul(along, self.axes[self.family[topic]])[:, 0]
        place += np.float32(NOISE) * _scatter(random, rows, self.directions)
        manner = np.float32(CAPTION_MANNER) * _scatter(random, rows, self.directions)
        image = _unit(self.image_mean + place)
        text = _unit(self.text_mean + np.float32(CAPTION_KEEPS) * place + manner)
        return Sample(image, text, topic, self.family[topic])


@dataclass(frozen=True)
class Sample:
    """Rows of a part: image and text, float32 (n, d) of unit length; each row's topic and that topic's family."""

    image: Matrix
    text: Matrix
    topic: NDArray[np.int64]
    family: NDArray[np.int64]


def _scatter(random: Generator, rows: int, directions: Matrix) -> Matrix:
    return random.standard_normal((rows, DIMENSION), np.float32) @ directions


@lru_cache(maxsize=1)
def world() -> World:
    """The world, drawn once a process (1 to 3 s)."""
    return World.make()


def _metadata(random: Generator, sample: Sample, first: int) -> pa.Table:
    rows = len(sample.topic)
    topic, family, ways = sample.topic.tolist(), sample.family.tolist(), random.integers(0, len(_WAYS), rows).tolist()
    return pa.table(
        {
            "url": [f"https://img{t % 97}.example.com/{t}/{first + i}.jpg?w=640,h=480" for i, t in enumerate(topic)],
            "caption": [
                f"{_LOOKS[t % len(_LOOKS)]} {_THINGS[f % len(_THINGS)]} {_WAYS[w]}"
                for t, f, w in zip(topic, family, ways, strict=True)
            ],
            "NSFW": _NSFW[np.searchsorted([0.94, 0.98], random.random(rows))],
            "similarity": np.einsum("ij,ij->i", sample.image, sample.text),
            "LICENSE": np.where(random.random(rows) < 0.9, "?", "cc-by-2.0"),
            "width": random.integers(200, 2_000, rows, np.int32),
            "height": random.integers(200, 2_000, rows, np.int32),
            "key": [f"{first + i:012d}" for i in range(rows)],
        }
    )


@contextlib.contextmanager
def _vector_file(path: Path, rows: int) -> Iterator[BinaryIO]:
    """A `.npy` file of float16 (rows, 512), open behind its header."""
    with open(path, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, DIMENSION)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _write_part(folder: Path, number: int, rows: int, first: int, seed: int, images_only: bool) -> None:
    with contextlib.ExitStack() as files:
        image = files.enter_context(_vector_file(folder / f"img_emb/img_emb_{number}.npy", rows))
        text = (
            None if images_only else files.enter_context(_vector_file(folder / f"text_emb/text_emb_{number}.npy", rows))
        )
        metadata: pq.ParquetWriter | None = None
        for start in range(0, max(rows, 1), CHUNK):  # a part of no rows still has a schema
            random = np.random.default_rng((seed, number, start))
            sample = world().draw(random, min(CHUNK, rows - start))
            sample.image.astype(np.float16).tofile(image)
            if text:
                sample.text.astype(np.float16).tofile(text)
            table = _metadata(random, sample, first + start)
            if metadata is None:
                path = folder / f"metadata/metadata_{number}.parquet"
                metadata = files.enter_context(pq.ParquetWriter(path, table.schema))
            metadata.write_table(table)


def _write_queries(folder: Path, queries: int, seed: int) -> None:
    for number, kind in enumerate(("image", "text")):
        # seeds of three numbers are the parts': one of four is never among them, so no query is in a part
        sample = world().draw(np.random.default_rng((seed, 0, 0, number + 1)), queries)
        np.save(folder / f"queries/{kind}.npy", getattr(sample, kind))


def write_parts(
    folder: str | os.PathLike[str],
    *,
    rows: int,
    parts: int = 1,
    queries: int = 0,
    seed: int = 0,
    images_only: bool = False,
) -> None:
    """Write `rows` rows as LAION parts of about equal size, numbered from 0, and query vectors that are in none.

    images_only: no text_emb, half the disk. Files of the same names are overwritten. Raises ValueError for a negative
    number, or less than one part.
    """
    if rows < 0 or queries < 0 or seed < 0 or parts < 1:
        raise ValueError(f"{rows = }, {queries = }, {seed = }, {parts = }: expected 0 or more, and at least 1 part")
    out = Path(folder)
    for name in ("img_emb", "metadata", *([] if images_only else ["text_emb"]), *(["queries"] if queries else [])):
        (out / name).mkdir(parents=True, exist_ok=True)
    edges = [rows * i // parts for i in range(parts + 1)]
    for number in range(parts):
        _write_part(out, number, edges[number + 1] - edges[number], edges[number], seed, images_only)
    if queries:
        _write_queries(out, queries, seed)


def measure(image: Matrix, text: Matrix) -> dict[str, float]:
    """The figures of `TARGETS` for image vectors and their captions' vectors, both float32 (n, d) of unit length.

    Those on nearest neighbours depend on n; the targets are for 3,045. Needs memory for (n, n) float32.
    """
    variance = np.linalg.eigvalsh(np.cov(image, rowvar=False))[::-1]
    share = np.cumsum(variance) / variance.sum()
    cosine = image @ image.T
    pairs = cosine[np.triu_indices(len(image), 1)]
    np.fill_diagonal(cosine, -1)
    near = np.partition(cosine, (-10, -1), axis=1)
    across = image @ text.T
    own = np.trace(across)
    values = [
        np.linalg.norm(image.mean(0)),
        variance.sum() ** 2 / (variance**2).sum(),
        *(share[n - 1] for n in (10, 50, 100, 200)),
        np.median(near[:, -1]),
        np.median(near[:, -10]),
        np.median(pairs),
        own / len(image),
        (across.sum() - own) / (across.size - len(image)),
    ]
    return dict(zip(TARGETS, map(float, values), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m clipql.synthetic`."""
    parser = argparse.ArgumentParser(prog="python -m clipql.synthetic", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--rows", type=int, default=100_000, help="in all parts together (%(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="%(default)s")
    parser.add_argument("--queries", type=int, default=1_000, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    parser.add_argument("--images-only", action="store_true", help="no text_emb: half the disk")
    a = parser.parse_args(arguments)
    write_parts(a.out, rows=a.rows, parts=a.parts, queries=a.queries, seed=a.seed, images_only=a.images_only)


if __name__ == "__main__":
    main()
