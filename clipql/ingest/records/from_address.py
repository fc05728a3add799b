"""Files of rows at an address, https://, hf://, s3:// and the like: each fetched, taken in and freed, so that many need
the room of two.

What must stay true: a file is freed only when it is committed or refused; one that is in the table as a whole is not
fetched again, which its size and both its ends show; files go in in the order of their names. Another run goes on in
the middle of a file, fetching it and taking it in.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import xxhash

from clipql.errors import DownloadError, IngestError, VectorError
from clipql.ingest.fetch.download import check_rate
from clipql.ingest.fetch.listing import RemoteName, files_at
from clipql.ingest.fetch.manners import Manners, Patience
from clipql.ingest.fetch.onefile import Missing, OneFile, Step
from clipql.ingest.fetch.parts import FetchProgress
from clipql.ingest.fetch.parts import Progress as FetchingProgress
from clipql.ingest.fetch.record import LOCK, locked
from clipql.ingest.fetch.sample import fingerprint_at
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile
from clipql.ingest.layout import check_file
from clipql.ingest.pipeline import IngestProgress, IngestReport
from clipql.ingest.records.sources import find_files, is_of_rows
from clipql.ingest.records.taking import rows_of, take_files
from clipql.ingest.stream import INCOMING, tidied
from clipql.storage import files
from clipql.storage.catalog import Table
from clipql.tables.open_database import OpenDatabase


def ingest_addresses(
    db: OpenDatabase,
    source: str | Sequence[str],
    *,
    table: str = "laion",
    vector_column: str | Sequence[str] = (),
    model: str | None = None,
    skip_bad: bool = False,
    room: str | os.PathLike[str] | None = None,
    rate: float | None = None,
    patience: Patience | None = None,
    progress: Callable[[IngestProgress], None] | None = None,
    fetching: FetchingProgress | None = None,
) -> IngestReport:
    """Take files of rows with vectors from addresses into a table, which is made where it is not there.

    source: addresses of files; of Hugging Face, S3 and fsspec's file systems also of folders, and patterns such as
    'hf://datasets/OWNER/NAME/data/*.parquet'. room: the folder in which a file lies meanwhile, in a folder `incoming`
    that is removed at the end; by default that of the database. rate: bytes a second, None for no limit. The others as
    `clipql.ingest.records.taking.ingest_files`.

    Raises DownloadError for what cannot be had, and what `ingest_files` raises; what was taken in before stays, and
    another run goes on.
    """
    manners = Manners(patience or Patience(), check_rate(rate))
    named = (vector_column,) if isinstance(vector_column, str) else tuple(vector_column)
    names = [
        found
        for address in ([source] if isinstance(source, str) else source)
        for found in files_at(address, manners, is_of_rows)
    ]
    folder = (Path(room) if room is not None else db.path) / INCOMING
    run = _Run(db, table, named, model, skip_bad, names, folder, manners, progress, fetching)
    try:
        with locked(folder), tidied(folder):
            return run.all()
    finally:
        for transport in {id(n.transport): n.transport for n in names}.values():
            transport.close()


class _Run:
    """One call of `ingest_addresses`."""

    def __init__(
        self,
        db: OpenDatabase,
        table: str,
        named: Sequence[str],
        model: str | None,
        skip_bad: bool,
        names: list[RemoteName],
        folder: Path,
        manners: Manners,
        progress: Callable[[IngestProgress], None] | None,
        fetching: FetchingProgress | None,
    ) -> None:
        self._db, self._table, self._named, self._model, self._skip_bad = db, table, named, model, skip_bad
        self._names, self._folder, self._manners = names, folder, manners
        self._progress, self._fetching = progress or (lambda p: None), fetching or (lambda p: None)
        self._began = time.perf_counter()
        self._reports: list[IngestReport] = []
        self._skipped = self._skipped_rows = 0
        self._fetched, self._whole = 0, 0

    def all(self) -> IngestReport:
        """Fetch one file while another is taken in."""
        self._sweep()
        id = ""
        with ThreadPoolExecutor(1, "clipql-fetch") as pool, self._stopping():
            coming = [pool.submit(self._bring, name) for name in self._names[:1]]
            for position, name in enumerate(self._names, 1):
                path = _result(coming.pop(0))
                coming += [pool.submit(self._bring, n) for n in self._names[position : position + 1]]
                if path is None:
                    continue
                id = self._take(path, name, position)
        known = self._known()
        if known is not None and (id or self._skipped):
            self._db.indexes.after_insert(known.id)
        return self._report()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._manners.stop()
            raise

    def _known(self) -> Table | None:
        database, _, name = self._table.rpartition(".")
        return self._db.registry.find(database or None, name)

    def _place(self, name: RemoteName) -> Path:
        return self._folder / f"{xxhash.xxh3_64_hexdigest(name.url.encode())[:8]}-{name.name}"

    def _sweep(self) -> None:
        """Remove what an earlier run left of files that are not asked for any more."""
        ours = tuple(self._place(n).name for n in self._names)
        for path in self._folder.iterdir():
            if path.is_file() and path.name != LOCK and not path.name.startswith(ours):
                files.remove(path)

    # in the thread that fetches

    def _bring(self, name: RemoteName) -> Path | None:
        """A file, whole; None for one that is in the table already. Raises DownloadError, or of the disk."""
        form = Path(name.name).suffix.lower()
        one = OneFile(
            name.transport,
            name.url,
            self._place(name),
            self._manners,
            None,
            lambda step: self._step(step),
            ours=True,
            check=lambda path, ending: check_file(path, ".parquet") if form in (".parquet", ".pq") else None,
        )
        try:
            remote = one.stat()
            if remote is not None and (rows := self._there(name, remote)) is not None:
                self._skipped, self._skipped_rows = self._skipped + 1, self._skipped_rows + rows
                return None
            path = one.bring(remote).path
        except (Missing, Failure) as failure:
            raise DownloadError(f"{failure}; what was taken in stays: run the same again to go on") from failure
        self._whole += 1
        return path

    def _there(self, name: RemoteName, remote: RemoteFile) -> int | None:
        known = self._known()
        if known is None or not any(p.key.startswith(f"{name.said}#") for p in known.parts):
            return None
        try:
            digest = fingerprint_at(name.transport, remote)
        except (Failure, Changed):
            return None  # it is fetched, and compared here
        return rows_of(known, digest) if digest else None

    def _step(self, step: Step) -> None:
        self._fetched += step.came
        seconds, many = time.perf_counter() - self._began, len(self._names)
        done = len(self._reports) + self._skipped
        self._fetching(
            FetchProgress(
                self._whole, many, step.done, step.size, self._fetched, seconds, done, many, waiting=step.waiting
            )
        )

    # in the thread that takes in

    def _take(self, path: Path, name: RemoteName, position: int) -> str:
        known, before = self._known(), sum(r.rows for r in self._reports)

        def tell(step: IngestProgress) -> None:
            done = before + step.rows_done
            total = max(done, round((before + step.rows_total) * len(self._names) / (len(self._reports) + 1)))
            seconds = time.perf_counter() - self._began
            self._progress(
                dataclasses.replace(
                    step, part=name.name, part_number=position, parts=len(self._names), rows_done=done,
                    rows_total=total, seconds=seconds,
                )
            )  # fmt: skip

        try:
            names = self._named or ([c.name for c in known.columns] if known else ())
            opened = [dataclasses.replace(f, origin=name.said) for f in find_files([path], names)]
            report, id = take_files(
                self._db, opened, self._table, named=self._named, model=self._model, skip_bad=self._skip_bad,
                progress=tell, began=time.perf_counter(),
            )  # fmt: skip
        except (IngestError, VectorError):  # for good, where Ctrl-C and a full disk leave it to the next run
            files.remove(path)
            raise
        files.remove(path)
        self._reports.append(report)
        return id

    def _report(self) -> IngestReport:
        reports, units = self._reports, {r.unit for r in self._reports}
        return IngestReport(
            sum(r.rows for r in reports),
            sum(r.parts_taken for r in reports),
            sum(r.parts_skipped for r in reports) + self._skipped,
            time.perf_counter() - self._began,
            sum(r.rows_left_out for r in reports),
            rows_skipped=sum(r.rows_skipped for r in reports) + self._skipped_rows,
            unit=units.pop() if len(units) == 1 and not self._skipped else "file" if not units else "row group",
            left_out=tuple(line for r in reports for line in r.left_out)[:10],
        )


def _result(coming: Future[Path | None]) -> Path | None:
    while True:  # with a time, as Ctrl-C does not end a wait without one everywhere
        try:
            return coming.result(0.5)
        except TimeoutError:
            if coming.done():
                raise
