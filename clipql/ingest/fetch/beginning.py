"""What the first bytes of a file of a part say, before gigabytes of it have come: whether it is one, and its size."""

from __future__ import annotations

import io

from clipql.storage.vectors import segments

_MAGIC = {".npy": (b"\x93NUMPY", "a .npy file"), ".parquet": (b"PAR1", "a Parquet file")}
# of what comes in the place of a file
_SEEN = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file that it stands for"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%pdf", "a PDF"),
    (b"\x80", "a pickle"),
)
# by so many bytes a header of `.npy` has ended
LONGEST = 16_384


def mistaken(beginning: bytes, ending: str) -> str:
    """Why a file that begins so is none of that ending; '' where it is, or is too short to tell."""
    magic, expected = _MAGIC.get(ending, (b"", ""))
    if beginning[: len(magic)] == magic[: len(beginning)]:
        return ""
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((what for first, what in _SEEN if start.startswith(first)), "")
    seen = f"{kind}, {beginning[:12]!r}" if kind else repr(beginning[:12])
    return f"the file is not {expected}: it begins as {seen}"


def whole_size(beginning: bytes, ending: str) -> int | None:
    """How many bytes the file has by its own header; None where that does not tell, or is not all there yet."""
    if ending != ".npy":
        return None
    try:
        return segments.size_by_header(io.BytesIO(beginning))
    except segments.UNREADABLE:
        return None
