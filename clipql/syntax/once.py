"""A property that is found once: `functools.cached_property` without the lock that Python 3.11 has in it.

That lock is one for a property of all objects: while one thread reads a long statement, all others, the event loop of
a server too, would wait for it before they can read theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801 - used as a decorator, as `property` is
    """Found at the first use and kept with the object; where two threads find it at a time, both find the same."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, found_on: None, owner: type) -> once[T]: ...
    @overload
    def __get__(self, found_on: object, owner: type) -> T: ...
    def __get__(self, found_on: object | None, owner: type) -> once[T] | T:
        if found_on is None:
            return self
        value: T = found_on.__dict__.setdefault(self._name, self._find(found_on))
        return value
