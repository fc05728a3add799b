"""`clipql model list | pull | optimize | info`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from clipql.cli.commands.common import command

if TYPE_CHECKING:
    from clipql.encode.folder import ModelFolder
    from clipql.encode.forms import State
    from clipql.encode.hub import PullProgress

NAMES = "a name on Hugging Face, a folder, or clipql/emoji (default: $CLIPQL_MODEL, then openai/clip-vit-base-patch32)"


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        None,
        "model",
        "list the models on this machine, fetch one, make it faster, or tell about one",
        run_list,
    )
    under = made.add_subparsers(metavar="ACTION", title="actions (default: list)")
    command(under, None, "list", "list the models on this machine", run_list)
    pull = command(under, None, "pull", "fetch a model into the Hugging Face cache, or continue a fetch", run_pull)
    pull.add_argument("model", nargs="?", metavar="NAME", help="(default: openai/clip-vit-base-patch32)")
    pull.add_argument(
        "--precision",
        metavar="WHICH",
        help="fp32, fp16, int8, or safetensors for the torch extra (default: the best of the ONNX files)",
    )
    faster = command(
        under, None, "optimize", "make a model faster here: tried, measured and kept beside it", run_optimize
    )
    faster.add_argument("model", nargs="?", metavar="MODEL", help=NAMES)
    faster.add_argument("--threads", type=int, metavar="N", help="to measure with (default: one a core)")
    faster.add_argument("--remove", action="store_true", help="remove what was made: the model runs as it is again")
    info = command(under, None, "info", "tell about a model: shapes, files, digests, licence", run_info)
    info.add_argument("model", nargs="?", metavar="MODEL", help=NAMES)


def run_list(arguments: argparse.Namespace) -> int:
    """`clipql model list`."""
    from clipql.encode.cache import cache_folder
    from clipql.encode.models import installed, model_files

    rows = [("MODEL", "PLACE", "DIMENSION", "PRECISION", "SIZE", "TEXT RUNS", "PICTURES RUN")]
    for each in installed():
        size = _megabytes(sum(path.stat().st_size for path in model_files(each.model)))
        text, pictures = (state.brief() for state in _states(each.model).values())
        rows.append((each.name, each.place, str(each.model.dimension), each.model.precision, size, text, pictures))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not any(row[1] == "cache" for row in rows):
        print(f"no CLIP model is in {cache_folder()}; `clipql model pull` fetches one", file=sys.stderr)
    return 0


def run_pull(arguments: argparse.Namespace) -> int:
    """`clipql model pull`."""
    from clipql.encode.models import pull

    with PullDisplay(sys.stderr) as display:
        model = pull(arguments.model, precision=arguments.precision, progress=display.update)
    print(display.summary(), file=sys.stderr)
    print(f"{model.model}: {model.path}")
    return 0


def run_optimize(arguments: argparse.Namespace) -> int:
    """`clipql model optimize`."""
    from clipql.encode import optimize

    if arguments.remove:
        print(f"{optimize.forget(arguments.model).model} runs as it is")
        return 0
    made = optimize.optimize(
        arguments.model, threads=arguments.threads, progress=lambda line: print(line, file=sys.stderr, flush=True)
    )
    for tower, note in made.notes.items():
        for trial in note.trials:
            if trial.problem:
                print(f"{tower}: {trial.kind}: {trial.problem}", file=sys.stderr)
                continue
            verdict = "used" if trial.kind == note.used else f"not used: {optimize.why_not(trial)}"
            figures = f"{trial.times:.2f} times as fast, cosine at least {trial.cosine:.4f}"
            print(f"{tower}: {trial.kind}: {figures}: {verdict}")
    return 0


def _states(model: ModelFolder) -> dict[str, State]:
    from clipql.encode.forms import TOWERS, State, state

    if model.precision == "safetensors":
        return dict.fromkeys(TOWERS, State(why="only forms of ONNX files are made"))
    return {tower: state(model, tower) for tower in TOWERS}


def run_info(arguments: argparse.Namespace) -> int:
    """`clipql model info`."""
    from clipql.encode.models import find, licence, model_files

    model = find(arguments.model)
    for name, value in _facts(model, licence(model)):
        print(f"{name:10} {value}")
    print("files")
    for path in model_files(model):
        name = path.relative_to(model.path).as_posix() if path.is_relative_to(model.path) else str(path)
        print(f"  {_sha256(path)}  {_megabytes(path.stat().st_size):>10}  {name}")
    return 0


def _facts(model: ModelFolder, licence: str | None) -> list[tuple[str, str]]:
    crop = " x ".join(str(edge) for edge in reversed(model.pictures.crop))
    return [
        ("model", model.model),
        ("folder", str(model.path)),
        ("dimension", f"{model.dimension} numbers a vector"),
        ("text", f"{model.text.name}, up to {model.context} tokens of {model.vocabulary:,}"),
        ("pictures", f"{model.vision.name}, {crop} pixels"),
        ("precision", model.precision),
        *(("form", f"{tower}: {_told(state)}") for tower, state in _states(model).items()),
        ("licence", licence or "not said in README.md"),
    ]


def _told(state: State) -> str:
    if state.trial is None:
        return f"as it is: {state.why}"
    return f"{state.brief()} as fast, cosine at least {state.trial.cosine:.4f}"


def _sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} KB"


class PullDisplay:
    """Shows how a pull gets on: a bar with MB/s on a terminal, otherwise a line for each file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._drawn, self._at_file = 0.0, 0
        self._latest: PullProgress | None = None

    def update(self, progress: PullProgress) -> None:
        """Take note of a step; give this to `pull` as its progress."""
        self._latest = progress
        if self._live:
            now = time.monotonic()
            if progress.finished or now - self._drawn > 0.1:
                self._drawn = now
                self._draw(progress)
        elif progress.finished:
            how = "fetched" if progress.fetched > self._at_file else "already there"
            count = f"{progress.file_number} of {progress.files}"
            self._stream.write(f"{progress.file} ({count}): {_megabytes(progress.file_size)}, {how}\n")
            self._stream.flush()
        if progress.finished:
            self._at_file = progress.fetched

    def _draw(self, progress: PullProgress) -> None:
        from clipql.cli.console import CLEAR_LINE, bar, duration

        speed = progress.fetched / max(progress.seconds, 1e-3)
        text = f"{progress.file}  {progress.done / 1e6:,.1f} of {progress.size / 1e6:,.1f} MB  {speed / 1e6:,.1f} MB/s"
        if progress.fetched and progress.done < progress.size:
            text += f"  {duration((progress.size - progress.done) / speed)} left"
        share = progress.done / progress.size if progress.size else 1.0
        width = _width(self._stream)
        if width - len(text) > 16:
            text += " " + bar(share, min(40, width - len(text) - 8)) + f" {share:4.0%}"
        self._stream.write(CLEAR_LINE + text[: width - 1])
        self._stream.flush()

    def summary(self) -> str:
        """`605.2 MB in 6 files, 605.2 MB fetched in 12.0 s (50.4 MB/s)`."""
        last = self._latest
        if last is None:
            return "nothing to fetch"
        whole = f"{_megabytes(last.size)} in {last.files} files"
        if not last.fetched:
            return f"{whole}, all there and as the hub has them"
        speed = last.fetched / 1e6 / max(last.seconds, 1e-3)
        return f"{whole}, {_megabytes(last.fetched)} fetched in {last.seconds:.1f} s ({speed:,.1f} MB/s)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live and self._latest is not None:
            from clipql.cli.console import CLEAR_LINE

            self._stream.write(CLEAR_LINE)
            self._stream.flush()


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
