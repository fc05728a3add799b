"""What the command line and the shell show besides results: quantities, footers, progress on a terminal.

Everything here writes to a stream it is given. What must stay true: a progress line is transient, only a terminal ever
sees one, and it is gone before anything else is written; text out of the database reaches a terminal without control
characters, since captions are strangers' text and could otherwise steer it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from clipql.ingest.fetch.parts import FetchProgress
    from clipql.ingest.forecast import IngestForecast
    from clipql.ingest.pipeline import IngestProgress
    from clipql.sql.planning.work import Step

_SPINNER = "→↘↓↙←↖↑↗"
_CONTROLS = (
    {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
)
CLEAR_LINE = "\r\x1b[K"
# a vector has hundreds of numbers and would flood the screen; colours are added here, to text made printable before
WIDTH_SETTING, WIDEST_VALUE = "output_format_pretty_max_value_width", 80
DISPLAY = f"SET {WIDTH_SETTING} = {WIDEST_VALUE}, output_format_pretty_color = 0"


def printable(text: str) -> str:
    """The text with control characters, other than tab and newline, shown as pictures (␛) instead of obeyed."""
    return text.translate(_CONTROLS)


def readable(number: float) -> str:
    """A count as ClickHouse writes it: `300.00 thousand`."""
    return _scaled(number, 1000.0, ("", " thousand", " million", " billion", " trillion", " quadrillion"))


def readable_bytes(number: float) -> str:
    """A size as ClickHouse writes it: `614.40 MB`."""
    return _scaled(number, 1000.0, (" B", " KB", " MB", " GB", " TB", " PB", " EB"))


def _scaled(number: float, step: float, units: Sequence[str]) -> str:
    at = 0
    while abs(number) >= step and at < len(units) - 1:
        number, at = number / step, at + 1
    return f"{number:.2f}{units[at]}"


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class Work:
    """What a statement went through: rows and bytes, vectors that were compared among them."""

    rows: int = 0
    bytes: int = 0

    def speed(self, seconds: float) -> str:
        """`300.00 thousand rows, 614.40 MB (25.60 million rows/s., 52.43 GB/s.)`."""
        seconds = max(seconds, 1e-9)
        return (
            f"{readable(self.rows)} rows, {readable_bytes(self.bytes)} "
            f"({readable(self.rows / seconds)} rows/s., {readable_bytes(self.bytes / seconds)}/s.)"
        )


def work_of(steps: Sequence[Step], read: Mapping[str, Any]) -> Work:
    """The work of vector searches together with what ClickHouse last reported (`read_rows`, `read_bytes`)."""
    rows, size = int(read.get("read_rows", 0)), int(read.get("read_bytes", 0))
    for step in steps:
        columns = step.plan.columns
        widths = [s.dimension * (2 if s.dtype == "float16" else 4) for c in columns for s in c.segments[-1:]]
        code = sum(c.dimension or 0 for c in columns) // (2 if step.cost.proven else 8)
        rows += step.cost.rows_scanned + step.cost.codes_scanned
        size += step.cost.rows_scanned * sum(widths) + step.cost.codes_scanned * code
    return Work(rows, size)


def footer(head: str, seconds: float, work: Work) -> str:
    """clickhouse-client's last line: what came, how long it took, and what was gone through where that is much."""
    line = f"{head}. Elapsed: {seconds:.3f} sec."
    return f"{line} Processed {work.speed(seconds)}" if work.rows >= 1000 else line


class Line:
    """One transient line at the bottom of a terminal; nothing at all where the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.live = stream, stream.isatty()
        self._shown = False

    def show(self, text: str, share: float | None = None) -> None:
        """Write the line anew, cut to the terminal's width; share: of the work done, drawn as a bar in what is left."""
        width = self.width()
        if share is not None and width - len(text) > 16:
            text += " " + bar(share, min(40, width - len(text) - 8)) + f" {share:4.0%}"
        self.stream.write(CLEAR_LINE + text[: width - 1])
        self.stream.flush()
        self._shown = True

    def stage(self, name: str, done: int, total: int) -> None:
        """Show how far a stage of some work is, where there is a terminal."""
        if self.live:
            self.show(f"{name}: {done:,} of {total:,}", done / max(1, total))

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self.stream.write(CLEAR_LINE)
            self.stream.flush()
        self._shown = False

    def width(self) -> int:
        """Columns of the terminal."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def bar(share: float, width: int) -> str:
    """A progress bar in eighths of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


class QueryProgress:
    """Shows how a query gets on, once it has taken longer than `after_seconds`.

    Use as a context manager and give `update` to the query. A thread of its own draws, so that the time moves on
    while the engine has nothing to report.
    """

    def __init__(self, stream: TextIO, *, after_seconds: float = 0.3, every_seconds: float = 0.1) -> None:
        self._line, self._after, self._every = Line(stream), after_seconds, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._began = time.perf_counter()
        self.latest: Mapping[str, Any] = {}

    @property
    def live(self) -> bool:
        """Whether anyone sees it."""
        return self._line.live

    def update(self, progress: Mapping[str, Any]) -> None:
        """What the engine reports; called on its threads."""
        self.latest = dict(progress)

    def stage(self, stage: str, done: int, total: int) -> None:
        """What the build of an index reports."""
        self.latest = {"stage": stage, "read_rows": done, "total_rows_to_read": total}

    def _draw(self) -> None:
        ticks = 0
        wait = self._after
        while not self._stop.wait(wait):
            wait, ticks = self._every, ticks + 1
            latest, seconds = self.latest, time.perf_counter() - self._began
            text = f"{_SPINNER[ticks % len(_SPINNER)]} Progress: {seconds:.1f} s"
            done, total = int(latest.get("read_rows", 0)), int(latest.get("total_rows_to_read", 0))
            if latest.get("stage"):
                stage = latest["stage"]
                doing = stage if stage.startswith("pairs") else f"building the index: {stage}"
                text += f", {doing} {readable(done)} of {readable(total)}"
            elif done:
                text += ", " + Work(done, int(latest.get("read_bytes", 0))).speed(seconds)
            self._line.show(text, min(done / total, 0.99) if total and done else None)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._line.live:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._line.clear()


class IngestDisplay:
    """Shows how an ingest gets on: a bar with the time left on a terminal, otherwise a line for each part."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, Line(stream)
        self._at_part = self._last = self._skipped = 0
        self._stage = self._beside = ""
        self._at_work, self._drawn = False, 0.0

    def update(self, progress: IngestProgress) -> None:
        """Take note of a step; give this to `ingest` as its progress."""
        self._at_work = not progress.finished
        if progress.skipped:
            self._skipped += progress.rows_done - self._last
        self._last = progress.rows_done
        if self._line.live:
            self._bar(progress)
        elif progress.finished:
            rows = counted(progress.rows_done - self._at_part, "row")
            what = "already there, skipped" if progress.skipped else rows
            which = f"{progress.unit} {progress.part} ({progress.part_number} of {progress.parts})"
            self._stream.write(f"{which}: {what}\n")
            self._stream.flush()
        if progress.finished:
            self._at_part = progress.rows_done

    def foretold(self, needed: IngestForecast) -> None:
        """Tell what an ingest will take, before it begins."""
        self._line.clear()
        self._stream.write(
            f"{counted(needed.parts, 'part')} of {needed.rows:,} rows: about {duration(needed.seconds)} and "
            f"{readable_bytes(needed.disk)} of disk\n"
        )
        self._stream.flush()

    def fetching(self, progress: FetchProgress) -> None:
        """Take note of how the fetching of parts gets on, beside the ingest of others; called by several threads."""
        part = progress.part
        if not self._line.live:
            if progress.waiting or (part and part.lost):
                why = progress.waiting or f"part {part.number if part else ''} is left out"
                self._stream.write(printable(f"fetching: {why}") + "\n")
                self._stream.flush()
            return
        speed = readable_bytes(progress.fetched / max(progress.seconds, 1e-3))
        self._beside = f"  fetched {readable_bytes(progress.fetched)}, {speed}/s"
        now = time.monotonic()
        if not self._at_work and (progress.waiting or now - self._drawn > 0.1):
            self._drawn = now + (1.0 if progress.waiting else 0.0)
            what = f"waiting: {progress.waiting}" if progress.waiting else f"fetching parts{self._beside}"
            self._line.show(printable(what))

    def building(self, stage: str, done: int, total: int) -> None:
        """Take note of the build of an index, which follows an ingest; a line for each stage where there is no bar."""
        if self._line.live:
            far = f"  {done:,} of {total:,}" if total else ""
            self._line.show(f"building the index: {stage}{far}", done / total if total else None)
        elif stage != self._stage:
            self._stream.write(f"building the index: {stage}\n")
            self._stream.flush()
        self._stage = stage

    def _bar(self, progress: IngestProgress) -> None:
        taken = progress.rows_done - self._skipped
        text = f"{progress.unit} {progress.part} ({progress.part_number} of {progress.parts})  {progress.rows_done:,}"
        text += f" of {progress.rows_total:,} rows"
        if taken and progress.seconds > 0:
            speed = taken / progress.seconds
            left = (progress.rows_total - progress.rows_done) / speed
            text += f"  {speed:,.0f} rows/s  {duration(left)} left"
        text += self._beside
        self._line.show(text, progress.rows_done / progress.rows_total if progress.rows_total else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def ingest_summary(rows: int, parts_taken: int, parts_skipped: int, seconds: float, unit: str = "part") -> str:
    """`300,000 rows in 2 parts, 1 skipped, 1.2 s (250,000 rows/s)`."""
    skipped = f", {parts_skipped:,} skipped" if parts_skipped else ""
    took = f"{seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s)"
    return f"{counted(rows, 'row')} in {counted(parts_taken, unit)}{skipped}, {took}"
