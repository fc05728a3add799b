"""Packed bodies as their bytes: HTTP's content encodings, and the blocks of ClickHouse (`decompress=1`).

What must stay true: sizes that a header claims are checked before anything is unpacked, and are not believed: what
comes out is counted as it comes, in small pieces.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import lz4.block  # type: ignore[import-untyped, unused-ignore]
import lz4.frame  # type: ignore[import-untyped, unused-ignore]
import zstandard

from clipql.errors import QueryError
from clipql.serve import arrow_codecs

PLAIN = ("", "identity")
ENCODINGS = ("gzip", "x-gzip", "deflate", "zstd", "lz4", "br", "xz", "bz2", "snappy")
# packed bytes that are unpacked at a time, as zstd makes up to 30,000 times as many; the most that others give at once
STEP, MOST = 1 << 10, 1 << 20
# of zstd: what `zstd --long` takes; the most that xz may keep of what it has unpacked
WINDOW = 1 << 27
LZ4, NONE, ZSTD = 0x82, 0x02, 0x90
Count = Callable[[int], None]


def too_large(most: int) -> QueryError:
    """The error of a body beyond the limit."""
    return QueryError(f"the request is larger than {most:,} bytes", code=307, name="TOO_MANY_BYTES")


def check_encoding(encoding: str) -> None:
    """Raise QueryError for a Content-Encoding that is not known."""
    if encoding not in (*PLAIN, *ENCODINGS):
        raise QueryError(
            f"Unknown Content-Encoding {encoding[:40]!r}: expected one of {', '.join(ENCODINGS)}",
            code=89,
            name="UNKNOWN_COMPRESSION_METHOD",
        )


def unpacked(encoding: str, body: bytes, most: int, count: Count) -> bytes:
    """A body by its Content-Encoding. count: told of bytes before they are kept.

    Raises QueryError for more than `most` bytes, or for what is not packed so; and what `count` raises.
    """
    if not body:
        return body
    out = bytearray()
    try:
        if (_claimed(encoding, body) or 0) > most:
            raise too_large(most)
        for piece in _pieces(encoding, body):
            if len(out) + len(piece) > most:
                raise too_large(most)
            count(len(piece))
            out += piece
    except _LIBRARIES as error:
        raise QueryError(f"the body is not packed as it says: {error}", code=354, name="CANNOT_DECOMPRESS") from error
    return bytes(out)


class _CutShort(ValueError):
    pass


_LIBRARIES = (
    zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError, OSError, ValueError, RuntimeError,
    EOFError, MemoryError,
)  # fmt: skip


def _claimed(encoding: str, body: bytes) -> int | None:
    """The size that the first frame claims, where it does."""
    if encoding == "zstd":
        size = zstandard.frame_content_size(body)
        return size if size >= 0 else None
    if encoding == "lz4":
        return int(lz4.frame.get_frame_info(body)["content_size"]) or None
    return None


def _pieces(encoding: str, body: bytes) -> Iterator[bytes]:
    """What a body unpacks to: its members or frames, one after the other."""
    if encoding in ("br", "snappy"):
        yield from arrow_codecs.pieces(encoding, body)
        return
    new, drain = _codec(encoding)
    at = members = 0
    while at < len(body):
        members += 1
        check_parts(members, len(body))
        stream = new()
        while not stream.eof:
            if at >= len(body):
                raise _CutShort("it is cut short")
            piece = body[at : at + STEP]
            at += len(piece)
            yield from drain(stream, piece)
        at -= len(stream.unused_data or b"")


def check_parts(parts: int, size: int) -> None:
    """Raise ValueError for a body of very many very small parts, which cost time and hold nothing."""
    if parts > 1000 + size // 1024:
        raise ValueError("it has too many small parts")


def _codec(encoding: str) -> tuple[Callable[[], Any], Callable[[Any, bytes], Iterator[bytes]]]:
    if encoding == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj, _drain_zstd
    if encoding == "lz4":
        return lz4.frame.LZ4FrameDecompressor, _drain_whole
    if encoding == "bz2":
        return bz2.BZ2Decompressor, _drain_whole
    if encoding == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, WINDOW), _drain_whole
    return lambda: zlib.decompressobj(wbits=47), _drain_zlib  # gzip or deflate, told by its header


def _drain_zstd(stream: Any, piece: bytes) -> Iterator[bytes]:
    yield stream.decompress(piece)


def _drain_zlib(stream: Any, piece: bytes) -> Iterator[bytes]:
    while True:
        out = stream.decompress(piece, MOST)
        yield out
        piece = stream.unconsumed_tail
        if stream.eof or (len(out) < MOST and not piece):
            return


def _drain_whole(stream: Any, piece: bytes) -> Iterator[bytes]:
    yield stream.decompress(piece, max_length=MOST)
    while not stream.eof and not stream.needs_input:
        yield stream.decompress(b"", max_length=MOST)


# ClickHouse's blocks


def unpack_blocks(data: bytes, most: int, count: Count = lambda size: None) -> bytes:
    """The data of blocks one after the other. Raises QueryError for what are none, or more than `most` bytes."""
    blocks = _blocks(data)
    if sum(unpacked for _, _, _, unpacked in blocks) > most:
        raise too_large(most)
    out = bytearray()
    for at, method, size, claimed in blocks:
        count(claimed)
        out += _unpack(data, at, method, size, claimed, most - len(out), most)
    return bytes(out)


def _blocks(data: bytes) -> list[tuple[int, int, int, int]]:
    """Of each block its place, its method, its size without the hash, and the size that it claims to unpack to."""
    found: list[tuple[int, int, int, int]] = []
    at = 0
    while at < len(data):
        if at + 25 > len(data):
            raise _broken("a block is cut short")
        method, size, claimed = struct.unpack_from("<BII", data, at + 16)
        if size < 9 or at + 16 + size > len(data):
            raise _broken("a block is cut short")
        found.append((at, method, size, claimed))
        at += 16 + size
    try:
        check_parts(len(found), len(data))
    except ValueError as error:
        raise _broken(str(error)) from None
    return found


def _unpack(data: bytes, at: int, method: int, size: int, claimed: int, room: int, most: int) -> bytes:
    from clipql.serve.cityhash import cityhash128

    rest = data[at + 16 : at + 16 + size]
    if cityhash128(rest) != data[at : at + 16]:
        raise _broken("Checksum doesn't match: corrupted data")
    try:
        found = _unpacked(method, rest[9:], claimed, room, most)
    except _LIBRARIES as error:
        raise _broken(str(error)) from error
    if len(found) != claimed:
        raise _broken(f"a block claims {claimed:,} bytes, and unpacks to others")
    return found


def _unpacked(method: int, body: bytes, claimed: int, room: int, most: int) -> bytes:
    if method == LZ4:
        if claimed > 256 * len(body):  # as much as LZ4 can make
            raise _broken(f"a block of {len(body):,} bytes claims {claimed:,}")
        return bytes(lz4.block.decompress(body, uncompressed_size=claimed))
    if method == ZSTD:
        if (_claimed("zstd", body) or 0) > room:
            raise too_large(most)
        out, size = bytearray(), 0
        for piece in _pieces("zstd", body):
            size += len(piece)
            if size > room:
                raise too_large(most)
            out += piece[: max(claimed + 1 - len(out), 0)]
        return bytes(out)
    if method == NONE:
        return body
    raise _broken(f"Unknown compression method {method:#04x}")


def _broken(why: str) -> QueryError:
    return QueryError(f"the body is not in ClickHouse's blocks: {why}", code=271, name="CANNOT_DECOMPRESS")
