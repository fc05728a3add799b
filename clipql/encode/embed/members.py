"""The members of a tar, one after the other, those that are hard links with what they link to.

Read as a stream, so that memory does not grow with the tar and compressed ones do as well. What must stay true: every
member comes, of every tar that was appended to the first (`cat a.tar b.tar`); damage is `Broken` and never taken for
the end. Only a tar with hard links is read again: once for their names, once for what these mean, which a scratch file
keeps.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from clipql.encode.embed.rows import LARGEST
from clipql.storage.files import open_plain

# headers that tarfile reads whole: long names and links, and pax headers
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *(tarfile.XHDTYPE, tarfile.XGLTYPE), b"X")
_LONGEST_HEADER = 1 << 20
_MOST_PACKED, _LEAST_UNPACKED, _MOST_EMPTY = 200, 1 << 30, 16
_PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class Broken(Exception):
    """Where a header should be, there is none; or a member is not whole."""


class NoTarget(Exception):
    """What a hard link links to is not there, or too large."""


# what tarfile and the unpackers raise over damaged tars
DAMAGE = (
    tarfile.TarError, Broken, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, LookupError, RecursionError,
    OverflowError, TypeError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """What lies in a tar, folders aside. odd: what it is where it is no file, as messages say it; size: 0 of a link.

    read: its content, once, before the next member is asked for. Raises Broken and NoTarget.
    """

    name: str
    size: int
    odd: str
    read: Callable[[], bytes]


class _Header(tarfile.TarInfo):
    """A header that is checked: tarfile itself takes damage after the first member for the end of the tar, and reads
    long names and further headers whole, however long they are.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        state: Any = tar
        try:
            found = super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":
                state.ended = True  # another tar may follow the zeros
                raise
            if kind == "EmptyHeaderError" and getattr(tar, "ended", False):
                raise
            raise Broken("the next header is damaged or missing") from error
        state.ended = False
        return found

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADERS and self.size > _LONGEST_HEADER):
            raise Broken(f"a header announces {self.size:,} bytes")
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
            raise Broken(f"it unpacks to more than {_MOST_PACKED} times its size")
        self._empty = 0 if data else self._empty + 1
        if self._empty > _MOST_EMPTY:
            raise Broken("it ends within a member")
        return data

    def close(self) -> None:
        self._opened.close()


def read_members(path: Path) -> Iterator[Member]:
    """Every member but folders, in the order of the tar. Raises one of DAMAGE where it cannot be read on."""
    links = _Links(path)
    with closing(links), _opened(path) as tar:
        for place, found in _headers(tar):
            if found.islnk():

                def linked(place: int = place, name: str = found.linkname) -> bytes:
                    return links.read(place, name)

                yield Member(found.name, 0, "", linked)
            elif found.isreg():

                def read(found: tarfile.TarInfo = found) -> bytes:
                    return _content(tar, found)

                yield Member(found.name, found.size, "", read)
            elif not found.isdir() and found.type != b"V":  # a volume's label
                yield Member(found.name, 0, _KINDS.get(found.type, f"of the kind {found.type!r}"), bytes)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    with open_plain(path, follow=True) as file:  # a pipe would be waited for
        start = file.read(6)
    unpack = next((opened for magic, opened in _PACKED if start.startswith(magic)), None)
    with (
        closing(_Bytes(path, (unpack or open)(path, "rb"))) as stream,
        # ignore_zeros goes on behind the zeros that end a tar; damage is Broken before it could be ignored
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, ignore_zeros=True) as tar,  # type: ignore[call-overload]
    ):
        yield tar


def _headers(tar: tarfile.TarFile) -> Iterator[tuple[int, tarfile.TarInfo]]:
    place = 0
    while (found := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or memory would grow with the tar
        yield place, found
        place += 1


def _content(tar: tarfile.TarFile, found: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(found)
    data = file.read() if file else b""
    if len(data) < found.size:
        raise Broken(f"{found.name} ends after {len(data):,} of {found.size:,} bytes")
    return data


class _Links:
    """What the hard links of a tar mean, found when the first of them is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch: IO[bytes] | None = None
        # of each name that is linked to: its members' places in the tar, offsets in the scratch file (-1: too large),
        # and sizes
        self._targets: dict[str, list[tuple[int, int, int]]] = {}

    def read(self, place: int, name: str) -> bytes:
        """The content of the last file of a name before the place of the link."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
            self._collect(self._scratch)
        before = [found for found in self._targets.get(name, ()) if found[0] < place]
        if not before:
            raise NoTarget(f"it is a hard link to {name}, which is not before it in the tar")
        _, offset, size = before[-1]
        if offset < 0:
            raise NoTarget(f"it is a hard link to {name} of {size:,} bytes; the most that is read is {LARGEST:,}")
        self._scratch.seek(offset)
        return self._scratch.read(size)

    def _collect(self, scratch: IO[bytes]) -> None:
        with _ignoring_damage(), _opened(self._path) as tar:
            for _, found in _headers(tar):
                if found.islnk():
                    self._targets[found.linkname] = []
        with _ignoring_damage(), _opened(self._path) as tar:
            for place, found in _headers(tar):
                if found.name not in self._targets:
                    continue
                known = self._targets[found.name]
                if found.islnk():  # a link to a link is what that one links to
                    known += [(place, offset, size) for _, offset, size in self._targets.get(found.linkname, [])[-1:]]
                elif found.isreg() and found.size > LARGEST:
                    known.append((place, -1, found.size))
                elif found.isreg():
                    offset = scratch.tell()
                    scratch.write(_content(tar, found))
                    known.append((place, offset, found.size))

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


@contextmanager
def _ignoring_damage() -> Iterator[None]:
    """What is damaged is told by the reading that gives the rows."""
    try:
        yield
    except DAMAGE:
        return
