"""Request bodies, read within the limit and unpacked within it."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from starlette.requests import Request

from clipql.errors import QueryError

# packed bytes that are unpacked at a time: zstd makes up to 30,000 times as many, and the limit must be noticed early
STEP = 1 << 10


class Decoder:
    """Unpacks what comes in pieces."""

    def __init__(self, encoding: str) -> None:
        self._decode, self._finish = _decoder(encoding)

    def add(self, piece: bytes) -> bytes:
        """What a piece unpacks to. Raises QueryError for what is not packed so."""
        try:
            return self._decode(piece)
        except Exception as error:
            raise QueryError(
                f"the body is not packed as it says: {error}", code=354, name="CANNOT_DECOMPRESS"
            ) from error

    def end(self) -> bytes:
        """What is left."""
        return self._finish()


def _decoder(encoding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    nothing = bytes
    if encoding in ("", "identity"):
        return bytes, nothing
    if encoding in ("gzip", "x-gzip", "deflate"):
        made = zlib.decompressobj(wbits=47)  # either, told by its header
        return made.decompress, made.flush
    if encoding == "zstd":
        import zstandard

        unpacked = zstandard.ZstdDecompressor().decompressobj()
        return unpacked.decompress, nothing
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped, unused-ignore]

        frames = lz4.frame.LZ4FrameDecompressor()
        return frames.decompress, nothing
    raise QueryError(
        f"Unknown Content-Encoding {encoding[:40]!r}: gzip, deflate, zstd and lz4 are known",
        code=89,
        name="UNKNOWN_COMPRESSION_METHOD",
    )


def too_large(most: int) -> QueryError:
    """The error of a body beyond the limit."""
    return QueryError(f"the request is larger than {most:,} bytes", code=307, name="TOO_MANY_BYTES")


async def read_body(request: Request, most: int) -> bytes:
    """The body, unpacked as Content-Encoding says. Raises QueryError where it is larger than `most` bytes."""
    given = request.headers.get("content-length")
    if given is not None and given.isdigit() and int(given) > most:
        raise too_large(most)
    packed = request.headers.get("content-encoding", "").strip().lower()
    decoder = Decoder(packed)
    body = bytearray()
    async for piece in request.stream():
        step = STEP if packed else max(len(piece), 1)
        for at in range(0, len(piece), step):
            body += decoder.add(piece[at : at + step])
            if len(body) > most:
                raise too_large(most)
    body += decoder.end()
    return bytes(body)
