"""Files that one replica fetches from another: chunk by chunk, and kept only if their hash is the one expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from clipql.errors import ClusterError
from clipql.storage import files

CHUNK_BYTES = 4 << 20
# gives `size` bytes of a file from an offset on
Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class PartFile:
    """A file of a part: its name, bytes, and xxh3-128 of all of them."""

    name: str
    size: int
    hash: str


def listed(paths: Iterable[Path]) -> tuple[PartFile, ...]:
    """These files, by name."""
    return tuple(PartFile(p.name, p.stat().st_size, hash_of(p)) for p in sorted(paths))


def hash_of(path: Path) -> str:
    """xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with files.translated(path, "reading"), open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file, for another replica."""
    with files.translated(path, "reading"), open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def fetch(path: Path, file: PartFile, source: Read, whom: str) -> None:
    """Write a file as it is elsewhere, unless it is here. Raises ClusterError where what comes has another hash."""
    if path.exists() and path.stat().st_size == file.size and hash_of(path) == file.hash:
        return
    digest = xxhash.xxh3_128()
    with files.new_file(path) as copy:
        at = 0
        while at < file.size:
            block = source(at, min(CHUNK_BYTES, file.size - at))
            if not block:
                break
            digest.update(block)
            copy.write(block)
            at += len(block)
        if at != file.size or digest.hexdigest() != file.hash:
            raise ClusterError(
                f"{file.name}, fetched for {whom}, does not match the hash it should have: the replica it came from is "
                "damaged"
            )
