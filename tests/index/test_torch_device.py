"""A device of PyTorch's: what others set PyTorch to changes nothing, and errors say what there is.

Runs only where PyTorch is installed (the extra `torch`), and partly on a GPU where there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clipql.errors import DeviceError
from clipql.storage.vectors import devices
from clipql.storage.vectors.device import DeviceFull, rounding

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: the extra clipql[torch]")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
MATMUL = torch.backends.cuda.matmul
# PyTorch 2.9 gave it a new name
NAME, FEWER, FULL = (
    ("fp32_precision", "tf32", "ieee") if hasattr(MATMUL, "fp32_precision") else ("allow_tf32", True, False)
)
PLACES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(params=PLACES)
def device(request: pytest.FixtureRequest) -> Any:
    return devices.opened(request.param)


@pytest.fixture
def fewer_digits() -> Iterator[None]:
    """PyTorch as it is set to train: products in TF32."""
    before = getattr(MATMUL, NAME)
    setattr(MATMUL, NAME, FEWER)
    yield
    setattr(MATMUL, NAME, before)


def products(device: Any) -> Any:
    x = np.random.default_rng(1).standard_normal((300, 200)).astype(np.float32)
    with device.working():
        found = device.fetched(device.products(device.sent(x), device.sent(x)))
    exact = x.astype(np.float64) @ x.T.astype(np.float64)
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    return np.abs(found - exact).max() / lengths.max() ** 2, found


def test_products_have_all_digits_whatever_pytorch_is_set_to(device: Any, fewer_digits: None) -> None:
    for _ in range(2):
        with torch.autocast(device.name.partition(":")[0], dtype=torch.bfloat16), torch.enable_grad():
            off, found = products(device)
        assert off <= rounding(200)
        assert found.dtype == np.float32
    assert getattr(MATMUL, NAME) == FEWER  # as it was


def test_the_setting_is_as_it_was_when_the_last_of_two_workers_ends(device: Any, fewer_digits: None) -> None:
    one, other = device.working(), devices.opened("cpu").working()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert getattr(MATMUL, NAME) == FULL
    other.__exit__(None, None, None)
    assert getattr(MATMUL, NAME) == FEWER


def test_mapped_rows_that_may_not_be_written_are_sent_without_a_warning(device: Any) -> None:
    x = np.arange(12, dtype=np.float16).reshape(3, 4)
    x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with device.working():
            there = device.sent(x[1:])
            assert there.dtype == torch.float16
            there += 1  # a copy: the rows stay
            assert device.fetched(there).tolist() == (x[1:] + 1).tolist()
    assert x[1].tolist() == [4, 5, 6, 7]


def test_what_there_is_no_memory_for_is_told_so_that_less_can_be_asked_for(device: Any) -> None:
    with pytest.raises(DeviceFull, match="has too little memory"), device.working():
        device.zeros((1 << 30, 1 << 14))
    with device.working():
        assert device.fetched(device.zeros((1, 2))).tolist() == [[0, 0]]


def test_another_failure_says_what_to_do(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"failed: .*; SET vector_device = 'cpu'"), device.working():
        device.products(device.sent(np.ones((2, 3), np.float32)), device.sent(np.ones((2, 4), np.float32)))


def test_a_gpu_that_is_not_there_is_told_of_with_those_that_are() -> None:
    with pytest.raises(DeviceError, match=r"there is no device 'cuda:99': PyTorch \S+ sees .+; .+ SET vector_device"):
        devices.chosen("cuda:99", 1)
