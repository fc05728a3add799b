"""The two networks of a model, run by PyTorch from safetensors: the extra `torch`, for a GPU.

Nothing else imports torch or transformers. What must stay true: weights are read from model.safetensors and nothing
else, never from a pickle and never from the network; both towers come with one file, so both are loaded at once.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.encode.folder import ModelFolder
from clipql.errors import ModelError

_PRECISIONS = ("bfloat16", "float16", "float32")


class TorchTowers:
    """Both towers of a folder's model.safetensors on a device of PyTorch's: `cuda`, `cuda:1`, `mps`, `cpu`.

    precision: `bfloat16` (the default, but for the CPU), `float16` or `float32`.
    """

    def __init__(self, folder: ModelFolder, *, device: str = "cuda", precision: str | None = None) -> None:
        precision = precision or ("float32" if device == "cpu" else "bfloat16")
        if precision not in _PRECISIONS:
            raise ModelError(f"precision is {precision!r}; on {device} it is one of {', '.join(_PRECISIONS)}")
        self._folder = folder
        self._device = device
        self._precision = precision
        self._lock = threading.Lock()
        self._model: Any = None

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
                given = {name: torch.from_numpy(value).to(self._device) for name, value in values.items()}
                given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in given.items()}
                found = getattr(model, what)(**given)
                # transformers 5 wraps the projected vectors, before it they came as they are
                found = found if torch.is_tensor(found) else found.pooler_output
                return np.asarray(found.float().cpu().numpy(), np.float32)
        except (RuntimeError, ValueError, IndexError) as error:  # out of memory is a RuntimeError
            raise ModelError(f"{self._folder.text} failed on {self._device}: {error}") from error

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
        try:
            model = CLIPModel.from_pretrained(
                str(self._folder.path),
                use_safetensors=True,
                local_files_only=True,
                dtype=getattr(torch, self._precision),
            )
            return model.eval().to(self._device)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:  # a device that is not there asserts
            raise ModelError(f"{self._folder.path} cannot be loaded by PyTorch for {self._device}: {error}") from error
