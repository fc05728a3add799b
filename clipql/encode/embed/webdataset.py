"""Tars as webdataset and img2dataset write them: members of one name and several endings are one sample.

Read as a stream, so that memory does not grow with the tar and compressed ones do as well. What must stay true: a tar
that is cut short or damaged gives the samples before the damage, and one row that says what is wrong.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from clipql.encode.embed.captions import SIDECARS, BadSidecar, from_sidecars
from clipql.encode.embed.rows import LARGEST, Row, Skip
from clipql.storage.files import open_plain

PICTURES = frozenset(["jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"])
# headers that tarfile reads whole: long names and links, and pax headers
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *(tarfile.XHDTYPE, tarfile.XGLTYPE), b"X")
_LONGEST_HEADER = 1 << 20
_MOST_PACKED, _LEAST_UNPACKED, _MOST_EMPTY = 200, 1 << 30, 16
_PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


class _Broken(Exception):
    """Where a header should be, there is none."""


class _Member(tarfile.TarInfo):
    """A header that is checked: tarfile itself takes damage after the first member for the end of the tar, and reads
    long names and further headers whole, however long they are.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise _Broken("the next header is damaged or missing") from error

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADERS and self.size > _LONGEST_HEADER):
            raise _Broken(f"a header announces {self.size:,} bytes")
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found


class _Bytes:
    """What a tar holds, as a stream that ends: where a packed one grows beyond all measure, for pictures hardly pack,
    and where a member goes on after the end, for tarfile reads on without a byte coming.
    """

    def __init__(self, path: Path, opened: IO[bytes]) -> None:
        self._opened, self._left, self._empty = opened, max(_LEAST_UNPACKED, _MOST_PACKED * path.stat().st_size), 0

    def read(self, size: int = -1) -> bytes:
        data = self._opened.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _Broken(f"it unpacks to more than {_MOST_PACKED} times its size")
        self._empty = 0 if data else self._empty + 1
        if self._empty > _MOST_EMPTY:
            raise _Broken("it ends within a member")
        return data

    def close(self) -> None:
        self._opened.close()


@dataclass
class _Sample:
    key: str
    picture: str = ""
    data: dict[str, bytes] = field(default_factory=dict)
    error: str = ""

    @property
    def counts(self) -> bool:
        """Whether it makes a row: decided by the names of its members alone."""
        return bool(self.picture) or any(e in self.data for e in ("txt", "caption"))


# what tarfile and the unpackers raise over damaged tars
_DAMAGE = (
    tarfile.TarError, _Broken, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, LookupError, RecursionError,
    OverflowError, TypeError, MemoryError,
)  # fmt: skip


def read_tar(path: Path, skip: Skip, column: str | None = None) -> Iterator[Row]:
    """One row a sample, in the order of the tar. column: the key of the caption in `.json` members."""
    samples, sample = 0, None
    try:
        with closing(_open(path)) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or memory would grow with the tar
                if not member.isreg():
                    continue
                key, ending = _split(member.name)
                if sample is not None and sample.key != key:
                    if sample.counts:
                        samples += 1
                        yield _row(path, sample, column)
                    sample = None
                sample = sample or _Sample(key)
                _take(path, tar, member, sample, ending, skip)
    except _DAMAGE as error:
        if sample is not None and sample.counts:
            if not sample.data.get(sample.picture):
                sample.error = sample.error or f"{path}#{sample.key}: the tar is damaged or cut short here"
            samples += 1
            yield _row(path, sample, column)
        said = getattr(error, "strerror", None) or error
        message = f"{path} is damaged or cut short after {samples:,} samples ({said}); the rest of it is missing"
        yield Row(f"{path}#!", path=str(path), error=message)
        return
    if sample is not None and sample.counts:
        yield _row(path, sample, column)


def _open(path: Path) -> Any:
    with open_plain(path, follow=True) as file:  # a pipe would be waited for
        start = file.read(6)
    unpack = next((opened for magic, opened in _PACKED if start.startswith(magic)), None)
    return _Bytes(path, (unpack or open)(path, "rb"))


def _split(name: str) -> tuple[str, str]:
    """A member's sample and ending: `a/b.c.jpg` is `c.jpg` of `a/b`, as webdataset has it."""
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def _take(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, ending: str, skip: Skip) -> None:
    picture = ending.rpartition(".")[2] in PICTURES
    if (not picture and ending not in SIDECARS) or (picture and sample.picture):
        return
    sample.data[ending] = b""
    if picture:
        sample.picture = ending
    if skip:
        return
    if member.size > LARGEST:
        sample.error = f"{path}#{member.name} has {member.size:,} bytes; the most that is read is {LARGEST:,}"
        return
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise _Broken(f"{member.name} ends after {len(data):,} of {member.size:,} bytes")
    sample.data[ending] = data


def _row(path: Path, sample: _Sample, column: str | None) -> Row:
    key = f"{path}#{sample.key}"
    where = f"{path}#{sample.key}.{sample.picture}" if sample.picture else key
    error = sample.error or ("" if sample.picture else f"{key} has a caption and no picture")
    caption, extra = "", dict[str, Any]()
    try:
        caption, extra = from_sidecars({e: d for e, d in sample.data.items() if e in SIDECARS and d}, key, column)
    except BadSidecar as bad:
        error = error or str(bad)
    return Row(key, None if error else sample.data[sample.picture], where, caption, error, extra)
