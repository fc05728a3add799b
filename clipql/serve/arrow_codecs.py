"""Brotli, and Snappy as ClickHouse and Hadoop frame it, both by the codecs that Arrow brings.

Hadoop's framing: blocks, each the size that it unpacks to and then parts that make it up, a part being its packed size
and raw Snappy; sizes are UInt32, the highest byte first. (ClickHouse: src/IO/HadoopSnappyReadBuffer.cpp.) What must
stay true: what a header claims is held against what its bytes could make before anything is unpacked.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pyarrow as pa

# bytes that are unpacked, or packed, at a time
_STEP = 1 << 16
# as much as a byte of raw Snappy makes: three bytes copy 64
_SNAPPY_MOST = 22
# bytes that may be read without anything coming out of them
_IDLE = 1 << 19


def pieces(encoding: str, body: bytes) -> Iterator[bytes]:
    """What a body in "br" or "snappy" unpacks to. Raises OSError or ValueError for what is not packed so."""
    return _brotli(body) if encoding == "br" else _snappy(body)


def _brotli(body: bytes) -> Iterator[bytes]:
    source = _Measured(body)
    with pa.CompressedInputStream(pa.PythonFile(source, "r"), "brotli") as stream:
        while piece := stream.read(_STEP):
            source.made += len(piece)
            yield piece


class _Measured(io.BytesIO):
    """A body that says no more where nothing comes of it. made: what came of it so far."""

    made = 0

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > self.made + _IDLE:  # streams that hold nothing, one after the other, each take time
            raise ValueError("it has too many small parts")
        return super().read(size)


def _snappy(body: bytes) -> Iterator[bytes]:
    codec, at = pa.Codec("snappy"), 0
    while at < len(body):
        left, at = _size(body, at)
        while left:
            size, at = _size(body, at)
            packed = memoryview(body)[at : at + size]
            if len(packed) < size or not size:
                raise ValueError("it is cut short")
            claimed = _claimed(packed)
            if claimed > left or not claimed or claimed > _SNAPPY_MOST * size:
                raise ValueError(
                    f"a part of {size:,} bytes claims {claimed:,}, of the {left:,} that its block has left"
                )
            yield codec.decompress(packed, claimed, asbytes=True)
            at, left = at + size, left - claimed


def _size(body: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(body):
        raise ValueError("it is cut short")
    return struct.unpack_from(">I", body, at)[0], at + 4


def _claimed(packed: memoryview) -> int:
    """The size that raw Snappy begins with."""
    found = 0
    for place, byte in enumerate(packed[:5]):
        found |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return found
    raise ValueError("a part claims more than may be")


class _Kept(io.BytesIO):
    """What can be read after Arrow has closed it."""

    def close(self) -> None:
        pass


class Brotli:
    """Packs by Brotli."""

    def __init__(self) -> None:
        self._made = _Kept()
        self._stream = pa.CompressedOutputStream(pa.PythonFile(self._made, "w"), "brotli")

    def add(self, data: bytes) -> bytes:
        """What goes out for this piece."""
        self._stream.write(data)
        return self._taken()

    def end(self) -> bytes:
        """What goes out at the end."""
        self._stream.close()
        return self._taken()

    def _taken(self) -> bytes:
        found = self._made.getvalue()
        self._made.seek(0)
        self._made.truncate()
        return found


def snappy(data: bytes) -> bytes:
    """A piece as blocks of Snappy."""
    codec, out = pa.Codec("snappy"), []
    for at in range(0, len(data), _STEP):
        part = data[at : at + _STEP]
        packed = codec.compress(part, asbytes=True)
        out.append(struct.pack(">II", len(part), len(packed)) + packed)
    return b"".join(out)
