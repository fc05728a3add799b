"""An encoder that needs no model: a text's vector is made of its letters, a picture's of its colours."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipql.encode.base import EncodedPictures, Picture

DIMENSION = 16


def letters(text: str) -> NDArray[np.float32]:
    """What the fake gives for a text."""
    counts = np.full(DIMENSION, 0.01)
    for letter in text:
        counts[ord(letter) % DIMENSION] += 1
    return (counts / np.linalg.norm(counts)).astype(np.float32)


class FakeEncoder:
    """Counts the batches that it was given: `batches` holds their sizes."""

    def __init__(self, model: str = "tests/stand-in") -> None:
        self.model, self.dimension = model, DIMENSION
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            self.batches.append(len(texts))
        return np.stack([letters(t) for t in texts]) if texts else np.empty((0, DIMENSION), np.float32)

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        from PIL import Image

        with self._lock:
            self.batches.append(len(pictures))
        vectors, errors, sizes = np.zeros((len(pictures), DIMENSION), np.float32), [], []
        for i, picture in enumerate(pictures):
            try:
                with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture)) as opened:
                    colours = np.asarray(opened.convert("RGB").resize((4, 4)), np.float64).reshape(-1)[:DIMENSION] + 1
                    sizes.append(opened.size)
                vectors[i] = colours / np.linalg.norm(colours)
                errors.append(None)
            except OSError as error:
                sizes.append((0, 0))
                errors.append(f"{'a picture' if isinstance(picture, bytes) else picture}: {error}")
        return EncodedPictures(vectors, tuple(errors), tuple(sizes))
