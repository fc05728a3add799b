"""`clipql embed images`, `clipql embed captions`, and `clipql embed --into` for what a table has."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from clipql.cli.commands.common import command, open_database
from clipql.cli.console import CLEAR_LINE, bar, counted, duration, printable
from clipql.errors import EncodeError

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.encode.base import Encoder
    from clipql.encode.embed import EmbedProgress, EmbedReport

_IMAGES = (
    "turn pictures and their captions into vectors, as LAION parts (img_emb_N.npy, text_emb_N.npy, metadata_N.parquet) "
    "that `clipql ingest` takes"
)
_CAPTIONS = "turn captions into vectors, as LAION parts (text_emb_N.npy, metadata_N.parquet)"
_MODEL = "a model's name or folder (default: $CLIPQL_MODEL, then openai/clip-vit-base-patch32)"
_DEVICE = "cpu, or a GPU by PyTorch's name: cuda, cuda:1, mps; needs the extra clipql[torch] (default: cpu)"
_LINE_EVERY_SECONDS = 10.0


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    what = "turn pictures or captions into vectors: LAION parts, or a column"
    made = command(commands, shared, "embed", what, run, others_first=True)
    _add_into(made)
    kinds = made.add_subparsers(dest="kind", metavar="images|captions", title="kinds")
    images = command(kinds, None, "images", _IMAGES, run, others_first=True)
    images.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder, a glob, a picture, a webdataset tar (.tar, .tar.gz) or a Parquet file with pictures as bytes",
    )
    captions = command(kinds, None, "captions", _CAPTIONS, run, others_first=True)
    captions.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a text file, a caption a line, or a Parquet file, or a folder"
    )
    for each in (images, captions):
        each.add_argument("out", metavar="OUT", help="the folder of the parts; a run that was cut off goes on there")
        each.add_argument("--model", metavar="NAME", help=_MODEL)
        each.add_argument(
            "--part-rows", type=int, default=1_000_000, metavar="N", help="rows of a part (default: 1000000)"
        )
        each.add_argument("--batch", type=int, metavar="N", help="how many go through the model at once")
        each.add_argument("--caption-column", metavar="NAME", help="the column or JSON key that holds the captions")
        each.add_argument("--ray", metavar="ADDRESS", help="encode on the machines of the Ray at host:port")
        each.add_argument(
            "--encoders",
            type=int,
            metavar="N",
            help="with --ray: processes (default: one a GPU, or a core without any)",
        )
        each.add_argument("--threads", type=int, metavar="N", help="processor threads of the model (default: all)")
        each.add_argument("--device", default="cpu", metavar="NAME", help=_DEVICE)
    images.add_argument(
        "--captions",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether captions get vectors too (default: auto: where the first part has any)",
    )


def _add_into(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("a column of a table")
    group.add_argument(
        "--into",
        metavar="TABLE.COLUMN",
        help="fill this vector column for the rows that have no vector in it, from captions or pictures that the table "
        "has; it is added where the table has none, and a run that was cut off goes on by being called again",
    )
    group.add_argument("--column", metavar="NAME", help="the column that holds them (default: caption, TEXT, …)")
    group.add_argument("--pictures", action="store_true", help="it holds pictures, as bytes or as paths of files")
    group.add_argument("--model", metavar="NAME", help=f"{_MODEL}; the column's own where rows have vectors")
    group.add_argument("--batch", type=int, metavar="N", help="how many go through the model at once")
    group.add_argument("--threads", type=int, metavar="N", help="processor threads of the model (default: all)")
    group.add_argument("--device", default="cpu", metavar="NAME", help=_DEVICE)


def _run_into(arguments: argparse.Namespace) -> int:
    from clipql.encode.clip import open_encoder
    from clipql.encode.embed import EmbedProgress
    from clipql.ingest.embedding import FillProgress, embed_into

    noun = "image" if arguments.pictures else "caption"
    with open_database(arguments) as db, EmbedDisplay(sys.stderr, noun) as display:

        def tell(step: FillProgress) -> None:
            display.update(EmbedProgress(step.rows, 0, step.rows_total, step.errors, step.seconds, 0))

        model = arguments.model or _model_of(db, arguments.into)
        report = embed_into(
            db,
            arguments.into,
            encoder=open_encoder(model, threads=arguments.threads, device=arguments.device),
            column=arguments.column,
            pictures=arguments.pictures,
            batch=arguments.batch,
            progress=tell,
        )
    for example in report.examples:
        print(f"clipql: {printable(example)}", file=sys.stderr)
    more = [counted(report.rows, noun) + f" embedded into {arguments.into}"]
    more += [f"{report.there:,} rows had a vector"] if report.there else []
    more += [f"{counted(report.empty, 'row')} without {noun}"] if report.empty else []
    more += [counted(report.errors, "error")] if report.errors else []
    speed = f"{report.rows / max(report.seconds, 1e-9):,.0f} {noun}s/s"
    print(f"{', '.join(more)}, {report.seconds:.1f} s ({speed}), by {report.model}")
    return 0


def _model_of(db: Database, into: str) -> str | None:
    """The model that filled the column so far."""
    name, _, target = into.rpartition(".")
    database, _, plain = name.rpartition(".")
    known = db.registry.find(database or None, plain)
    column = known.column(target) if known else None
    return column.model if column else None


def run(arguments: argparse.Namespace) -> int:
    """`clipql embed`."""
    if (arguments.into is None) == (arguments.kind is None):
        raise EncodeError("embed: expected images, captions, or --into TABLE.COLUMN, and one of them")
    if arguments.into is not None:
        return _run_into(arguments)
    from clipql.encode.clip import open_encoder
    from clipql.encode.embed import embed_captions, embed_pictures

    images = arguments.kind == "images"
    embed: Callable[..., EmbedReport] = embed_pictures if images else embed_captions
    noun = "image" if images else "caption"
    options: dict[str, Any] = {"captions": arguments.captions} if images else {}
    if arguments.batch is not None:
        options["batch"] = arguments.batch
    with contextlib.ExitStack() as after, EmbedDisplay(sys.stderr, noun) as display:
        encoder = (
            _pool(arguments, after)
            if arguments.ray
            else open_encoder(arguments.model, threads=arguments.threads, device=arguments.device)
        )
        report = embed(
            arguments.sources,
            arguments.out,
            encoder=encoder,
            part_rows=arguments.part_rows,
            caption_column=arguments.caption_column,
            progress=display.update,
            **options,
        )
    for example in report.examples:
        print(f"clipql: {printable(example)}", file=sys.stderr)
    if report.errors > len(report.examples):
        print(f"clipql: and {report.errors - len(report.examples):,} more, in the column error", file=sys.stderr)
    if report.left_out:
        columns = printable(", ".join(report.left_out))
        print(f"clipql: left out, as the first part has no such columns: {columns}", file=sys.stderr)
    for example in report.unused_examples:
        print(f"clipql: skipped: {printable(example)}", file=sys.stderr)
    if report.unused > len(report.unused_examples):
        print(f"clipql: and {report.unused - len(report.unused_examples):,} more, in unused.txt", file=sys.stderr)
    print(summary(report, noun))
    return 0


def _pool(arguments: argparse.Namespace, after: contextlib.ExitStack) -> Encoder:
    """A pool of encoders on Ray, which is stopped at the end."""
    from functools import partial

    from clipql.cluster import ray_connection
    from clipql.cluster.encoder_pool import PooledEncoder
    from clipql.encode.clip import open_encoder

    ray_connection.connect(arguments.ray)
    after.callback(ray_connection.disconnect)
    pooled = PooledEncoder(partial(open_encoder, arguments.model, threads=arguments.threads), arguments.encoders)
    after.callback(pooled.close)
    return pooled


def summary(report: EmbedReport, noun: str) -> str:
    """`302 images in 3 parts, 2 errors, 300 embedded, 5 skipped of 307 there, 12.0 s (25 images/s), by MODEL`.

    Of this run and those before it: what was embedded, the errors and what was skipped are together what was there.
    """
    rows, bad = report.rows + report.rows_before, report.errors + report.errors_before
    before = f", {report.rows_before:,} of them there already" if report.rows_before else ""
    errors = f", {counted(bad, 'error')}, {rows - bad:,} embedded" if bad else ""
    skipped = f", {report.unused:,} skipped of {rows + report.unused:,} there" if report.unused else ""
    speed = f"{report.rows / max(report.seconds, 1e-9):,.0f} {noun}s/s"
    took = f"{report.seconds:.1f} s ({speed})"
    return (
        f"{counted(rows, noun)} in {counted(report.parts, 'part')}{before}{errors}{skipped}, {took}, by {report.model}"
    )


class EmbedDisplay:
    """Shows how an embedding gets on: a bar with the time left on a terminal, otherwise a line now and then."""

    def __init__(self, stream: TextIO, noun: str) -> None:
        self._stream, self._noun, self._live = stream, noun, stream.isatty()
        self._shown, self._told = False, 0.0

    def update(self, progress: EmbedProgress) -> None:
        """Take note of a step; give this to the run as its progress."""
        text, share = _state(progress, self._noun)
        if self._live:
            width = shutil.get_terminal_size().columns
            if share is not None and width - len(text) > 16:
                text += " " + bar(share, min(40, width - len(text) - 8)) + f" {share:4.0%}"
            self._stream.write(CLEAR_LINE + text[: width - 1])
            self._shown = True
        elif progress.part_finished:
            self._stream.write(f"part {progress.part}: {counted(progress.part_rows, 'row')}\n")
        elif progress.seconds - self._told >= _LINE_EVERY_SECONDS:
            self._told = progress.seconds
            self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()


def _state(progress: EmbedProgress, noun: str) -> tuple[str, float | None]:
    """The line that is shown, and the share of the work that is done, where the whole is known."""
    done, total = progress.rows_before + progress.rows, progress.rows_total
    text = f"{done:,}" + (f" of {total:,}" if total else "") + f" {noun}s"
    if progress.errors:
        text += f"  {counted(progress.errors, 'error')}"
    if progress.rows and progress.seconds > 0:
        speed = progress.rows / progress.seconds
        text += f"  {speed:,.0f} {noun}s/s" if speed >= 10 else f"  {speed:.1f} {noun}s/s"
        if total:
            text += f"  {duration(max(0, total - done) / speed)} left"
    return text, min(done / total, 1.0) if total else None
