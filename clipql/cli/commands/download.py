"""`clipql download`."""

from __future__ import annotations

import argparse
import re
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from clipql.cli.commands.common import command
from clipql.cli.console import Line, counted, duration, printable, readable_bytes
from clipql.errors import DownloadError

if TYPE_CHECKING:
    from clipql.ingest.fetch.download import DownloadReport
    from clipql.ingest.fetch.parts import FetchedPart, FetchProgress, Lost

SOURCE = (
    "an address of parts (https:, s3:, hf://datasets/OWNER/NAME, file:), a folder, or a template such as "
    "https://host/{kind}/{kind}_{number:04}.{ending}"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        None,
        "download",
        "fetch LAION parts into a folder, from which `clipql ingest` takes them; a run that was cut off goes on",
        run,
    )
    made.add_argument("source", metavar="SOURCE", help=SOURCE)
    made.add_argument("out", metavar="OUT", help="the folder of the parts; OUT/download.json tells what is missing")
    made.add_argument("--parts", metavar="LIST", required=True, help="which parts, such as 0-409 or 0-9,12")
    add_fetching(made)


def add_fetching(made: argparse._ActionsContainer) -> None:
    """The options of all that fetches."""
    made.add_argument(
        "--without", action="append", choices=("image", "text"), default=[], help="leave these vectors out"
    )
    made.add_argument("--jobs", type=int, default=4, metavar="N", help="files fetched at a time (default: 4)")
    made.add_argument(
        "--limit-rate", type=rate, metavar="RATE", help="bytes a second of all of them, such as 20M (default: no limit)"
    )
    made.add_argument("--checksums", metavar="FILE", help="a list as sha256sum or md5sum writes it, or its address")
    made.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="of silence before another try (default: 30)"
    )
    made.add_argument(
        "--max-unsized",
        type=size,
        default=size("4G"),
        metavar="SIZE",
        help="the most that is taken of a file whose size the source does not tell, such as 500M (default: 4G)",
    )
    made.add_argument("--tries", type=int, default=6, metavar="N", help="in succession that bring nothing (default: 6)")


def rate(text: str) -> float:
    """`20M` as bytes a second."""
    found = _bytes(re.sub(r"/s\Z", "", text.strip(), flags=re.IGNORECASE))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected bytes a second, such as 500K or 20M")
    return found


def size(text: str) -> int:
    """`4G` as bytes."""
    found = _bytes(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected bytes, such as 500M or 4G")
    return int(found)


def _bytes(text: str) -> float:
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([KMG]?)B?", text, re.IGNORECASE)
    return float(match[1]) * _UNITS[match[2].upper()] if match else 0.0


def fetching_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_fetching` has read, for `download` and for `ingest`."""
    from clipql.ingest.fetch.manners import Patience

    if not arguments.timeout > 0:
        raise DownloadError(f"--timeout {arguments.timeout:g}: expected more than 0 seconds")
    patience = Patience(
        attempts=max(1, arguments.tries),
        timeout_seconds=arguments.timeout,
        unsized_bytes=arguments.max_unsized,
    )
    return {
        "without": arguments.without,
        "jobs": arguments.jobs,
        "rate": arguments.limit_rate,
        "checksums": arguments.checksums,
        "patience": patience,
    }


def run(arguments: argparse.Namespace) -> int:
    """`clipql download`."""
    from clipql.ingest.fetch.download import download

    try:
        with DownloadDisplay(sys.stderr) as display:
            report = download(
                arguments.source,
                arguments.out,
                parts=arguments.parts,
                progress=display.update,
                **fetching_options(arguments),
            )
    except KeyboardInterrupt:
        print("clipql: stopped; what has come is kept, run the same command again to go on", file=sys.stderr)
        raise
    complain(report.lost)
    print(summary(report))
    return 1 if report.lost else 0


def complain(lost: tuple[Lost, ...]) -> None:
    """Tell what could not be had, a line each."""
    for each in lost:
        print(f"clipql: part {each.part}: {printable(each.reason)}", file=sys.stderr)
    texts = [m for m in lost if m.file.startswith("text_emb") and m.status == 404]
    if texts and len(texts) == len(lost):
        print("clipql: the source may have no vectors of texts: --without text takes the images alone", file=sys.stderr)


def summary(report: DownloadReport) -> str:
    """`410 parts: 408 whole, 12 of them there already; 2 files missing (OUT/download.json). 2.40 GB in 12.0 s (…)`."""
    there = f", {report.there:,} of them there already" if report.there else ""
    lost = f"; {counted(len(report.lost), 'file')} missing, listed in {report.record}" if report.lost else ""
    speed = readable_bytes(report.fetched_bytes / max(report.seconds, 1e-9))
    came = f"{readable_bytes(report.fetched_bytes)} fetched in {report.seconds:.1f} s ({speed}/s)"
    return f"{counted(report.parts, 'part')}: {report.whole:,} whole{there}{lost}. {came}"


class DownloadDisplay:
    """Shows how fetching gets on: a bar with the time left on a terminal, otherwise a line for each part."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, Line(stream)
        self._drawn = -1.0

    def update(self, progress: FetchProgress) -> None:
        """Take note of a step; give this to `download` as its progress. Called by one thread at a time."""
        if not self._line.live:
            if progress.waiting:
                self._say(f"waiting: {progress.waiting}")
            if progress.part:
                self._say(f"part {progress.part.number} ({progress.parts_done} of {progress.parts}): "
                          f"{fate(progress.part)}")  # fmt: skip
            return
        if progress.waiting:
            self._drawn = progress.seconds + 1.0  # long enough to be read
            self._line.show(printable(f"waiting: {progress.waiting}"))
        elif progress.asked or progress.seconds - self._drawn >= 0.1:
            self._drawn = progress.seconds
            self._line.show(state(progress), progress.done / progress.size if progress.size else None)

    def _say(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()


def state(progress: FetchProgress) -> str:
    """`12 of 1,230 files  3.40 GB of 1.20 TB  85.20 MB/s  3 h 20 min left`."""
    if progress.asked:
        return f"asking for the sizes of {progress.files:,} files: {progress.asked:,}"
    text = f"{progress.files_done:,} of {progress.files:,} files  {readable_bytes(progress.done)}"
    if progress.size:
        text += f" of {readable_bytes(progress.size)}"
    if progress.fetched and progress.seconds > 0:
        speed = progress.fetched / progress.seconds
        text += f"  {readable_bytes(speed)}/s"
        if progress.size and progress.done < progress.size:
            text += f"  {duration((progress.size - progress.done) / speed)} left"
    return text


def fate(part: FetchedPart) -> str:
    """What became of a part, in a few words."""
    if part.lost:
        return f"not whole, {part.lost[0].reason}"
    came = sum(f.fetched for f in part.files.values())
    return f"fetched, {readable_bytes(came)}" if came else "already there"
