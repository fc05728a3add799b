"""Results packed for their way: HTTP's content encodings, and ClickHouse's own blocks (`compress=1`).

A block of ClickHouse's: CityHash128 of what follows (16 bytes), 0x82 for LZ4, the size with this header (9 bytes) and
the size unpacked, both UInt32, then the data. https://clickhouse.com/docs/native-protocol/compression
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

from clipql.serve import arrow_codecs
from clipql.serve.unpacking import LZ4

# in the order in which they are chosen: those that take the least time first
ENCODINGS = ("lz4", "zstd", "snappy", "gzip", "deflate", "br", "xz", "bz2")
BLOCK = 1 << 20
# of these a piece that is longer is packed off the event loop
_SLOW, _SHORT = ("br", "xz", "bz2"), 1 << 14


class Compressor:
    """Passes everything on."""

    def add(self, data: bytes) -> bytes:
        """What goes out for this piece."""
        return data

    def end(self) -> bytes:
        """What goes out at the end."""
        return b""


class _Made(Compressor):
    """Packs by a library's object."""

    def __init__(self, add: Any, end: Any, begin: bytes = b"") -> None:
        self._add, self._end, self._begin = add, end, begin

    def add(self, data: bytes) -> bytes:
        begin, self._begin = self._begin, b""
        return begin + bytes(self._add(data))

    def end(self) -> bytes:
        begin, self._begin = self._begin, b""
        return begin + bytes(self._end())


class _Blocks(Compressor):
    """ClickHouse's blocks."""

    def add(self, data: bytes) -> bytes:
        return b"".join(pack_block(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK))


class _Both(Compressor):
    def __init__(self, first: Compressor, second: Compressor) -> None:
        self._first, self._second = first, second

    def add(self, data: bytes) -> bytes:
        return self._second.add(self._first.add(data))

    def end(self) -> bytes:
        return self._second.end()


def compressor(encoding: str, blocks: bool) -> Compressor:
    """What packs a result: into ClickHouse's blocks, then by a content encoding."""
    outer = _encoder(encoding)
    return _Both(_Blocks(), outer) if blocks else outer


def _encoder(encoding: str) -> Compressor:
    if encoding in ("gzip", "deflate"):
        made = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
        return _Made(made.compress, made.flush)
    if encoding == "zstd":
        import zstandard

        unpacked = zstandard.ZstdCompressor(level=1).compressobj()
        return _Made(unpacked.compress, unpacked.flush)
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped, unused-ignore]

        frames = lz4.frame.LZ4FrameCompressor()
        return _Made(frames.compress, frames.flush, frames.begin())
    if encoding == "snappy":
        return _Made(arrow_codecs.snappy, bytes)
    if encoding == "br":
        brotli = arrow_codecs.Brotli()
        return _Made(brotli.add, brotli.end)
    if encoding in ("xz", "bz2"):
        slow = lzma.LZMACompressor(preset=0) if encoding == "xz" else bz2.BZ2Compressor(1)
        return _Made(slow.compress, slow.flush)
    return Compressor()


async def packed(pieces: AsyncIterator[bytes], by: Compressor, encoding: str = "") -> AsyncIterator[bytes]:
    """Pieces as they go out."""
    async for piece in pieces:
        if data := await _added(piece, by, encoding):
            yield data
    if rest := by.end():
        yield rest


async def whole(data: bytes, by: Compressor, encoding: str = "") -> bytes:
    """All that goes out."""
    return await _added(data, by, encoding) + by.end()


async def _added(piece: bytes, by: Compressor, encoding: str) -> bytes:
    slow = encoding in _SLOW and len(piece) > _SHORT
    return await asyncio.to_thread(by.add, piece) if slow else by.add(piece)


def pack_block(data: bytes) -> bytes:
    """Data as one block."""
    import lz4.block  # type: ignore[import-untyped, unused-ignore]

    from clipql.serve.cityhash import cityhash128

    body: bytes = lz4.block.compress(data, store_size=False)
    rest = struct.pack("<BII", LZ4, len(body) + 9, len(data)) + body
    return cityhash128(rest) + rest
