"""Whole files of every kind that people hand to each other, small, for `bench.fuzz` to damage."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipql import synthetic

_FORMATS = (
    ("jpg", "JPEG", {}),
    ("jpg", "JPEG", {"progressive": True}),
    ("png", "PNG", {}),
    ("png", "PNG", {"optimize": True}),
    ("webp", "WEBP", {}),
    ("webp", "WEBP", {"lossless": True}),
    ("gif", "GIF", {}),
    ("bmp", "BMP", {}),
    ("tif", "TIFF", {}),
    ("tif", "TIFF", {"compression": "tiff_lzw"}),
    ("tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("tif", "TIFF", {"compression": "jpeg"}),
    ("tif", "TIFF", {"compression": "packbits"}),
    ("tif", "TIFF", {"compression": "group4"}),
    ("avif", "AVIF", {}),
    ("jp2", "JPEG2000", {}),
    ("ppm", "PPM", {}),
    ("ico", "ICO", {}),
)
_MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "I", "F")


def pictures() -> list[bytes]:
    """A picture in every format and mode that Pillow writes."""
    from PIL import Image

    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
    found = []
    for _, kind, options in _FORMATS:
        for mode in _MODES:
            try:
                plain = Image.fromarray(noise)
                image = plain.convert("I").convert("I;16") if mode == "I;16" else plain.convert(mode)
                file = io.BytesIO()
                exif = Image.Exif()
                exif[0x0112] = 6
                image.save(file, kind, **options, **({"exif": exif} if kind in ("JPEG", "WEBP", "PNG") else {}))
            except (OSError, ValueError, KeyError):
                continue
            found.append(file.getvalue())
    frames = [Image.fromarray(np.roll(noise, i, 0)) for i in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        found.append(file.getvalue())
    return found


def arrays() -> list[bytes]:
    """Vectors as `.npy` files."""
    found = []
    for kind in ("<f2", "<f4", "<f8", ">f4", "<i8"):
        for order in "CF":
            file = io.BytesIO()
            np.save(file, np.asarray(np.random.default_rng(2).random((30, 8)), kind, order=order))
            found.append(file.getvalue())
    return found


def tables() -> list[bytes]:
    """Parquet files: of a part, of pictures, and of odd types, compressed in every way."""
    small = [p for p in pictures() if len(p) < 4000]
    plain = pa.table({"url": [f"http://x/{i}" for i in range(50)], "caption": ["cat", None] * 25, "width": range(50)})
    held = pa.table({"image": pa.array([{"bytes": p, "path": "a"} for p in small[:20]]), "caption": ["c"] * 20})
    odd = pa.table(
        {
            "d": pa.array(["a", "b"] * 10).dictionary_encode(),
            "l": pa.array([[1, 2], None] * 10),
            "m": pa.array([[("a", 1)]] * 20, pa.map_(pa.string(), pa.int64())),
            "t": pa.array(range(20), pa.timestamp("ns", "UTC")),
            "s": pa.array([{"x": {"y": [1]}}] * 20),
            "c": pa.array([1] * 20, pa.decimal128(20, 3)),
            "image": pa.array(small[:20], pa.binary()),
        }
    )
    found = []
    for table in (plain, held, odd):
        for compression in ("none", "snappy", "zstd", "gzip", "lz4", "brotli"):
            for version in ("1.0", "2.0"):
                sink = io.BytesIO()
                pq.write_table(table, sink, compression=compression, row_group_size=10, data_page_version=version)
                found.append(sink.getvalue())
    return found


def tars() -> list[bytes]:
    """Tars of pictures and captions in every format, plain and packed."""
    small, found = [p for p in pictures() if len(p) < 3000][:6], []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for i, data in enumerate(small):
                long = "folder/" * (25 if i == 2 and form != tarfile.USTAR_FORMAT else 1)
                for name, content in (("png", data), ("txt", b"a cat"), ("json", b'{"caption": "cat", "width": 3}')):
                    member = tarfile.TarInfo(f"{long}{i:05}.{name}")
                    member.size = len(content)
                    if form == tarfile.PAX_FORMAT:
                        member.pax_headers = {"mtime": "1.5", "comment": "x"}
                    tar.addfile(member, io.BytesIO(content))
        whole = file.getvalue()
        found += [whole, gzip.compress(whole, 1), lzma.compress(whole)]
    return found


def model(folder: Path) -> dict[str, bytes]:
    """The files of a tiny model by name: 514 tokens, so that a case takes milliseconds."""
    from bench.encode_model import Shape, Tower, write
    from clipql.encode import tokenizer

    tower = Tower(16, 1, 2)
    shape = Shape(tower, tower, dimension=8, context=16, vocabulary=514, picture=16, patch=8)
    write(folder, shape, name="random/tiny")
    letters = tokenizer._letters()
    words = [*letters, *(letter + "</w>" for letter in letters), tokenizer.START, tokenizer.END]
    tokenizer._byte_pairs({word: i for i, word in enumerate(words)}, []).save(str(folder / "tokenizer.json"))
    return _contents(folder)


def part(folder: Path) -> dict[str, bytes]:
    """The files of a part by name."""
    synthetic.write_parts(folder, rows=40)
    return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SEEDS: dict[str, Callable[[], list[bytes]]] = {"picture": pictures, "npy": arrays, "parquet": tables, "tar": tars}
