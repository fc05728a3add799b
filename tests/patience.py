"""How tests wait: for a state, however fast the machine is. Time-outs are a last net, under what hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

LAST_NET_SECONDS = 400


def until(is_so: Callable[[], object], what: str) -> None:
    """Wait until something is so. what: in words, for the error."""
    end = time.monotonic() + LAST_NET_SECONDS
    while not is_so():
        assert time.monotonic() < end, f"not within {LAST_NET_SECONDS} s: {what}"
        time.sleep(0.01)
