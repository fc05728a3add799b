"""Small pictures of the files that rows name, and of no other files.

What must stay true: a path comes from a row, never from a request; a picture with too many pixels is refused before
it is unpacked; what is not a picture gives no byte of itself away.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from clipql.errors import PictureError

SIZES = (16, 1024)
KEPT_BYTES = 64 << 20
SMALL = 160  # pixels: a drawing so small shows the ghosts of lossy WebP, and saves little
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")


class Thumbnails:
    """Makes them, and keeps the latest in memory. bases: folders that a row's relative path may be relative to."""

    def __init__(self, bases: tuple[Path, ...], roots: tuple[Path, ...] | None, pixels: int) -> None:
        self._bases, self._pixels = bases, pixels
        self._roots = None if roots is None else tuple(r.resolve() for r in roots)
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def locate(self, name: str) -> Path:
        """The file that a row names, relative to one of the bases. Raises PictureError."""
        if not name or "\0" in name:
            raise PictureError("the row names no file")
        given = Path(name)
        for path in (base / given for base in self._bases):  # an absolute path stays what it is
            try:
                found = path.resolve(strict=True)
            except (OSError, RuntimeError):
                continue
            if found.is_file() and (self._roots is None or any(found.is_relative_to(r) for r in self._roots)):
                return found
        raise PictureError("the file that the row names is not there, or not where this server may look")

    def tag(self, path: Path, size: int) -> str:
        """What changes when the picture does."""
        found = path.stat()
        text = f"{path}\0{found.st_mtime_ns}\0{found.st_size}\0{size}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def make(self, path: Path, size: int) -> bytes:
        """A WebP of at most `size` pixels each way. Raises PictureError."""
        key = (self.tag(path, size), size)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        data = self._draw(path, size)
        with self._lock:
            if key not in self._made:
                self._made[key] = data
                self._size += len(data)
            while self._size > KEPT_BYTES:
                self._size -= len(self._made.popitem(last=False)[1])
        return data

    def _draw(self, path: Path, size: int) -> bytes:
        from PIL import Image, ImageOps

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large picture is measured here
                with Image.open(path, formats=_FORMATS) as picture:
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
