"""The values that were asked for last, by key: what was read, planned or cut once is kept for when it comes again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `most` values, of at most `room` in all where sizes are given; the one asked for longest ago goes first.

    Thread-safe.
    """

    def __init__(self, most: int, room: int | None = None) -> None:
        self._most, self._room, self._taken = most, room, 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: K) -> V | None:
        """The value of a key; None where there is none."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def keep(self, key: K, value: V, size: int = 0) -> V:
        """Keep a value, which is returned."""
        with self._lock:
            self._drop(key)
            self._kept[key] = value, size
            self._taken += size
            while len(self._kept) > self._most or (self._room is not None and self._taken > self._room):
                self._drop(next(iter(self._kept)))
        return value

    def forget(self, key: K, value: V) -> None:
        """Keep a value no longer, where it is still the one of its key."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None and found[0] is value:
                self._drop(key)

    def _drop(self, key: K) -> None:
        found = self._kept.pop(key, None)
        self._taken -= found[1] if found else 0
