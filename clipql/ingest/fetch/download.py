"""`clipql download`: parts from a source into a folder, from which `clipql ingest` takes them.

What must stay true: nothing is fetched before it is known to fit on the disk; running again fetches only what is not
there yet, and goes on in the middle of a file.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clipql.brief import Brief
from clipql.errors import DiskFull, DownloadError
from clipql.ingest.fetch.digests import ChecksumList
from clipql.ingest.fetch.manners import Manners, Patience, Stopped
from clipql.ingest.fetch.onefile import Whole
from clipql.ingest.fetch.parts import (
    OUT_OF_REACH,
    FetchedPart,
    Fetching,
    FetchProgress,
    Lost,
    Order,
    Progress,
    out_of_reach,
)
from clipql.ingest.fetch.record import Record, locked
from clipql.ingest.fetch.source import IMAGE, KINDS, TEXT, Source, local_name, open_source, settle
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Transport, read_small
from clipql.ingest.layout import parse_numbers
from clipql.storage import files

JOBS = 4
_KEPT_FREE = 64 << 20
_LARGEST_MODEL, _LARGEST_LIST = 1 << 20, 16 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, repr=False)
class DownloadReport(Brief):
    """What a run has done. whole: parts that are there, those that were `there` before among them; lost: files."""

    parts: int
    whole: int
    there: int
    lost: tuple[Lost, ...]
    fetched_bytes: int
    seconds: float
    record: Path


def download(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    parts: str,
    without: Sequence[str] = (),
    jobs: int = JOBS,
    rate: float | None = None,
    checksums: str | os.PathLike[str] | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> DownloadReport:
    """Fetch LAION parts into a folder, or go on where a run was cut off. Files that are there and whole are kept.

    source: an address (https:, s3:, hf://datasets/…, file:, …), a folder, or a template with {kind} and {number}; see
    docs/download.md. parts: numbers such as '0-409'. without: 'image' or 'text'. jobs: files at a time. rate: bytes a
    second, of all of them together. checksums: a list as sha256sum writes it, a file or an address. A file that cannot
    be had is told in the report, and does not stop the others. Raises DownloadError where the source as a whole cannot
    be used, DiskFull before anything is fetched that does not fit.
    """
    began, folder = time.monotonic(), Path(out)
    numbers, kinds = sorted(parse_numbers(parts)), wanted_kinds(without)
    manners = Manners(patience or Patience(), check_rate(rate))
    opened = open_source(os.fspath(source), manners.patience)
    try:
        with locked(folder):
            found = settle(opened, numbers, kinds, lambda url: manners.insist(lambda: opened[0].stat(url)))
            record = Record(folder, found.said)
            listed = read_checksums(checksums, manners)
            trusted = record.trusted if listed is None else functools.partial(record.trusted, by=listed.where)
            order = Order(found, folder, numbers, kinds, check_jobs(jobs), checksums=listed, trusted=trusted)
            run = _Run(order, manners, record, parts, progress)
            return run.all(began)
    finally:
        opened[0].close()


class _Run:
    """One call of `download`."""

    def __init__(self, order: Order, manners: Manners, record: Record, parts: str, progress: Progress | None) -> None:
        self._order, self._manners, self._record, self._parts = order, manners, record, parts
        self._progress = progress
        self._lost: list[Lost] = []

    def all(self, began: float) -> DownloadReport:
        """Ask for all sizes, compare them with the disk, then fetch."""
        survey(self._order, self._manners, self._progress)
        whole = there = fetched = 0
        with Fetching(self._order, self._manners, self._progress) as fetching:
            check_room(fetching, self._order)
            fetch_model(self._order.source, self._order.out, self._manners)
            finished = False
            try:
                for part in fetching:
                    self._keep(part)
                    self._lost += part.lost
                    came = sum(f.fetched for f in part.files.values())
                    whole, fetched = whole + (part.checked is not None), fetched + came
                    there += part.checked is not None and not came
                finished = True
            finally:
                self._record.save(self._parts, self._lost, finished=finished)
        seconds = time.monotonic() - began
        total = len(self._order.numbers)
        return DownloadReport(total, whole, there, tuple(self._lost), fetched, seconds, self._record.path)

    def _keep(self, part: FetchedPart) -> None:
        for kind, file in part.files.items():
            self._record.add(local_name(kind, part.number), file)
        if any(f.fetched for f in part.files.values()):
            self._record.save(self._parts, self._lost, finished=False)


def wanted_kinds(without: Sequence[str]) -> list[str]:
    """The files of a part to fetch. Raises DownloadError."""
    names = {"image": IMAGE, "text": TEXT}
    unknown = [w for w in without if w not in names]
    if unknown or set(without) == set(names):
        raise DownloadError(f"without {', '.join(without)}: expected image or text, not both")
    return [k for k in KINDS if k not in {names[w] for w in without}]


def check_jobs(jobs: int) -> int:
    """Raises DownloadError for a number of files at a time that is none, or no longer polite."""
    if not 1 <= jobs <= 64:
        raise DownloadError(f"{jobs} files at a time: expected 1 to 64")
    return jobs


def check_rate(rate: float | None) -> float | None:
    """Raises DownloadError for a rate at which nothing would come."""
    if rate is not None and not rate > 0:
        raise DownloadError(f"{rate} bytes a second: expected more than 0")
    return rate


def ask(transport: Transport, url: str, manners: Manners) -> RemoteFile | None:
    """What a source says of a file, with patience. Raises DownloadError where it says nothing."""
    try:
        return manners.insist(lambda: transport.stat(url))
    except Failure as failure:
        raise DownloadError(str(failure)) from failure


def survey(order: Order, manners: Manners, progress: Progress | None = None) -> None:
    """Ask what each file is, into `order.known`; those that the record knows, and those that do not answer, are left
    out: the latter are asked again when it is their turn. Where many do not answer, the rest is not asked."""
    run, files = Fetching(order, manners), len(order.numbers) * len(order.kinds)
    lock, silent = threading.Lock(), 0

    def look(task: tuple[int, str]) -> None:
        nonlocal silent
        name = local_name(task[1], task[0])
        if silent < OUT_OF_REACH and order.trusted(name) is None:
            try:
                found = run.file(*task).stat()
            except Failure as failure:
                with lock:
                    silent = silent + 1 if out_of_reach(failure) else 0
                return
            with lock:
                silent = 0
                order.known[name] = found
                if progress:
                    progress(FetchProgress(0, files, 0, None, 0, 0.0, 0, len(order.numbers), asked=len(order.known)))

    side_by_side(((n, k) for n in order.numbers for k in order.kinds), look, order.jobs, manners)


def side_by_side(items: Iterable[_T], do: Callable[[_T], None], jobs: int, manners: Manners) -> None:
    """Call a function for each item, on several threads. Raises what the first to fail raised."""
    waiting, lock, errors = iter(items), threading.Lock(), list[BaseException]()

    def work() -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                do(item)
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001  raised by the caller's thread
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
    except BaseException:
        manners.stop()
        raise
    if errors:
        raise errors[0]


def check_room(fetching: Fetching, order: Order) -> None:
    """Raise DiskFull where what is still to come, as far as its size is known, does not fit."""
    needed = 0
    for number in order.numbers:
        for kind in order.kinds:
            remote = order.known.get(local_name(kind, number))
            if remote and remote.size is not None:
                needed += max(0, remote.size - fetching.file(number, kind).left(remote))
    with files.translated(order.out, "asking for the free room of"):
        free = shutil.disk_usage(order.out).free
    if needed + _KEPT_FREE > free:
        raise DiskFull(
            f"{order.out} has {free / 1e9:,.1f} GB free, and {needed / 1e9:,.1f} GB are to come: free some room, name "
            "another folder or fewer --parts; `clipql ingest --from` needs the room of a few parts only"
        )


def fetch_model(source: Source, out: Path, manners: Manners) -> None:
    """Bring `model.json`, which names the model of the vectors, where the source has one and the folder has none."""
    target = out / "model.json"
    if source.base is None or target.exists():
        return
    try:
        found = source.transport.stat(source.base("model.json"))
        if found is None or not found.size:
            return
        content = read_small(source.transport, found, _LARGEST_MODEL)
    except (Failure, Changed):
        return
    if content.lstrip()[:1] == b"{":
        files.replace(target, content)


def read_checksums(where: str | os.PathLike[str] | None, manners: Manners) -> ChecksumList | None:
    """The list of digests that the user names. Raises DownloadError."""
    if where is None:
        return None
    name = os.fspath(where)
    transport, said, templates, _ = open_source(name, manners.patience)
    address = templates[0] if len(templates) == 1 else name
    try:
        found = ask(transport, address, manners)
        if found is None:
            raise DownloadError(f"there is no {said} to take checksums from")
        content = read_small(transport, found, _LARGEST_LIST)
    except (Failure, Changed) as failure:
        raise DownloadError(f"{said}: {failure}") from failure
    finally:
        transport.close()
    return ChecksumList(content.decode("utf-8", "replace"), said)


__all__ = ["DownloadReport", "Whole", "download"]
