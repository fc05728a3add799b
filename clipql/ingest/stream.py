"""`clipql ingest --from`: parts from an address, each fetched, taken in and freed, so that 400 need the room of a few.

What must stay true: a part is freed only when it is committed or given up; one that is in the table already is not
fetched; parts go in in the order of their numbers, whatever the order in which they come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipql.errors import ClipqlError, DiskFull, IngestError, QueryCancelled, StorageError
from clipql.ingest.fetch.download import JOBS, check_jobs, check_rate, fetch_model, read_checksums, wanted_kinds
from clipql.ingest.fetch.manners import Manners, Patience
from clipql.ingest.fetch.partial import NOTE, SUFFIX
from clipql.ingest.fetch.parts import FetchedPart, Fetching, Lost, Order
from clipql.ingest.fetch.parts import Progress as FetchingProgress
from clipql.ingest.fetch.record import LOCK, locked
from clipql.ingest.fetch.sample import known_elsewhere
from clipql.ingest.fetch.source import KINDS, METADATA, local_name, open_source, settle
from clipql.ingest.fetch.transport import Failure
from clipql.ingest.layout import parse_numbers
from clipql.ingest.pipeline import IngestProgress, IngestReport, take_part
from clipql.storage import files
from clipql.storage.catalog import Table
from clipql.tables.open_database import OpenDatabase

AHEAD = 2
# a folder that is ours alone: what else it holds is removed
INCOMING = "incoming"
# after so many parts of which none could be taken in, the others are not fetched
_HOPELESS = 3


def ingest_from(
    db: OpenDatabase,
    source: str | os.PathLike[str],
    *,
    parts: str,
    table: str = "laion",
    model: str | None = None,
    without: Sequence[str] = (),
    ahead: int = AHEAD,
    room: str | os.PathLike[str] | None = None,
    jobs: int = JOBS,
    rate: float | None = None,
    checksums: str | os.PathLike[str] | None = None,
    patience: Patience | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
    fetching: FetchingProgress | None = None,
    link: bool = False,
) -> IngestReport:
    """Take LAION parts from an address into a table, which is made from the first part's columns if it is not there.

    source, parts, without, jobs, rate, checksums: as `clipql.ingest.fetch.download.download`. ahead: parts that are
    fetched while one is taken in. room: the folder in which they lie meanwhile, in a folder `incoming` that is removed
    at the end; by default that of the database. model: as `clipql.ingest.pipeline.ingest`. A part that cannot be had or
    taken in is told in the report (`lost`), and the others go on. Run again, it fetches what is not in the table, and
    goes on in the middle of a file.

    Raises DownloadError where the source as a whole cannot be used, DiskFull where a few parts do not fit, IngestError
    where none of the first parts fits the table.
    """
    if link:
        raise IngestError("the files of parts from an address are freed when they are taken in: leave --link out")
    if ahead < 0:
        raise IngestError(f"{ahead} parts ahead: expected 0 or more")
    manners = Manners(patience or Patience(), check_rate(rate))
    numbers, kinds = sorted(parse_numbers(parts)), wanted_kinds(without)
    opened = open_source(os.fspath(source), manners.patience)
    folder = (Path(room) if room is not None else db.path) / INCOMING
    try:
        with locked(folder), tidied(folder):
            stream = _Stream(db, table, model, opened[1], progress, fetching)
            taken = stream.taken()
            new = [n for n in numbers if stream.key(n) not in taken]
            _sweep(folder, new)
            if new:
                found = settle(opened, new, kinds, lambda url: manners.insist(lambda: opened[0].stat(url)))
                listed = read_checksums(checksums, manners)
                order = Order(found, folder, new, kinds, check_jobs(jobs), True, ahead, listed)
                stream.run(order, manners, len(numbers))
            stream.build_indexes()
            return stream.report(len(numbers) - len(new))
    finally:
        opened[0].close()


class _Stream:
    """One call of `ingest_from`."""

    def __init__(
        self,
        db: OpenDatabase,
        table: str,
        model: str | None,
        said: str,
        progress: Callable[[IngestProgress], None] | None,
        fetching: FetchingProgress | None,
    ) -> None:
        self._db, self._name, self._model, self._said = db, table, model, said.rstrip("/")
        self._progress, self._fetching = progress or (lambda p: None), fetching
        self._began = time.perf_counter()
        self._rows = self._taken = self._skipped = self._left_out = 0
        self._refused = 0
        self._lost: list[Lost] = []

    def key(self, number: int) -> str:
        """How a part of this source is called in the table's list of parts."""
        return f"{self._said}#{number}"

    def _table(self) -> Table | None:
        database, _, name = self._name.rpartition(".")
        return self._db.registry.find(database or None, name)

    def taken(self) -> frozenset[str]:
        """The keys of the parts that are in the table."""
        table = self._table()
        return frozenset(p.key for p in table.parts) if table else frozenset()

    def run(self, order: Order, manners: Manners, total: int) -> None:
        """Fetch and take in what is not in the table, in the order of the numbers."""
        table, source = self._table(), order.source
        before = total - len(order.numbers)
        if table and any(not p.key.startswith(f"{self._said}#") for p in table.parts):
            prints = frozenset(p.fingerprint for p in table.parts)
            order = dataclasses.replace(
                order, unwanted=lambda number: known_elsewhere(source, number, order.kinds, prints, manners)
            )
        with Fetching(order, manners, self._fetching) as parts:
            _check_room(parts, order)
            fetch_model(source, order.out, manners)
            for position, part in enumerate(parts, before + 1):
                self._take(part, position, total)
                _free(order.out, part.number)

    def _take(self, part: FetchedPart, position: int, total: int) -> None:
        self._lost += part.lost
        if part.checked is None:
            self._skipped += not part.lost
            return
        checked = dataclasses.replace(part.checked, fetched_from=self.key(part.number))

        def tell(step: IngestProgress) -> None:
            done = self._rows + step.rows_done
            of = max(done, round((self._rows + step.rows_total) * total / max(1, self._taken + 1)))
            seconds = time.perf_counter() - self._began
            self._progress(
                dataclasses.replace(
                    step, part_number=position, parts=total, rows_done=done, rows_total=of, seconds=seconds
                )
            )

        try:
            report, _ = take_part(self._db, checked, table=self._name, model=self._model, progress=tell)
        except (StorageError, QueryCancelled):
            raise
        except ClipqlError as error:
            self._lost.append(Lost(part.number, local_name(METADATA, part.number), self.key(part.number), str(error)))
            self._refused += 1
            if self._refused >= _HOPELESS and not self._taken and total - position:
                raise IngestError(
                    f"none of the first {self._refused} parts could be taken in, so the others are not fetched; the "
                    f"last: {error}"
                ) from error
            return
        self._rows, self._taken = self._rows + report.rows, self._taken + report.parts_taken
        self._skipped, self._left_out = self._skipped + report.parts_skipped, self._left_out + report.rows_left_out

    def build_indexes(self) -> None:
        """Bring the indexes up to date, also where an earlier run was ended before it could."""
        table = self._table()
        if table:
            self._db.indexes.after_insert(table.id)

    def report(self, known: int) -> IngestReport:
        """What the run has done. known: parts that were in the table before."""
        seconds = time.perf_counter() - self._began
        return IngestReport(self._rows, self._taken, known + self._skipped, seconds, self._left_out, tuple(self._lost))


@contextlib.contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Remove a folder of what is fetched at the end, unless there is something in it to go on with."""
    try:
        yield
    finally:
        if not any(p.is_file() for p in folder.rglob("*") if p.name not in (LOCK, "model.json")):
            files.remove(folder)


def _paths(folder: Path, number: int) -> list[Path]:
    targets = [folder / local_name(kind, number) for kind in KINDS]
    return [t.with_name(t.name + ending) for t in targets for ending in ("", SUFFIX, NOTE)]


def _free(folder: Path, number: int) -> None:
    for path in _paths(folder, number):
        files.remove(path)


def _sweep(folder: Path, numbers: Sequence[int]) -> None:
    """Remove what an earlier run has left of parts that are not asked for any more."""
    kept = {path for n in numbers for path in _paths(folder, n)}
    for kind in KINDS:
        for path in (folder / kind).glob(f"{kind}_*"):
            if path not in kept:
                files.remove(path)


def _check_room(parts: Fetching, order: Order) -> None:
    """Raise DiskFull where as many parts as may lie here, and one in the table, do not fit."""
    try:
        sizes = [parts.file(order.numbers[0], kind).stat() for kind in order.kinds]
    except Failure:
        return  # it is met again when the part is fetched
    part = sum(s.size or 0 for s in sizes if s)
    here = sum(p.stat().st_size for p in order.out.rglob("*") if p.is_file())
    at_once = min(len(order.numbers), (order.ahead or 0) + 1)
    needed = part * (at_once + 1) - here
    free = shutil.disk_usage(order.out).free
    if needed > free:
        raise DiskFull(
            f"{order.out} has {free / 1e9:,.1f} GB free; {at_once} parts of {part / 1e9:,.1f} GB and the room for one "
            f"in the table need {needed / 1e9:,.1f} GB: free some room, or fetch fewer ahead (--ahead 0)"
        )
