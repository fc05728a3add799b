"""Parts fetched side by side and handed out in order.

What must stay true: no more parts are begun than there is room for; one file that fails never stops the others, but a
full disk, a source that is out of reach and Ctrl-C stop all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from clipql.errors import DownloadError, IngestError, StorageError
from clipql.ingest.fetch.digests import ChecksumList
from clipql.ingest.fetch.http import shown
from clipql.ingest.fetch.manners import Manners, Stopped
from clipql.ingest.fetch.onefile import Missing, OneFile, Step, Whole
from clipql.ingest.fetch.source import IMAGE, METADATA, TEXT, Source, local_name
from clipql.ingest.fetch.transport import Failure, RemoteFile
from clipql.ingest.layout import CheckedPart, PartFiles, check_part

# so many files in succession that cannot be had, though they may be there, mean that the source is out of reach
OUT_OF_REACH = 12
_FAREWELL_SECONDS = 1.0


@dataclass(frozen=True)
class Lost:
    """A file, or a whole part, that could not be had. file: as a path in the folder. status: HTTP's."""

    part: int
    file: str
    url: str
    reason: str
    status: int | None = None


@dataclass(frozen=True)
class FetchedPart:
    """What became of a part: `checked` where it is whole; what is there of it; what was lost."""

    number: int
    files: dict[str, Whole]
    lost: tuple[Lost, ...]
    checked: CheckedPart | None = None


@dataclass(frozen=True)
class FetchProgress:
    """How a run gets on. Bytes: done of size (None where it is not known), fetched over the network in this run.

    waiting: why a file waits, told when it begins to. part: one that has just been finished. asked: before anything is
    fetched, of how many files the size is known.
    """

    files_done: int
    files: int
    done: int
    size: int | None
    fetched: int
    seconds: float
    parts_done: int
    parts: int
    waiting: str = ""
    part: FetchedPart | None = None
    asked: int = 0


Progress = Callable[[FetchProgress], None]


@dataclass(frozen=True)
class Order:
    """What to fetch and where to.

    passing: the files are to be there for a while only, so a part that lacks a file is of no use. ahead: parts that may
    be there before the first of them is done with, None for all. known: what `stat` has said already, by file. trusted:
    what a file is by an earlier run's record, so that the source need not be asked. unwanted: whether a part is not
    needed after all, asked when it is its turn.
    """

    source: Source
    out: Path
    numbers: Sequence[int]
    kinds: Sequence[str]
    jobs: int
    passing: bool = False
    ahead: int | None = None
    checksums: ChecksumList | None = None
    known: dict[str, RemoteFile | None] = field(default_factory=dict)
    trusted: Callable[[str], Whole | None] = lambda name: None
    unwanted: Callable[[int], bool] = lambda number: False


def out_of_reach(failure: Failure) -> bool:
    """Whether a failure says something of the source, and not of one file."""
    return failure.again or failure.status in (429, 503)


class Fetching:
    """A run over parts. Iterate over it for `FetchedPart`s, in the order of the numbers; use as a context manager."""

    def __init__(self, order: Order, manners: Manners, progress: Progress | None = None) -> None:
        self._order, self._manners, self._progress = order, manners, progress or (lambda p: None)
        self._wake = threading.Condition()
        self._tasks = [(i, n, k) for i, n in enumerate(order.numbers) for k in order.kinds]
        self._next, self._handed = 0, 0
        self._whole: dict[tuple[int, str], Whole] = {}
        self._lost: dict[tuple[int, str], Lost] = {}
        # files that are not fetched, as another of their part is missing
        self._left: set[tuple[int, str]] = set()
        self._looked = {n: threading.Lock() for n in order.numbers} if order.passing else {}
        self._unwanted: dict[int, bool] = {}
        self._open: dict[tuple[int, str], OneFile] = {}
        self._out_of_reach = 0
        self._fatal: BaseException | None = None
        self._began = time.monotonic()
        self._bytes: dict[str, int] = {}
        self._fetched = self._done = 0
        sizes = [f.size for f in order.known.values() if f]
        self._size = sum(s for s in sizes if s is not None) if sizes and None not in sizes else None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(order.jobs)]

    def file(self, number: int, kind: str, tell: Callable[[Step], None] = lambda s: None) -> OneFile:
        """A file of a part on its way into the folder."""
        order = self._order
        target = order.out / local_name(kind, number)
        url = order.source.url(kind, number)
        transport, checksums = order.source.transport, order.checksums
        return OneFile(transport, url, target, self._manners, checksums, tell, ours=order.passing)

    def __iter__(self) -> Iterator[FetchedPart]:
        for thread in self._threads:
            thread.start()
        for index, number in enumerate(self._order.numbers):
            with self._wake:
                while not self._is_done(number):
                    # with a time, as Ctrl-C does not end a wait without one everywhere
                    self._wake.wait(0.5)
                    if self._fatal is not None:
                        raise self._fatal
            part = self._finished(number)
            self._tell(part=part)
            yield part
            with self._wake:
                self._handed = index + 1
                self._wake.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manners.stop()
        with self._wake:
            self._wake.notify_all()
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        # a thread that waits for a silent source leaves later, and writes nothing before it does
        for file in list(self._open.values()):
            with contextlib.suppress(StorageError):
                file.save()

    def _is_done(self, number: int) -> bool:
        done = (self._whole, self._lost, self._left)
        return all(any((number, k) in each for each in done) for k in self._order.kinds)

    def _work(self) -> None:
        try:
            while (task := self._take()) is not None:
                self._bring(*task)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised in the thread that iterates
            with self._wake:
                self._fatal = self._fatal or error
                self._manners.stop()
                self._wake.notify_all()

    def _take(self) -> tuple[int, str] | None:
        with self._wake:
            while self._next < len(self._tasks):
                self._manners.check()
                index, number, kind = self._tasks[self._next]
                if self._order.ahead is None or index <= self._handed + self._order.ahead:
                    self._next += 1
                    return number, kind
                self._wake.wait(0.5)
            return None

    def _bring(self, number: int, kind: str) -> None:
        name, url = local_name(kind, number), self._order.source.url(kind, number)
        lost: Lost | None = None
        whole, silent = self._order.trusted(name), False
        if self._order.passing and self._useless(number, kind):
            with self._wake:
                self._left.add((number, kind))
                self._wake.notify_all()
            return
        if whole is None:
            try:
                file = self.file(number, kind, lambda step: self._step(name, step))
                if name in self._order.known and self._order.known[name] is None:
                    raise Missing(f"{shown(url)}: the source has no such file")
                self._open[number, kind] = file
                whole = file.bring(self._order.known.get(name))
            except Missing as error:
                lost = Lost(number, name, shown(url), str(error), 404)
            except Failure as error:
                lost, silent = Lost(number, name, shown(url), str(error), error.status), out_of_reach(error)
        self._open.pop((number, kind), None)
        self._note(number, kind, name, whole, lost, silent)

    def _useless(self, number: int, kind: str) -> bool:
        """Whether the part is not needed, or another file of it is missing. The first to ask for a part asks the source
        for all its files, so that no gigabyte comes before it is known that another one does not."""
        known = self._order.known
        names = {k: local_name(k, number) for k in self._order.kinds}
        with self._looked[number]:
            if number not in self._unwanted:
                self._unwanted[number] = self._order.unwanted(number)
                with contextlib.suppress(Failure):  # it is met again when it is the turn of that file
                    for other in () if self._unwanted[number] else names:
                        known[names[other]] = self.file(number, other).stat()
            if self._unwanted[number]:
                return True
        others = [k for k in names if k != kind]
        with self._wake:
            lost = any((number, k) in self._lost for k in others)
        return lost or any(known.get(names[k], 0) is None for k in others if known.get(names[kind], 0) is not None)

    def _note(self, number: int, kind: str, name: str, whole: Whole | None, lost: Lost | None, silent: bool) -> None:
        with self._wake:
            if whole is not None:
                self._whole[number, kind] = whole
                self._count(name, whole.size)
            elif lost is not None:
                self._lost[number, kind] = lost
            self._out_of_reach = self._out_of_reach + 1 if silent else 0
            if lost is not None and self._out_of_reach >= OUT_OF_REACH:
                raise DownloadError(
                    f"{self._out_of_reach} files in succession could not be had, so the source is taken to be out of "
                    f"reach; the last: {lost.reason}. What has come is kept: run again later"
                )
            self._wake.notify_all()
        self._tell()

    def _step(self, name: str, step: Step) -> None:
        with self._wake:
            self._count(name, step.done)
            self._fetched += step.came
        self._tell(waiting=step.waiting)

    def _count(self, name: str, done: int) -> None:
        self._done += done - self._bytes.get(name, 0)
        self._bytes[name] = done

    def _tell(self, waiting: str = "", part: FetchedPart | None = None) -> None:
        order = self._order
        with self._wake:
            done = self._handed + (part is not None)
            progress = FetchProgress(
                files_done=len(self._whole) + len(self._lost),
                files=len(self._tasks),
                done=self._done,
                size=self._size,
                fetched=self._fetched,
                seconds=time.monotonic() - self._began,
                parts_done=done,
                parts=len(order.numbers),
                waiting=waiting,
                part=part,
            )
            self._progress(progress)

    def _finished(self, number: int) -> FetchedPart:
        kinds, out = self._order.kinds, self._order.out
        whole = {k: self._whole[number, k] for k in kinds if (number, k) in self._whole}
        lost = tuple(self._lost[number, k] for k in kinds if (number, k) in self._lost)
        if lost or len(whole) < len(kinds):
            return FetchedPart(number, whole, lost)
        paths = {k: out / local_name(k, number) for k in kinds}
        try:
            checked = check_part(PartFiles(number, paths[METADATA], paths.get(IMAGE), paths.get(TEXT)))
        except IngestError as error:
            url = shown(self._order.source.url(METADATA, number))
            return FetchedPart(number, whole, (Lost(number, local_name(METADATA, number), url, str(error)),))
        return FetchedPart(number, whole, (), checked)
