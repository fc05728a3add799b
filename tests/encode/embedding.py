"""For the tests of `clipql embed`: an encoder without a model, pictures, tars, and what a folder of parts holds."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from clipql.encode.base import EncodedPictures, Picture


class Colours:
    """Stands in for CLIP: a picture's vector is its first pixel, a text's that of the colour it names, and a hash."""

    NAMES: Mapping[str, tuple[int, int, int]] = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

    def __init__(self, model: str = "test/colours", dimension: int = 8) -> None:
        self.model, self.dimension = model, dimension
        self.pictures = self.texts = 0

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        named = [next((c for n, c in self.NAMES.items() if n in t), (90, 90, 90)) for t in texts]
        return self._vectors(named, [t.encode() for t in texts])

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        self.pictures += len(pictures)
        vectors = np.zeros((len(pictures), self.dimension), np.float32)
        errors: list[str | None] = []
        sizes: list[tuple[int, int]] = []
        for i, picture in enumerate(pictures):
            data = picture if isinstance(picture, bytes) else picture.read_bytes()
            try:
                with Image.open(io.BytesIO(data)) as image:
                    pixel = image.convert("RGB").getpixel((0, 0))
                    sizes.append(image.size)
                errors.append(None)
                vectors[i] = self._vectors([pixel], [data])[0]  # type: ignore[list-item]
            except (OSError, SyntaxError):
                sizes.append((0, 0))
                errors.append(f"not a picture: {len(data)} bytes")
        return EncodedPictures(vectors, tuple(errors), tuple(sizes))

    def _vectors(self, colours: Sequence[tuple[int, ...]], seeds: Sequence[bytes]) -> NDArray[np.float32]:
        made = np.zeros((len(colours), self.dimension), np.float32)
        for row, colour, seed in zip(made, colours, seeds, strict=True):
            row[:3] = np.array(colour, np.float32) / 255
            row[3] = 0.2 + hashlib.sha256(seed).digest()[0] / 2000
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (6, 4), format: str = "PNG") -> bytes:
    """The bytes of a picture of one colour."""
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, format)
    return sink.getvalue()


def shade(number: int) -> bytes:
    """One of many pictures that all differ."""
    return picture((number % 256, number // 256 % 256, 77))


def make_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar, compressed as its name says."""
    mode: Any = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def part_rows(out: Path, number: int = 0) -> list[dict[str, Any]]:
    """The metadata of a part, a dict a row."""
    return list(pq.read_table(out / "metadata" / f"metadata_{number}.parquet").to_pylist())


def all_rows(out: Path) -> list[dict[str, Any]]:
    """The metadata of all parts, in their order."""
    return [row for n in range(len(list((out / "metadata").glob("metadata_*.parquet")))) for row in part_rows(out, n)]


def vectors(out: Path, kind: str = "img_emb", number: int = 0) -> NDArray[np.float16]:
    """The vectors of a part."""
    return np.asarray(np.load(out / kind / f"{kind}_{number}.npy"))


def tree(out: Path) -> dict[str, bytes]:
    """Every file below a folder that outlives a run, with its content."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    found.pop("lock", None)
    return found
