"""From sources to LAION parts: reads, encodes and writes side by side, in bounded memory, and goes on where it was cut.

What must stay true: rows keep the order of the sources; each is in exactly one part; a row that cannot be encoded is a
row with its `error`, and nothing that a source holds stops the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.encode.base import EncodedPictures, Encoder, Picture
from clipql.encode.embed.job import DonePart, Job, begin, locked
from clipql.encode.embed.rows import EXAMPLES, Ahead, Row, Skip
from clipql.encode.embed.sources import Sources, find_sources
from clipql.encode.embed.unused import unused_file
from clipql.encode.embed.writer import PartWriter
from clipql.errors import EncodeError, ModelError

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

Options = dict[str, int | str | None]

PART_ROWS, PICTURE_BATCH, TEXT_BATCH = 1_000_000, 16, 256
CAPTIONS = ("auto", "yes", "no")


@dataclass(frozen=True)
class EmbedProgress:
    """How far a run is. rows: encoded by this run; rows_before: there already; rows_total: all, None while unknown.

    part_finished: the part `part` has just got its files' names; part_rows: how many rows it holds by now.
    """

    rows: int
    rows_before: int
    rows_total: int | None
    errors: int
    seconds: float
    part: int
    part_rows: int = 0
    part_finished: bool = False


@dataclass(frozen=True, repr=False)
class EmbedReport(Brief):
    """What a run made. rows and errors: of this run; rows_before: of runs before it. examples: the first errors.

    left_out: columns of the sources that the first part has not, or not of that type, and so no part has.
    unused: files and members of archives that make no row, in all of the sources; `unused.txt` names each, and
    unused_examples the first. errors_before: of runs before it. So what was there, a picture counted with what lies
    beside it, is rows + rows_before + unused.
    """

    model: str
    rows: int
    errors: int
    rows_before: int
    parts: int
    seconds: float
    examples: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unused: int = 0
    unused_examples: tuple[str, ...] = ()
    errors_before: int = 0


@dataclass
class _Group:
    """Rows that were encoded together. pictures: (n, dimension) vectors; errors: '' where there is none."""

    rows: list[Row]
    errors: list[str]
    pictures: NDArray[np.float32] | None = None
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def cut(self, at: int) -> tuple[_Group, _Group]:
        """The first so many rows, and the rest."""

        def piece(of: slice) -> _Group:
            pictures = None if self.pictures is None else self.pictures[of]
            return _Group(self.rows[of], self.errors[of], pictures, self.sizes[of])

        return piece(slice(0, at)), piece(slice(at, None))


def embed_pictures(
    sources: Names,
    out: str | os.PathLike[str],
    *,
    encoder: Encoder,
    part_rows: int = PART_ROWS,
    batch: int | None = None,
    captions: str = "auto",
    caption_column: str | None = None,
    progress: Callable[[EmbedProgress], None] | None = None,
) -> EmbedReport:
    """Encode pictures, and their captions, into LAION parts in a folder, or go on with a run that was cut off.

    sources: folders, globs, pictures, webdataset tars, Parquet files. part_rows: rows a part. batch: pictures a call of
    the encoder, by default what it is fastest with. captions: whether they get vectors too: 'yes', 'no', or 'auto'
    where the first part has any. caption_column: the column or JSON key that holds them. progress: called after each
    batch, in this thread.
    Raises EncodeError for sources and options that cannot be used, ModelMismatch for a folder of another model.
    """
    if captions not in CAPTIONS:
        raise EncodeError(f"captions {captions!r}: expected one of {', '.join(CAPTIONS)}")
    text = {"auto": None, "yes": True, "no": False}[captions]
    options: Options = {"part rows": part_rows, "captions": captions, "caption column": caption_column}
    batch = getattr(encoder, "picture_batch", PICTURE_BATCH) if batch is None else batch
    return _run(sources, out, encoder, "pictures", options, text, batch, progress)


def embed_captions(
    sources: Names,
    out: str | os.PathLike[str],
    *,
    encoder: Encoder,
    part_rows: int = PART_ROWS,
    batch: int | None = None,
    caption_column: str | None = None,
    progress: Callable[[EmbedProgress], None] | None = None,
) -> EmbedReport:
    """Encode captions into LAION parts without pictures. sources: text files, a caption a line, and Parquet files.

    The rest is as for `embed_pictures`.
    """
    options: Options = {"part rows": part_rows, "caption column": caption_column}
    batch = getattr(encoder, "text_batch", TEXT_BATCH) if batch is None else batch
    return _run(sources, out, encoder, "captions", options, True, batch, progress)


def _run(
    sources: Names,
    out: str | os.PathLike[str],
    encoder: Encoder,
    kind: str,
    options: Options,
    text: bool | None,
    batch: int,
    progress: Callable[[EmbedProgress], None] | None,
) -> EmbedReport:
    for name, value in (("part rows", options["part rows"]), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise EncodeError(f"{name} {value}: expected a number of at least 1")
    folder = Path(os.path.abspath(os.path.expanduser(out)))
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    column = options["caption column"]
    found = find_sources(given, folder, pictures=kind == "pictures", column=None if column is None else str(column))
    job = Job(kind, encoder.model, encoder.dimension, tuple(map(str, found.places)), options, text)
    with locked(folder):
        return _Run(found, folder, encoder, begin(folder, job), batch, progress or (lambda p: None)).all()


class _Run:
    """One call of `embed_pictures` or `embed_captions`, with its folder locked."""

    def __init__(
        self,
        sources: Sources,
        out: Path,
        encoder: Encoder,
        job: Job,
        batch: int,
        progress: Callable[[EmbedProgress], None],
    ) -> None:
        self._sources, self._out, self._encoder, self._job = sources, out, encoder, job
        self._batch, self._progress = batch, progress
        self._part_rows = int(job.options["part rows"])
        self._before, self._errors_before, self._began = job.rows, job.errors, time.perf_counter()
        self._rows = self._errors = 0
        self._examples: list[str] = []
        self._left_out: set[str] = set()
        self._writer: PartWriter | None = None
        self._keys = xxhash.xxh3_128()
        self._total: int | None = None

    def all(self) -> EmbedReport:
        """Encode what is not there yet."""
        skip = Skip(self._job.rows)
        with unused_file(self._out) as unused:
            rows = self._sources.rows(skip, unused)
            self._pass_over(rows, skip)
            self._encode(rows)
        if not self._rows and not self._before:
            others = f"; {unused.number:,} files there make no row: {unused.examples[0]}" if unused.number else ""
            raise EncodeError(f"there is nothing to embed in {', '.join(self._job.sources)}{others}")
        seconds = time.perf_counter() - self._began
        parts = len(self._job.parts)
        return EmbedReport(
            self._encoder.model,
            self._rows,
            self._errors,
            self._before,
            parts,
            seconds,
            tuple(self._examples),
            tuple(sorted(self._left_out)),
            unused.number,
            tuple(unused.examples),
            self._errors_before,
        )

    def _encode(self, rows: Iterator[Row]) -> None:
        self._began = time.perf_counter()
        stop = threading.Event()
        threading.Thread(target=self._count, args=(stop,), daemon=True).start()
        try:
            with Ahead(rows, 2 * self._batch) as coming:
                encode = self._pictures if self._sources.pictures else self._captions
                with contextlib.closing(encode(iter(coming))) as groups:
                    for group in groups:
                        self._take(group)
            self._finish_part()
        except KeyboardInterrupt:
            # hours of work may be in the part: what is whole of it becomes a shorter part
            if self._writer is not None and self._writer.whole:
                self._finish_part()
            raise
        finally:
            stop.set()
            if self._writer is not None:
                self._writer.abandon()

    def _count(self, stop: threading.Event) -> None:
        with contextlib.suppress(EncodeError):
            self._total = self._sources.count(stop)

    def _pass_over(self, rows: Iterator[Row], skip: Skip) -> None:
        """Go past the rows of the parts that are whole. Raises EncodeError where they are no longer the same rows."""
        for number, part in enumerate(self._job.parts):
            keys, seen = xxhash.xxh3_128(), 0
            for row in islice(rows, part.rows):
                skip.rows -= 1
                seen += 1
                keys.update(row.key.encode("utf-8", "replace") + b"\0")
            if seen != part.rows or keys.hexdigest() != part.keys:
                raise EncodeError(
                    f"the sources have changed since part {number} of {self._out} was made from them (files were added "
                    "before its end, renamed or removed): put them back, or name another folder"
                )

    # encoding

    def _pictures(self, rows: Iterator[Row]) -> Generator[_Group, None, None]:
        """Groups of rows with the vectors of their pictures."""
        waiting: deque[Row] = deque()

        def pictures() -> Iterator[Picture]:
            for row in rows:
                waiting.append(row)
                # a row without a picture goes along as an empty one, so that all keep their order
                yield b"" if row.picture is None or row.error else row.picture

        group = _Group([], [])
        vectors: list[NDArray[np.float32]] = []
        with contextlib.closing(_stream(self._encoder, pictures(), self._batch)) as encoded:
            for found in encoded:
                taken = [waiting.popleft() for _ in found.errors]
                group.rows += taken
                group.errors += [r.error or e or "" for r, e in zip(taken, found.errors, strict=True)]
                group.sizes += found.sizes
                vectors.append(found.vectors)
                self._told(len(taken))
                if len(group.rows) >= TEXT_BATCH:
                    group.pictures = np.concatenate(vectors)
                    yield group
                    group, vectors = _Group([], []), []
        if group.rows:
            group.pictures = np.concatenate(vectors)
            yield group

    def _captions(self, rows: Iterator[Row]) -> Generator[_Group, None, None]:
        while taken := list(islice(rows, self._batch)):
            self._told(len(taken))
            yield _Group(taken, [r.error for r in taken])

    def _texts(self, group: _Group) -> NDArray[np.float32]:
        """The vectors of the captions, zeros where a row has an error; what one refuses becomes its error."""
        wanted = list(dict.fromkeys(r.caption for r, e in zip(group.rows, group.errors, strict=True) if not e))
        found: dict[str, NDArray[np.float32]] = {}
        try:
            found = dict(zip(wanted, self._encoder.encode_texts(wanted), strict=True)) if wanted else {}
        except ModelError:
            raise
        except EncodeError:
            for at, (row, error) in enumerate(zip(group.rows, group.errors, strict=True)):
                if error or row.caption in found:
                    continue
                try:
                    found[row.caption] = self._encoder.encode_texts([row.caption])[0]
                except ModelError:
                    raise
                except EncodeError as refused:
                    group.errors[at] = str(refused)
        vectors = np.zeros((len(group.rows), self._encoder.dimension), np.float32)
        for at, (row, error) in enumerate(zip(group.rows, group.errors, strict=True)):
            if not error:
                vectors[at] = found[row.caption]
        return vectors

    # writing

    def _take(self, group: _Group) -> None:
        """Write a group, over the end of a part into the next where it reaches so far."""
        while group.rows:
            room = self._part_rows - (self._writer.rows if self._writer else 0)
            piece, group = group.cut(room)
            self._write(piece)
            if self._writer is not None and self._writer.rows == self._part_rows:
                self._finish_part()

    def _write(self, group: _Group) -> None:
        writer = self._writer = self._writer or self._new_part()
        if writer.text is None and any(r.caption and not e for r, e in zip(group.rows, group.errors, strict=True)):
            writer.begin_texts(self._encoder.encode_texts([""])[0])
        texts = self._texts(group) if writer.text else None
        similarity: list[float | None] = [None] * len(group.rows)
        if group.pictures is not None:
            group.pictures[[bool(e) for e in group.errors]] = 0
            if texts is not None:
                cosines = np.einsum("ij,ij->i", group.pictures, texts)
                similarity = [
                    float(c) if r.caption and not e else None
                    for c, r, e in zip(cosines, group.rows, group.errors, strict=True)
                ]
        writer.append(
            group.rows, group.errors, pictures=group.pictures, texts=texts, sizes=group.sizes, similarity=similarity
        )
        for row, error in zip(group.rows, group.errors, strict=True):
            self._keys.update(row.key.encode("utf-8", "replace") + b"\0")
            if error:
                self._errors += 1
                if len(self._examples) < EXAMPLES:
                    self._examples.append(error if str(row.path) in error else f"{row.path}: {error}")

    def _new_part(self) -> PartWriter:
        self._keys = xxhash.xxh3_128()
        return PartWriter(
            self._out,
            len(self._job.parts),
            model=self._encoder.model,
            dimension=self._encoder.dimension,
            pictures=self._sources.pictures,
            text=self._job.text,
        )

    def _finish_part(self) -> None:
        writer = self._writer
        if writer is None:
            return
        writer.finish()
        self._writer = None
        self._left_out |= writer.left_out
        done = DonePart(writer.rows, writer.errors, self._keys.hexdigest())
        self._job = dataclasses.replace(self._job, text=bool(writer.text), parts=(*self._job.parts, done))
        self._job.save(self._out)
        self._progress(
            dataclasses.replace(self._state(), part=writer.number, part_rows=writer.rows, part_finished=True)
        )

    def _told(self, rows: int) -> None:
        self._rows += rows
        self._progress(self._state())

    def _state(self) -> EmbedProgress:
        seconds = time.perf_counter() - self._began
        rows = self._writer.rows if self._writer else 0
        return EmbedProgress(self._rows, self._before, self._total, self._errors, seconds, len(self._job.parts), rows)


def _stream(encoder: Encoder, pictures: Iterator[Picture], batch: int) -> Generator[EncodedPictures, None, None]:
    """Vectors of pictures batch by batch; an encoder that streams decodes the next batch while the model runs."""
    streams = getattr(encoder, "encode_stream", None)
    if streams is not None:
        yield from streams(pictures, batch=batch)
        return
    while taken := list(islice(pictures, batch)):
        yield encoder.encode_pictures(taken)
