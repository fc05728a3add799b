"""Rows on their way to where they belong, in files by where that is: sorting more than memory holds, in two passes.

Records are appended to the file of their bucket as they come, and each bucket is read back whole later. Nothing is
written twice and nothing at random, whatever the order of the rows. What must stay true: a bucket keeps the order in
which its records came; after `sync` the files up to the sizes it returned survive a crash, and `Buckets` opened with
those sizes go on from there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buckets:
    """`count` append-only files of records of one dtype. A context manager, which closes them and leaves them there.

    sizes: records that each file shall begin with, as `sync` told; what came after is cut off. None: empty files.
    Errors of the operating system pass through, for the caller to translate.
    """

    def __init__(
        self, folder: Path, name: str, count: int, kind: np.dtype[Any], sizes: Sequence[int] | None = None
    ) -> None:
        self.kind = kind
        self._paths = [folder / f"{name}-{number}.scratch" for number in range(count)]
        self._sizes = list(sizes) if sizes is not None else [0] * count
        self._files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in self._paths]
        for file, size in zip(self._files, self._sizes, strict=True):
            os.ftruncate(file, size * kind.itemsize)
            os.lseek(file, 0, os.SEEK_END)

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)
        self._files = []

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, which: NDArray[np.integer], records: NDArray[Any]) -> None:
        """Append records (n,) to the buckets `which` (n,)."""
        order = np.argsort(which, kind="stable")
        sorted_records, present = records[order], np.unique(which)
        edges = [*np.searchsorted(which[order], present).tolist(), len(which)]
        for number, a, b in zip(present.tolist(), edges, edges[1:], strict=False):
            view = memoryview(sorted_records[a:b].tobytes())
            while view:
                view = view[os.write(self._files[number], view) :]
            self._sizes[number] += b - a

    def sync(self) -> list[int]:
        """Have all that was added survive a crash; returns the records in each bucket."""
        for file in self._files:
            os.fsync(file)
        return list(self._sizes)

    def read(self, number: int) -> NDArray[Any]:
        """All records of a bucket, in the order they came."""
        return np.fromfile(self._paths[number], self.kind)

    def remove(self, number: int) -> None:
        """Give the room of a bucket back."""
        self._paths[number].unlink()
