from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipql.encode import pictures
from clipql.encode.prepare import OPENAI
from clipql.errors import PictureError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def middle(picture: bytes | Path) -> tuple[int, ...]:
    return tuple(pictures.read(picture, OPENAI).rgb[112, 112].tolist())


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    sum_ = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + sum_ + struct.pack(">I", 9) + b"IDAT" + bytes(9)


PALETTE = Image.new("P", (30, 20), 1)
PALETTE.putpalette([0, 0, 0, 255, 0, 0])
GREY_16 = Image.fromarray(np.full((20, 30), 200 * 256 + 7, np.uint16))
FLOATS = Image.fromarray(np.linspace(-3, 5, 600, dtype=np.float32).reshape(20, 30))
SHOWN = {
    "palette": (saved(PALETTE), RED),
    "palette with transparency": (saved(PALETTE, transparency=b"\xff\x00"), WHITE),
    "alpha": (saved(Image.new("RGBA", (30, 20), (255, 0, 0, 0))), WHITE),
    "half of the alpha": (saved(Image.new("RGBA", (30, 20), (255, 0, 0, 127))), (255, 128, 128)),
    "one colour of three": (saved(Image.new("RGB", (30, 20), RED), transparency=RED), WHITE),
    "one grey of 16 bits": (saved(GREY_16, transparency=200 * 256 + 7), WHITE),
    "another grey of 16 bits": (saved(GREY_16, transparency=3), (200, 200, 200)),
    "grey": (saved(Image.new("L", (30, 20), 77)), (77, 77, 77)),
    "grey with alpha": (saved(Image.new("LA", (30, 20), (77, 51))), (219, 219, 219)),
    "black and white": (saved(Image.new("1", (30, 20), 1)), (255, 255, 255)),
    "16-bit grey": (saved(GREY_16), (200, 200, 200)),
    "16-bit grey TIFF": (saved(GREY_16, "TIFF"), (200, 200, 200)),
    "16-bit PGM": (b"P5 2 1 65535\n" + struct.pack(">HH", 200 * 256, 200 * 256), (200, 200, 200)),
    "CMYK": (saved(Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "TIFF"), RED),
    "GIF": (saved(PALETTE, "GIF"), RED),
    "BMP": (saved(Image.new("RGB", (30, 20), BLUE), "BMP"), BLUE),
    "WEBP": (saved(Image.new("RGB", (30, 20), BLUE), "WEBP", lossless=True), BLUE),
    "first of an animation": (
        saved(Image.new("RGB", (30, 20), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), BLUE)]),
        RED,
    ),
    "first of an animated WEBP": (
        saved(
            Image.new("RGB", (30, 20), RED),
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.new("RGB", (30, 20), BLUE)],
        ),
        RED,
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_picture_of_any_kind_becomes_rgb(kind: str) -> None:
    file, colour = SHOWN[kind]
    assert middle(file) == colour


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO"])
def test_the_colour_under_what_is_transparent_is_not_seen_in_any_format(kind: str) -> None:
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(kind, {})
    shown, looks = np.zeros((64, 64, 4), np.uint8), []
    shown[16:48, 16:48] = (0, 0, 200, 255)
    for hidden in ((255, 0, 0), (0, 255, 0), (0, 0, 0)):
        shown[:16, :, :3] = shown[48:, :, :3] = hidden
        looks.append(pictures.read(saved(Image.fromarray(shown), kind, **options), OPENAI).rgb.astype(int))
    expected = np.full((64, 64, 3), 255, np.uint8)
    expected[16:48, 16:48] = (0, 0, 200)
    expected = pictures.read(saved(Image.fromarray(expected)), OPENAI).rgb.astype(int)
    for look in looks:
        assert np.abs(look - expected).mean() < (6 if kind == "AVIF" else 0.1)  # whose colours bleed at an edge


def test_jpegs_in_cmyk_become_rgb() -> None:
    red, green, blue = middle(saved(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 250
    assert max(green, blue) < 6


def test_numbers_of_32_bits_are_stretched_from_smallest_to_largest() -> None:
    found = pictures.read(saved(FLOATS, "TIFF"), OPENAI).rgb
    assert (found.min(), found.max()) == (0, 255)


# how each format is written without loss, or nearly so; of an MPO, the first picture is shown
TURNED: dict[str, dict[str, object]] = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "MPO": {"quality": 100, "subsampling": 0, "save_all": True, "append_images": [Image.new("RGB", (8, 8))]},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "TIFF": {},
    "TIFF packed": {"compression": "tiff_lzw"},
    "TIFF of a JPEG": {"compression": "jpeg", "quality": 100},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_a_picture_is_turned_once_as_its_exif_says_in_every_format(kind: str, orientation: int) -> None:
    upright = np.zeros((224, 448, 3), np.uint8)
    upright[:, :112], upright[:, 336:], upright[:56] = RED, BLUE, (0, 255, 0)
    # how a camera held that way would store it: the inverse of what the viewer does
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(np.ascontiguousarray(stored)), kind.split()[0], exif=exif, **TURNED[kind])
    found = pictures.read(file, OPENAI)
    assert found.size == (448, 224)
    whole = pictures.read(saved(Image.fromarray(upright)), OPENAI).rgb
    assert np.array_equal(whole, upright[:, 112:336])
    assert np.abs(found.rgb.astype(int) - whole).max() <= (3 if kind.split()[-1] in ("JPEG", "MPO", "AVIF") else 0)


def test_exif_that_cannot_be_read_is_passed_over() -> None:
    file = saved(Image.new("RGB", (30, 20), RED), "JPEG", exif=b"Exif\0\0nonsense", quality=95)
    assert pictures.read(file, OPENAI).size == (30, 20)


def test_a_misnamed_picture_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(SHOWN["WEBP"][0])
    assert middle(path) == BLUE


PHOTO = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)), "JPEG")
NOISE = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)))
REFUSED = {
    "empty": (b"", "a picture of 0 bytes is empty; expected a picture"),
    "text": (b"hello", "is no picture of a format known here; expected a picture: JPEG, PNG, "),
    "SVG": (
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "is an SVG drawing, which has no pixels",
    ),
    "HTML": (b"<!DOCTYPE html><title>404</title>", "is a web page"),
    "PDF": (b"%PDF-1.7", "is a PDF"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture of a format known here"),
    "truncated JPEG": (PHOTO[: len(PHOTO) // 2], "cannot be read as a picture: image file is truncated"),
    "truncated PNG": (NOISE[: len(NOISE) // 2], "cannot be read as a picture: image file is truncated"),
    "JPEG of a few bytes": (PHOTO[:10], "picture"),
    "zero-sized": (png_header(0, 5), "is broken: its header gives it no size"),
    "bomb": (png_header(60_000, 60_000), "has 60,000 × 60,000 pixels, which is more than the limit of 100,000,000"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_whole_picture_is_refused_with_the_reason(kind: str) -> None:
    file, message = REFUSED[kind]
    with pytest.raises(PictureError) as caught:
        pictures.read(file, OPENAI)
    assert message in str(caught.value)


def test_the_limit_of_pixels_is_an_argument() -> None:
    with pytest.raises(PictureError, match="has 80 × 60 pixels, which is more than the limit of 4,799"):
        pictures.read(PHOTO, OPENAI, max_pixels=4799)
    assert pictures.read(PHOTO, OPENAI, max_pixels=4800).size == (80, 60)


def test_paths_that_are_no_files_are_refused_by_name(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (tmp_path, "is a folder; expected a picture"),
        (pipe, "is no regular file; expected a picture"),
        (tmp_path / "none.jpg", "cannot be read as a picture: No such file or directory"),
    ):
        with pytest.raises(PictureError) as caught:
            pictures.read(path, OPENAI)
        assert str(caught.value) == f"{path} {reason}"


def test_damaged_pictures_give_an_error_or_a_picture_and_nothing_else() -> None:
    random = np.random.default_rng(7)
    files = [PHOTO, NOISE, *(SHOWN[kind][0] for kind in ("GIF", "WEBP", "BMP", "16-bit grey TIFF", "16-bit PGM"))]
    outcomes = {"picture": 0, "error": 0}
    for file in files:
        for _ in range(40):
            damaged = bytearray(file)
            for _ in range(random.integers(1, 6)):
                damaged[random.integers(len(damaged))] = random.integers(256)
            try:
                found = pictures.read(bytes(damaged), OPENAI, max_pixels=1_000_000)
                assert found.rgb.shape == (224, 224, 3)
                outcomes["picture"] += 1
            except PictureError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 0
