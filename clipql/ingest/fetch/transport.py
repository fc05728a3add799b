"""What fetching asks of a source, whatever it speaks: what a file is, and its bytes from a place on.

What must stay true: bytes are only ever added to those of the same file (`Changed` otherwise); an error says whether
another attempt may help. The three that speak are `http`, `s3` and `anyfs`; each translates its library's errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from clipql.ingest.fetch.digests import Digest


@dataclass(frozen=True)
class RemoteFile:
    """A file at a source. size: bytes, None where the source does not say.

    etag and modified: as the source spells them; the same as long as the file is the same.
    """

    url: str
    size: int | None
    etag: str | None = None
    modified: str | None = None
    digests: tuple[Digest, ...] = ()

    @property
    def resumable(self) -> bool:
        """Whether a changed file would be noticed, so that what has come of it can be continued."""
        return bool(self.etag or self.modified or self.digests)


@dataclass(frozen=True)
class Reply:
    """The bytes of a file from `start` on: what was asked for, or 0 where the source sends only whole files."""

    start: int
    blocks: Iterator[bytes]


class Failure(Exception):
    """A source that does not give what it was asked for.

    again: whether another attempt may help. wait_seconds: what the source itself asks for. status: HTTP's, or the like.
    """

    def __init__(
        self, message: str, *, again: bool, wait_seconds: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.again, self.wait_seconds, self.status = again, wait_seconds, status


class Changed(Exception):
    """The file is not the one it was when it was asked for last; the message says by what."""


def read_small(transport: Transport, file: RemoteFile, most: int) -> bytes:
    """All of a small file. Raises Failure, for one that brings more than so many bytes too, or Changed."""
    content, size = list[bytes](), 0
    with transport.read(file, 0) as reply:
        for block in reply.blocks:
            content.append(block)
            size += len(block)
            if size > most:
                raise Failure(f"{file.url} brings more than {most:,} bytes", again=False)
    return b"".join(content)


class Transport(Protocol):
    """One way to reach files. Used by several threads at once."""

    def stat(self, url: str, *, careful: bool = False) -> RemoteFile | None:
        """What a file is, None where it is not there. careful: ask as for the bytes. Raises Failure."""

    def read(self, file: RemoteFile, start: int) -> AbstractContextManager[Reply]:
        """The bytes of that file and no other. Raises Failure or Changed, also while they come."""

    def close(self) -> None:
        """Let go of connections."""
