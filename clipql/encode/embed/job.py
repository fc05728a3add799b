"""What an output folder remembers of its run, so that one cut off goes on where its last whole part ends.

What must stay true: `embed.json` is replaced atomically after a part's files have their names, so a part that it does
not list is made again; a run with other sources, another model or other options is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipql.encode.embed.writer import part_files
from clipql.errors import DatabaseLocked, EncodeError, ModelMismatch
from clipql.storage import files

NAME, MODEL_NAME, FORMAT = "embed.json", "model.json", 1


@dataclass(frozen=True)
class DonePart:
    """A part that is whole: its rows, those of them without vectors, and a hash of what they were made from."""

    rows: int
    errors: int
    keys: str


@dataclass(frozen=True)
class Job:
    """A run as its folder remembers it. text: whether captions have vectors, None while no part has decided it."""

    kind: str
    model: str
    dimension: int
    sources: tuple[str, ...]
    options: Mapping[str, Any]
    text: bool | None = None
    parts: tuple[DonePart, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in the parts that are whole."""
        return sum(p.rows for p in self.parts)

    @property
    def errors(self) -> int:
        """How many of them have no vectors."""
        return sum(p.errors for p in self.parts)

    def save(self, out: Path) -> None:
        """Make the folder remember it."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        files.replace(out / NAME, json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and hold it alone. Raises EncodeError where another process writes there."""
    with files.translated(out, "making"):
        out.mkdir(parents=True, exist_ok=True)
    try:
        lock = files.FolderLock(out)
    except DatabaseLocked as error:
        raise EncodeError(f"another run writes to {out}: wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock.release()


def begin(out: Path, wanted: Job) -> Job:
    """The run to go on with, or a new one.

    Raises EncodeError, and ModelMismatch, where the folder holds something else, naming both.
    """
    path = out / NAME
    if not path.exists():
        if any((out / kind).is_dir() and any((out / kind).iterdir()) for kind in part_files(out, 0)):
            raise EncodeError(f"{out} holds parts that clipql embed did not make: name another folder")
        known = {"model": wanted.model, "dimension": wanted.dimension}
        files.replace(out / MODEL_NAME, json.dumps(known).encode())
        wanted.save(out)  # last: a run that goes on takes the rest for written
        return wanted
    job = _load(path)
    _compare(out, job, wanted)
    for number in range(len(job.parts)):
        missing = part_files(out, number)["metadata"]
        if not missing.exists():
            raise EncodeError(f"{missing} is gone, though its part was finished: put it back, or name another folder")
    return dataclasses.replace(job, sources=wanted.sources)


def _load(path: Path) -> Job:
    try:
        told = json.loads(path.read_bytes())
        version = told.pop("format")
        if version != FORMAT:
            raise EncodeError(f"{path} has format {version}, written by a newer clipql; this one reads {FORMAT}")
        told["sources"] = tuple(told["sources"])
        told["parts"] = tuple(DonePart(**p) for p in told["parts"])
        return Job(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncodeError(f"{path} cannot be read ({error}): restore it, or name another folder") from error


def _compare(out: Path, job: Job, wanted: Job) -> None:
    if (job.model, job.dimension) != (wanted.model, wanted.dimension):
        raise ModelMismatch(
            f"the vectors in {out} were made by {job.model} ({job.dimension} numbers), and this run is to use "
            f"{wanted.model} ({wanted.dimension}): go on with the same model, or name another folder"
        )
    if job.kind != wanted.kind:
        raise EncodeError(f"{out} was made from {job.kind}, not from {wanted.kind}: name another folder")
    for name in sorted({*job.options, *wanted.options}):
        before, now = job.options.get(name), wanted.options.get(name)
        if before != now:
            raise EncodeError(
                f"{out} was begun with {name} {before}, and this run has {now}: go on with the same, or name another "
                "folder"
            )
    # sources may be added at the end; whether the rows of those before are still the same is checked row by row
    if wanted.sources[: len(job.sources)] != job.sources:
        raise EncodeError(
            f"{out} was made from {', '.join(job.sources)}, and this run is to read {', '.join(wanted.sources)}: "
            "name the same sources, or another folder"
        )
