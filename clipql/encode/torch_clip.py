"""The two networks of a model, run by PyTorch from safetensors: the extra `torch`, for a GPU.

Nothing else imports transformers, nor torch but `storage/vectors/torch_device.py`. What must stay true: weights are
read from model.safetensors and nothing else, never from a pickle and never from the network; both towers come with one
file, so both are loaded at once; a weight that the file lacks is an error, where transformers would make up a random
one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.encode.folder import ModelFolder
from clipql.encode.onnx import OnnxTowers
from clipql.errors import ModelError

_PRECISIONS = ("bfloat16", "float16", "float32")


class TorchTowers:
    """Both towers of a folder's model.safetensors on a device of PyTorch's: `cuda`, `cuda:1`, `mps`, `cpu`.

    precision: `bfloat16` (the default, but for the CPU), `float16` or `float32`.
    """

    def __init__(self, folder: ModelFolder, *, device: str = "cuda", precision: str | None = None) -> None:
        on_cpu = device.partition(":")[0] == "cpu"
        precision = precision or ("float32" if on_cpu else "bfloat16")
        if precision not in _PRECISIONS:
            raise ModelError(f"precision is {precision!r}; on {device} it is one of {', '.join(_PRECISIONS)}")
        # To start a GPU takes as long as some hundred short texts do, so it gets more of them at once than a core
        self.tokens = OnnxTowers.tokens if on_cpu else 16 * 1024
        self.picture_batch = OnnxTowers.picture_batch if on_cpu else 64
        self.text_batch = OnnxTowers.text_batch if on_cpu else 4096
        self._folder = folder
        self._device = device
        self._precision = precision
        self.running = dict.fromkeys(("text", "vision"), precision)
        self._lock = threading.Lock()
        self._model: Any = None

    def __repr__(self) -> str:
        return f"TorchTowers({str(self._folder.path)!r}, device={self._device!r}, precision={self._precision!r})"

    def masks_text(self) -> bool:
        """Whether the text tower is told which tokens are padding."""
        return True

    def text(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids (n, length), 1 in `mask` where they are no padding, to vectors (n, dimension)."""
        return self._run("get_text_features", input_ids=ids, attention_mask=mask)

    def pictures(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed pictures (n, 3, height, width) to vectors (n, dimension)."""
        return self._run("get_image_features", pixel_values=pixels)

    def _run(self, what: str, **values: NDArray[Any]) -> NDArray[np.float32]:
        model = self._loaded()
        import torch  # type: ignore[import-not-found]

        try:
            with torch.inference_mode():
                given = {name: self._sent(torch.from_numpy(value)) for name, value in values.items()}
                given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in given.items()}
                found = getattr(model, what)(**given)
                # transformers 5 wraps the projected vectors, before it they came as they are
                found = found if torch.is_tensor(found) else found.pooler_output
                return np.asarray(found.float().cpu().numpy(), np.float32)
        except (RuntimeError, ValueError, IndexError) as error:  # out of memory is a RuntimeError
            if _is_memory(error):
                rows, *shape = next(iter(values.values())).shape
                raise ModelError(
                    f"{self._device} has too little memory for {rows:,} inputs of shape {tuple(shape)} at once: take a "
                    "smaller batch (--batch, or batch=… in Python), or end other programs that use it. PyTorch says: "
                    f"{_reason(error)}"
                ) from error
            raise ModelError(f"{self._folder.text} failed on {self._device}: {_reason(error)}") from error

    def _sent(self, value: Any) -> Any:
        """A tensor on the device. A GPU fetches from pinned memory itself, twice as fast as it is sent from other."""
        if self._device.startswith("cuda"):
            return value.pin_memory().to(self._device, non_blocking=True)
        return value.to(self._device)

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> Any:
        try:
            import torch
            from transformers import CLIPModel  # type: ignore[import-not-found]
        except ImportError as error:
            raise ModelError(
                f"the device {self._device} needs PyTorch, and {error.name} is not installed: pip install clipql[torch]"
            ) from error
        _check_device(self._device)
        try:
            with _quietly():
                model, told = CLIPModel.from_pretrained(
                    str(self._folder.path),
                    use_safetensors=True,
                    local_files_only=True,
                    dtype=getattr(torch, self._precision),
                    ignore_mismatched_sizes=True,  # it is told, and refused here by name
                    output_loading_info=True,
                )
            self._check_weights(told)
            return model.eval().to(self._device)
        except ModelError:
            raise
        except Exception as error:  # those of safetensors have no base class but this
            if _is_memory(error):
                raise ModelError(
                    f"{self._device} has too little memory for the weights of {self._folder.text} in "
                    f"{self._precision}: end other programs that use it, or take another device. PyTorch says: "
                    f"{_reason(error)}"
                ) from error
            raise ModelError(
                f"{self._folder.text} cannot be loaded by PyTorch for {self._device}: {_reason(error)}; if the file is "
                "damaged, fetch the model anew"
            ) from error

    def _check_weights(self, told: dict[str, Any]) -> None:
        lacking = sorted({*told["missing_keys"]} - {"logit_scale"})  # of training: no vector needs it
        if lacking:
            shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            raise ModelError(
                f"{self._folder.text} lacks {shown}; expected the weights of both towers of a CLIP as transformers "
                "writes them: fetch the model anew, or take its ONNX files (device='cpu')"
            )
        for name, found, expected in sorted(told["mismatched_keys"])[:1]:
            raise ModelError(
                f"{self._folder.text}: {name} has the shape {tuple(found)}, but config.json asks for "
                f"{tuple(expected)}: the two files are of different models"
            )


def _check_device(name: str) -> None:
    """Refuse a device that is not there, with those that are. Raises ModelError."""
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = torch.backends.mps.is_available()
    try:
        wanted = torch.device(name)
        # of rarer kinds PyTorch itself says what is wrong
        there = (wanted.index or 0) < len(gpus) if wanted.type == "cuda" else wanted.type != "mps" or mps
    except RuntimeError:  # not the name of a device
        there = False
    if there:
        return
    shown = ["cpu", *(f"{gpu} ({torch.cuda.get_device_name(gpu)})" for gpu in gpus), *(["mps"] if mps else [])]
    message = f"there is no device {name!r}; PyTorch {torch.__version__} sees {', '.join(shown)}: name one of them"
    if not gpus and name.startswith("cuda"):
        build = torch.version.cuda
        message += (
            f", or see with nvidia-smi whether there is a GPU and a driver for CUDA {build}"
            if build
            else (", or install a PyTorch that is built for CUDA, as this one is not")
        )
    raise ModelError(message)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports, which would get among what the command line shows."""
    from transformers.utils import logging  # type: ignore[import-not-found]

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _reason(error: Exception) -> str:
    """What an error says, without the advice to developers that CUDA's errors end with."""
    return str(error).strip().partition("\n")[0].partition(" Including ")[0] or type(error).__name__
