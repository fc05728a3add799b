"""How Numba's machine code is kept on disk, also where the disk may only be read.

Numba refuses to compile a cached function where it can write none of its cache folders, and an error while it writes
there ends the call. What must stay true: a cache that cannot be written is still read, and costs a compilation where
it lacks something, never an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from numba import njit
from numba.core import caching

F = TypeVar("F", bound=Callable[..., Any])


class _Read:
    """A locator that asks for no permission to write, and is taken where the cache has something of the module."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        """The locator, or None."""
        try:
            made: Any = cls(py_func, py_file)  # type: ignore[call-arg]
            there = any(Path(made.get_cache_path()).glob(f"{Path(py_file).stem}.*.nbi"))
        except (OSError, TypeError):  # no folder was given by NUMBA_CACHE_DIR
            return None
        return made if there else None

    def ensure_cache_path(self) -> None:
        """Nothing is made."""


class _ReadProvided(_Read, caching.UserProvidedCacheLocator):  # type: ignore[misc]
    pass


class _ReadBeside(_Read, caching.InTreeCacheLocator):  # type: ignore[misc]
    pass


class _ReadHome(_Read, caching.UserWideCacheLocator):  # type: ignore[misc]
    pass


class _ReadNothing(_Read, caching.InTreeCacheLocator):  # type: ignore[misc]
    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file)


class _Results(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: ClassVar[list[type]] = [
        *caching.CompileResultCacheImpl._locator_classes, _ReadProvided, _ReadBeside, _ReadHome, _ReadNothing,
    ]  # fmt: skip


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _Results

    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        with contextlib.suppress(OSError):
            yield


def compiled(function: F, **options: Any) -> F:
    """A loop compiled by Numba without the GIL, kept on disk where that can be. options: those of `numba.njit`."""
    dispatcher: Any = njit(nogil=True, **options)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher  # type: ignore[no-any-return]
