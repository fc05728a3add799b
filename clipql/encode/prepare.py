"""Pictures to what a vision tower takes: decoded, resized, cropped, normalised."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from clipql.encode import pictures
from clipql.encode.base import Picture
from clipql.encode.folder import PictureShape

# Of the models that OpenAI published; another model's is in its folder
OPENAI = PictureShape(
    resize=224,
    crop=(224, 224),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resample=3,
)


def preprocess(
    picture: Picture, shape: PictureShape = OPENAI, *, max_pixels: int = pictures.MAX_PIXELS
) -> NDArray[np.float32]:
    """A picture, by its bytes or path, as float32 (3, height, width), by default (3, 224, 224). Raises PictureError."""
    out = np.empty((3, *shape.crop), np.float32)
    fill(out, picture, shape, max_pixels=max_pixels)
    return out


def fill(
    out: NDArray[np.float32], picture: Picture, shape: PictureShape, *, max_pixels: int = pictures.MAX_PIXELS
) -> tuple[int, int]:
    """Preprocess into `out`, (3, height, width), and return (width, height) of the picture as it is shown."""
    found = pictures.read(picture, shape, max_pixels=max_pixels)
    for channel, table in enumerate(_tables(shape)):
        # mode="clip" lets numpy write into `out` at once; a uint8 is always within the 256 values
        np.take(table, found.rgb[:, :, channel], out=out[channel], mode="clip")
    return found.size


@functools.cache
def _tables(shape: PictureShape) -> NDArray[np.float32]:
    """The normalised value of each of the 256 levels of R, G and B: (3, 256)."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(shape.mean, np.float32), np.array(shape.std, np.float32)
    return (levels - mean[:, None]) / std[:, None]
