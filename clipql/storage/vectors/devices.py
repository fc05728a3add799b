"""Devices that products of matrices can be left to: which one a setting names.

What must stay true: nothing is imported for a device before a statement asks for it.
"""

from __future__ import annotations

import importlib.util
import re
import threading

from clipql.errors import DeviceError
from clipql.storage.vectors.device import Device

CPU, AUTO = "cpu", "auto"
# products for which PyTorch is loaded under 'auto': a second and more of two cores, as long as loading it takes
WORTH = 2e11
_NAMES = re.compile(r"cpu|auto|cuda(:\d{1,3})?")


def checked(setting: str) -> str:
    """The setting as it is. Raises DeviceError for one that names no device."""
    if not _NAMES.fullmatch(setting):
        raise DeviceError(f"the device is {setting!r}; expected cpu, auto, cuda, or cuda:1 and the like")
    return setting


_open: dict[str, Device] = {}
_guard = threading.Lock()


def chosen(setting: str, products: float) -> Device | None:
    """The device for so many products by the setting `vector_device`: 'cpu', 'auto', or PyTorch's name of a GPU.

    None: the processor. Raises DeviceError where the one that is asked for is not there.
    """
    if setting == CPU or (setting == AUTO and (products < WORTH or not _installed())):
        return None
    name = "cuda" if setting == AUTO else setting
    with _guard:
        if name not in _open:
            try:
                _open[name] = opened(name)
            except DeviceError:
                if setting == AUTO:
                    return None
                raise
        return _open[name]


def described(setting: str, products: float) -> str:
    """The device that `chosen` gives, in words; empty for the processor that was asked for. Raises as that does."""
    if setting == CPU:
        return ""
    device = chosen(setting, products)
    if device is not None:
        return device.name
    if products < WORTH:
        return f"none: for {products:,.0f} products it takes longer to begin"
    return "none: PyTorch sees no GPU here"


def opened(name: str) -> Device:
    """A device by PyTorch's name. Raises DeviceError."""
    from clipql.storage.vectors.torch_device import TorchDevice  # loads PyTorch

    return TorchDevice(name)


def _installed() -> bool:
    return importlib.util.find_spec("torch") is not None
