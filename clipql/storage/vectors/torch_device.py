"""A GPU by PyTorch: the extra `torch`.

What must stay true: what PyTorch is set to by whoever else uses it in this process (fewer digits in products, autocast,
gradients) changes nothing here, and is as it was when the work is done; memory of the host that the device still reads
is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DeviceError
from clipql.storage.vectors.device import DeviceFull

# blocks on their way to the device at once: one that it works on, and one that is copied meanwhile
UNDERWAY = 2
_NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "not enough memory")


class _Mapped:
    """Numbers that may not be written, as an array of which PyTorch does not know it: it reads them only."""

    def __init__(self, x: NDArray[Any]) -> None:
        address, _ = x.__array_interface__["data"]
        self.__array_interface__ = {**x.__array_interface__, "data": (address, False)}
        self.kept = x


class TorchDevice:
    """One device; its arrays are tensors. name: `cuda`, `cuda:1`. Raises DeviceError where it is not there, or
    multiplies in fewer digits than float32 has.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch  # type: ignore[import-not-found]
        except ImportError as error:
            raise DeviceError(
                f"the device {name!r} needs PyTorch, and {error.name} is not installed: pip install clipql[torch], or "
                "SET vector_device = 'cpu'"
            ) from error
        self._torch = torch
        self._place = _found(torch, name)
        self._on_gpu = self._place.type == "cuda"
        self.name = str(self._place)
        if self._on_gpu:
            self.name += f" ({torch.cuda.get_device_name(self._place)})"
        self._digits = _Digits(torch)
        self._underway: deque[Any] = deque()
        self._guard = threading.Lock()
        self._check()

    def __repr__(self) -> str:
        return f"TorchDevice({self.name!r})"

    def _check(self) -> None:
        """That products keep float32's digits: 1 + 2⁻²⁰ has more than TF32, bfloat16 and float16 hold."""
        x = np.zeros((64, 64), np.float32)
        x[:, 0] = 1 + 2.0**-20
        with self.working():
            found = self.fetched(self.products(self.sent(x), self.sent(np.ones_like(x))))
        if not (found == x[0, 0]).all():
            raise DeviceError(
                f"{self.name} multiplies float32 in fewer digits than it has, and PyTorch {self._torch.__version__} "
                "was told not to; expected full float32: SET vector_device = 'cpu'"
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """See `Device.working`."""
        torch = self._torch
        try:
            with self._digits.all(), torch.inference_mode(), torch.autocast(self._place.type, enabled=False):
                yield
        except RuntimeError as error:  # out of memory is one
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY):
                raise DeviceFull(f"{self.name} has too little memory: {said}") from error
            raise DeviceError(
                f"{self.name} failed: {said}; SET vector_device = 'cpu' to go on without it, and see nvidia-smi"
            ) from error

    def sent(self, x: NDArray[Any]) -> Any:
        """See `Device.sent`. A GPU fetches from pinned memory itself, while the next block is copied there."""
        torch = self._torch
        x = np.ascontiguousarray(x)
        given = torch.from_numpy(x if x.flags.writeable else np.asarray(_Mapped(x)))
        if not self._on_gpu:
            return given.clone()
        pinned = torch.empty(given.shape, dtype=given.dtype, pin_memory=True)
        pinned.copy_(given)
        there = pinned.to(self._place, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._place))
        with self._guard:
            self._underway.append(event)
            oldest = self._underway.popleft() if len(self._underway) > UNDERWAY else None
        if oldest is not None:
            oldest.synchronize()
        return there

    def fetched(self, x: Any) -> NDArray[Any]:
        """See `Device.fetched`."""
        return np.asarray(x.cpu().numpy())

    def wide(self, x: Any) -> Any:
        """See `Device.wide`."""
        return x.to(self._torch.float32)

    def products(self, a: Any, b: Any) -> Any:
        """See `Device.products`."""
        return a @ b.T

    def lengths(self, x: Any) -> Any:
        """See `Device.lengths`."""
        return self._torch.linalg.vector_norm(x, dim=1, dtype=self._torch.float64)

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        """See `Device.largest`."""
        torch = self._torch
        torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf, out=scores)
        if k == 1:
            values, places = scores.max(dim=1, keepdim=True)
        else:
            values, places = torch.topk(scores, min(k, scores.shape[1]), dim=1, sorted=False)
        return values, places

    def at_least(self, scores: Any, limit: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Device.at_least`."""
        found = self.fetched(self._torch.nonzero(scores >= limit))
        return np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1])

    def side_by_side(self, one: Any, other: Any) -> Any:
        """See `Device.side_by_side`."""
        return self._torch.cat((one, other), dim=1)

    def picked(self, x: Any, places: Any) -> Any:
        """See `Device.picked`."""
        return self._torch.gather(x, 1, places)

    def zeros(self, shape: tuple[int, int]) -> Any:
        """See `Device.zeros`."""
        return self._torch.zeros(shape, dtype=self._torch.float64, device=self._place)

    def add_up(self, sums: Any, lists: Any, x: Any) -> None:
        """See `Device.add_up`."""
        sums.index_add_(0, lists, x.to(self._torch.float64))

    def not_below_zero(self, x: Any) -> Any:
        """See `Device.not_below_zero`."""
        return self._torch.clamp(x, min=0)


class _Digits:
    """All digits of float32 in products for as long as somebody needs them, where others may want fewer."""

    def __init__(self, torch: Any) -> None:
        self._settings = torch.backends.cuda.matmul
        # since PyTorch 2.9 there is a new name, and whoever used one may not read the other
        newer = hasattr(self._settings, "fp32_precision")
        self._name: str = "fp32_precision" if newer else "allow_tf32"
        self._full: Any = "ieee" if newer else False

    @contextmanager
    def all(self) -> Iterator[None]:
        """No work is done in fewer digits meanwhile."""
        with _digits_guard:
            if not _wanting:
                _before[:] = [getattr(self._settings, self._name)]
                setattr(self._settings, self._name, self._full)
            _wanting.append(self)
        try:
            yield
        finally:
            with _digits_guard:
                _wanting.remove(self)
                if not _wanting:
                    setattr(self._settings, self._name, _before.pop())


# of the whole process, as PyTorch's setting is
_digits_guard = threading.Lock()
_wanting: list[_Digits] = []
_before: list[Any] = []


def _found(torch: Any, name: str) -> Any:
    """PyTorch's device of a name. Raises DeviceError, which says what there is."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    try:
        wanted = torch.device(name)
    except RuntimeError:  # not the name of a device
        wanted = None
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) < len(gpus):
        return torch.device("cuda", wanted.index or 0)
    if wanted is not None and wanted.type == "cpu":  # for tests: no setting gives it
        return wanted
    shown = ", ".join(f"{gpu} ({torch.cuda.get_device_name(gpu)})" for gpu in gpus) or "no GPU"
    build = torch.version.cuda
    do = "name one of them" if gpus else "see with nvidia-smi whether there is a GPU and a driver for it"
    if not gpus and not build:
        do = "install a PyTorch that is built for CUDA, as this one is not"
    raise DeviceError(
        f"there is no device {name!r}: PyTorch {torch.__version__} sees {shown}; {do}, or SET vector_device = 'cpu'"
    )
