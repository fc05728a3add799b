"""What every encoder of words and pictures offers, whatever runs it.

What must stay true: vectors come out with length 1, as float32, one row an input and in its order; an encoder is
thread-safe and is told by its `model` name: two encoders with the same name give comparable vectors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.errors import PictureError

# the bytes of a picture file, or where it is
Picture = bytes | bytearray | memoryview | str | os.PathLike[str]


def as_picture(picture: Picture) -> bytes | Path:
    """A picture's bytes or its path, whatever it was given as. Raises PictureError for what is neither."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    if not isinstance(picture, (str, os.PathLike)):
        raise PictureError(f"a picture is of type {type(picture).__name__}; expected its bytes, or its path")
    path = Path(os.fsdecode(picture))
    try:
        return path.expanduser()
    except RuntimeError:  # ~ of a user who is not there
        return path


@dataclass(frozen=True, repr=False)
class EncodedPictures(Brief):
    """Vectors of a batch of pictures, and what was wrong with those that have none.

    vectors: float32 (n, dimension); zeros where errors[i] is not None. errors: one message or None a picture.
    sizes: (width, height) of each picture as it is shown, (0, 0) where it could not be read.
    """

    vectors: NDArray[np.float32]
    errors: tuple[str | None, ...]
    sizes: tuple[tuple[int, int], ...]


class Encoder(Protocol):
    """Words and pictures to vectors of one space."""

    @property
    def model(self) -> str:
        """The model's canonical name, such as `openai/clip-vit-base-patch32`."""

    @property
    def dimension(self) -> int:
        """Length of its vectors."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (len(texts), dimension). Raises ModelError."""

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        """Unit vectors of pictures; a bad one is an entry in `errors` and never an exception. Raises ModelError."""
