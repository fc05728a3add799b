"""Small pictures of the files that rows name, those files themselves, and no other files.

What must stay true: a path comes from a row, never from a request; a picture with too many pixels is refused before
it is unpacked; what is not a picture gives no byte of itself away.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import OrderedDict
from threading import Lock
from typing import BinaryIO

from clipql.errors import PictureError
from clipql.serve.picture_files import PictureFiles

SIZES = (16, 1024)
KEPT_BYTES = 64 << 20
SMALL = 160  # pixels: a drawing so small shows the ghosts of lossy WebP, and saves little
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")


class Thumbnails:
    """Makes them, and keeps the latest in memory. opener: whoever opens the files."""

    def __init__(self, opener: PictureFiles, pixels: int) -> None:
        self._opener, self._pixels = opener, pixels
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def open(self, name: str) -> BinaryIO:
        """The file that a row names. Raises PictureError."""
        return os.fdopen(self._opener.open(name), "rb")

    @staticmethod
    def tag(file: BinaryIO, size: int) -> str:
        """What changes when the picture does."""
        found = os.fstat(file.fileno())
        text = f"{found.st_dev}:{found.st_ino}\0{found.st_mtime_ns}\0{found.st_size}\0{size}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def make(self, file: BinaryIO, size: int) -> bytes:
        """A WebP of at most `size` pixels each way. Raises PictureError."""
        key = (self.tag(file, size), size)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        data = self._draw(file, size)
        with self._lock:
            if key not in self._made:
                self._made[key] = data
                self._size += len(data)
            while self._size > KEPT_BYTES:
                self._size -= len(self._made.popitem(last=False)[1])
        return data

    @staticmethod
    def original(file: BinaryIO, most: int) -> tuple[bytes, str]:
        """The file as it is, of at most so many bytes, and its media type. Raises PictureError."""
        from PIL import Image

        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise PictureError(f"the picture has {size:,} bytes, more than {most:,}")
        try:
            with Image.open(file, formats=_FORMATS) as picture:
                media = Image.MIME[picture.format or ""]
        except Exception as error:
            raise PictureError(f"the file is no picture that can be read: {type(error).__name__}") from error
        file.seek(0)
        return file.read(most), media

    def _draw(self, file: BinaryIO, size: int) -> bytes:
        from PIL import Image, ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large picture is measured here
                with Image.open(file, formats=_FORMATS) as picture:
                    width, height = picture.size
                    if width * height > self._pixels:
                        raise PictureError(f"the picture has {width} x {height} pixels, more than {self._pixels:,}")
                    picture.draft("RGB", (size, size))
                    shown = ImageOps.exif_transpose(picture)
                    shown.thumbnail((size, size))
                    out = io.BytesIO()
                    alpha = shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info
                    shown.convert("RGBA" if alpha else "RGB").save(
                        out, "WEBP", quality=80, method=2, lossless=max(shown.size) <= SMALL
                    )
                    return out.getvalue()
        except PictureError:
            raise
        except Exception as error:
            raise PictureError(f"the file is no picture that can be read: {type(error).__name__}") from error
