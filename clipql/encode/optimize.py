"""`clipql model optimize`: forms of a model's networks, made once, measured here, and kept where they are worth it.

What must stay true: a form is used only where it was measured faster and every vector of the samples stayed near the
network's own; a run that is cut short leaves what was there, and what it had made is not made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.encode import forms, int8, models, prepare, samples
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import ModelFolder
from clipql.encode.forms import Note, Tower, Trial
from clipql.encode.onnx import OnnxTowers, text_inputs
from clipql.errors import ModelError
from clipql.storage import files

LEAST_COSINE, LEAST_TIMES = 0.995, 1.2
RECIPE = "1"  # in the names of files: another one makes other files
# by kind, the fastest first: the first that is near enough is taken
MAKERS: dict[str, Callable[..., bytes]] = {  # (network, samples, *, narrow)
    forms.INT8: int8.make,
    forms.INT8_ROWS: partial(int8.make, rows=True),
}
_ROUNDS = 5
Progress = Callable[[str], None]


@dataclass(frozen=True, repr=False)
class Optimized(Brief):
    """What came of it: the model, and what is known of each of its networks now."""

    model: ModelFolder
    notes: dict[str, Note]


def optimize(
    model: str | os.PathLike[str] | None = None, *, threads: int | None = None, progress: Progress = lambda line: None
) -> Optimized:
    """Make forms of both networks of a model, measure them, keep the best of each and have it used from now on.

    model: as `models.find` takes it. threads: as `open_encoder` takes them. progress: told what is done, a line at a
    time. Raises ModelError, and StorageError where nothing can be written into the model's folder.
    """
    int8.check()
    found = models.find(model)
    OnnxTowers(found, threads=threads)  # which refuses odd threads before anything is made
    place = found.path / forms.FOLDER
    files.make_folder(place)
    notes: dict[str, Note] = {}
    for tower in forms.TOWERS:
        notes[tower] = _note(found, tower, threads, progress)
    files.replace(place / forms.NOTES, forms.written(notes))
    kept = {forms.NOTES, *(trial.file for note in notes.values() if (trial := note.chosen()))}
    for entry in files.entries(place):
        if entry.name not in kept:
            files.remove(Path(entry.path))
    return Optimized(found, notes)


def forget(model: str | os.PathLike[str] | None = None) -> ModelFolder:
    """Remove the forms of a model, so that its networks run as they are. Raises ModelError and StorageError."""
    found = models.find(model)
    files.remove(found.path / forms.FOLDER)
    return found


def _note(model: ModelFolder, tower: Tower, threads: int | None, progress: Progress) -> Note:
    network = forms.source(model, tower)
    try:
        there, hashed = network.stat(), forms.digest(network)
    except OSError as error:
        raise ModelError(f"{network} cannot be read: {error.strerror or error}") from error
    trials: list[Trial] = []
    for kind in MAKERS:
        trials.append(_trial(model, tower, kind, hashed, threads, progress))
        # a nearer form is slower
        if not trials[-1].problem and trials[-1].cosine >= LEAST_COSINE:
            break
    good = [each for each in trials if not each.problem and not why_not(each)]
    best = max(good, key=lambda each: each.times, default=None)
    return Note(
        there.st_size, there.st_mtime_ns, hashed, forms.processor(), tuple(trials), best.kind if best else ""
    )  # fmt: skip


def why_not(trial: Trial) -> str:
    """Why a form that was made is of no use; '' where it is."""
    if trial.cosine < LEAST_COSINE:
        return f"a cosine of {LEAST_COSINE} is the least"
    return "" if trial.times >= LEAST_TIMES else f"{LEAST_TIMES} times is the least"


def _trial(model: ModelFolder, tower: Tower, kind: str, hashed: str, threads: int | None, progress: Progress) -> Trial:
    """Make a form, unless a run that was cut short has made it, and measure it."""
    narrow = forms.saturates()
    recipe = f"{RECIPE}-narrow" if narrow else RECIPE
    file = model.path / forms.FOLDER / f"{tower}-{kind}-{hashed[:16]}-{recipe}.onnx"
    network = forms.source(model, tower)
    try:
        if not file.is_file() or _damaged(model, tower, file):
            progress(f"{network.name}: making {kind}")
            files.replace(file, MAKERS[kind](network, _inputs(model, tower), narrow=narrow))
        content = file.read_bytes()
        progress(f"{network.name}: measuring {kind}")
        times, cosine = _measured(model, forms.with_file(model, tower, file), tower, threads)
    except (ModelError, OSError) as error:
        return Trial(kind, problem=str(error).partition("\n")[0][:300])
    return Trial(kind, times, cosine, file.name, len(content), xxhash.xxh3_128_hexdigest(content))


def _damaged(model: ModelFolder, tower: Tower, file: Path) -> bool:
    """Whether a file is not what the notes say of it; one that they do not know is of a run that was cut short."""
    try:
        known = forms.read(model).get(tower)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return True
    said = {trial.file: trial.xxh3 for trial in known.trials} if known else {}
    return said.get(file.name, forms.digest(file)) != forms.digest(file)


def _inputs(model: ModelFolder, tower: Tower) -> list[dict[str, NDArray[Any]]]:
    """The samples as a network gets them, batch by batch."""
    if tower == "vision":
        return [{OnnxTowers(model).picture_input(): _pixels(model)}]
    given: list[dict[str, NDArray[Any]]] = []
    towers = OnnxTowers(model)
    encode = towers.text

    def text(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        given.append({**text_inputs(ids, mask)})
        return encode(ids, mask)

    towers.text = text  # type: ignore[method-assign]
    ClipEncoder(model, towers).encode_texts(samples.CAPTIONS)
    return given


def _pixels(model: ModelFolder) -> NDArray[np.float32]:
    return np.stack([prepare.preprocess(picture, model.pictures) for picture in samples.pictures()])


def _measured(model: ModelFolder, other: ModelFolder, tower: Tower, threads: int | None) -> tuple[float, float]:
    """How often as fast as the network its other form is, and the smallest cosine of their vectors."""
    plain, form = (_work(each, tower, threads) for each in (model, other))
    expected, found = plain(), form()
    # in turns, and the fastest of each: what else the machine does slows down some of them
    seconds = {work: float("inf") for work in (plain, form)}
    for _ in range(_ROUNDS):
        for work in seconds:
            began = time.perf_counter()
            work()
            seconds[work] = min(seconds[work], time.perf_counter() - began)
    return seconds[plain] / seconds[form], float((expected * found).sum(1).min())


def _work(model: ModelFolder, tower: Tower, threads: int | None) -> Callable[[], NDArray[np.float32]]:
    """A call that has a network encode all samples to unit vectors."""
    towers = OnnxTowers(model, threads=threads)
    if tower == "text":
        return partial(ClipEncoder(model, towers).encode_texts, samples.CAPTIONS)
    pixels = _pixels(model)

    def encode() -> Any:
        some = [
            towers.pictures(pixels[i : i + towers.picture_batch]) for i in range(0, len(pixels), towers.picture_batch)
        ]
        vectors = np.concatenate(some)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode
