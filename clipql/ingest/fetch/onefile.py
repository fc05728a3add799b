"""One file: asked for, continued over as many connections as it takes, checked, and given its name.

What must stay true: what has the name of a file of a part is whole: it has the size and the digest that are known of
it, and opens. What fails the checks is fetched anew once, and never kept. Bytes that are no such file are noticed by
the first of them, and a file whose size nobody tells has an end all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from clipql.errors import IngestError
from clipql.ingest.fetch.beginning import LONGEST, mistaken, whole_size
from clipql.ingest.fetch.digests import ChecksumList, Digest, mismatch, strongest
from clipql.ingest.fetch.http import shown
from clipql.ingest.fetch.manners import Manners
from clipql.ingest.fetch.partial import Partial
from clipql.ingest.fetch.sample import same_ends
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Transport
from clipql.ingest.layout import check_file
from clipql.storage import files

_CHANGES = 3


class _Foreign(Exception):
    """What comes is not the file, as its first bytes or its length show; the message says by what.

    again: whether it may be damage on the way.
    """

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


class Missing(Exception):
    """The source has no such file."""


@dataclass(frozen=True)
class Whole:
    """A file that is there and checked. fetched: bytes that came over the network for it in this run, 0 if none."""

    path: Path
    remote: RemoteFile
    size: int
    fetched: int
    checked_by: str


@dataclass(frozen=True)
class Step:
    """How a file gets on. came: bytes that have just come. waiting: why nothing comes, and for how many seconds."""

    done: int
    size: int | None
    came: int = 0
    waiting: str = ""


Tell = Callable[[Step], None]


class OneFile:
    """A file of a source on its way to a path.

    ours: another file that has its name there may be removed. check: raises IngestError for a file, of this ending,
    that is not whole.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        target: Path,
        manners: Manners,
        checksums: ChecksumList | None,
        tell: Tell,
        *,
        ours: bool = False,
        check: Callable[[Path, str], object] = check_file,
    ) -> None:
        self._transport, self._url, self._manners, self._checksums = transport, url, manners, checksums
        self._target, self._tell, self._partial = target, tell, Partial(target)
        self._came, self._ours, self._check = 0, ours, check

    def stat(self, *, careful: bool = False) -> RemoteFile | None:
        """What the source says of the file, with patience. Raises Failure or Stopped."""
        found = self._manners.insist(lambda: self._transport.stat(self._url, careful=careful), self._waiting)
        listed = self._checksums.of(self._url) if self._checksums else None
        return replace(found, digests=(listed,)) if found and listed else found

    def left(self, remote: RemoteFile) -> int:
        """How many bytes need not be fetched, as they are there."""
        try:
            return self._target.stat().st_size
        except OSError:
            return self._partial.left_from(remote)

    def save(self) -> None:
        """Keep what has come, where the thread that brings the file waits for the source."""
        self._partial.save()

    def bring(self, remote: RemoteFile | None = None) -> Whole:
        """See to it that the file is there and whole. remote: what `stat` has said.

        Raises Missing, Failure, Stopped, or a StorageError of the disk.
        """
        remote = remote or self.stat()
        if remote is None:
            raise Missing(f"{shown(self._url)}: the source has no such file")
        there = self._there(remote)
        if there is not None:
            self._partial.discard()
            return there
        problem = ""
        for _ in range(2):
            digest = None
            try:
                remote = self._complete(remote)
                digest = strongest(remote.digests)
                problem = self._problem(self._partial.path, digest)
            except _Foreign as foreign:
                problem = str(foreign)
                if not foreign.again:
                    self._partial.discard()
                    raise Failure(f"{shown(self._url)}: {problem}", again=False) from foreign
            if not problem:
                size = self._partial.path.stat().st_size
                self._partial.finish()
                return Whole(self._target, remote, size, self._came, _checks(remote, digest))
            self._partial.discard()
            self._tell(Step(0, remote.size, waiting=f"fetching it anew, as {problem}"))
        raise Failure(f"{shown(self._url)} came damaged, twice: {problem}", again=False)

    def _there(self, remote: RemoteFile) -> Whole | None:
        """The file that is there already, if it is the one. Raises Failure where another whole file has its name."""
        if not self._target.exists():
            return None
        size, digest = self._target.stat().st_size, strongest(remote.digests)
        problem = self._problem(self._target, digest)
        if not problem and not digest and remote.size in (None, size) and not self._same_ends(remote):
            problem = "it begins or ends with other bytes"
        if not problem and remote.size in (None, size):
            return Whole(self._target, remote, size, 0, _checks(remote, digest))
        try:
            self._check(self._target, self._target.suffix)
        except IngestError:
            files.remove(self._target)  # damaged: what is fetched takes its place
            return None
        if self._ours:
            files.remove(self._target)
            return None
        what = problem or f"it has {size:,} bytes, and the source announces {remote.size:,}"
        raise Failure(
            f"{self._target} is a whole file, and not the one of {shown(self._url)}: {what}; remove it, or name "
            "another folder",
            again=False,
        )

    def _same_ends(self, remote: RemoteFile) -> bool:
        try:
            return self._manners.insist(lambda: same_ends(self._transport, remote, self._target), self._waiting)
        except Changed:
            return False

    def _problem(self, path: Path, digest: Digest | None) -> str:
        """What is wrong with a file, '' if nothing is."""
        with files.translated(path, "reading"):
            wrong = mismatch(path, digest) if digest else None
        if wrong:
            return wrong
        try:
            self._check(path, self._target.suffix)
        except IngestError as error:
            return str(error).replace(str(path), "the file")
        return ""

    def _complete(self, remote: RemoteFile) -> RemoteFile:
        """Bring all bytes of a file into its partial, and return what the file is by then."""
        failures = changes = best = 0
        while True:
            self._manners.pause()
            failure: Failure | None = None
            try:
                with self._partial.opened(remote):
                    self._tell(Step(self._partial.size, remote.size))
                    if self._partial.size != remote.size:
                        self._continue(remote)
                    if remote.size in (None, self._partial.size):
                        return remote
                failure = Failure(
                    f"{shown(self._url)} ends after {self._partial.size:,} of its {remote.size:,} bytes", again=True
                )
            except Changed as change:
                changes += 1
                if changes > _CHANGES:
                    raise Failure(f"{shown(self._url)} keeps changing: {change}", again=False) from change
                remote = self._anew()
                best = failures = 0
                continue
            except Failure as caught:
                failure = caught
            grown = self._partial.size > best
            best, failures = max(best, self._partial.size), 1 if grown else failures + 1
            self._wait(failure, failures, self._partial.size, remote.size)

    def _anew(self) -> RemoteFile:
        self._partial.discard()
        remote = self.stat(careful=True)
        if remote is None:
            raise Missing(f"{shown(self._url)}: the source no longer has this file")
        return remote

    def _continue(self, remote: RemoteFile) -> None:
        partial, slow, begun = self._partial, _Slowness(self._manners), False
        most, by = self._manners.patience.unsized_bytes, "are taken of a file whose size is not told (--max-unsized)"
        by_header = False
        with self._transport.read(remote, partial.size) as reply:
            partial.cut(reply.start)
            for block in reply.blocks:
                self._manners.check()
                if remote.size is not None and partial.size + len(block) > remote.size:
                    raise Changed(f"more than the announced {remote.size:,} bytes come")
                if remote.size is None and partial.size + len(block) > most:
                    raise _Foreign(f"it goes on after the {most:,} bytes that {by}", again=by_header)
                partial.write(block)
                if not begun:
                    begun, beginning = partial.size >= LONGEST, partial.beginning(LONGEST)
                    if foreign := mistaken(beginning, self._target.suffix):
                        raise _Foreign(foreign)
                    told = whole_size(beginning, self._target.suffix)
                    if told is not None and told < most:
                        most, by, by_header = told, "its header announces", True
                self._came += len(block)
                self._tell(Step(partial.size, remote.size, len(block)))
                self._manners.took(len(block))
                if slow.stalls(len(block)):
                    raise Failure(f"{shown(self._url)} has all but stalled", again=True)

    def _waiting(self, failure: Failure) -> None:
        self._tell(Step(0, None, waiting=str(failure)))

    def _wait(self, failure: Failure, failures: int, done: int, size: int | None) -> None:
        """Wait before the next attempt. Raises the failure where there shall be none."""
        if not failure.again or failures >= self._manners.patience.attempts:
            raise failure
        self._tell(Step(done, size, waiting=str(failure)))
        self._manners.back_off(failures, failure.wait_seconds)


class _Slowness:
    """Notices a connection that is open and brings next to nothing."""

    def __init__(self, manners: Manners) -> None:
        self._patience, self._began, self._bytes = manners.patience, time.monotonic(), 0

    def stalls(self, size: int) -> bool:
        self._bytes += size
        seconds = time.monotonic() - self._began
        if seconds < 4 * self._patience.timeout_seconds:
            return False
        stalled = self._bytes < self._patience.slowest * seconds
        self._began, self._bytes = time.monotonic(), 0
        return stalled


def _checks(remote: RemoteFile, digest: Digest | None) -> str:
    by = [f"{digest.algorithm} of {digest.told_by}"] if digest else []
    return ", ".join([*by, *(["size"] if remote.size is not None else []), "opening it"])
