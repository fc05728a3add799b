"""Picture files to RGB pixels, whatever is in the file.

Nothing else imports Pillow. What must stay true: a file that is no picture, is broken or is too large is a
PictureError and never anything else; the number of pixels is read from the header and refused before any is decoded;
all threads together decode at most `MAX_PIXELS` at a time. What becomes of pictures that are not plain RGB:

- palettes are looked up; of animations and many-paged files the first picture is taken
- what is transparent is shown on white, so that the vector is that of what is seen, and not of the colours under the
  alpha, which each format keeps or drops as it likes
- CMYK and YCbCr are converted without their profiles; 16-bit grey is scaled to 8 bits; 32-bit numbers are stretched
  from their smallest and largest to 8 bits
- HEIC is decoded by pillow-heif where that is installed, and turned by it
- pictures are turned once, as their EXIF orientation says
"""

from __future__ import annotations

import functools
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.encode.base import Picture, as_picture
from clipql.encode.folder import PictureShape
from clipql.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
# A JPEG may be decoded at an eighth, a quarter or half of its size as long as its edges stay so many times as long as
# they will be after resizing
DRAFT = 4.0
_LONG = 16  # times the pixels of the crop that a resized picture may have
_ORIENTATION = 0x0112
_STRIP = 1 << 20  # pixels
# Formats by Pillow's modules. EPS is not among them, since it runs Ghostscript, nor are those without a signature
_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "AVIF": "AvifImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PPM": "PpmImagePlugin",
    "ICO": "IcoImagePlugin",
}
# ISO files by their brand, of pictures that another library decodes
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
# Endings by which a picture is taken for one before it is opened; another file is one by its content
ENDINGS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "ico",
    "jp2", "j2k", "jpx", "jpf", "j2c", "ppm", "pgm", "pbm", "pnm", "heic", "heif", "hif", "jxl",
})  # fmt: skip


class _Allowance:
    """Pixels that may be decoded at one time; a picture waits until there is room for it."""

    def __init__(self, pixels: int) -> None:
        self._limit = self._left = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._limit)  # one that is larger than all goes alone
        with self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_ALLOWANCE = _Allowance(MAX_PIXELS)


@dataclass(frozen=True, repr=False)
class Pixels(Brief):
    """rgb: uint8 (height, width, 3), resized and cropped; size: (width, height) of the whole picture as it is shown."""

    rgb: NDArray[np.uint8]
    size: tuple[int, int]


def read(picture: Picture, shape: PictureShape, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode, turn upright, resize and crop a picture. Raises PictureError."""
    found = as_picture(picture)
    name = str(found) if isinstance(found, Path) else f"a picture of {len(found):,} bytes"
    try:
        with _file(found) as file:
            image = _header(file, name)
            width, height = image.size
            if width < 1 or height < 1:
                raise PictureError(f"{name} is {width} × {height} pixels: there is nothing to see")
            if width * height > max_pixels:
                raise PictureError(
                    f"{name} has {width:,} × {height:,} pixels, which is more than the limit of {max_pixels:,}; "
                    "make it smaller, or raise the limit"
                )
            return _decoded(image, shape)
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
        raise PictureError(f"{name} cannot be read as a picture: {_reason(error)}") from error


def why_none(picture: Picture) -> str:
    """Why a file is no picture, by its header; '' where it is one, also of a kind that only an extra reads."""
    found = as_picture(picture)
    name = str(found) if isinstance(found, Path) else f"a file of {len(found):,} bytes"
    try:
        with _file(found) as file:
            _header(file, name).close()
    except _NoDecoder:
        return ""
    except PictureError as error:
        return str(error).removeprefix(f"{name} ").partition("; expected a picture")[0]
    except OSError as error:
        return f"cannot be read: {_reason(error)}"
    return ""


class _NoDecoder(PictureError):
    """A picture of a known kind that nothing here decodes."""


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "not identified by this driver" in str(error):
        return "its header gives it no size"
    return str(error) or type(error).__name__


def content(picture: Picture) -> bytes:
    """The bytes of a picture's file. Raises PictureError."""
    found = as_picture(picture)
    try:
        with _file(found) as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise PictureError(f"{picture!r} cannot be read as a picture: {_reason(error)}") from error


def _file(picture: bytes | Path) -> BinaryIO:
    if isinstance(picture, bytes):
        return BytesIO(picture)
    mode = picture.stat().st_mode
    if not stat.S_ISREG(mode):  # to open a pipe would wait for someone to write into it
        raise PictureError(
            f"{picture} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; expected a picture"
        )
    return picture.open("rb")


@functools.cache
def _formats() -> dict[str, tuple[Any, Any]]:
    """Pillow's decoders: by a format's name, how it opens a file and how it knows its beginning."""
    from PIL import Image, features

    for name, module in _PLUGINS.items():
        if name != "AVIF" or features.check("avif"):
            import_module(f"PIL.{module}")
    known = {name: Image.OPEN[name] for name in _PLUGINS if name in Image.OPEN}
    if (heif := _heif()) is not None:
        known["HEIF"] = heif.HeifImageFile, lambda start: _brand(start) in _HEIF_BRANDS
    return known


def _heif() -> Any:
    """pillow-heif, where it is installed: the extra clipql[heif]."""
    try:
        return import_module("pillow_heif")
    except ImportError:
        return None


def _brand(beginning: bytes) -> bytes:
    return beginning[8:12] if beginning[4:8] == b"ftyp" else b""


def _no_decoder(beginning: bytes) -> str:
    """What a picture is that nothing here decodes, and what to do; '' where it is none of these."""
    if _brand(beginning) in _HEIF_BRANDS and "HEIF" not in _formats():
        return "a HEIC picture, which pillow-heif reads: pip install 'clipql[heif]'"
    if _brand(beginning) in _AVIF_BRANDS and "AVIF" not in _formats():
        return "an AVIF picture, which this Pillow was built without: pip install --upgrade pillow"
    if beginning.startswith(_JXL):
        return "a JPEG XL picture, which is not read here: make it a PNG (djxl FILE.jxl FILE.png)"
    return ""


def _header(file: BinaryIO, name: str) -> Image:
    """The picture with its header read and its pixels not.

    It is what PIL.Image.open does, but for two things: that function's own limit of pixels is one for the whole
    process, and of its 40 formats some start other programs.
    """
    beginning = file.read(4096)
    if not beginning:
        raise PictureError(f"{name} is empty; expected a picture")
    failure: Exception | None = None
    for factory, accepts in _formats().values():
        if accepts is not None and accepts(beginning[:16]) is not True:
            continue
        file.seek(0)
        try:
            image: Image = factory(file, "")
        except Exception as error:  # noqa: BLE001 - as above; another format may know the file
            failure = error
            continue
        return image
    if missing := _no_decoder(beginning):
        raise _NoDecoder(f"{name} is {missing}")
    if failure is not None:
        raise PictureError(f"{name} has the beginning of a picture, but is broken: {_reason(failure)}") from failure
    kind = _looks_like(beginning)
    raise PictureError(f"{name} is {kind}; expected a picture: {', '.join(_PLUGINS)}")


def _looks_like(beginning: bytes) -> str:
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "an SVG drawing, which has no pixels until it is rendered"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if start.startswith(b"<?xml"):
        return "XML"
    if start.startswith(b"%pdf"):
        return "a PDF"
    return "no picture of a format known here"


def _decoded(image: Image, shape: PictureShape) -> Pixels:
    size = image.size
    if image.format in ("JPEG", "MPO"):
        _draft(image, DRAFT * min(_edges(size, shape)))
    with _ALLOWANCE.taking(image.width * image.height):
        try:
            image.load()
            # only now: Pillow turns a TIFF as it decodes it, says its size as shown from the first, and takes the tag
            # away; and a PNG may have its own behind the pixels
            orientation = _orientation(image)
            size = size[::-1] if orientation >= 5 else size
            return Pixels(np.asarray(_cropped(_turned(_rgb(image), orientation), size, shape)), size)
        finally:
            image.close()  # whoever still holds it, as an exception's traceback does, holds no pixels


def _edges(size: tuple[int, int], shape: PictureShape) -> tuple[int, int]:
    """Width and height that a picture is resized to."""
    width, height = size
    if not isinstance(shape.resize, int):
        return shape.resize[1], shape.resize[0]
    if width <= height:
        return shape.resize, int(shape.resize * height / width)
    return int(shape.resize * width / height), shape.resize


def _cropped(image: Image, size: tuple[int, int], shape: PictureShape) -> Image:
    """The middle of the resized picture."""
    from PIL.Image import Resampling

    (whole_x, whole_y), (height, width) = _edges(size, shape), shape.crop
    resample = Resampling(shape.resample)
    left, top = round((whole_x - width) / 2), round((whole_y - height) / 2)  # to even halves, as torchvision rounds
    if whole_x * whole_y <= _LONG * width * height:
        return image.resize((whole_x, whole_y), resample).crop((left, top, left + width, top + height))
    # A strip of 100,000 × 1 pixels would become one of 22,400,000 × 224. Pillow resizes a part to within a few levels
    # of what the part is in the whole
    x, y = image.width / whole_x, image.height / whole_y
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    return image.resize((width, height), resample, box=box)


def _draft(image: Image, least: float) -> None:
    """Have the JPEG decoder leave out what a smaller picture does not need: memory and time fall with the pixels."""
    for scale in (8, 4, 2):
        if min(image.size) >= least * scale:
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _orientation(image: Image) -> int:
    """EXIF's 1 to 8 of a picture that is loaded; 1, upright, where it says nothing that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - EXIF is an odd little format; a picture is not refused for it
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation]) if orientation in steps else image


def _rgb(image: Image) -> Image:
    from PIL.Image import fromarray

    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return fromarray(_stretched(image)).convert("RGB")
    return image.convert("RGB")


def _on_white(image: Image) -> Image:
    from PIL.Image import fromarray, new

    if image.mode.startswith("I;16"):  # which Pillow makes no RGBA of: one of its greys is transparent
        clear = np.asarray(image) == image.info["transparency"]
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        grey[clear] = 255
        return fromarray(grey).convert("RGB")
    seen = image.convert("RGBA")
    white = new("RGB", image.size, (255, 255, 255))
    white.paste(seen, mask=seen.getchannel("A"))
    return white


def _stretched(image: Image) -> NDArray[np.uint8]:
    """Numbers from their smallest to their largest as 8 bits, a strip at a time, as each step takes all anew."""
    width, height = image.size
    step = max(1, _STRIP // width)
    strips = [(0, top, width, min(top + step, height)) for top in range(0, height, step)]

    def numbers(strip: tuple[int, int, int, int]) -> NDArray[np.float32]:
        found = np.asarray(image.crop(strip), np.float32)
        return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)

    ends = [(float(part.min()), float(part.max())) for part in map(numbers, strips)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    out = np.empty((height, width), np.uint8)
    for strip in strips:
        scaled = (numbers(strip) - low) * (255 / (high - low) if high > low else 0.0) + 0.5
        out[strip[1] : strip[3]] = np.asarray(scaled, np.uint8)
    return out
