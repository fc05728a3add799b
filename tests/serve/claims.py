"""Packed bodies made up: every codec, with every size that its header may claim, of what holds more or less."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import lz4.block
import lz4.frame
import xxhash
import zstandard

from clipql.serve import unpacking
from clipql.serve.cityhash import cityhash128

LIMIT = 1 << 16
SIZES = (1, 10, LIMIT - 1, LIMIT, LIMIT + 1, 40 * LIMIT)
CLAIMS = (None, 0, 1, 10, LIMIT, LIMIT + 1, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Packed:
    """One body. encoding: 'blocks' for ClickHouse's own. holds: what it unpacks to, where it is whole."""

    name: str
    encoding: str
    body: bytes
    holds: bytes


def _zstd(data: bytes, claim: int | None) -> bytes:
    made = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = made.compress(data) + made.flush()
    if claim is None:
        return frame
    # the descriptor says how wide the size is; the window's byte stands between them
    return frame[:4] + bytes([frame[4] | 0xC0]) + frame[5:6] + struct.pack("<Q", claim) + frame[6:]


def _lz4(data: bytes, claim: int | None) -> bytes:
    frame = lz4.frame.compress(data, store_size=False)
    if claim is None:
        return frame
    described = bytes([frame[4] | 0x08]) + frame[5:6] + struct.pack("<Q", claim)
    return frame[:4] + described + bytes([(xxhash.xxh32(described).intdigest() >> 8) & 255]) + frame[7:]


def _gzip(data: bytes, claim: int | None) -> bytes:
    frame = gzip.compress(data)
    return frame if claim is None else frame[:-4] + struct.pack("<I", claim & 0xFFFFFFFF)


FRAMES: dict[str, Callable[[bytes, int | None], bytes]] = {
    "zstd": _zstd,
    "lz4": _lz4,
    "gzip": _gzip,
    "deflate": lambda data, claim: zlib.compress(data),
}


def _frames() -> Iterator[Packed]:
    """A frame alone, among others, cut short, and with something behind it."""
    for (encoding, pack), size, claim in itertools.product(FRAMES.items(), SIZES, CLAIMS):
        if encoding == "deflate" and claim is not None:
            continue
        data = bytes(size)
        frame, small = pack(data, claim), pack(b"ab", None)
        name = f"{encoding} of {size:,}, claiming {claim}"
        yield Packed(name, encoding, frame, data)
        yield Packed(f"{name}, second", encoding, small + frame, b"ab" + data)
        yield Packed(f"{name}, first", encoding, frame + small, data + b"ab")
        yield Packed(f"{name}, cut short", encoding, frame[:-1], b"")
        yield Packed(f"{name}, and more", encoding, frame + b"more", b"")


def _block(method: int, body: bytes, claim: int) -> bytes:
    rest = struct.pack("<BII", method, len(body) + 9, claim & 0xFFFFFFFF) + body
    return cityhash128(rest) + rest


def _blocks() -> Iterator[Packed]:
    small = _block(unpacking.NONE, b"ab", 2)
    for size, claim, inner in itertools.product(SIZES, (*CLAIMS[1:8], "true"), CLAIMS[:6]):
        data = bytes(size)
        said = size if claim == "true" else int(claim or 0)
        bodies = {unpacking.ZSTD: _zstd(data, inner)}
        if inner is None:
            bodies |= {
                unpacking.LZ4: lz4.block.compress(data, store_size=False), unpacking.NONE: data, 0x77: data
            }  # fmt: skip
        for method, body in bodies.items():
            name = f"a block {method:#x} of {size:,}, claiming {said:,}, inside {inner}"
            block = _block(method, body, said)
            yield Packed(name, "blocks", block, data)
            yield Packed(f"{name}, second", "blocks", small + block, b"ab" + data)
            yield Packed(f"{name}, cut short", "blocks", block[:-1], b"")


def claims() -> Iterator[Packed]:
    """All of them."""
    yield from _frames()
    yield from _blocks()
