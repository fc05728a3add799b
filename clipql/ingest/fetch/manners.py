"""How a run behaves towards a source: how long it waits, how fast it reads, and when it stops.

What must stay true: what a source asks for by Retry-After holds for all threads of a run; a wait ends at once when the
run is stopped.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TypeVar

from clipql.ingest.fetch.transport import Failure

_T = TypeVar("_T")

# a source that asks for more is given up for this run
LONGEST_RETRY_AFTER = 900.0


@dataclass(frozen=True)
class Patience:
    """How much a run bears. attempts: in succession that bring nothing. Times in seconds.

    timeout_seconds: of silence. slowest: bytes a second, over four times that; less is taken for a stall.
    unsized_bytes: of a file whose size the source does not tell.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    timeout_seconds: float = 30.0
    slowest: float = 1000.0
    unsized_bytes: int = 4 * 10**9


class Stopped(Exception):
    """The run was stopped, by Ctrl-C or because another thread has met what stops all."""


class Manners:
    """Shared by the threads of a run. rate: bytes a second of all of them, None for no limit."""

    def __init__(self, patience: Patience, rate: float | None = None) -> None:
        # a slow connection is no stall where we are slow on purpose
        slowest = min(patience.slowest, rate / 256) if rate else patience.slowest
        self.patience = replace(patience, slowest=slowest)
        self._rate, self._lock, self._stop = rate, threading.Lock(), threading.Event()
        self._free_at = self._quiet_until = time.monotonic()

    def stop(self) -> None:
        """Make every thread leave at its next step."""
        self._stop.set()

    def check(self) -> None:
        """Raise Stopped where the run was stopped."""
        if self._stop.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Stopped."""
        if seconds > 0:
            self._stop.wait(seconds)
        self.check()

    def pause(self) -> None:
        """Wait for as long as the source has asked all of us to."""
        while (seconds := self._quiet_until - time.monotonic()) > 0:
            self.sleep(seconds)
        self.check()

    def back_off(self, failures: int, asked: float | None = None) -> float:
        """Wait before another attempt, and return for how long.

        failures: attempts in succession that failed, from 1. asked: the seconds of a Retry-After. Without it the wait
        doubles, up to the longest; some of it is chance, so that many do not come back at one moment.
        """
        if asked is not None:
            seconds = asked + random.uniform(0, min(1.0, 0.1 * asked))
            with self._lock:
                self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
        else:
            whole = min(self.patience.longest_wait, self.patience.first_wait * 2.0 ** (failures - 1))
            seconds = random.uniform(0.5, 1.0) * whole
        self.sleep(seconds)
        return seconds

    def insist(self, ask: Callable[[], _T], waiting: Callable[[Failure], None] = lambda failure: None) -> _T:
        """The answer to a question, asked again where that may help. waiting: told before each wait. Raises Failure."""
        failures = 0
        while True:
            self.pause()
            try:
                return ask()
            except Failure as failure:
                failures += 1
                if not failure.again or failures >= self.patience.attempts:
                    raise
                waiting(failure)
                self.back_off(failures, failure.wait_seconds)

    def took(self, size: int) -> None:
        """Keep to the rate, after so many bytes."""
        if self._rate is None:
            self.check()
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        self.sleep(wait)


def retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, in either of its forms; None where there is none that can be read."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]{1,18}", value.strip()):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
