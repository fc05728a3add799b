"""The two networks of a model, run by ONNX Runtime.

Nothing else imports onnxruntime, but for its quantiser (`int8.py`), and its errors become ModelError here. What must
stay true: a tower is loaded when it is first used and not before, so that a query in words never loads the vision
tower; `run` of a session is thread-safe, so only loading takes a lock; where a form cannot be loaded, the network
itself is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipql.encode import forms
from clipql.encode.folder import ModelFolder
from clipql.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxTowers:
    """Both towers of a folder's ONNX files, on the CPU; with `optimized` in the forms that are kept of them."""

    tokens = 1024  # more do not make a core faster, and fewer leave it waiting
    picture_batch = 16
    text_batch = 256

    def __init__(self, folder: ModelFolder, *, threads: int | None = None, optimized: bool = False) -> None:
        if threads is not None and threads < 1:
            raise ModelError(f"threads is {threads}; expected 1 or more")
        self._folder = folder
        self._threads = threads or cores()
        self._optimized = optimized
        # what each tower that is loaded runs in: "int8", or the precision of the network itself
        self.running: dict[str, str] = {}
        self._lock = threading.Lock()
        self._text: _Tower | None = None
        self._vision: _Tower | None = None

    def __repr__(self) -> str:
        return f"OnnxTowers({str(self._folder.path)!r}, threads={self._threads})"

    def masks_text(self) -> bool:
        """Whether the text tower is told which tokens are padding."""
        return "attention_mask" in self._text_tower().inputs

    def text(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids (n, length), 1 in `mask` where they are no padding, to vectors (n, dimension)."""
        return self._text_tower().run(text_inputs(ids, mask))

    def pictures(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed pictures (n, 3, height, width) to vectors (n, dimension)."""
        return self._vision_tower().run({self.picture_input(): pixels})

    def picture_input(self) -> str:
        """The name of what the vision tower takes."""
        return next(iter(self._vision_tower().inputs))

    def _text_tower(self) -> _Tower:
        with self._lock:
            if self._text is None:
                self._text = self._load("text", self._load_text)
            return self._text

    def _vision_tower(self) -> _Tower:
        with self._lock:
            if self._vision is None:
                self._vision = self._load("vision", self._load_vision)
            return self._vision

    def _load(self, name: forms.Tower, load: Callable[[ModelFolder], _Tower]) -> _Tower:
        """A tower in the form that is kept of it, else as it is."""
        state = forms.state(self._folder, name, whole=True) if self._optimized else forms.State()
        if state.trial is not None and state.file is not None:
            with contextlib.suppress(ModelError):
                tower = load(forms.with_file(self._folder, name, state.file))
                self.running[name] = state.trial.kind
                return tower
        tower = load(self._folder)
        self.running[name] = self._folder.precision
        return tower

    def _load_text(self, folder: ModelFolder) -> _Tower:
        tower = _Tower(folder.text, "text_embeds", folder, self._threads)
        if "input_ids" not in tower.inputs or not tower.inputs.keys() <= set(_TEXT_INPUTS):
            raise ModelError(
                f"{folder.text} takes {', '.join(tower.inputs)}; expected some of {', '.join(_TEXT_INPUTS)}"
            )
        length = tower.inputs["input_ids"][1]
        if isinstance(length, int) and length != folder.context:
            raise ModelError(f"{folder.text} takes {length} tokens, but config.json says {folder.context}")
        # One text as long as can be, and its highest token id: where the graph's tables are shorter than config.json
        # says, this fails now and by name, not in the middle of a run
        ids = np.zeros((1, folder.context), np.int64)
        ids[0, -1] = folder.vocabulary - 1
        try:
            tower.run(text_inputs(ids, np.ones_like(ids)))
        except ModelError as error:
            raise ModelError(
                f"{folder.text} cannot take {folder.context} tokens of ids below {folder.vocabulary:,}, which "
                f"config.json says it can: {error.__cause__ or error}"
            ) from error
        return tower

    def _load_vision(self, folder: ModelFolder) -> _Tower:
        tower = _Tower(folder.vision, "image_embeds", folder, self._threads)
        if len(tower.inputs) != 1:
            raise ModelError(f"{folder.vision} takes {', '.join(tower.inputs)}; expected pixel_values alone")
        [(name, shape)] = tower.inputs.items()
        wanted = (3, *folder.pictures.crop)
        if len(shape) != 4 or any(isinstance(n, int) and n != m for n, m in zip(shape[1:], wanted, strict=True)):
            raise ModelError(f"{folder.vision} takes {name} of shape {shape}, but preprocessing gives (n, {wanted})")
        return tower


def text_inputs(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What a text tower may take, by the names that it takes them by."""
    return dict(zip(_TEXT_INPUTS, (ids, mask, np.zeros_like(ids)), strict=True))


class _Tower:
    """A session that takes arrays of any number of rows, and gives float32 vectors."""

    def __init__(self, file: Path, output: str, folder: ModelFolder, threads: int) -> None:
        self._file = file
        self._dimension = folder.dimension
        self._session: InferenceSession = self._guarded(lambda: _session(file, threads), "cannot be loaded")
        odd = "has inputs or outputs whose names cannot be read"
        self.inputs: dict[str, list[Any]] = self._guarded(lambda: _shapes(self._session.get_inputs()), odd)
        self._outputs: dict[str, list[Any]] = self._guarded(lambda: _shapes(self._session.get_outputs()), odd)
        self._dtypes = {each.name: _dtype(file, each.name, each.type) for each in self._session.get_inputs()}
        self._output = self._output_name(output)
        first = next(iter(self.inputs.values()))
        self._batch = first[0] if first and isinstance(first[0], int) else None

    def _output_name(self, wanted: str) -> str:
        outputs = self._outputs
        flat = [name for name, shape in outputs.items() if len(shape) == 2]
        if wanted not in outputs and len(flat) != 1:
            shown = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
            raise ModelError(f"{self._file} gives {shown}; expected {wanted}, or one output of two dimensions")
        name = wanted if wanted in outputs else flat[0]
        length = outputs[name][-1] if outputs[name] else None
        if isinstance(length, int) and length != self._dimension:
            raise ModelError(f"{self._file} gives vectors of {length} numbers, but config.json says {self._dimension}")
        return name

    def run(self, values: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        given = {name: values[name].astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
        rows = len(next(iter(given.values())))
        if self._batch is None or self._batch == rows:
            return self._once(given, rows)
        # A graph made for batches of one size: the last is filled up with zeros
        found = []
        for first in range(0, rows, self._batch):
            some = {name: value[first : first + self._batch] for name, value in given.items()}
            count = len(next(iter(some.values())))
            lack = self._batch - count
            if lack:
                some = {name: np.pad(v, [(0, lack)] + [(0, 0)] * (v.ndim - 1)) for name, v in some.items()}
            found.append(self._once(some, self._batch)[:count])
        return np.concatenate(found)

    def _once(self, given: dict[str, NDArray[Any]], rows: int) -> NDArray[np.float32]:
        [found] = self._guarded(lambda: self._session.run([self._output], given), "failed")
        if found.shape != (rows, self._dimension):
            raise ModelError(
                f"{self._file} gives an array of shape {found.shape} for {rows} inputs; expected "
                f"({rows}, {self._dimension})"
            )
        return np.asarray(found, np.float32)

    def _guarded(self, work: Callable[[], Any], what: str) -> Any:
        try:
            return work()
        except Exception as error:  # those of ONNX Runtime have no base class of their own
            raise ModelError(f"{self._file} {what}: {error}") from error


def _shapes(told: Sequence[Any]) -> dict[str, list[Any]]:
    return {each.name: list(each.shape) for each in told}


def _session(file: Path, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong comes as an exception as well
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def simplified(network: Path, out: Path) -> None:
    """Write a network with what is constant in it computed. Raises ModelError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ModelError(f"{network} cannot be simplified: {error}") from error


def inner_values(
    network: Path, names: Sequence[str], samples: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """The largest values that outputs of a network reach in samples, by the channels of their last axis.

    Raises ModelError.
    """
    found: dict[str, NDArray[np.float32]] = {}
    try:
        session = _session(network, cores())
        taken = {each.name: _dtype(network, each.name, each.type) for each in session.get_inputs()}
        for sample in samples:
            given = {name: sample[name].astype(dtype, copy=False) for name, dtype in taken.items()}
            for name, value in zip(names, session.run(list(names), given), strict=True):
                largest = np.abs(value).reshape(-1, value.shape[-1]).max(0)
                found[name] = np.maximum(found.get(name, largest), largest)
    except ModelError:
        raise
    except Exception as error:  # as above
        raise ModelError(f"{network} failed on samples: {error}") from error
    return found


def _dtype(file: Path, name: str, kind: str) -> type[np.generic]:
    if kind not in _DTYPES:
        raise ModelError(f"{file} takes {name} as {kind}; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[kind]
