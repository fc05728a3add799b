"""Faster forms of a model's networks, as `clipql model optimize` keeps them beside the model.

    clipql-optimized/forms.json           what was tried for each network, how fast and how near it was, what is used
    clipql-optimized/text-int8-….onnx     the network in that form

What must stay true: a form is derived and never needed. One that was made of another file, on another kind of
processor or that is not whole is not used, and the network itself runs in its place; nothing here loads a network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from clipql.brief import Brief
from clipql.encode.folder import ModelFolder
from clipql.storage.files import open_plain, read_plain

FOLDER, NOTES, FORMAT = "clipql-optimized", "forms.json", 1
INT8, INT8_ROWS = "int8", "int8-rows"
Tower = Literal["text", "vision"]
TOWERS: tuple[Tower, ...] = ("text", "vision")
# Of a processor, what decides how fast low precision is there, and whether its sums of bytes overflow
_FEATURES = frozenset({
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve",
})  # fmt: skip
_NAME = re.compile(r"[a-z0-9-]+\.onnx", re.ASCII)
_LARGEST_NOTES = 1 << 20
_PIECE = 16 << 20


@dataclass(frozen=True, repr=False)
class Trial(Brief):
    """A form that was made of a network and measured.

    times: how often as fast as the network itself; cosine: the smallest to the network's own vectors. file: its name
    in the folder of forms, with its bytes and xxh3; '' where it was not kept. problem: why it could not be made.
    """

    kind: str
    times: float = 0.0
    cosine: float = 0.0
    file: str = ""
    bytes: int = 0
    xxh3: str = ""
    problem: str = ""


@dataclass(frozen=True, repr=False)
class Note(Brief):
    """What is known of one network: bytes, time and xxh3 of its file, the processor that was measured on, what was
    tried, and the kind that is used; '' for the network itself."""

    bytes: int
    mtime_ns: int
    xxh3: str
    processor: str
    trials: tuple[Trial, ...]
    used: str = ""

    def chosen(self) -> Trial | None:
        """The trial whose form is used; None where the network itself is."""
        return next((each for each in self.trials if each.kind == self.used and each.file), None)


@dataclass(frozen=True, repr=False)
class State(Brief):
    """The form that a network runs in here. file: what is loaded; None for the network itself, and `why`."""

    trial: Trial | None = None
    file: Path | None = None
    why: str = ""

    def brief(self) -> str:
        """`int8, 3.1 times`, or `as it is`."""
        return f"{self.trial.kind}, {self.trial.times:.1f} times" if self.trial else "as it is"


def source(model: ModelFolder, tower: Tower) -> Path:
    """The file of a network."""
    return model.text if tower == "text" else model.vision


def with_file(model: ModelFolder, tower: Tower, file: Path) -> ModelFolder:
    """The model with another file in a network's place."""
    return dataclasses.replace(model, text=file) if tower == "text" else dataclasses.replace(model, vision=file)


def state(model: ModelFolder, tower: Tower, *, whole: bool = False) -> State:
    """The form that a network runs in on this machine. whole: also read the form's file and compare its hash."""
    try:
        note = read(model).get(tower)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return State(why=f"{NOTES} cannot be read ({error}): run `clipql model optimize` again")
    if note is None:
        return State(why="not optimized: run `clipql model optimize`")
    trial = note.chosen()
    if trial is None:
        return State(why="no form was both faster and near enough")
    if note.processor != processor():
        return State(why="optimized on another kind of processor: run `clipql model optimize` again")
    if not _is_of(source(model, tower), note):
        return State(why="the network's file is another one now: run `clipql model optimize` again")
    file = model.path / FOLDER / trial.file
    try:
        damaged = file.stat().st_size != trial.bytes or (whole and digest(file) != trial.xxh3)
    except OSError:
        damaged = True
    if damaged:
        return State(why=f"{trial.file} is damaged or missing: run `clipql model optimize` again")
    return State(trial, file)


def read(model: ModelFolder) -> dict[str, Note]:
    """What is known of a model's networks, by tower; nothing where there are no notes. Raises OSError, ValueError,
    TypeError and KeyError for what cannot be read."""
    try:
        found = json.loads(read_plain(model.path / FOLDER / NOTES, most=_LARGEST_NOTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']!r}, and {FORMAT} is expected")
    return {tower: _note(found["towers"][tower]) for tower in TOWERS if tower in found["towers"]}


def _note(found: dict[str, Any]) -> Note:
    trials = tuple(_trial(each) for each in found["trials"])
    return Note(**{**found, "trials": trials})


def _trial(found: dict[str, Any]) -> Trial:
    trial = Trial(**found)
    if trial.file and not _NAME.fullmatch(trial.file):
        raise ValueError("a form's file has an odd name")
    return Trial(
        str(trial.kind), float(trial.times), float(trial.cosine), trial.file, int(trial.bytes), str(trial.xxh3),
        str(trial.problem),
    )  # fmt: skip


def written(notes: dict[str, Note]) -> bytes:
    """Notes as `read` takes them."""
    towers = {tower: dataclasses.asdict(note) for tower, note in notes.items()}
    return json.dumps({"format": FORMAT, "towers": towers}, indent=2).encode()


def digest(file: Path) -> str:
    """xxh3 of a file, which costs little beside loading it. Raises OSError."""
    found = xxhash.xxh3_128()
    with open_plain(file, follow=True) as opened:
        while piece := opened.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _is_of(file: Path, note: Note) -> bool:
    try:
        there = file.stat()
        if there.st_size != note.bytes:
            return False
        return there.st_mtime_ns == note.mtime_ns or digest(file) == note.xxh3
    except OSError:
        return False


@functools.cache
def processor() -> str:
    """What kind of processor this is, as far as the speed and the sums of low precision depend on it."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        flags = set(listed[1].split() if listed else ()) & _FEATURES
    return " ".join([platform.machine(), *sorted(flags)])


def saturates() -> bool:
    """Whether the sum of two products of bytes may not fit here, and is cut to 16 bits without a word: so it is on x86
    without VNNI."""
    machine, *flags = processor().split()
    return machine.lower() in ("x86_64", "amd64") and not {"avx512_vnni", "avx_vnni"} & {*flags}
